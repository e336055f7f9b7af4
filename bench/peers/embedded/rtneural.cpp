// RTNeural's templates, from a checkout: LSTMLayerT and DenseT with the sizes compiled in.
#include <RTNeural/RTNeural.h>

extern "C" {
#include "rtneural.h"
#include "weights.h"
}

#include <algorithm>
#include <new>
#include <vector>

namespace {
using Model = RTNeural::ModelT<float, I, O, RTNeural::LSTMLayerT<float, I, H>, RTNeural::DenseT<float, H, O>>;
alignas(64) unsigned char place[sizeof(Model)];
Model *model;

std::vector<std::vector<float>> rows(const float *from, int count, int length)
{
    std::vector<std::vector<float>> found;
    for (int k = 0; k < count; k++)
        found.emplace_back(from + k * length, from + (k + 1) * length);
    return found;
}
} // namespace

extern "C" void peer_init(peer_state *)
{
    model = new (place) Model;
    auto &lstm = model->template get<0>();
    lstm.setWVals(rows(weight_x_t, I, 4 * H));
    lstm.setUVals(rows(weight_h_t, H, 4 * H));
    lstm.setBVals(std::vector<float>(bias, bias + 4 * H));
    auto &layer = model->template get<1>();
    layer.setWeights(rows(dense, O, H));
    layer.setBias(dense_bias);
    model->reset();
}

extern "C" void peer_step(peer_state *, const float *x, float *y)
{
    alignas(64) float in[(I + 15) / 16 * 16] = {};
    std::copy(x, x + I, in);
    model->forward(in);
    std::copy(model->getOutputs(), model->getOutputs() + O, y);
}
