"""Convolution over any number of spatial axes: a product of matrices for each tap of the kernel."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.activations import silu
from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.rules import differ, window_sizes, windows_fit
from fastlstm.operators.sizes import checked_shape
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.operators.windows import Windows, padded, windows
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET",
    group: int = 1,
    integers: int = 0,  # noqa: ARG001
) -> Array:
    """Return the convolution of x [N, C, ...] with weight [M, C / group, ...] plus bias [M].

    ::

        y[n, m, o] = bias[m] + sum over c, k of weight[m, c, k] * x[n, c, o * stride + k * dilation - pad]

    With `integers`, the operands hold integers of 9 bits whose sums are exact in float32, so that kernels
    may multiply integers. The result is the same.
    """
    if x.dtype == np.float16:  # sums in float32, as other engines have them
        y = conv(
            x.astype(np.float32), weight.astype(np.float32), None if bias is None else bias.astype(np.float32),
            kernel_shape=kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, group=group,
        )  # fmt: skip
        return y.astype(x.dtype)
    N, C, *sizes = x.shape
    M, channels, *kernel = weight.shape
    _check(x, weight, kernel_shape, C, channels * group, M % group == 0)
    _check_bias(bias, M)
    w = windows(sizes, kernel, strides, dilations, pads, auto_pad)
    around = padded(x, w.before, w.after)
    around = around.reshape(N, group, channels, *around.shape[2:])
    taps = weight.reshape(group, M // group, channels, -1)
    y = np.zeros((N, group, M // group, math.prod(w.outputs)), dtype=x.dtype)
    for i, offsets in enumerate(itertools.product(*map(range, kernel))):
        rows = around[w.tap(offsets)].reshape(N, group, channels, y.shape[-1])
        y += taps[..., i] @ rows
    y = y.reshape(N, M, *w.outputs)
    return y if bias is None else y + bias.reshape(-1, *([1] * len(sizes)))


def causal_conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    past: Array | None = None,
    *,
    activation: Literal["none", "silu", "swish"] = "none",
) -> tuple[Array, Array]:
    """Return each channel of x [N, C, T] convolved with its own weight [C, 1, k], and the state for what follows.

    The state [N, C, k - 1] is the last inputs; `past` is that of the call before, zeros if it is absent. ::

        y[n, c, t] = bias[c] + sum over i of weight[c, 0, i] * (past, x)[n, c, t + i]
    """
    kept = np.zeros((*x.shape[:2], weight.shape[2] - 1), x.dtype) if past is None else past
    around = np.concatenate([kept, x], axis=2)
    y = conv(around, weight, bias, group=x.shape[1])
    y = y if activation == "none" else silu(y.astype(np.float32)).astype(x.dtype)
    return y, around[:, :, x.shape[2] :]


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET",
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Array:
    """Return the transposed convolution of x [N, C, ...] with weight [C, M / group, ...] plus bias [M].

    Each element of x adds its multiple of the kernel to the result, at its position times the stride; then
    `pads` are cut off.
    """
    N, C, *sizes = x.shape
    _, channels, *kernel = weight.shape
    rank = len(sizes)
    _check(x, weight, kernel_shape, C, weight.shape[0], C % group == 0)
    _check_bias(bias, group * channels)
    stride, dilation = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    full = [(size - 1) * s + (k - 1) * d + 1 for size, s, k, d in zip(sizes, stride, kernel, dilation, strict=True)]
    if output_shape is not None:  # it may ask for more than there is: zeros at the end
        wanted = list(output_shape)[-rank:]
        extra = [max(e, n - there) for e, n, there in zip(extra, wanted, full, strict=True)]
    cut = _transposed_pads(full, sizes, stride, extra, pads, auto_pad, output_shape)
    rows = x.reshape(N, group, C // group, math.prod(sizes))
    taps = weight.reshape(group, C // group, channels, -1).swapaxes(1, 2)
    room = checked_shape([n + e for n, e in zip(full, extra, strict=True)])
    y = np.zeros((*checked_shape([N, group, channels]), *room), dtype=x.dtype)
    placed = Windows(tuple(kernel), tuple(stride), tuple(dilation), (), (), tuple(sizes))
    for i, offsets in enumerate(itertools.product(*map(range, kernel))):
        y[placed.tap(offsets)] += (taps[..., i] @ rows).reshape(N, group, channels, *sizes)
    keep = [slice(first, n - last) for n, (first, last) in zip(room, cut, strict=True)]
    y = y.reshape(N, group * channels, *room)[(slice(None), slice(None), *keep)]
    return y if bias is None else y + bias.reshape(-1, *([1] * rank))


def _transposed_pads(
    full: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
    output_shape: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """Return what to cut off the two ends of each axis of the full transposed convolution."""
    rank = len(sizes)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        given = list(pads or [0] * (2 * rank)) if auto_pad == "NOTSET" else [0] * (2 * rank)
        return list(zip(given[:rank], given[rank:], strict=True))
    if output_shape is None:
        output_shape = [size * s for size, s in zip(sizes, strides, strict=True)]
    cut = []
    for n, e, wanted in zip(full, extra, output_shape[-rank:], strict=True):
        total = max(n + e - wanted, 0)
        first = total - total // 2 if auto_pad == "SAME_LOWER" else total // 2
        cut.append((first, total - first))
    return cut


def _check(
    x: Array, weight: Array, kernel_shape: Sequence[int] | None, channels: int, expected: int, divides: bool
) -> None:
    if x.ndim < 3 or x.ndim != weight.ndim:
        raise ValueError("expected x [N, C, ...] and a weight of the same rank, at least 3")
    if x.dtype != weight.dtype:
        raise ValueError("x and the weight must have one element type")
    if kernel_shape is not None and list(kernel_shape) != list(weight.shape[2:]):
        raise ValueError(f"kernel_shape is {list(kernel_shape)}, but the weight has {list(weight.shape[2:])}")
    if channels != expected or not divides:
        raise ValueError(f"x has {channels} channels, the weight and group expect {expected}")


def _check_bias(bias: Array | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"the bias has the shape {bias.shape} for {channels} channels")


def _with_window(function: Callable[..., Array]) -> Callable[..., Array]:
    """Give a function that passes its ``**window`` on to `conv` a signature that names these attributes."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    window = [p for p in inspect.signature(conv).parameters.values() if p.kind is p.KEYWORD_ONLY]
    function.__signature__ = inspect.Signature([*own, *window])  # type: ignore[attr-defined]
    return function


@_with_window
def conv_integer(
    x: Array,
    weight: Array,
    x_zero_point: Array | None = None,
    weight_zero_point: Array | None = None,
    **window: Any,
) -> Array:
    """Return the int32 convolution of x and weight, each less its zero point."""
    shifted = x.astype(np.int32) - (0 if x_zero_point is None else x_zero_point.astype(np.int32))
    zero = np.int32(0) if weight_zero_point is None else weight_zero_point.astype(np.int32)
    kernel = weight.astype(np.int32) - zero.reshape(-1, *([1] * (weight.ndim - 1)))
    return conv(shifted, kernel, **window)


@_with_window
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    weight: Array,
    weight_scale: Array,
    weight_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    bias: Array | None = None,
    **window: Any,
) -> Array:
    """Return the quantised convolution of quantised x and weight; bias is int32 in units of both scales."""
    total = conv_integer(x, weight, x_zero_point, weight_zero_point, **window)
    channels = (-1, *([1] * (x.ndim - 2)))
    if bias is not None:
        total = total + bias.reshape(channels)
    factor = (x_scale * weight_scale / y_scale).reshape(channels)
    limits = np.iinfo(y_zero_point.dtype)
    steps = np.rint(total * factor) + y_zero_point.astype(np.int64)
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(y_zero_point.dtype))


def col2im(
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Return the image [N, C, ...] whose blocks are the columns of x [N, C * block, positions], added up."""
    image, block = [int(n) for n in image_shape], [int(n) for n in block_shape]
    w = windows(image, block, strides, dilations, pads, "NOTSET")
    N, C = x.shape[0], x.shape[1] // math.prod(block)
    columns = x.reshape(N, C, -1, *w.outputs)
    room = checked_shape([n + a + b for n, a, b in zip(image, w.before, w.after, strict=True)])
    y = np.zeros((*checked_shape([N, C]), *room), dtype=x.dtype)
    for i, offsets in enumerate(itertools.product(*map(range, block))):
        y[w.tap(offsets)] += columns[:, :, i]
    keep = [slice(first, first + n) for first, n in zip(w.before, image, strict=True)]
    return y[(slice(None), slice(None), *keep)]


def _conv_info(at: Operands) -> ValueInfo:
    x, w = at[0].shape, at[1].shape
    if x is None or w is None:
        return ValueInfo(None, at[0].dtype)
    kernel = at.attr("kernel_shape", w[2:])
    return ValueInfo((x[0], w[0], *window_sizes(at, x[2:], kernel)), at[0].dtype)


def _conv_transpose_info(at: Operands) -> ValueInfo:
    x, w, dtype = at[0].shape, at[1].shape, at[0].dtype
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return ValueInfo(None, dtype)
    n = len(x) - 2
    channels = dims.multiply(w[1], int(at.attr("group", 1)))
    strides, dilations = at.attr("strides", [1] * n), at.attr("dilations", [1] * n)
    wanted, auto = at.attr("output_shape"), at.attr("auto_pad", "NOTSET")
    if wanted is not None:
        return ValueInfo((x[0], channels, *list(wanted)[-n:]), dtype)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return ValueInfo((x[0], channels, *map(dims.multiply, x[2:], strides)), dtype)
    pads = at.attr("pads", [0] * 2 * n) if auto == "NOTSET" else [0] * 2 * n
    extra = at.attr("output_padding", [0] * n)
    sizes = []
    for i in range(n):
        reach = dims.add(1, dims.multiply(dilations[i], dims.subtract(w[i + 2], 1)))
        spread = dims.multiply(strides[i], dims.subtract(x[i + 2], 1))
        sizes.append(dims.add(dims.add(spread, reach), extra[i] - pads[i] - pads[i + n]))
    return ValueInfo((x[0], channels, *sizes), dtype)


def _col2im_info(at: Operands) -> ValueInfo:
    x, image, block = at[0].shape, at[1].const, at[2].const
    if x is None or len(x) != 3 or image is None or block is None or None in block:
        return ValueInfo(None, at[0].dtype)
    channels = dims.floor_divide(x[1], dims.product(size for size in block if size is not None))
    sizes = (at.fresh(i + 2) if size is None else size for i, size in enumerate(image))
    return ValueInfo((x[0], channels, *sizes), at[0].dtype)


def _causal_conv_info(at: Operands) -> list[ValueInfo]:
    x, w = at[0], at[1].shape
    state = None if x.shape is None or w is None else (*x.shape[:2], dims.subtract(w[2], 1))
    return [ValueInfo(x.shape, x.dtype), ValueInfo(state, x.dtype)]


def _causal_conv_fit(at: Operands) -> str:
    x, w, past = at[0].shape, at[1].shape, at[3].shape
    if any(shape is not None and len(shape) != 3 for shape in (x, w, past)):
        return "operands of three axes"
    if w is not None and (differ(w[1], 1) or w[2] == 0):
        return "weights [channels, 1, k]"
    if x is not None and w is not None and differ(x[1], w[0]):
        return "weights for as many channels as its input has"
    if past is not None and w is not None and differ(past[2], dims.subtract(w[2], 1)):
        return "a state of k - 1 inputs a channel"
    return ""


def _conv_integer_info(at: Operands) -> ValueInfo:
    return _conv_info(at.only(0, 1)).but(dtype="int32")


def _qlinear_conv_info(at: Operands) -> ValueInfo:
    return _conv_info(at.only(0, 3)).but(dtype=at[7].dtype)


def _conv_fit(at: Operands, second: int = 1, transposed: bool = False) -> str:
    x, w, group = at[0].shape, at[second].shape, int(at.attr("group", 1))
    wrong = windows_fit(at, x, w[2:] if w is not None else None)
    if wrong or group < 1:
        return wrong or "1 or more groups"
    if w is None:
        return ""
    if len(w) < 3 or (x is not None and len(w) != len(x)):
        return "weights of as many axes as its input has"
    kernel = at.attr("kernel_shape")
    if kernel is not None and any(differ(k, size) for k, size in zip(kernel, w[2:], strict=True)):
        return "kernel_shape to be the last axes of the weights"
    if isinstance(w[0], int) and w[0] % group:
        return f"channels that {group} groups share evenly"
    channels = w[0] if transposed else dims.multiply(w[1], group)
    return "weights for as many channels as its input has" if x is not None and differ(x[1], channels) else ""


# Why there is no kernel, no shape, no stream.
_ORDER = "has no kernel whose sums are the same for any number of time steps"
_STATED = "no model is known that has it beside recurrent layers that take most of the time"
_ENDS = "takes a state at the start of the sequence and gives one at its end"
_REWRITTEN = "passes write it as float32 arithmetic on integers; what they cannot is left to NumPy"

OPERATORS = table(
    Operator("Conv", conv, _conv_info, Lowering.TAPE, Stream.CONVOLUTION, _conv_fit),
    Operator(
        "ConvTranspose",
        conv_transpose,
        _conv_transpose_info,
        Lowering.TAPE,
        Stream.TRANSPOSED_CONVOLUTION,
        lambda at: _conv_fit(at, transposed=True),
    ),
    Operator("CausalConvWithState", causal_conv, _causal_conv_info, _STATED, _ENDS, _causal_conv_fit),
    Operator("ConvInteger", conv_integer, _conv_integer_info, _REWRITTEN, _ORDER, _conv_fit),
    Operator("QLinearConv", qlinear_conv, _qlinear_conv_info, _REWRITTEN, _ORDER, lambda at: _conv_fit(at, 3)),
    Operator("Col2Im", col2im, _col2im_info, RARE, "adds up blocks that overlap"),
)
