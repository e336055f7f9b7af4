#ifndef GENERATED_H
#define GENERATED_H
#include "weights.h"
typedef struct { float h[2][H], c[2][H]; int now; } peer_state;
void peer_init(peer_state *s);
void peer_step(peer_state *s, const float *x, float *y);
#endif
