/* What a generator made of the model as ONNX, one step a call with its states as inputs and outputs.
 * CALL is its function, of x, h, c, y, next h, next c. */
#include "generated.h"
#include <string.h>

void CALL();

void peer_init(peer_state *s) { memset(s, 0, sizeof *s); }

void peer_step(peer_state *s, const float *x, float *y)
{
    CALL(x, s->h[s->now], s->c[s->now], y, s->h[!s->now], s->c[!s->now]);
    s->now = !s->now;
}
