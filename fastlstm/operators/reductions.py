"""Reductions over axes, positions of extremes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators import sums
from fastlstm.operators.sizes import integer

__all__ = ["OPS"]

Array = npt.NDArray[Any]
Reduction = Callable[[Array, tuple[int, ...], bool], Array]


def _reduce(function: Reduction) -> Callable[..., Array]:
    """Return the operator that applies function(x, axes, keepdims); no axes means all of them."""

    def operator(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        chosen = () if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))
        if not chosen and not noop_with_empty_axes:
            chosen = tuple(range(x.ndim))
        return np.asarray(function(x, chosen, bool(keepdims)), dtype=x.dtype)

    return operator


def _sum(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return sums.total(x, axes, keepdims)


def _max(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.max(x, axis=axes, keepdims=keepdims, initial=_lowest(x.dtype)))


def _min(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.min(x, axis=axes, keepdims=keepdims, initial=_highest(x.dtype)))


def _log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    top = _max(x, axes, True)
    top = np.where(np.isfinite(top), top, 0)  # exp(x - top) has to stay defined for infinities and empty axes
    total = np.log(sums.total(np.exp(x - top), axes, keepdims=True)) + top
    return np.asarray(total if keepdims else np.squeeze(total, axis=axes))


def _lowest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return False
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return True
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


def _extreme(function: Callable[..., Any]) -> Callable[..., Array]:
    """Return the operator for the position of an extreme along one axis: the first one, or the last."""

    def operator(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
        if not select_last_index:
            return np.asarray(function(x, axis=axis, keepdims=bool(keepdims)), dtype=np.int64)
        last = function(np.flip(x, axis=axis), axis=axis, keepdims=bool(keepdims))
        return np.asarray(x.shape[axis] - 1 - last, dtype=np.int64)

    return operator


def _running(function: Callable[..., Any], neutral: int) -> Callable[..., Array]:
    """Return the operator for running totals along an axis, from the end or without the own term if asked."""

    def operator(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
        along = integer(axis)
        ordered = np.moveaxis(np.flip(x, along) if reverse else x, along, 0)
        if exclusive:
            ordered = np.concatenate([np.full_like(ordered[:1], neutral), ordered[:-1]])
        total = np.moveaxis(function(ordered, axis=0, dtype=x.dtype), 0, along)
        return np.flip(total, along) if reverse else total

    return operator


OPS: Mapping[str, Callable[..., Any]] = {
    "ReduceL1": _reduce(lambda x, axes, keep: _sum(np.abs(x), axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep))),
    "ReduceLogSum": _reduce(lambda x, axes, keep: np.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_max),
    "ReduceMean": _reduce(sums.mean),
    "ReduceMin": _reduce(_min),
    "ReduceProd": _reduce(sums.prod),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ArgMax": _extreme(np.argmax),
    "ArgMin": _extreme(np.argmin),
    "CumSum": _running(np.cumsum, 0),
    "CumProd": _running(np.cumprod, 1),
}
