"""Reading and writing at positions that are themselves values, and finding such positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.sizes import checked_shape, integer

__all__ = ["OPS"]

Array = npt.NDArray[Any]

_REDUCTIONS: Mapping[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Return the slices of x at `indices` along `axis`; negative indices count from the end."""
    checked_shape(x.shape[: axis % x.ndim] + indices.shape + x.shape[axis % x.ndim + 1 :])
    return np.asarray(np.take(x, indices, axis=axis))


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Return, for each position of `indices`, the element of x there but for its place along `axis`."""
    return x[_along(indices, x.ndim, axis)]


def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Return the slices of x that the last axis of `indices` points to, row by row of the batch axes."""
    if batch_dims == 0:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    batch = x.shape[:batch_dims]
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_indices = indices.reshape(-1, *indices.shape[batch_dims:])
    rows = [gather_nd(row, at) for row, at in zip(flat_x, flat_indices, strict=True)]
    return np.stack(rows).reshape(*batch, *rows[0].shape)


def scatter_elements(x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """Return a copy of x with `updates` written (or combined) at `indices` along `axis`."""
    if indices.shape != updates.shape:
        raise ValueError(f"indices {list(indices.shape)} and updates {list(updates.shape)} must have one shape")
    return _write(x, _along(indices, x.ndim, axis), updates, reduction)


def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """Return a copy of x with the slices that the last axis of `indices` points to written or combined."""
    expected = indices.shape[:-1] + x.shape[indices.shape[-1] :]
    if updates.shape != expected:
        raise ValueError(f"expected updates of shape {list(expected)}; got {list(updates.shape)}")
    return _write(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def tensor_scatter(
    x: Array, update: Array, starts: Array | None = None, *, axis: int = -2, mode: str = "linear"
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


OPS: Mapping[str, Callable[..., Any]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "OneHot": one_hot,
    "TopK": top_k,
    "NonZero": non_zero,
    "Compress": compress,
    "Unique": unique,
}
