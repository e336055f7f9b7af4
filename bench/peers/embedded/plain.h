#ifndef PLAIN_H
#define PLAIN_H
#include "weights.h"
typedef struct { float h[H], c[H]; } peer_state;
void peer_init(peer_state *s);
void peer_step(peer_state *s, const float *x, float *y);
#endif
