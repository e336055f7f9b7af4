/* Sunspots, forecast a year ahead: reads "month,number" lines, writes "month,number,forecast" lines.
 *
 *   ./forecast < sunspots.csv
 *
 * The model is one object and one header; its state is this program's own. */
#include "forecaster.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    static forecaster_state state;
    char line[128];

    forecaster_init(&state);
    while (fgets(line, sizeof line, stdin)) {
        char month[16];
        float number, x, y;
        if (sscanf(line, "%15[^,],%f", month, &number) != 2)
            continue; /* the heading */
        x = sqrtf(number) / 10;
        forecaster_step(&state, &x, &y);
        printf("%s,%.1f,%.9g\n", month, number, 100 * y * y);
    }

    /* A state has no pointers: a copy of it is a second stream, which goes its own way. */
    forecaster_state what_if;
    float quiet = 0, busy = 1.5f, without, with;
    memcpy(&what_if, &state, sizeof state);
    forecaster_step(&state, &quiet, &without);
    forecaster_step(&what_if, &busy, &with);
    fprintf(stderr, "after a month without spots %.0f, after one with 225 spots %.0f\n", 100 * without * without,
            100 * with * with);
    return 0;
}
