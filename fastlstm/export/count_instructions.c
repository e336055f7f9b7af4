/* A plugin of QEMU that counts the instructions of one guest processor and writes the number to a file.
 *
 * Built by the machine's own compiler, without QEMU's header, which Debian does not ship: what is declared here is
 * the part of its plugin interface that all its versions have. VERSION is the version that the emulator asks for. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*call)(unsigned, void *), int flags,
                                          void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*call)(plugin_id, void *), void *data);

EXPORTED int qemu_plugin_version = VERSION;
EXPORTED int qemu_plugin_install(plugin_id id, const void *about, int argc, char **argv);

static char path[4096];
static uint64_t instructions;

static void executed(unsigned processor, void *in_block)
{
    (void)processor;
    instructions += (uintptr_t)in_block;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)qemu_plugin_tb_n_insns(block));
}

static void finished(plugin_id id, void *data)
{
    FILE *file = fopen(path, "w");
    (void)id, (void)data;
    if (file) {
        fprintf(file, "%llu\n", (unsigned long long)instructions);
        fclose(file);
    }
}

int qemu_plugin_install(plugin_id id, const void *about, int argc, char **argv)
{
    (void)about;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || strlen(argv[0] + 4) >= sizeof path)
        return 1;
    strcpy(path, argv[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
