/* Steps and runs a model whose state, input and output each lie between two pages that must not be touched.
 * Two placements: against the page behind, as far as the alignment lets them, and right behind the page before. */
#define _GNU_SOURCE
#include "amp.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STEPS 100

static void *between(size_t bytes, size_t align, int at_end)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, room, PROT_READ | PROT_WRITE))
        _exit(9);
    return memory + page + (at_end ? (room - bytes) / align * align : 0);
}

int main(void)
{
    float first[STEPS];
    for (int at_end = 0; at_end < 2; at_end++) {
        amp_state *state = between(sizeof(amp_state), amp_STATE_ALIGN, at_end);
        float *x = between(STEPS * amp_X_SIZE * sizeof(float), sizeof(float), at_end);
        float *y = between(STEPS * amp_Y_SIZE * sizeof(float), sizeof(float), at_end);
        float *flat = between(amp_STATE_SIZE * sizeof(float), sizeof(float), at_end);
        float *one_x = between(sizeof(float), sizeof(float), at_end), *one_y = between(sizeof(float), sizeof(float), at_end);
        for (int i = 0; i < STEPS; i++)
            x[i] = (float)(i % 9) / 9;
        amp_init(state);
        for (int i = 0; i < STEPS; i++) {
            *one_x = x[i];
            amp_step(state, one_x, one_y);
            first[i] = *one_y;
        }
        amp_get_state(state, flat);
        amp_set_state(state, flat);
        amp_init(state);
        amp_run(state, x, y, STEPS);
        if (memcmp(first, y, sizeof first))
            return 1;
    }
    puts("untouched");
    return 0;
}
