"""Pooling over windows of the spatial axes, and over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.rules import window_sizes, windows_fit
from fastlstm.operators.sizes import checked_shape
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.operators.windows import Windows, padded, windows
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def _taps(x: Array, w: Windows, fill: Any) -> Array:
    """Return the elements of all windows of x [N, C, ...], stacked along a new first axis."""
    # A window that hangs over the end in ceil_mode needs room beyond the padding.
    spans = [
        stride * (count - 1) + (k - 1) * dilation + 1
        for stride, count, k, dilation in zip(w.strides, w.outputs, w.kernel, w.dilations, strict=True)
    ]
    after = [max(span - size - first, 0) for span, size, first in zip(spans, x.shape[2:], w.before, strict=True)]
    around = padded(x, w.before, after, fill)
    checked_shape([*w.kernel, *x.shape[:2], *w.outputs])
    return np.stack([around[w.tap(at)] for at in itertools.product(*map(range, w.kernel))])


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
    count: int = 1,
) -> tuple[Array, ...]:
    """Return the largest element of each window and, if asked for, where it stands in x flattened.

    `storage_order` 1 counts the positions column by column within each channel.
    """
    w = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    elements = _taps(x, w, lowest)
    y = elements.max(axis=0)
    if count < 2:
        return (y,)
    within = np.arange(int(np.prod(x.shape[2:]))).reshape(x.shape[2:], order="F" if storage_order else "C")
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2] + (1,) * len(within.shape))
    positions = _taps(np.broadcast_to(within, x.shape), w, 0)
    best = np.take_along_axis(positions, elements.argmax(axis=0)[None], axis=0)[0]
    return y, best + planes * within.size


def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Array:
    """Return the mean of each window; padding counts as zeros only with `count_include_pad`."""
    w = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    counted = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if count_include_pad:
        counted, x = padded(counted, w.before, w.after, 1), padded(x, w.before, w.after)
        nothing = (0,) * len(w.before)
        w = Windows(w.kernel, w.strides, w.dilations, nothing, nothing, w.outputs)
    return np.asarray(_taps(x, w, 0).sum(axis=0) / _taps(counted, w, 0).sum(axis=0), dtype=x.dtype)


def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    p: int = 2,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET",
    ceil_mode: int = 0,
) -> Array:
    """Return the p-norm of each window."""
    w = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    total = (np.abs(_taps(x, w, 0)) ** p).sum(axis=0)
    return np.asarray(total ** (1 / p), dtype=x.dtype)


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def global_average_pool(x: Array) -> Array:
    """Return the mean of each channel of x [N, C, ...]."""
    return np.asarray(np.mean(x, axis=_spatial(x), keepdims=True))


def global_max_pool(x: Array) -> Array:
    """Return the largest element of each channel of x [N, C, ...]."""
    return np.asarray(np.max(x, axis=_spatial(x), keepdims=True))


def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """Return the p-norm of each channel of x [N, C, ...]."""
    return np.asarray((np.abs(x) ** p).sum(axis=_spatial(x), keepdims=True) ** (1 / p), dtype=x.dtype)


def _pool_info(at: Operands) -> tuple[ValueInfo, ...]:
    x = at[0].shape
    if x is None:
        return ValueInfo(None, at[0].dtype), ValueInfo(None, "int64")
    shape = (x[0], x[1], *window_sizes(at, x[2:], at.attr("kernel_shape", ())))
    return ValueInfo(shape, at[0].dtype), ValueInfo(shape, "int64")


def _global_info(at: Operands) -> ValueInfo:
    x = at[0].shape
    return ValueInfo(None if x is None else (*x[:2], *[1] * (len(x) - 2)), at[0].dtype)


def _pool_fit(at: Operands) -> str:
    kernel = at.attr("kernel_shape")
    return windows_fit(at, at[0].shape, kernel)


# Why there is no kernel, no shape, no stream.
_POSITIONS = "reduces over all positions, and time may be one of their axes"

OPERATORS = table(
    Operator("MaxPool", max_pool, _pool_info, Lowering.TAPE, Stream.POOLING, _pool_fit),
    Operator("AveragePool", average_pool, _pool_info, Lowering.TAPE, Stream.POOLING, _pool_fit),
    Operator(
        "LpPool",
        lp_pool,
        _pool_info,
        RARE,
        "has no kernel whose sums are the same for any number of time steps",
        _pool_fit,
    ),
    Operator("GlobalAveragePool", global_average_pool, _global_info, Lowering.TAPE, _POSITIONS),
    Operator("GlobalMaxPool", global_max_pool, _global_info, RARE, _POSITIONS),
    Operator("GlobalLpPool", global_lp_pool, _global_info, RARE, _POSITIONS),
)
