"""Shapes as values, changes of shape that move nothing, and tensors made from a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.sizes import checked_shape

__all__ = ["OPS"]

Array = npt.NDArray[Any]


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Return x's dimensions from `start` up to `end` as int64."""
    return np.array(x.shape[start:end], dtype=np.int64)


def size(x: Array) -> Array:
    """Return x's number of elements as int64."""
    return np.array(x.size, dtype=np.int64)


def reshape(x: Array, target: Array, *, allowzero: int = 0) -> Array:
    """Return x in another shape: -1 takes what is left, 0 keeps x's own dimension unless `allowzero`."""
    wanted = [int(n) for n in np.atleast_1d(target)]
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if 0 in wanted and -1 in wanted:
        # NumPy calls -1 beside a 0 ambiguous; ONNX takes the quotient of the sizes without the zeros.
        left = math.prod(n for n in x.shape if n) // math.prod(n for n in wanted if n > 0)
        wanted = [left if n == -1 else n for n in wanted]
    return x.reshape(wanted)


def flatten(x: Array, *, axis: int = 1) -> Array:
    """Return x as a matrix: the axes before `axis` are its rows, the others its columns."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Return x without the given axes of size 1, or without all such axes."""
    return np.squeeze(x, axis=None if axes is None else tuple(int(a) for a in np.atleast_1d(axes)))


def unsqueeze(x: Array, axes: Array) -> Array:
    """Return x with new axes of size 1 at the given positions of the result."""
    return np.expand_dims(x, tuple(int(a) for a in np.atleast_1d(axes)))


def expand(x: Array, target: Array) -> Array:
    """Return x broadcast against a shape."""
    wanted = np.broadcast_shapes(x.shape, checked_shape(target))
    return np.array(np.broadcast_to(x, checked_shape(wanted)))


def constant_of_shape(dimensions: Array, *, value: float = 0.0, dtype: int | str = "float32") -> Array:
    """Return a tensor of the given shape that holds one value everywhere."""
    return np.full(checked_shape(np.atleast_1d(dimensions)), value, dtype=dtype_of(dtype))


def eye_like(x: Array, *, k: int = 0, dtype: int | str | None = None) -> Array:
    """Return a matrix like x with ones on its k-th diagonal."""
    rows, columns = x.shape
    return np.eye(rows, columns, k=k, dtype=x.dtype if dtype is None else dtype_of(dtype))


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """Return start, start + delta, ... up to but not including limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    if step == 0:
        raise ValueError("the step is 0; expected a positive or negative step")
    (count,) = checked_shape([max(math.ceil((last - first) / step), 0)])
    return np.asarray(first + step * np.arange(count), dtype=start.dtype)


OPS: Mapping[str, Callable[..., Any]] = {
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "ConstantOfShape": constant_of_shape,
    "EyeLike": eye_like,
    "Range": range_,
}
