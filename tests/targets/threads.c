/* Eight threads, each with a state of an array: what they compute is what one thread computes. */
#include "amp.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define THREADS 8
#define STEPS 200
#define TAIL (amp_TAIL * (amp_Y_SIZE / amp_Y_FRAMES))

static amp_state states[THREADS];
static float wanted[STEPS * amp_Y_SIZE + TAIL], found[THREADS][STEPS * amp_Y_SIZE + TAIL];

static void *work(void *at)
{
    const int thread = *(int *)at;
    float x[amp_X_SIZE];
    amp_init(&states[thread]);
    for (int i = 0; i < STEPS; i++) {
        for (int k = 0; k < amp_X_SIZE; k++)
            x[k] = (float)((i + k) % 11) / 11;
        amp_step(&states[thread], x, found[thread] + i * amp_Y_SIZE);
    }
    amp_finish(&states[thread], found[thread] + STEPS * amp_Y_SIZE);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    int numbers[THREADS] = {0};
    work(&numbers[0]);
    memcpy(wanted, found[0], sizeof wanted);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, work, &numbers[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        if (memcmp(wanted, found[i], sizeof wanted))
            return 1;
    puts("alike");
    return 0;
}
