"""The float64 oracle against PyTorch in float64 and against Keras, where they have the same layer."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastlstm.operators import reference

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras

Array = npt.NDArray[Any]
T, B, F, H = 6, 4, 3, 7
ACTIVATIONS = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "softsign": "Softsign", "softplus": "Softplus",
    "linear": "Linear", "selu": "Selu", "gelu": "Gelu", "silu": "Silu", "exponential": "Exp", "elu": "Elu",
    "mish": "Mish",
}  # fmt: skip


def data() -> Array:
    return np.random.default_rng(0).standard_normal((T, B, F))


@pytest.mark.parametrize("projection", [0, 4])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_ragged_layers_of_torch(kind: str, projection: int) -> None:
    torch.manual_seed(0)
    more = {"proj_size": projection} if projection and kind == "LSTM" else {}
    module = getattr(torch.nn, kind)(F, H, bidirectional=True, dtype=torch.float64, **more)
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}

    def stacked(name: str) -> Array:
        return np.stack([p[f"{name}_l0"], p[f"{name}_l0_reverse"]])

    b_ih, b_hh = stacked("bias_ih"), stacked("bias_hh")
    bias = b_ih + b_hh
    if kind == "GRU":
        bias = np.concatenate([bias[:, : 2 * H], b_ih[:, 2 * H :], b_hh[:, 2 * H :]], axis=1)
    rng, lengths = np.random.default_rng(1), np.array([6, 2, 5, 1])
    h_0, c_0 = rng.standard_normal((2, B, projection if more else H)), rng.standard_normal((2, B, H))
    x = data()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
    )
    given = [torch.from_numpy(h_0), torch.from_numpy(c_0)][: 2 if kind == "LSTM" else 1]
    with torch.inference_mode():
        y, state = module(packed, tuple(given) if kind == "LSTM" else given[0])
    theirs = [torch.nn.utils.rnn.pad_packed_sequence(y)[0], *(state if kind == "LSTM" else [state])]
    options: dict[str, Any] = {"lengths": lengths, "h_0": h_0, "directions": ["forward", "reverse"]}
    if kind == "LSTM":
        options |= {"c_0": c_0, "w_hr": stacked("weight_hr") if more else None}
    layer = getattr(reference, kind.lower())
    ours = layer(x, stacked("weight_ih"), stacked("weight_hh"), bias, **options)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-12, atol=1e-12)  # both are float64


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU after", "GRU before", "SimpleRNN"])
def test_layers_of_keras_with_each_activation_and_a_mask(kind: str, name: str) -> None:
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {"activation": name, "return_sequences": True}
    if kind.startswith("GRU"):
        layer = keras.layers.GRU(H, reset_after=kind == "GRU after", **options)
    else:
        layer = getattr(keras.layers, kind)(H, **options)
    x, mask = data().transpose(1, 0, 2).astype(np.float32), np.random.default_rng(2).random((B, T)) < 0.7
    layer.build(x.shape)
    if name == "exponential":  # it feeds on itself: with weights of the usual size it overflows
        layer.set_weights([0.1 * w for w in layer.get_weights()])
    theirs = keras.ops.convert_to_numpy(layer(x, mask=mask))
    kernel, recurrent, bias = (keras.ops.convert_to_numpy(w).astype(float) for w in layer.weights)

    def ordered(array: Array, gates: tuple[int, ...]) -> Array:
        parts = np.split(array, len(gates), axis=-1)
        return np.concatenate([parts[g] for g in gates], axis=-1)

    steps = {"mask": mask.T}
    own = [ACTIVATIONS[name], None, None]
    if kind == "SimpleRNN":
        ours, _ = reference.rnn(
            x.transpose(1, 0, 2), kernel.T[None], recurrent.T[None], bias[None], activations=[[own]], **steps
        )
    elif kind == "LSTM":
        gates = [["Sigmoid", None, None], own, own]
        ours, _, _ = reference.lstm(
            x.transpose(1, 0, 2), kernel.T[None], recurrent.T[None], bias[None], activations=[gates], **steps
        )
    else:
        order = (1, 0, 2)  # Keras has z, r, h
        both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
        b_in, b_hn = (ordered(row, order) for row in both)
        joined = np.concatenate([(b_in + b_hn)[: 2 * H], b_in[2 * H :], b_hn[2 * H :]])
        ours, _ = reference.gru(
            x.transpose(1, 0, 2), ordered(kernel, order).T[None], ordered(recurrent, order).T[None], joined[None],
            activations=[[["Sigmoid", None, None], own]], reset_after=int(kind == "GRU after"), **steps,
        )  # fmt: skip
    # Keras computes in float32.
    np.testing.assert_allclose(ours.transpose(1, 0, 2), theirs, rtol=1e-4, atol=1e-5)
