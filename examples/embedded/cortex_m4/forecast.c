/* The forecaster on a bare Cortex-M4: no operating system, no heap, 32-bit floats.
 *
 * The last years of a record lie in flash; the forecast for each month, a year ahead, goes to the debugger. */
#include "forecaster.h"

#include <math.h>
#include <stdio.h>

static const float spots[] = {
    /* January 2004 to December 2008, monthly means */
    37.3f, 45.8f, 49.1f, 39.3f, 41.5f, 43.2f, 51.1f, 40.9f, 27.7f, 48.0f, 43.5f, 17.9f,
    31.3f, 29.2f, 24.5f, 24.2f, 42.7f, 39.3f, 40.1f, 36.4f, 21.9f, 8.7f,  18.0f, 41.1f,
    15.3f, 4.9f,  10.6f, 30.2f, 22.3f, 13.9f, 12.2f, 12.9f, 14.4f, 10.5f, 21.4f, 13.6f,
    16.8f, 10.7f, 4.5f,  3.4f,  11.7f, 12.1f, 9.7f,  6.0f,  2.4f,  0.9f,  1.7f,  10.1f,
    3.3f,  2.1f,  9.3f,  2.9f,  3.2f,  3.4f,  0.8f,  0.5f,  1.1f,  2.9f,  4.1f,  0.8f,
};

static forecaster_state state; /* all the RAM that the model needs, beside its stack */

int main(void)
{
    const int months = (int)(sizeof spots / sizeof *spots);

    forecaster_init(&state);
    for (int month = 0; month < months; month++) {
        float x = sqrtf(spots[month]) / 10, y;
        forecaster_step(&state, &x, &y);
        if (month >= months - 12)
            printf("%d-%02d: %d.%01d spots a year later\n", 2004 + month / 12, month % 12 + 1, (int)(100 * y * y),
                   (int)(1000 * y * y) % 10);
    }
    printf("%u bytes of state\n", (unsigned)sizeof state);
    return 0;
}
