"""Products of matrices."""

from __future__ import annotations

import numpy as np

from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.rules import broadcast_shapes, differ
from fastlstm.operators.sizes import checked_shape
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b."""
    if a.dtype != b.dtype:
        raise ValueError("the inputs must have one element type; cast them to it first")
    if a.ndim > 1 and b.ndim > 1:
        checked_shape([*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    return np.asarray(a @ b)


def dense(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    scale: Array | None = None,
    *,
    integers: int = 0,  # noqa: ARG001
) -> Array:
    """Return x @ weight + bias for x [..., I], weight [I, O] (integers with a scale [O]), bias [O].

    With `integers`, x holds integers of 9 bits, which kernels multiply as such. The result is the same.
    """
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


def matmul_info(at: Operands) -> ValueInfo:
    a, b = at[0].shape, at[1].shape
    if not a or not b:
        return ValueInfo(None, at[0].dtype)
    batch = broadcast_shapes([a[:-2], b[:-2]])
    if batch is None:
        return ValueInfo(None, at[0].dtype)
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    return ValueInfo((*batch, *rows, *columns), at[0].dtype)


def _dense_info(at: Operands) -> ValueInfo:
    x, weight = at[0].shape, at[1].shape
    if not x or weight is None:
        return ValueInfo(None, at[0].dtype)
    return ValueInfo((*x[:-1], weight[1]), at[0].dtype)


def _gemm_info(at: Operands) -> ValueInfo:
    a, b = at[0].shape, at[1].shape
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return ValueInfo(None, at[0].dtype)
    rows = a[1] if at.attr("transA", 0) else a[0]
    columns = b[0] if at.attr("transB", 0) else b[1]
    return ValueInfo((rows, columns), at[0].dtype)


def _einsum_info(at: Operands) -> ValueInfo:
    given, arrow, result = str(at.attr("equation", "")).replace(" ", "").partition("->")
    sizes: dict[str, Dim] = {}
    for i, axes in enumerate(given.split(",")):
        shape = at[i].shape
        if not arrow or "." in axes or shape is None or len(shape) != len(axes):
            return ValueInfo(None, at[0].dtype)
        for axis, size in zip(axes, shape, strict=True):
            if sizes.get(axis, 1) == 1:  # one element goes with any number
                sizes[axis] = size
    if not set(result) <= set(sizes):
        return ValueInfo(None, at[0].dtype)
    return ValueInfo(tuple(sizes[axis] for axis in result), at[0].dtype)


def _det_info(at: Operands) -> ValueInfo:
    return ValueInfo(None if at[0].shape is None else at[0].shape[:-2], at[0].dtype)


def matmul_fit(at: Operands, second: int = 1) -> str:
    a, b = at[0].shape, at[second].shape
    if (a is not None and not a) or (b is not None and not b):
        return "two values with axes"
    if a is None or b is None:
        return ""
    return "matrices of which one has as many columns as the other has rows" if differ(a[-1], b[-2:][0]) else ""


def _dense_fit(at: Operands) -> str:
    x, weight, bias = at[0].shape, at[1].shape, at[2].shape if at.given(2) else None
    if weight is None:
        return ""
    if len(weight) != 2 or (x is not None and (not x or differ(x[-1], weight[0]))):
        return "a weight of [inputs, outputs], where the inputs are the last axis"
    fits = bias is None or (len(bias) == 1 and not differ(bias[0], weight[1]))
    return "" if fits else "a bias of as many numbers as there are outputs"


def _gemm_fit(at: Operands) -> str:
    a, b, c = at[0].shape, at[1].shape, at[2].shape if at.given(2) else ()
    if any(shape is not None and len(shape) != 2 for shape in (a, b)) or (c is not None and len(c) > 2):
        return "two matrices, and a third value of two axes at most"
    if a is None or b is None:
        return ""
    inner = differ(a[0 if at.attr("transA", 0) else 1], b[1 if at.attr("transB", 0) else 0])
    return "matrices of which one has as many columns as the other has rows" if inner else ""


# Why there is no kernel, no shape, no stream.
_MATRICES = "has matrices that may both change with time"

OPERATORS = table(
    Operator("MatMul", matmul, matmul_info, Lowering.TAPE, _MATRICES, matmul_fit),
    Operator("Dense", dense, _dense_info, Lowering.TAPE, Stream.FEATURES, _dense_fit),
    Operator("Gemm", gemm, _gemm_info, "passes make it Dense where its matrix is a constant", _MATRICES, _gemm_fit),
    Operator("Einsum", einsum, _einsum_info, Lowering.TAPE, Stream.EINSUM),
    Operator("Det", det, _det_info, RARE, "takes matrices of which time may be an axis"),
)
