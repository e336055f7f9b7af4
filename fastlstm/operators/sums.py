"""Sums that do not depend on their neighbours: the same bits for any number of rows, in any memory layout.

NumPy adds in another order when the axis that it sums over is not the one that lies together in memory, and which
one that is changes with the shape. Here the axes to sum over are brought together at the end first.
"""

from __future__ import annotations

import math

import numpy as np

from fastlstm.typing import Array

__all__ = ["mean", "prod", "total"]


def total(x: Array, axes: int | tuple[int, ...], keepdims: bool) -> Array:
    """Return the sum over some axes."""
    rows, shape = _rows(x, axes, keepdims)
    return np.asarray(np.sum(rows, axis=-1)).reshape(shape)


def mean(x: Array, axes: int | tuple[int, ...], keepdims: bool) -> Array:
    """Return the mean over some axes."""
    rows, shape = _rows(x, axes, keepdims)
    return np.asarray(np.mean(rows, axis=-1)).reshape(shape)


def prod(x: Array, axes: int | tuple[int, ...], keepdims: bool) -> Array:
    """Return the product over some axes."""
    rows, shape = _rows(x, axes, keepdims)
    return np.asarray(np.prod(rows, axis=-1)).reshape(shape)


def _rows(x: Array, axes: int | tuple[int, ...], keepdims: bool) -> tuple[Array, tuple[int, ...]]:
    """Return x with the axes as one, contiguous and last, and the shape of what is left."""
    over = sorted({axis + x.ndim if axis < 0 else axis for axis in np.atleast_1d(np.asarray(axes, np.intp)).tolist()})
    rest = [axis for axis in range(x.ndim) if axis not in over]
    kept = [1 if axis in over else size for axis, size in enumerate(x.shape) if keepdims or axis not in over]
    moved = np.ascontiguousarray(np.transpose(x, [*rest, *over]))
    count = math.prod(x.shape[axis] for axis in over)
    return moved.reshape([*(x.shape[axis] for axis in rest), count]), tuple(kept)
