#ifndef RTNEURAL_PEER_H
#define RTNEURAL_PEER_H
typedef struct { int unused; } peer_state;
void peer_init(peer_state *s);
void peer_step(peer_state *s, const float *x, float *y);
#endif
