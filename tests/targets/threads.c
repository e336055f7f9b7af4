/* Eight threads, each with a state of an array: what they compute is what one thread computes. */
#include "amp.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define THREADS 8
#define STEPS 200

static amp_state states[THREADS];
static float wanted[STEPS], found[THREADS][STEPS];

static void *work(void *at)
{
    const int thread = *(int *)at;
    amp_init(&states[thread]);
    for (int i = 0; i < STEPS; i++) {
        float x = (float)(i % 11) / 11;
        amp_step(&states[thread], &x, &found[thread][i]);
    }
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
