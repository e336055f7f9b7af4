"""Keras's activations that are layers: ReLU, LeakyReLU, PReLU, ELU, Softmax, ThresholdedReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.converters.keras.weights import Slot
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["KINDS"]


def _relu(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Apply Keras's ReLU: x above the threshold, at most max_value, and a slope below the threshold."""
    x, emit, config = layer.emit.floats(layer.one(inputs)), layer.emit, layer.config
    slope, threshold = config.number("negative_slope", 0.0), config.number("threshold", 0.0)
    most = None if config.get("max_value") is None else config.number("max_value")
    if slope and not threshold and most is None:
        return [emit.like("LeakyRelu", x, alpha=slope)]
    y = emit.like("ThresholdedRelu", x, alpha=threshold) if threshold else emit.like("Relu", x)
    if most is not None:
        y = emit.like("Clip", y, emit.number(0.0), emit.number(most))
    if slope:
        below = emit.like("Min", emit.like("Sub", x, emit.number(threshold)), emit.number(0.0))
        y = emit.like("Add", y, emit.like("Mul", below, emit.number(slope)))
    return [y]


def _leaky_relu(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    key = "alpha" if layer.major == 2 else "negative_slope"
    return [layer.emit.like("LeakyRelu", layer.emit.floats(layer.one(inputs)), alpha=layer.config.number(key, 0.3))]


def _elu(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    alpha = layer.config.number("alpha", 1.0)
    return [layer.emit.like("Elu", layer.emit.floats(layer.one(inputs)), alpha=alpha)]


def _thresholded_relu(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    theta = layer.config.number("theta", 1.0)
    return [layer.emit.like("ThresholdedRelu", layer.emit.floats(layer.one(inputs)), alpha=theta)]


def _prelu(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, config = layer.emit.floats(layer.one(inputs)), layer.config
    shared = config.get("shared_axes")
    axes = [] if shared is None else config.integers("shared_axes", None)
    shape = [1 if axis in axes else x.size(axis, layer.label) for axis in range(1, x.rank)]
    return [layer.emit.like("PRelu", x, layer.constant("alpha", layer.weight("alpha", shape)))]


def _alpha(_config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("alpha")]


def _softmax(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, emit = layer.emit.floats(layer.one(inputs)), layer.emit
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int:
        raise UnsupportedError(f"{layer.label}: softmax over one axis is supported; got axis={axis!r:.40}.")
    if not -x.rank <= axis < x.rank:
        raise FileFormatError(f"{layer.label}: its input has no axis {axis}.")
    (mask,) = layer.arguments.masks("mask", [x])
    if mask is not None and mask.rank != x.rank:
        raise UnsupportedError(f"{layer.label}: a mask of time steps is not supported; it needs one for every element.")
    if mask is not None:
        x = emit.where(mask, x, -1e9, layer.label)
    y = emit.node("Softmax", x, shape=x.shape, axis=axis)
    return [y if mask is None else emit.where(mask, y, 0.0, layer.label).with_mask(mask)]


KINDS: Mapping[str, Kind] = {
    "ReLU": Kind(_relu, options="max_value, negative_slope, threshold"),
    "LeakyReLU": Kind(_leaky_relu),
    "ELU": Kind(_elu),
    "ThresholdedReLU": Kind(_thresholded_relu),
    "PReLU": Kind(_prelu, _alpha, "shared_axes"),
    "Softmax": Kind(_softmax, options="one axis", refused="several axes, masks of time steps"),
}
"""Activations as layers; all of them hand on their input's mask."""
