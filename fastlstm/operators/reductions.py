"""Reductions over axes, positions of extremes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.operators import dims, sums
from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.rules import along, axes_fit, same
from fastlstm.operators.sizes import integer
from fastlstm.operators.values import Operands, ValueInfo, normal_axis
from fastlstm.typing import Array

__all__ = ["OPERATORS"]

Reduction = Callable[[Array, tuple[int, ...], bool], Array]


def _reduce(function: Reduction) -> Callable[..., Array]:
    """Return the operator that applies function(x, axes, keepdims); no axes means all of them."""

    def operator(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        chosen = () if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))
        if (not chosen and not noop_with_empty_axes) or not x.ndim:
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


def _running(function: Callable[..., Any], neutral: float) -> Callable[..., Array]:
    """Return the operator for running totals along an axis, from the end or without the own term if asked."""

    def operator(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
        along = integer(axis)
        ordered = np.moveaxis(np.flip(x, along) if reverse else x, along, 0)
        if exclusive:
            ordered = np.concatenate([np.full_like(ordered[:1], neutral), ordered[:-1]])
        total = np.moveaxis(function(ordered, axis=0, dtype=x.dtype), 0, along)
        return np.flip(total, along) if reverse else total

    return operator


def _reduction(name: str, function: Reduction, lowering: Lowering | str) -> Operator:
    return Operator(name, _reduce(function), _reduce_info, lowering, Stream.REDUCTION, _reduce_fit)


def _reduce_info(at: Operands) -> ValueInfo:
    shape, dtype = at[0].shape, at[0].dtype
    keep = bool(at.attr("keepdims", 1))
    axes = at[1].numbers if at.given(1) else []
    if axes == [] and at.attr("noop_with_empty_axes", 0):
        return ValueInfo(shape, dtype)
    if shape is None or axes is None:
        return at.unknown_shape(len(shape) if shape is not None and keep else None, dtype)
    reduced = {normal_axis(a, len(shape)) for a in axes if shape} or set(range(len(shape)))
    left = tuple(1 if i in reduced else d for i, d in enumerate(shape) if keep or i not in reduced)
    content = at[0].const
    if content is not None and len(shape) == 1 and at.node.op in ("ReduceProd", "ReduceSum"):
        known = [v for v in content if v is not None]
        if len(known) == len(content):
            total: Dim = 0
            for v in known:
                total = dims.add(total, v)
            value = dims.product(known) if at.node.op == "ReduceProd" else total
            return ValueInfo.of_content((value,), left, dtype)
    return ValueInfo(left, dtype)


def _arg_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return ValueInfo(None, "int64")
    axis, keep = at.axis(len(shape)), bool(at.attr("keepdims", 1))
    return ValueInfo((*shape[:axis], *([1] if keep else []), *shape[axis + 1 :]), "int64")


def _reduce_fit(at: Operands) -> str:
    # PyTorch counts a number as one axis when it reduces, and exports that.
    return axes_fit(1, at, None if at[0].rank is None else max(1, at[0].rank))


OPERATORS = table(
    _reduction("ReduceL1", lambda x, axes, keep: _sum(np.abs(x), axes, keep), RARE),
    _reduction("ReduceL2", lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep)), Lowering.TAPE),
    _reduction("ReduceLogSum", lambda x, axes, keep: np.log(_sum(x, axes, keep)), RARE),
    _reduction("ReduceLogSumExp", _log_sum_exp, RARE),
    _reduction("ReduceMax", _max, Lowering.TAPE),
    _reduction("ReduceMean", sums.mean, Lowering.TAPE),
    _reduction("ReduceMin", _min, RARE),
    _reduction("ReduceProd", sums.prod, RARE),
    _reduction("ReduceSum", _sum, Lowering.TAPE),
    _reduction("ReduceSumSquare", lambda x, axes, keep: _sum(x * x, axes, keep), Lowering.TAPE),
    Operator("ArgMax", _extreme(np.argmax), _arg_info, Lowering.TAPE, Stream.EXTREME, along(0)),
    Operator("ArgMin", _extreme(np.argmin), _arg_info, RARE, Stream.EXTREME, along(0)),
    Operator("CumSum", _running(np.cumsum, 0), same, Lowering.TAPE, "adds up all frames so far"),
    Operator("LogCumSumExp", _running(np.logaddexp.accumulate, -np.inf), same, RARE, "adds up all frames so far"),
    Operator("CumProd", _running(np.cumprod, 1), same, RARE, "multiplies all frames so far"),
)
