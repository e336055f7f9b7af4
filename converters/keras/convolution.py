"""Keras's convolutions and pooling layers.

Keras keeps the channels last, the graph's operators (ONNX's) keep them before the axes of space: the layers
are transposed around, and kernels [*window, in / groups, out] become [out, in / groups, *window].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.layer import Convert, Kind, Layer
from fastlstm.converters.keras.layers import activated, kernel_and_bias
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.converters.keras.weights import Slot
from fastlstm.errors import FileFormatError
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim

__all__ = ["KINDS", "channels_last", "spatial"]


def _channels_first(layer: Layer, x: Tensor) -> Tensor:
    return layer.emit.transpose(x, [0, x.rank - 1, *range(1, x.rank - 1)])


def channels_last(layer: Layer, x: Tensor) -> Tensor:
    """Return `x`, whose channels come first, with its channels last."""
    return layer.emit.transpose(x, [0, *range(2, x.rank), 1])


def _window(
    layer: Layer,
    sizes: Sequence[Dim],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
) -> tuple[dict[str, Any], list[Dim]]:
    """Return where the windows lie, as attributes of an operator, and the sizes of what comes out."""
    attrs: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilation)}
    before, after, outputs = [], [], []
    open_ended = False
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, dilation, strict=True)):
        extent = (k - 1) * d + 1
        if padding == "same":
            count = -(-size // s) if isinstance(size, int) else None
            total = extent - 1 if s == 1 else 0
            if s > 1 and isinstance(size, int) and count is not None:
                total = max((count - 1) * s + extent - size, 0)
            open_ended |= s > 1 and count is None
            pair = (total // 2, total - total // 2)
        else:
            pair = (extent - 1, 0) if padding == "causal" else (0, 0)
        before.append(pair[0])
        after.append(pair[1])
        outputs.append(_length(layer, size, s, sum(pair) - extent + 1, axis))
    if open_ended:  # the padding depends on a length that is known at run time only
        attrs["auto_pad"] = "SAME_UPPER"
    else:
        attrs["pads"] = [*before, *after]
    return attrs, outputs


def _length(layer: Layer, size: Dim, stride: int, growth: int, axis: int) -> Dim:
    """Return how many windows lie along an axis; with a stride of 1 there are `growth` more than steps."""
    if stride == 1:
        length = dims.add(size, growth)
    elif isinstance(size, int):
        length = (size + growth - 1) // stride + 1
    else:
        return f"{layer.name}.axis{axis}"
    if isinstance(length, int) and length < 1:
        raise FileFormatError(f"{layer.label}: its window is larger than its input, which has {size} steps.")
    return length


def _convolution(axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        config = layer.config
        filters, groups = config.integer("filters"), config.integer("groups", 1)
        config.choice("lora_rank", [None])
        config.ignore("lora_alpha")
        x, first, window = spatial(layer, inputs, axes)
        channels = x.size(1, layer.label)
        if channels % groups or filters % groups:
            raise FileFormatError(f"{layer.label}: {channels} channels and {filters} filters in {groups} groups.")
        kernel = layer.weight("kernel", (*window["kernel_size"], channels // groups, filters))
        weight = np.moveaxis(kernel, [-1, -2], [0, 1])
        y = _emit_convolution(layer, x, weight, filters, groups, window)
        return [activated(layer, y if first else channels_last(layer, y))]

    return convert


def _depthwise(axes: int, separable: bool) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        config = layer.config
        multiplier = config.integer("depth_multiplier", 1)
        config.choice("groups", [1, None], 1)
        filters = config.integer("filters") if separable else config.choice("filters", [None, 0])
        x, first, window = spatial(layer, inputs, axes)
        channels = x.size(1, layer.label)
        kernel = layer.weight("depthwise_kernel", (*window["kernel_size"], channels, multiplier))
        weight = np.moveaxis(kernel, [-2, -1], [0, 1]).reshape(channels * multiplier, 1, *window["kernel_size"])
        if not separable:
            y = _emit_convolution(layer, x, weight, channels * multiplier, channels, window)
        else:
            y = _emit_convolution(layer, x, weight, channels * multiplier, channels, {**window, "use_bias": False})
            ones = [1] * axes
            point = layer.weight("pointwise_kernel", (*ones, channels * multiplier, filters))
            single = {"kernel_size": ones, "strides": ones, "dilation_rate": ones, "padding": "valid"}
            weight = np.moveaxis(point, [-1, -2], [0, 1])
            y = _emit_convolution(layer, y, weight, filters, 1, {**window, **single})
        return [activated(layer, y if first else channels_last(layer, y))]

    return convert


def spatial(
    layer: Layer, inputs: Sequence[Tensor], axes: int, causal: bool = True
) -> tuple[Tensor, bool, dict[str, Any]]:
    """Return the input with its channels first, whether they were, and the options of the window."""
    config = layer.config
    x = layer.emit.floats(layer.rank(layer.one(inputs), axes + 2))
    first = layer.channels_first()
    paddings = (
        ["valid", "same", "causal"]
        if causal and axes == 1 and not (first or layer.kind.startswith("Depth"))
        else ["valid", "same"]
    )
    window = {
        "kernel_size": config.integers("kernel_size", axes),
        "strides": config.integers("strides", axes, 1),
        "dilation_rate": config.integers("dilation_rate", axes, 1),
        "padding": config.choice("padding", paddings, "valid"),
        "use_bias": config.flag("use_bias", True),
    }
    return (x.with_mask(None) if first else _channels_first(layer, x)), first, window


def _emit_convolution(
    layer: Layer, x: Tensor, weight: Any, filters: int, groups: int, window: Mapping[str, Any]
) -> Tensor:
    attrs, outputs = _window(
        layer, x.shape[2:], window["kernel_size"], window["strides"], window["dilation_rate"], window["padding"]
    )
    operands = [x, layer.constant("kernel", weight)]
    if window["use_bias"]:
        operands.append(layer.constant("bias", layer.weight("bias", (filters,))))
    return layer.emit.node("Conv", *operands, shape=(x.shape[0], filters, *outputs), group=groups, **attrs)


def _pooling(op: str, axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        config, emit = layer.config, layer.emit
        x = emit.floats(layer.rank(layer.one(inputs), axes + 2))
        first = layer.channels_first()
        x = x.with_mask(None) if first else _channels_first(layer, x)
        pool = config.integers("pool_size", axes, 2)
        strides = pool if config.get("strides") is None else config.integers("strides", axes)
        padding = config.choice("padding", ["valid", "same"], "valid")
        attrs, outputs = _window(layer, x.shape[2:], pool, strides, [1] * axes, padding)
        if op == "AveragePool":
            attrs["count_include_pad"] = 0
        y = emit.node(op, x, shape=(*x.shape[:2], *outputs), **attrs)
        return [y if first else channels_last(layer, y)]

    return convert


def _global_pooling(op: str, axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        emit = layer.emit
        x = emit.floats(layer.rank(layer.one(inputs), axes + 2))
        first = 2 if layer.channels_first() else 1
        keep, over = layer.config.flag("keepdims"), range(first, first + axes)
        mask = layer.arguments.masks("mask", [x])[0] if op == "ReduceMean" and axes == 1 else None
        if mask is None:
            return [emit.reduce(op, x, over, keep)]
        wide = emit.unsqueeze(mask, 3 - first)
        total = emit.reduce("ReduceSum", emit.where(wide, x, 0.0, layer.label), over, keep)
        steps = emit.reduce("ReduceSum", emit.cast(wide, "float32"), over, keep)
        return [emit.binary("Div", total, steps, layer.label)]

    return convert


def _depthwise_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("depthwise_kernel"), *([Slot("bias")] if config.get("use_bias", True) else [])]


def _separable_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    slots = [Slot("depthwise_kernel"), Slot("pointwise_kernel")]
    return [*slots, *([Slot("bias")] if config.get("use_bias", True) else [])]


_SHARED = "kernel_size, strides, dilation_rate, padding, data_format, use_bias, activation"

KINDS: Mapping[str, Kind] = {
    "Conv1D": Kind(_convolution(1), kernel_and_bias, f"{_SHARED}, causal padding, groups", "lora"),
    "Conv2D": Kind(_convolution(2), kernel_and_bias, f"{_SHARED}, groups", "lora"),
    "DepthwiseConv1D": Kind(_depthwise(1, False), _depthwise_slots, f"{_SHARED}, depth_multiplier", "causal padding"),
    "DepthwiseConv2D": Kind(_depthwise(2, False), _depthwise_slots, f"{_SHARED}, depth_multiplier"),
    "SeparableConv1D": Kind(_depthwise(1, True), _separable_slots, f"{_SHARED}, causal padding, depth_multiplier"),
    "SeparableConv2D": Kind(_depthwise(2, True), _separable_slots, f"{_SHARED}, depth_multiplier"),
    "MaxPooling1D": Kind(_pooling("MaxPool", 1)),
    "MaxPooling2D": Kind(_pooling("MaxPool", 2)),
    "AveragePooling1D": Kind(_pooling("AveragePool", 1)),
    "AveragePooling2D": Kind(_pooling("AveragePool", 2)),
    "GlobalMaxPooling1D": Kind(_global_pooling("ReduceMax", 1)),
    "GlobalMaxPooling2D": Kind(_global_pooling("ReduceMax", 2)),
    "GlobalAveragePooling1D": Kind(_global_pooling("ReduceMean", 1), options="all; masked steps do not count"),
    "GlobalAveragePooling2D": Kind(_global_pooling("ReduceMean", 2)),
}
"""Convolutions and pooling. None of them hands on a mask."""
