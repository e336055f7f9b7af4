"""Integers that stand for reals: x = (q - zero_point) * scale."""

from __future__ import annotations

import numpy as np

from fastlstm.operators.definition import Operator, table
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.linear import matmul_fit, matmul_info
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """Return round(x / scale) + zero_point, half to even, held within the integer type."""
    dtype = dtype_of(output_dtype) if output_dtype else np.dtype("uint8")
    if zero_point is not None:
        dtype = zero_point.dtype
    steps = np.rint(x / _spread(scale, x, axis, block_size))
    offset = 0 if zero_point is None else _spread(zero_point, x, axis, block_size).astype(np.int64)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(steps + offset, limits.min, limits.max).astype(dtype))


def dequantize_linear(
    q: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """Return (q - zero_point) * scale in the element type of scale."""
    offset = 0 if zero_point is None else _spread(zero_point, q, axis, block_size).astype(np.int64)
    dtype = dtype_of(output_dtype) if output_dtype else scale.dtype
    return np.asarray(
        (q.astype(np.int64) - offset).astype(scale.dtype) * _spread(scale, q, axis, block_size), dtype=dtype
    )


def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """Return x as uint8 with the scale and zero point that fit its range, which always includes zero."""
    low, high = min(float(np.min(x, initial=0)), 0.0), max(float(np.max(x, initial=0)), 0.0)
    scale = np.asarray((x.dtype.type(high) - x.dtype.type(low)) / 255, dtype=x.dtype)
    if scale == 0:
        scale = np.asarray(1, dtype=x.dtype)
    zero_point = np.asarray(np.clip(np.rint(-x.dtype.type(low) / scale), 0, 255), dtype=np.uint8)
    return quantize_linear(x, scale, zero_point), scale, zero_point


def matmul_integer(a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None) -> Array:
    """Return the int32 product of (a - a_zero_point) and (b - b_zero_point)."""
    left, right = a.astype(np.int32), b.astype(np.int32)
    if a_zero_point is not None:  # one for all, or one a row
        zero = a_zero_point.astype(np.int32)
        left = left - (zero[..., None] if zero.ndim == 1 and a.ndim > 1 and zero.size > 1 else zero)
    if b_zero_point is not None:
        right = right - b_zero_point.astype(np.int32)
    return np.asarray(left @ right)


def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """Return the product of two quantised matrices, quantised."""
    total = matmul_integer(a, b, a_zero_point, b_zero_point)
    factor = a_scale * b_scale / y_scale
    limits = np.iinfo(y_zero_point.dtype)
    steps = np.rint(total * factor) + y_zero_point.astype(np.int64)
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(y_zero_point.dtype))


def _spread(parameter: Array, x: Array, axis: int, block_size: int) -> Array:
    """Return a scale or zero point so that it broadcasts over x: one for all, one a slice, or one a block."""
    if parameter.size == 1 and not block_size:
        return parameter.reshape(())
    if block_size:
        return np.repeat(parameter, block_size, axis=axis).take(range(x.shape[axis]), axis=axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _named(at: Operands, otherwise: str | None) -> str | None:
    """Return the element type that the attribute ``output_dtype`` names."""
    number = at.attr("output_dtype", 0)
    try:
        return dtype_of(number).name if number else otherwise
    except ValueError:  # said when the operator runs
        return None


def _quantize_info(at: Operands) -> ValueInfo:
    return ValueInfo(at[0].shape, at[2].dtype if at.given(2) else _named(at, "uint8"))


def _dequantize_info(at: Operands) -> ValueInfo:
    return ValueInfo(at[0].shape, _named(at, at[1].dtype))


def _dynamic_info(at: Operands) -> tuple[ValueInfo, ...]:
    return ValueInfo(at[0].shape, "uint8"), ValueInfo((), at[0].dtype), ValueInfo((), "uint8")


def _matmul_integer_info(at: Operands) -> ValueInfo:
    return matmul_info(at.only(0, 1)).but(dtype="int32")


def _qlinear_matmul_info(at: Operands) -> ValueInfo:
    return matmul_info(at.only(0, 3)).but(dtype=at[7].dtype)


# Why there is no kernel, no shape, no stream.
_MATRICES = "has matrices that may both change with time"
_REWRITTEN = "passes write it as float32 arithmetic on integers; what they cannot is left to NumPy"
_SCALE = "rounds to steps of a scale that is not followed in time"

OPERATORS = table(
    Operator(
        "QuantizeLinear",
        quantize_linear,
        _quantize_info,
        _REWRITTEN,
        _SCALE,
        unused=frozenset({"saturate", "precision"}),
    ),
    Operator("DequantizeLinear", dequantize_linear, _dequantize_info, _REWRITTEN, _SCALE),
    Operator(
        "DynamicQuantizeLinear",
        dynamic_quantize_linear,
        _dynamic_info,
        _REWRITTEN,
        "takes the scale from all frames at once",
    ),
    Operator("MatMulInteger", matmul_integer, _matmul_integer_info, _REWRITTEN, _MATRICES, matmul_fit),
    Operator(
        "QLinearMatMul", qlinear_matmul, _qlinear_matmul_info, _REWRITTEN, _MATRICES, lambda at: matmul_fit(at, 3)
    ),
)
