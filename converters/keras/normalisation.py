"""Keras's layers that shift and scale: BatchNormalization, LayerNormalization and their like, Rescaling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.converters.keras.weights import Slot
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators import dims
from fastlstm.typing import Array

__all__ = ["KINDS"]

_KERAS_EPSILON = 1e-7
_LARGEST = 1 << 24  # numbers normalised together: more than any layer has, and no memory is taken for more


def _axes(layer: Layer, x: Tensor, default: int) -> list[int]:
    """Return the option axis as a sorted list of axes counted from 0."""
    given = layer.config.get("axis", default)
    given = given if isinstance(given, list) else [given]
    if any(type(axis) is not int or not -x.rank <= axis < x.rank for axis in given):
        raise FileFormatError(f"{layer.label}: axis should be within its input's {x.rank} axes; got {given!r:.80}.")
    return sorted({axis % x.rank for axis in given})


def _sizes(layer: Layer, x: Tensor, axes: Sequence[int]) -> list[int]:
    """Return the sizes of `axes`, which the file alone may state where a layer has no weights."""
    sizes = [x.size(axis, layer.label) for axis in axes]
    if math.prod(sizes) > _LARGEST:
        raise UnsupportedError(f"{layer.label}: at most {_LARGEST} numbers are normalised together; got {sizes}.")
    return sizes


def _scaled(layer: Layer, x: Tensor, scale: Array, offset: Array) -> Tensor:
    """Return x * scale + offset."""
    emit = layer.emit
    y = emit.binary("Mul", x, layer.constant("scale", scale), layer.label)
    y = emit.binary("Add", y, layer.constant("offset", offset), layer.label)
    if y.shape != x.shape:
        raise FileFormatError(f"{layer.label}: its numbers do not fit the input's shape {list(x.shape)}.")
    return y.with_mask(x.mask)


def _batch_normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    config = layer.config
    x = layer.emit.floats(layer.one(inputs))
    x = x.with_mask(layer.arguments.masks("mask", [x])[0])
    axes = _axes(layer, x, -1)
    config.choice("renorm", [False, None], False)
    config.choice("virtual_batch_size", [None])
    config.choice("adjustment", [None])
    config.ignore("momentum", "synchronized", "fused", "renorm_clipping", "renorm_momentum")
    if len(axes) != 1:
        raise UnsupportedError(f"{layer.label}: axis should be a single one; got {axes}.")
    (size,) = _sizes(layer, x, axes)
    gamma, beta = np.ones(size), np.zeros(size)
    if config.flag("scale", True):
        gamma = layer.weight("gamma", (size,)).astype(np.float64)
    if config.flag("center", True):
        beta = layer.weight("beta", (size,)).astype(np.float64)
    mean = layer.weight("moving_mean", (size,)).astype(np.float64)
    variance = layer.weight("moving_variance", (size,)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # a damaged file may hold anything
        scale = gamma / np.sqrt(variance + config.number("epsilon", 1e-3))
        offset = beta - mean * scale
    shape = [size] + [1] * (x.rank - 1 - axes[0])
    return [_scaled(layer, x, scale.reshape(shape), offset.reshape(shape))]


def _batch_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [
        *_scale_slots(config, _major),
        Slot("moving_mean", trainable=False),
        Slot("moving_variance", trainable=False),
    ]


def _scale_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot(name) for name, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True)]


def _layer_normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    config = layer.config
    x = layer.emit.floats(layer.one(inputs))
    axes = _axes(layer, x, -1)
    config.choice("rms_scaling", [False], False)
    order = [*(axis for axis in range(x.rank) if axis not in axes), *axes]
    lined = layer.emit.transpose(x, order)
    shape = _sizes(layer, x, axes)
    gamma = layer.weight("gamma", shape) if config.flag("scale", True) else np.ones(shape)
    operands = [lined, layer.constant("gamma", gamma)]
    if config.flag("center", True):
        operands.append(layer.constant("beta", layer.weight("beta", shape)))
    epsilon = config.number("epsilon", 1e-3)
    y = layer.emit.node("LayerNormalization", *operands, shape=lined.shape, axis=-len(axes), epsilon=epsilon)
    return [layer.emit.transpose(y, [order.index(axis) for axis in range(x.rank)]).with_mask(x.mask)]


def _along(layer: Layer, x: Tensor, axes: Sequence[int], array: Array) -> Array:
    """Return numbers for `axes` in a shape that goes with `x`."""
    return array.reshape([x.size(axis, layer.label) if axis in axes else 1 for axis in range(x.rank)])


def _rms_normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return x / sqrt(mean(x^2) + epsilon) * scale."""
    x, emit = layer.emit.floats(layer.one(inputs)), layer.emit
    axes = _axes(layer, x, -1)
    scale = _along(layer, x, axes, layer.weight("scale", _sizes(layer, x, axes)))
    mean = emit.reduce("ReduceMean", emit.like("Mul", x, x), axes, keepdims=True)
    root = emit.like("Sqrt", emit.like("Add", mean, emit.number(layer.config.number("epsilon", 1e-6))))
    return [emit.like("Mul", emit.like("Div", x, root), layer.constant("scale", scale)).with_mask(None)]


def _unit_normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return x divided by its length, which counts as at least 1e-12 (Keras 2: 1e-6)."""
    x, emit = layer.emit.floats(layer.one(inputs)), layer.emit
    axes = _axes(layer, x, -1)
    length = emit.like("Sqrt", emit.reduce("ReduceSum", emit.like("Mul", x, x), axes, keepdims=True))
    least = emit.like("Max", length, emit.number(1e-12 if layer.major == 3 else 1e-6))
    return [emit.like("Div", x, least)]


def _group_normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Normalise groups of neighbouring channels, each over its channels and everything else but the batch."""
    config, emit = layer.config, layer.emit
    x = emit.floats(layer.one(inputs))
    if x.mask is not None and layer.major == 2:
        raise UnsupportedError(f"{layer.label}: a mask, whose steps do not count in Keras 2, is not supported.")
    given = config.integer("axis", -1, minimum=-1)
    axis = given % x.rank
    if not given < x.rank or axis == 0:
        raise FileFormatError(f"{layer.label}: axis should be one behind the batch; got {given}.")
    (channels,) = _sizes(layer, x, [axis])
    groups = channels if config.get("groups", 32) == -1 else config.integer("groups", 32)
    if channels % groups:
        raise FileFormatError(f"{layer.label}: {channels} channels do not fall into {groups} groups.")
    order = [0, axis, *(i for i in range(1, x.rank) if i != axis)]
    lined = emit.transpose(x, order)
    size = dims.product([channels // groups, *lined.shape[2:]])
    grouped = emit.reshape(lined, [0, groups, size if isinstance(size, int) else -1], (x.shape[0], groups, size))
    centred = emit.like("Sub", grouped, emit.reduce("ReduceMean", grouped, [2], keepdims=True))
    variance = emit.reduce("ReduceMean", emit.like("Mul", centred, centred), [2], keepdims=True)
    root = emit.like("Sqrt", emit.like("Add", variance, emit.number(config.number("epsilon", 1e-3))))
    y = emit.node("Reshape", emit.like("Div", centred, root), emit.sizes(lined, 0, lined.rank), shape=lined.shape)
    y = emit.transpose(y, [order.index(i) for i in range(x.rank)])
    gamma = layer.weight("gamma", (channels,)) if config.flag("scale", True) else np.ones(channels)
    beta = layer.weight("beta", (channels,)) if config.flag("center", True) else np.zeros(channels)
    return [_scaled(layer, y, *(_along(layer, x, [axis], array) for array in (gamma, beta))).with_mask(x.mask)]


def _rms_slots(_config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("scale")]


def _numbers(layer: Layer, key: str, default: float) -> Array:
    """Return an option that is a number or a nest of lists of numbers."""
    value = layer.config.get(key, default)
    if isinstance(value, dict) and isinstance(value.get("config"), dict):  # {"class_name": "__numpy__", ...}
        value = value["config"].get("value")
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.ndim > 8 or not np.isfinite(array).all():
        raise FileFormatError(f"{layer.label}: {key} should be numbers; got {value!r:.80}.")
    return array


def _unmasked_in_keras_2(layer: Layer, x: Tensor) -> Tensor:
    return x.with_mask(None) if layer.major == 2 else x


def _rescaling(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = _unmasked_in_keras_2(layer, layer.emit.floats(layer.one(inputs)))
    return [_scaled(layer, x, _numbers(layer, "scale", 1.0), _numbers(layer, "offset", 0.0))]


def _normalization(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    config = layer.config
    x = _unmasked_in_keras_2(layer, layer.emit.floats(layer.one(inputs)))
    axes = [] if config.get("axis", -1) is None else _axes(layer, x, -1)
    shape = _sizes(layer, x, axes)
    if config.get("mean") is None and config.get("variance") is None:
        mean, variance = (layer.weight(name, shape).astype(np.float64) for name in ("mean", "variance"))
        layer.weight("count", ())
    else:
        mean, variance = (np.broadcast_to(_numbers(layer, key, 0.0), shape) for key in ("mean", "variance"))
    wide = [x.shape[axis] if axis in axes else 1 for axis in range(x.rank)]
    mean, variance = (array.reshape([int(size) for size in wide]) for array in (mean, variance))
    with np.errstate(invalid="ignore"):
        deviation = np.maximum(np.sqrt(variance), _KERAS_EPSILON)
    if config.flag("invert"):
        return [_scaled(layer, x, deviation, mean)]
    return [_scaled(layer, x, 1 / deviation, -mean / deviation)]


def _normalization_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    names = ["mean", "variance", "count"] if config.get("mean") is None else []
    return [Slot(name, trainable=False) for name in names]


KINDS: Mapping[str, Kind] = {
    "BatchNormalization": Kind(
        _batch_normalization, _batch_slots, "axis, epsilon, center, scale, by the moving averages", "renorm"
    ),
    "LayerNormalization": Kind(_layer_normalization, _scale_slots, "axis, epsilon, center, scale", "rms_scaling"),
    "GroupNormalization": Kind(
        _group_normalization, _scale_slots, "groups, axis, epsilon, center, scale", "masks of Keras 2"
    ),
    "RMSNormalization": Kind(_rms_normalization, _rms_slots, "axis, epsilon"),
    "UnitNormalization": Kind(_unit_normalization, options="axis"),
    "Normalization": Kind(_normalization, _normalization_slots, "axis, mean and variance, adapted or given, invert"),
    "Rescaling": Kind(_rescaling, options="scale, offset"),
}
"""Layers that normalise; but for RMSNormalization all hand on their input's mask, the last two in Keras 3 only."""
