"""Keras's transposed convolutions, which make a signal longer: every input step is spread over a window.

The output has ``size * stride`` steps with padding "same" and ``(size - 1) * stride + max(window, stride)``
with "valid"; with "same" what the window overhangs is cut, the smaller half in front, as TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.convolution import channels_last, spatial
from fastlstm.converters.keras.layer import Convert, Kind, Layer
from fastlstm.converters.keras.layers import activated, kernel_and_bias
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim

__all__ = ["KINDS"]


def _transposed(axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        emit, config = layer.emit, layer.config
        filters = config.integer("filters")
        config.choice("output_padding", [None])
        config.choice("groups", [1, None], 1)
        x, first, window = spatial(layer, inputs, axes, causal=False)
        kernel = layer.weight("kernel", (*window["kernel_size"], filters, x.size(1, layer.label)))
        operands = [x, layer.constant("kernel", np.moveaxis(kernel, [-1, -2], [0, 1]))]
        if window["use_bias"]:
            operands.append(layer.constant("bias", layer.weight("bias", (filters,))))
        attrs, sizes = _window(x.shape[2:], window)
        y = emit.node("ConvTranspose", *operands, shape=(x.shape[0], filters, *sizes), group=1, **attrs)
        return [activated(layer, y if first else channels_last(layer, y))]

    return convert


def _window(sizes: Sequence[Dim], window: Mapping[str, Any]) -> tuple[dict[str, Any], list[Dim]]:
    """Return the attributes of the operator, and the sizes of what comes out."""
    before, after, more, outputs = [], [], [], []
    for size, k, s, d in zip(sizes, window["kernel_size"], window["strides"], window["dilation_rate"], strict=True):
        extent = (k - 1) * d + 1
        cut = max(extent - s, 0) if window["padding"] == "same" else 0
        before.append(cut // 2)
        after.append(cut - cut // 2)
        more.append(max(s - extent, 0))
        growth = 0 if window["padding"] == "same" else max(extent - s, 0)
        outputs.append(dims.add(dims.multiply(size, s), growth))
    return {
        "kernel_shape": list(window["kernel_size"]),
        "strides": list(window["strides"]),
        "dilations": list(window["dilation_rate"]),
        "pads": [*before, *after],
        "output_padding": more,
    }, outputs


_OPTIONS = "kernel_size, strides, dilation_rate, padding, data_format, use_bias, activation"

KINDS: Mapping[str, Kind] = {
    "Conv1DTranspose": Kind(_transposed(1), kernel_and_bias, _OPTIONS, "output_padding"),
    "Conv2DTranspose": Kind(_transposed(2), kernel_and_bias, _OPTIONS, "output_padding"),
}
"""Transposed convolutions. None of them hands on a mask."""
