/* Start-up and semihosting for a bare Cortex-M: what the C library needs to run main() and to print.
 *
 * Output and the exit status go to the debugger or emulator (Arm's semihosting: "bkpt 0xab", operation in r0,
 * its argument in r1). Linked with cortex_m.ld. */
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end, heap_start, heap_end;
int main(void);
void reset(void);

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_EXIT_EXTENDED = 0x20 };
enum { APPLICATION_EXIT = 0x20026 };

static int semihosting(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void _exit(int status)
{
    const uint32_t reason[2] = {APPLICATION_EXIT, (uint32_t)status};
    for (;;)
        semihosting(SYS_EXIT_EXTENDED, reason);
}

int _write(int file, const char *text, int count)
{
    static int console = -1;
    (void)file;
    if (console < 0) {
        static const char name[] = ":tt";
        const uint32_t open[3] = {(uint32_t)name, 4 /* "w" */, sizeof name - 1};
        console = semihosting(SYS_OPEN, open);
    }
    const uint32_t write[3] = {(uint32_t)console, (uint32_t)text, (uint32_t)count};
    return count - semihosting(SYS_WRITE, write);
}

void *_sbrk(int count)
{
    static char *end = (char *)&heap_start;
    char *start = end;
    if (count > (char *)&heap_end - end)
        return (void *)-1;
    end += count;
    return start;
}

int _read(int file, char *text, int count) { (void)file, (void)text, (void)count; return 0; }
int _close(int file) { (void)file; return 0; }
int _lseek(int file, int offset, int whence) { (void)file, (void)offset, (void)whence; return 0; }
int _isatty(int file) { (void)file; return 1; }
int _getpid(void) { return 1; }
int _kill(int process, int signal) { (void)process, (void)signal; return -1; }
int _fstat(int file, struct stat *about)
{
    (void)file;
    about->st_mode = S_IFCHR;
    return 0;
}

static void fault(void) { _exit(99); }

void reset(void)
{
    memcpy(&data_start, &data_load, (size_t)((char *)&data_end - (char *)&data_start));
    memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
#if defined(__ARM_FP)
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit, and MVE with it */
    __asm__ volatile("dsb\n\tisb");
#endif
    _exit(main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, fault,
};
