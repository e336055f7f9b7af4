"""Reading and writing at positions that are themselves values, and finding such positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.rules import along, same
from fastlstm.operators.sizes import checked_shape, integer
from fastlstm.operators.values import Operands, ValueInfo, normal_axis
from fastlstm.typing import Array, Integers

__all__ = ["OPERATORS"]

_REDUCTIONS: Mapping[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def gather(x: Array, indices: Integers, *, axis: int = 0) -> Array:
    """Return the slices of x at `indices` along `axis`; negative indices count from the end."""
    checked_shape(x.shape[: axis % x.ndim] + indices.shape + x.shape[axis % x.ndim + 1 :])
    return np.asarray(np.take(x, indices, axis=axis))


def gather_elements(x: Array, indices: Integers, *, axis: int = 0) -> Array:
    """Return, for each position of `indices`, the element of x there but for its place along `axis`."""
    return x[_along(indices, x.ndim, axis)]


def gather_nd(x: Array, indices: Integers, *, batch_dims: int = 0) -> Array:
    """Return the slices of x that the last axis of `indices` points to, row by row of the batch axes."""
    if batch_dims == 0:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    batch = x.shape[:batch_dims]
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_indices = indices.reshape(-1, *indices.shape[batch_dims:])
    rows = [gather_nd(row, at) for row, at in zip(flat_x, flat_indices, strict=True)]
    return np.stack(rows).reshape(*batch, *rows[0].shape)


def scatter_elements(
    x: Array,
    indices: Array,
    updates: Array,
    *,
    axis: int = 0,
    reduction: Literal["none", "add", "mul", "max", "min"] = "none",
) -> Array:
    """Return a copy of x with `updates` written (or combined) at `indices` along `axis`."""
    if indices.shape != updates.shape:
        raise ValueError(f"indices {list(indices.shape)} and updates {list(updates.shape)} must have one shape")
    return _write(x, _along(indices, x.ndim, axis), updates, reduction)


def scatter_nd(
    x: Array, indices: Array, updates: Array, *, reduction: Literal["none", "add", "mul", "max", "min"] = "none"
) -> Array:
    """Return a copy of x with the slices that the last axis of `indices` points to written or combined."""
    expected = indices.shape[:-1] + x.shape[indices.shape[-1] :]
    if updates.shape != expected:
        raise ValueError(f"expected updates of shape {list(expected)}; got {list(updates.shape)}")
    return _write(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def tensor_scatter(
    x: Array,
    update: Array,
    starts: Array | None = None,
    *,
    axis: int = -2,
    mode: Literal["linear", "circular"] = "linear",
) -> Array:
    """Return a copy of x with `update` written along `axis` from each row's own start.

    The mode "circular" goes on at the beginning of the axis when it reaches the end.
    """
    along = axis % x.ndim
    starts = np.zeros(x.shape[0], dtype=np.int64) if starts is None else starts
    where = starts[:, None] + np.arange(update.shape[along])
    where = where % x.shape[along] if mode == "circular" else where
    shape = [1] * x.ndim
    shape[0], shape[along] = where.shape
    return scatter_elements(x, np.broadcast_to(where.reshape(shape), update.shape), update, axis=along)


def _along(indices: Array, rank: int, axis: int) -> tuple[Array, ...]:
    """Return the index of each position of `indices`, with `indices` itself along `axis`."""
    if indices.ndim != rank:
        raise ValueError(f"expected indices of rank {rank}; got {indices.ndim}")
    index: list[Array] = list(np.indices(indices.shape, sparse=True))
    index[axis] = indices
    return tuple(index)


def _write(x: Array, index: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    if updates.dtype != x.dtype:
        raise ValueError(f"the updates are {updates.dtype}; expected {x.dtype}")
    result = x.copy()
    if reduction == "none":
        result[index] = updates
    else:
        _REDUCTIONS[reduction].at(result, index, updates)
    return result


def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """Return values[1] where the new axis of size `depth` is at the index, else values[0]."""
    count = integer(depth)
    checked_shape([*indices.shape, count])
    where = np.expand_dims(np.where(indices < 0, indices + count, indices), axis)
    shape = [1] * where.ndim
    shape[axis] = count
    hot = where == np.arange(count).reshape(shape)
    return np.asarray(np.where(hot, values[1], values[0]), dtype=values.dtype)


def top_k(x: Array, k: Array, *, axis: int = -1, largest: int = 1) -> tuple[Array, Array]:
    """Return the k largest (or smallest) along `axis` in order, and where they stood; ties in order."""
    count = integer(k)
    if not 0 <= count <= x.shape[axis]:
        raise ValueError(f"k is {count}; expected 0 to {x.shape[axis]}, the size of axis {axis}")
    if largest:
        # A stable ascending sort of the reversed axis, read backwards, is a stable descending sort.
        order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    best = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(x, best, axis=axis), best.astype(np.int64)


def non_zero(x: Array) -> Array:
    """Return the positions of all elements that are not zero, [rank, count]."""
    return np.array(np.nonzero(np.atleast_1d(x)), dtype=np.int64)


def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """Return the slices along `axis` (of x flattened, if None) for which the condition is true."""
    return np.compress(condition, x, axis=axis)


def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """Return the distinct slices along `axis`, where each is first, which each slice is, and their counts."""
    values, first, inverse, counts = np.unique(x, axis=axis, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        values, first, counts = np.take(values, order, axis=axis or 0), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _gather_info(at: Operands) -> ValueInfo:
    data, indices = at[0], at[1]
    if data.shape is None or indices.shape is None:
        return ValueInfo(None, data.dtype)
    axis = at.axis(len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    numbers = indices.numbers
    if data.const is not None and data.rank == 1 and numbers is not None and len(shape) <= 1:
        size = len(data.const)
        if all(-size <= i < size for i in numbers):
            return ValueInfo.of_content(tuple(data.const[i] for i in numbers), shape, data.dtype)
    return ValueInfo(shape, data.dtype, None, data.fill)


def _gather_elements_info(at: Operands) -> ValueInfo:
    return ValueInfo(at[1].shape, at[0].dtype, None, at[0].fill)


def _gather_nd_info(at: Operands) -> ValueInfo:
    data, indices, batch = at[0].shape, at[1].shape, int(at.attr("batch_dims", 0))
    if data is None or not indices or not isinstance(indices[-1], int):
        return ValueInfo(None, at[0].dtype)
    return ValueInfo((*indices[:-1], *data[batch + indices[-1] :]), at[0].dtype, None, at[0].fill)


def _one_hot_info(at: Operands) -> ValueInfo:
    indices, depth = at[0].shape, at[1].const
    if indices is None:
        return ValueInfo(None, at[2].dtype)
    axis = normal_axis(int(at.attr("axis", -1)), len(indices) + 1)
    size = depth[0] if depth else None
    return ValueInfo((*indices[:axis], at.fresh(axis) if size is None else size, *indices[axis:]), at[2].dtype)


def _top_k_info(at: Operands) -> tuple[ValueInfo, ...]:
    shape, k = at[0].shape, at[1].const
    if shape is None:
        return ValueInfo(None, at[0].dtype), ValueInfo(None, "int64")
    axis = at.axis(len(shape), -1)
    size = k[0] if k else None
    result = (*shape[:axis], at.fresh(axis) if size is None else size, *shape[axis + 1 :])
    return ValueInfo(result, at[0].dtype), ValueInfo(result, "int64")


def _non_zero_info(at: Operands) -> ValueInfo:
    return ValueInfo((at.fresh(0) if at[0].rank is None else at[0].rank, at.fresh(1)), "int64")


def _some_slices(at: Operands) -> ValueInfo:
    """Return a value that keeps an unknown number of slices along the attribute ``axis``, or of elements."""
    shape, axis = at[0].shape, at.attr("axis")
    if axis is None:
        return ValueInfo((at.fresh(0),), at[0].dtype)
    if shape is None:
        return ValueInfo(None, at[0].dtype)
    axis = normal_axis(int(axis), len(shape))
    return ValueInfo((*shape[:axis], at.fresh(axis), *shape[axis + 1 :]), at[0].dtype)


def _unique_info(at: Operands) -> tuple[ValueInfo, ...]:
    count, all_of_them = at.fresh(0), at.fresh(0, 2)
    values = _some_slices(at)
    if at.attr("axis") is not None and values.shape is not None:
        axis = normal_axis(int(at.attr("axis")), len(values.shape))
        count = str(values.shape[axis])
        all_of_them = str(at[0].shape[axis]) if at[0].shape and isinstance(at[0].shape[axis], str) else all_of_them
    places = ValueInfo((count,), "int64")
    return values, places, ValueInfo((all_of_them,), "int64"), places


def _gather_fit(at: Operands) -> str:
    wrong = along(0)(at)
    if wrong or at[0].shape is None or at[1].numbers is None:
        return wrong
    size = at[0].shape[normal_axis(int(at.attr("axis", 0)), len(at[0].shape))]
    inside = not isinstance(size, int) or all(-size <= index < size for index in at[1].numbers)
    return "" if inside else f"indices below {size}"


def _gather_nd_fit(at: Operands) -> str:
    data, indices, batch = at[0].shape, at[1].shape, int(at.attr("batch_dims", 0))
    if data is None or indices is None:
        return ""
    depth = indices[-1] if indices else 0
    fits = 0 <= batch < len(indices) and (not isinstance(depth, int) or 1 <= depth <= len(data) - batch)
    return "" if fits else "indices with a last axis of 1 to as many numbers as its data have axes"


def _one_hot_fit(at: Operands) -> str:
    if at[1].const is not None and (len(at[1].const) != 1 or (isinstance(at[1].const[0], int) and at[1].const[0] < 0)):
        return "a depth of 0 or more"
    return along(-1, more=1)(at)


def _top_k_fit(at: Operands) -> str:
    k = at[1].const
    if k is not None and (len(k) != 1 or (isinstance(k[0], int) and k[0] < 0)):
        return "one k of 0 or more"
    return along(-1)(at)


# Why there is no kernel, no shape, no stream.
_DATA = "the data decide the size of what it gives"
_SOME = "takes only some of the time steps, as the data decide"
_TAKES = "takes elements by indices that change with time"
_WRITES = "writes elements at numbers that change with time"

OPERATORS = table(
    Operator("Gather", gather, _gather_info, Lowering.TAPE, Stream.TAKEN, _gather_fit),
    Operator("GatherElements", gather_elements, _gather_elements_info, RARE, _TAKES, along(0)),
    Operator("GatherND", gather_nd, _gather_nd_info, RARE, _TAKES, _gather_nd_fit),
    Operator("ScatterElements", scatter_elements, same, RARE, _WRITES, along(0)),
    Operator("ScatterND", scatter_nd, same, Lowering.TAPE, _WRITES),
    Operator("TensorScatter", tensor_scatter, same, RARE, _WRITES),
    Operator(
        "OneHot",
        one_hot,
        _one_hot_info,
        RARE,
        "spreads numbers along an axis of which time may be behind",
        _one_hot_fit,
    ),
    Operator(
        "TopK",
        top_k,
        _top_k_info,
        RARE,
        "sorts along an axis of which time may be one",
        _top_k_fit,
        unused=frozenset({"sorted"}),
    ),
    Operator("NonZero", non_zero, _non_zero_info, _DATA, _SOME),
    Operator("Compress", compress, _some_slices, _DATA, _SOME),
    Operator("Unique", unique, _unique_info, _DATA, _SOME),
)
