"""Functions of the elements of one value, and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import RARE, Function, Lowering, Operator, ShapeRule, Stream, table
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.rules import same
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def _unary(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    return lambda x: function(x)


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Return x held between low and high; where low > high, high."""
    if low is not None:
        x = np.maximum(x, low.astype(x.dtype))
    return x if high is None else np.minimum(x, high.astype(x.dtype))


def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Return where x is infinite, of the signs that are asked for."""
    return np.asarray(np.isinf(x) & (((x < 0) & bool(detect_negative)) | ((x > 0) & bool(detect_positive))))


def identity(x: Any) -> Any:
    """Return x, which may be a sequence."""
    return x


def cast(x: Array, *, to: int | str) -> Array:
    """Return x with another element type; floats are cut to integers towards zero."""
    return x.astype(dtype_of(to))


def cast_like(x: Array, like: Array) -> Array:
    """Return x with the element type of another value."""
    return x.astype(like.dtype)


def dropout(x: Array, _ratio: Array | None = None, training: Array | None = None) -> tuple[Array, Array]:
    """Return x and a mask that keeps everything: inference drops nothing."""
    if training is not None and bool(training):
        raise ValueError("training_mode is true, but dropout at random is not supported; export for inference")
    return x, np.ones(x.shape, dtype=bool)


def _identity_info(at: Operands) -> ValueInfo:
    return at[0]


def _dropout_info(at: Operands) -> tuple[ValueInfo, ...]:
    return same(at).but(fill=0.0 if at[0].fill == 0 else None), ValueInfo(at[0].shape, "bool")


def _negative_info(at: Operands) -> ValueInfo:
    if at[0].const is None:
        return same(at)
    negative = tuple(None if v is None else dims.multiply(-1, v) for v in at[0].const)
    return ValueInfo.of_content(negative, at[0].shape or (), at[0].dtype)


def _truth_info(at: Operands) -> ValueInfo:
    return ValueInfo(at[0].shape, "bool")


def _not_info(at: Operands) -> ValueInfo:
    content = at[0].const
    if content is not None and content in ((0,), (1,)):
        return ValueInfo.of_content((1 - int(content[0] or 0),), at[0].shape or (), "bool")
    return _truth_info(at)


def _cast_info(at: Operands) -> ValueInfo:
    return _with_dtype(at[0], at.cast_to())


def _cast_like_info(at: Operands) -> ValueInfo:
    return _with_dtype(at[0], at[1].dtype)


def _with_dtype(x: ValueInfo, dtype: str | None) -> ValueInfo:
    if dtype == "bool":
        decided = x.const is not None and all(isinstance(v, int) for v in x.const)
        return ValueInfo(x.shape, dtype, tuple(int(v != 0) for v in x.const or ()) if decided else None, None)
    info = x.but(dtype=dtype)
    if isinstance(info.fill, float) and dtype is not None and "float" not in dtype:
        info = info.but(fill=int(info.fill))
    return info


def _each(
    name: str, compute: Callable[..., Any], lowering: Function | Lowering | str = RARE, infer: ShapeRule = same
) -> Operator:
    return Operator(name, compute, infer, lowering, Stream.ELEMENTS)


def _vector(vector: Callable[..., Any]) -> Function:
    return Function(vector, rows=False)


def _nearest(v: Any) -> Any:
    def nearest(x):  # type: ignore[no-untyped-def]
        far = v.splat(x, 8388608.0)  # from 2**23 on every float is whole; below, this addition rounds to integers
        return v.where_less(v.vabs(x), far, v.vcopysign(v.vabs(x) + far - far, x), x)

    return nearest


_CASTS = frozenset({"saturate", "round_mode"})
"""Attributes that speak of 8-bit floats, which are refused."""

_NO_MASK = "passes take it out where nothing reads its mask"

OPERATORS = table(
    _each("Abs", _unary(np.abs), _vector(lambda v: v.vabs)),
    _each("Acos", _unary(np.arccos)),
    _each("Acosh", _unary(np.arccosh)),
    _each("Asin", _unary(np.arcsin)),
    _each("Asinh", _unary(np.arcsinh)),
    _each("Atan", _unary(np.arctan)),
    _each("Atanh", _unary(np.arctanh)),
    _each("BitwiseNot", _unary(np.bitwise_not)),
    _each("Ceil", _unary(np.ceil)),
    _each("Cos", _unary(np.cos)),
    _each("Cosh", _unary(np.cosh)),
    _each("Floor", _unary(np.floor), _vector(lambda v: v.vfloor)),
    _each("Identity", identity, Lowering.TAPE, _identity_info),
    _each("IsInf", is_inf, infer=_truth_info),
    _each("IsNaN", _unary(np.isnan), infer=_truth_info),
    _each("Log", _unary(np.log), Lowering.TAPE),
    _each("Neg", _unary(np.negative), _vector(lambda v: lambda x: v.splat(x, 0.0) - x), _negative_info),
    _each("Not", _unary(np.logical_not), Lowering.TAPE, _not_info),
    _each("Reciprocal", lambda x: np.asarray(1 / x, dtype=x.dtype), _vector(lambda v: lambda x: v.splat(x, 1.0) / x)),
    _each("Round", _unary(np.rint), _vector(_nearest)),
    _each("Sign", _unary(np.sign)),
    _each("Sin", _unary(np.sin)),
    _each("Sinh", _unary(np.sinh)),
    _each("Sqrt", _unary(np.sqrt), _vector(lambda v: v.vsqrt)),
    _each("Tan", _unary(np.tan)),
    _each(
        "Clip",
        clip,
        Function(
            lambda v, low, high: lambda x: v.vmin(v.splat(x, high), v.vmax(v.splat(x, low), x)),
            (("low", -np.inf), ("high", np.inf)),  # inputs, and constants where kernels take them
            rows=False,
        ),
    ),
    Operator("Cast", cast, _cast_info, Lowering.TAPE, Stream.ELEMENTS, unused=_CASTS),
    Operator("CastLike", cast_like, _cast_like_info, RARE, Stream.ELEMENTS, unused=_CASTS),
    Operator("Dropout", dropout, _dropout_info, _NO_MASK, Stream.ELEMENTS, unused=frozenset({"seed"})),
)
