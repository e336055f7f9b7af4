/* Steps, runs and ends a stream whose state, input and output each lie between two pages that must not be touched.
 * Two placements: against the page behind, as far as the alignment lets them, and right behind the page before. */
#define _GNU_SOURCE
#include "amp.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STEPS 100
#define TAIL (amp_TAIL * (amp_Y_SIZE / amp_Y_FRAMES))

static void *between(size_t numbers, size_t align, int at_end)
{
    const size_t bytes = numbers * sizeof(float), page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, room, PROT_READ | PROT_WRITE))
        _exit(9);
    return memory + page + (at_end ? (room - bytes) / align * align : 0);
}

int main(void)
{
    static float first[STEPS * amp_Y_SIZE];
    for (int at_end = 0; at_end < 2; at_end++) {
        amp_state *state = between(sizeof(amp_state) / sizeof(float), amp_STATE_ALIGN, at_end);
        float *x = between(STEPS * amp_X_SIZE, sizeof(float), at_end);
        float *y = between(STEPS * amp_Y_SIZE, sizeof(float), at_end);
        float *flat = between(amp_STATE_SIZE, sizeof(float), at_end);
        float *one_x = between(amp_X_SIZE, sizeof(float), at_end), *one_y = between(amp_Y_SIZE, sizeof(float), at_end);
        float *tail = between(TAIL, sizeof(float), at_end);
        for (int i = 0; i < STEPS * amp_X_SIZE; i++)
            x[i] = (float)(i % 9) / 9;
        amp_init(state);
        for (int i = 0; i < STEPS; i++) {
            memcpy(one_x, x + i * amp_X_SIZE, amp_X_SIZE * sizeof(float));
            amp_step(state, one_x, one_y);
            memcpy(first + i * amp_Y_SIZE, one_y, amp_Y_SIZE * sizeof(float));
        }
        amp_get_state(state, flat);
        amp_set_state(state, flat);
        if (amp_finish(state, tail) != amp_TAIL)
            return 2;
        amp_init(state);
        amp_run(state, x, y, STEPS);
        if (memcmp(first, y, sizeof first))
            return 1;
        for (int steps = 0; steps < 6; steps++) {
            amp_init(state);
            amp_run(state, x, y, (size_t)steps);
            if (amp_finish(state, tail) > amp_TAIL)
                return 3;
        }
    }
    puts("untouched");
    return 0;
}
