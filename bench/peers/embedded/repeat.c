/* Calls a kernel of the engine again and again, as its entry from Python calls it once. */
#include <stdint.h>

void repeat(int64_t (*kernel)(int64_t, int64_t, int64_t), int64_t code, int64_t frame, int64_t times)
{
    while (times--)
        kernel(code, frame, 0);
}
