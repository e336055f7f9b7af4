"""The layers of RTNeural JSON files: Keras order and layout, run causally one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlstm.converters.common.builder import Direction, GraphBuilder
from fastlstm.converters.common.json_fields import Fields, numbers
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["add_layer"]

_ACTIVATIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "softmax": ("Softmax", {"axis": -1}),
}


def add_layer(builder: GraphBuilder, value: str, size: int, layer: Fields, position: int) -> tuple[str, int]:
    """Add one layer to the graph.

    Parameters
    ----------
    builder : GraphBuilder
    value : str
        [batch, time, size].
    size : int
    layer : Fields
        The layer's JSON object.
    position : int
        Its place in the file, for names.

    Returns
    -------
    value : str
        [batch, time, out].
    out : int

    Raises
    ------
    UnsupportedError
        If the layer's type, activation or a field is not understood.
    FileFormatError
        If its weights do not have the sizes stated.
    """
    kind = layer.text("type")
    if kind not in _KINDS:
        raise UnsupportedError(f"{layer.where}: the type '{kind}' is not supported; supported: {', '.join(_KINDS)}.")
    add, extra = _KINDS[kind]
    layer.only("type", "name", "shape", "weights", "activation", *extra)
    return add(builder, value, size, layer, f"l{position}")


def _weights(layer: Fields, *shapes: tuple[int | None, ...]) -> list[Array]:
    arrays = layer.list("weights")
    if len(arrays) != len(shapes):
        raise FileFormatError(f"{layer.where}: expected {len(shapes)} arrays of weights; got {len(arrays)}.")
    return [
        numbers(array, f"{layer.where}: weights {position}", shape)
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]


def _recurrent(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    if layer.text("activation") not in ("", "tanh"):
        raise UnsupportedError(
            f"{layer.where}: the activation '{layer.text('activation')}' of a recurrent layer is not supported; "
            "supported: tanh."
        )
    H, op = layer.size("shape"), layer.text("type").upper()
    if op == "LSTM":  # i, f, c, o is the graph's own order
        kernel, recurrent, bias = _weights(layer, (size, 4 * H), (H, 4 * H), (4 * H,))
        direction = Direction(kernel.T, recurrent.T, bias)
    else:
        kernel, recurrent, biases = _weights(layer, (size, 3 * H), (H, 3 * H), (2, 3 * H))
        order = np.r_[H : 2 * H, :H, 2 * H : 3 * H]  # z, r, h to r, z, n
        direction = Direction(kernel.T[order], recurrent.T[order], biases[0][order], biases[1][order])
    y = builder.recurrent(op, builder.swap_time_and_batch(value), [direction], name=name)[0]
    return builder.swap_time_and_batch(y), H


def _dense(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    out = layer.size("shape")
    kernel, *bias = _weights(layer, (size, out), *_bias_shape(layer, out))
    value = builder.dense(value, kernel.T, bias[0] if bias else None, name)
    return _activation(builder, value, out, layer, name)


def _bias_shape(layer: Fields, size: int) -> list[tuple[int]]:
    """Return the shape of a layer's bias, nothing for a layer that Keras made with ``use_bias=False``."""
    return [] if len(layer.list("weights")) == 1 else [(size,)]


def _conv1d(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    """Causal: the input before the first step is zero, whatever padding the file states."""
    out, length = layer.size("shape"), layer.size("kernel_size")
    dilation, groups = layer.size("dilation", 1), layer.size("groups", 1)
    if size % groups or out % groups:
        raise FileFormatError(f"{layer.where}: {size} and {out} channels do not fall into {groups} groups.")
    if layer.size("strides", 1) != 1:
        raise UnsupportedError(f"{layer.where}: strides of {layer.size('strides')} are not supported; supported: 1.")
    kernel, *bias = _weights(layer, (length, size // groups, out), *_bias_shape(layer, out))
    turned = builder.node("Transpose", value, name=f"{name}.channels_first", perm=[0, 2, 1])
    y = builder.node(
        "Conv",
        turned,
        builder.constant(f"{name}.weight", kernel.transpose(2, 1, 0)),
        *[builder.constant(f"{name}.bias", array) for array in bias],
        name=f"{name}.conv",
        dilations=[dilation],
        group=groups,
        kernel_shape=[length],
        pads=[(length - 1) * dilation, 0],
        strides=[1],
    )
    return _activation(builder, builder.node("Transpose", y, name=name, perm=[0, 2, 1]), out, layer, name)


def _batchnorm(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    affine = len(layer.list("weights")) == 4
    parts = [array.astype(np.float64) for array in _weights(layer, *[(size,)] * (4 if affine else 2))]
    mean, variance = parts[-2:]
    gamma, beta = parts[:2] if affine else (np.ones(size), np.zeros(size))
    variance = variance + layer.number("epsilon", 1e-3)
    if (variance <= 0).any():
        raise FileFormatError(f"{layer.where}: a variance is not positive.")
    scale = gamma / np.sqrt(variance)
    factor = builder.constant(f"{name}.scale", scale.astype(np.float32))
    shift = builder.constant(f"{name}.shift", (beta - mean * scale).astype(np.float32))
    return builder.node("Add", builder.node("Mul", value, factor), shift, name=name), size


def _prelu(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    (slope,) = _weights(layer, (1, None))
    if slope.size not in (1, size):
        raise FileFormatError(f"{layer.where}: expected 1 or {size} slopes; got {slope.size}.")
    return builder.node("PRelu", value, builder.constant(f"{name}.slope", slope[0]), name=name), size


def _activation(builder: GraphBuilder, value: str, size: int, layer: Fields, name: str) -> tuple[str, int]:
    word = layer.text("activation")
    if word in ("", "linear"):
        return value, size
    if word not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{layer.where}: the activation '{word}' is not supported; supported: {', '.join(_ACTIVATIONS)}."
        )
    op, attrs = _ACTIVATIONS[word]
    return builder.node(op, value, name=f"{name}.{word}", **attrs), size


_Add = Callable[[GraphBuilder, str, int, Fields, str], tuple[str, int]]
_KINDS: Mapping[str, tuple[_Add, tuple[str, ...]]] = {
    "lstm": (_recurrent, ()),
    "gru": (_recurrent, ()),
    "dense": (_dense, ()),
    "time-distributed-dense": (_dense, ()),
    "conv1d": (_conv1d, ("kernel_size", "dilation", "groups", "padding", "strides")),
    "batchnorm": (_batchnorm, ("epsilon",)),
    "prelu": (_prelu, ()),
    "activation": (_activation, ()),
}
"""Layer types, how each is added, and the fields it has beside the common ones."""
