// Linked in by `make audio/alone`: stops the program where the audio thread asks for memory or gives some back.
#include <cstddef>
#include <cstdlib>
#include <unistd.h>

extern thread_local bool on_audio_thread;

extern "C" {
void *__libc_malloc(std::size_t bytes);
void *__libc_calloc(std::size_t count, std::size_t bytes);
void *__libc_realloc(void *memory, std::size_t bytes);
void __libc_free(void *memory);

static void check()
{
    static const char words[] = "memory was asked for on the audio thread\n";
    if (on_audio_thread) {
        (void)!write(STDERR_FILENO, words, sizeof words - 1);
        _exit(3);
    }
}

void *malloc(std::size_t bytes) { check(); return __libc_malloc(bytes); }
void *calloc(std::size_t count, std::size_t bytes) { check(); return __libc_calloc(count, bytes); }
void *realloc(void *memory, std::size_t bytes) { check(); return __libc_realloc(memory, bytes); }
void free(void *memory) { check(); __libc_free(memory); }
}
