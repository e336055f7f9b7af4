"""Products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.sizes import checked_shape

__all__ = ["OPS"]

Array = npt.NDArray[Any]


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b."""
    if a.dtype != b.dtype:
        raise ValueError("the inputs must have one element type; cast them to it first")
    if a.ndim > 1 and b.ndim > 1:
        checked_shape([*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    return np.asarray(a @ b)


def dense(x: Array, weight: Array, bias: Array | None = None, scale: Array | None = None) -> Array:
    """Return x @ weight + bias for x [..., I], weight [I, O] (integers with a scale [O]), bias [O]."""
    y = matmul(x, weight if scale is None else weight.astype(x.dtype) * scale.astype(x.dtype))
    return y if bias is None else np.asarray(y + bias, dtype=x.dtype)


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """Return alpha * a @ b + beta * c, with a and b transposed first where asked."""
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError("expected two matrices")
    product = matmul(a.T if transA else a, b.T if transB else b)
    y = product if alpha == 1 else np.asarray(alpha * product, dtype=a.dtype)
    return y if c is None else np.asarray(y + beta * np.broadcast_to(c, y.shape), dtype=a.dtype)


def einsum(*arrays: Array, equation: str) -> Array:
    """Return the sum of products that Einstein's notation describes."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    if arrow and "." not in given:
        axes = zip(given.split(","), arrays, strict=True)
        sizes = {axis: size for letters, array in axes for axis, size in zip(letters, array.shape, strict=True)}
        checked_shape([sizes[axis] for axis in result])
    return np.asarray(np.einsum(equation, *arrays, optimize=len(arrays) > 2))


def det(x: Array) -> Array:
    """Return the determinants of the matrices in the last two axes."""
    return np.asarray(np.linalg.det(x), dtype=x.dtype)


OPS: Mapping[str, Callable[..., Any]] = {
    "MatMul": matmul,
    "Dense": dense,
    "Gemm": gemm,
    "Einsum": einsum,
    "Det": det,
}
