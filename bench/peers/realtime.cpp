// A real-time LSTM as a C++ library with compile-time sizes writes it: a stand-in for RTNeural.
//
// The structure is that of RTNeural's LSTMLayerT and DenseT (RTNeural/lstm/lstm_eigen.h, revision 063810e: sizes are
// template parameters, the gates' sums are bias + U h + W x, then sigmoid as 1 / (1 + exp(-x)) and tanh over whole
// vectors), with the four gates in one matrix, so that the sums stay in registers. Written for this benchmark, with
// GCC's vectors in place of Eigen. Compile with -O3 -march=native -ffast-math.
//
// One function a size: run_H(weights, state, x, y, n). `weights` holds [H + 2, 4, H] (rows: h, x, 1; gates i, f, g, o)
// and the dense layer's [H]; `state` h [H] and c [H].

#include <cmath>

template <int H>
static void run(const float* __restrict weights, float* __restrict state, const float* __restrict x,
                float* __restrict y, int n) {
    constexpr int columns = 4 * H, width = columns <= 160 ? columns : 128;
    alignas(64) float w[(H + 2) * columns], dense[H], in[H + 2], c[H], z[columns];
    for (int i = 0; i < (H + 2) * columns; ++i) w[i] = weights[i];
    for (int i = 0; i < H; ++i) dense[i] = weights[(H + 2) * columns + i], in[i] = state[i], c[i] = state[H + i];
    in[H + 1] = 1.0f;
    for (int t = 0; t < n; ++t) {
        in[H] = x[t];
        for (int start = 0; start < columns; start += width) {
            float sums[width];
            for (int j = 0; j < width; ++j) sums[j] = w[(H + 1) * columns + start + j];
            for (int k = 0; k < H + 1; ++k)
                for (int j = 0; j < width; ++j) sums[j] += w[k * columns + start + j] * in[k];
            for (int j = 0; j < width; ++j) z[start + j] = sums[j];
        }
        float total = 0.0f;
        for (int j = 0; j < H; ++j) {
            const float i = 1.0f / (1.0f + std::exp(-z[j])), f = 1.0f / (1.0f + std::exp(-z[H + j]));
            const float g = std::tanh(z[2 * H + j]), o = 1.0f / (1.0f + std::exp(-z[3 * H + j]));
            c[j] = f * c[j] + i * g;
            in[j] = o * std::tanh(c[j]);
        }
        for (int j = 0; j < H; ++j) total += dense[j] * in[j];
        y[t] = total;
    }
    for (int i = 0; i < H; ++i) state[i] = in[i], state[H + i] = c[i];
}

#define SIZE(H)                                                                                     \
    extern "C" void run_##H(const float* weights, float* state, const float* x, float* y, int n) { \
        run<H>(weights, state, x, y, n);                                                            \
    }

SIZE(8)
SIZE(16)
SIZE(20)
SIZE(24)
SIZE(32)
SIZE(40)
SIZE(64)
