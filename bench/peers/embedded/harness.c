/* Times one contestant in a process of its own: SAMPLES lines of nanoseconds a step, after the outputs of 64 steps.
 *
 *   harness SAMPLES STEPS
 *
 * A contestant brings peer.h: peer_state, peer_init, peer_step, and peer_run if BLOCK (the steps of a call) is above 1.
 * Each has the weights and the inputs of weights.h. */
#define _POSIX_C_SOURCE 199309L
#include "peer.h"
#include "weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef BLOCK
#define BLOCK 1
#endif
#define FRAMES 1024

static peer_state state;
static float x[FRAMES * I], y[FRAMES * O];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

static void block(int at)
{
#if BLOCK > 1
    peer_run(&state, x + at * I, y + at * O, BLOCK);
#else
    peer_step(&state, x + at * I, y + at * O);
#endif
}

int main(int count, char **words)
{
    const int samples = count > 1 ? atoi(words[1]) : 1, steps = count > 2 ? atoi(words[2]) : 64;
    for (int i = 0; i < FRAMES * I; i++)
        x[i] = inputs[i % (64 * I)];
    peer_init(&state);
    for (int i = 0; i < 64; i += BLOCK)
        block(i);
    for (int i = 0; i < 64 * O; i++)
        printf("%.9g ", y[i]);
    printf("\n");
    for (int sample = 0; sample <= samples; sample++) {
        const double begin = now();
        for (int i = 0; i < steps; i += BLOCK)
            block(i % FRAMES);
        if (sample) /* the first warms up */
            printf("%.3f\n", (now() - begin) / steps);
    }
    return 0;
}
