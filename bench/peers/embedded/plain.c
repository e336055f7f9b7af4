/* LSTM and Dense as they are written by hand: weights as arrays, loops, the library's functions.
 * With TRANSPOSED the products run along the gates, which vectorises better. */
#include "plain.h"
#include "weights.h"
#include <math.h>
#include <string.h>

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

void peer_init(peer_state *s) { memset(s, 0, sizeof *s); }

void peer_step(peer_state *s, const float *x, float *y)
{
    float z[4 * H];
#ifdef TRANSPOSED
    memcpy(z, bias, sizeof z);
    for (int k = 0; k < I; k++)
        for (int r = 0; r < 4 * H; r++)
            z[r] += weight_x_t[k * 4 * H + r] * x[k];
    for (int k = 0; k < H; k++)
        for (int r = 0; r < 4 * H; r++)
            z[r] += weight_h_t[k * 4 * H + r] * s->h[k];
#else
    for (int r = 0; r < 4 * H; r++) {
        float sum = bias[r];
        for (int k = 0; k < I; k++)
            sum += weight_x[r * I + k] * x[k];
        for (int k = 0; k < H; k++)
            sum += weight_h[r * H + k] * s->h[k];
        z[r] = sum;
    }
#endif
    for (int j = 0; j < H; j++) {
        s->c[j] = sigmoid(z[H + j]) * s->c[j] + sigmoid(z[j]) * tanhf(z[2 * H + j]);
        s->h[j] = sigmoid(z[3 * H + j]) * tanhf(s->c[j]);
    }
    for (int o = 0; o < O; o++) {
        float sum = dense_bias[o];
        for (int j = 0; j < H; j++)
            sum += dense[o * H + j] * s->h[j];
        y[o] = sum;
    }
}
