"""Arithmetic, comparison and logic, element by element, and casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.sizes import check_broadcast

__all__ = ["OPS"]

Array = npt.NDArray[Any]


def _unary(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    return lambda x: function(x)


def _binary(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
    """Return the operator of two inputs that have one element type, as ONNX asks."""

    def operator(a: Array, b: Array) -> Any:
        _same_dtype(a, b)
        check_broadcast(a, b)
        return function(a, b)

    return operator


def _variadic(function: Callable[[Array, Array], Any]) -> Callable[..., Any]:
    """Return the operator that folds any number of inputs of one element type, left to right."""

    def operator(*arrays: Array) -> Any:
        _same_dtype(*arrays)
        check_broadcast(*arrays)
        return reduce(function, arrays)

    return operator


def _same_dtype(*arrays: Array) -> None:
    if len({array.dtype for array in arrays}) > 1:
        raise ValueError("the inputs must have one element type; cast them to it first")


def div(a: Array, b: Array) -> Array:
    """Return a / b; for integers the quotient rounded towards zero."""
    _same_dtype(a, b)
    check_broadcast(a, b)
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.floor_divide(a, b)
    # Floor division rounds down; go back up where the signs differ and something is left over.
    return np.asarray(quotient + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0))), dtype=a.dtype)


def power(base: Array, exponent: Array) -> Array:
    """Return base to the power of exponent, in the element type of the base."""
    check_broadcast(base, exponent)
    return np.asarray(np.power(base, exponent), dtype=base.dtype)


def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """Return the remainder: of b's sign, or with fmod=1 of a's, as C's fmod."""
    _same_dtype(a, b)
    check_broadcast(a, b)
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


def bit_shift(x: Array, by: Array, *, direction: str) -> Array:
    """Return x shifted by a number of bits to the "LEFT" or the "RIGHT"."""
    check_broadcast(x, by)
    return np.asarray({"LEFT": np.left_shift, "RIGHT": np.right_shift}[direction](x, by))


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Return x held between low and high; where low > high, high."""
    if low is not None:
        x = np.maximum(x, low.astype(x.dtype))
    return x if high is None else np.minimum(x, high.astype(x.dtype))


def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Return where x is infinite, of the signs that are asked for."""
    return np.asarray(np.isinf(x) & (((x < 0) & bool(detect_negative)) | ((x > 0) & bool(detect_positive))))


def cast(x: Array, *, to: int | str) -> Array:
    """Return x with another element type; floats are cut to integers towards zero."""
    return x.astype(dtype_of(to))


def cast_like(x: Array, like: Array) -> Array:
    """Return x with the element type of another value."""
    return x.astype(like.dtype)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return x where the condition holds, else y."""
    _same_dtype(x, y)
    check_broadcast(condition, x, y)
    return np.where(condition, x, y)


def mean(*arrays: Array) -> Array:
    """Return the mean of any number of arrays."""
    check_broadcast(*arrays)
    return np.asarray(reduce(np.add, arrays) / len(arrays), dtype=arrays[0].dtype)


def dropout(x: Array, _ratio: Array | None = None, training: Array | None = None) -> tuple[Array, Array]:
    """Return x and a mask that keeps everything: inference drops nothing."""
    if training is not None and bool(training):
        raise ValueError("training_mode is true, but dropout at random is not supported; export for inference")
    return x, np.ones(x.shape, dtype=bool)


OPS: Mapping[str, Callable[..., Any]] = {
    "Abs": _unary(np.abs),
    "Acos": _unary(np.arccos),
    "Acosh": _unary(np.arccosh),
    "Asin": _unary(np.arcsin),
    "Asinh": _unary(np.arcsinh),
    "Atan": _unary(np.arctan),
    "Atanh": _unary(np.arctanh),
    "BitwiseNot": _unary(np.bitwise_not),
    "Ceil": _unary(np.ceil),
    "Cos": _unary(np.cos),
    "Cosh": _unary(np.cosh),
    "Exp": _unary(np.exp),
    "Floor": _unary(np.floor),
    "Identity": lambda x: x,
    "IsInf": is_inf,
    "IsNaN": _unary(np.isnan),
    "Log": _unary(np.log),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Reciprocal": lambda x: np.asarray(1 / x, dtype=x.dtype),
    "Round": _unary(np.rint),
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Sinh": _unary(np.sinh),
    "Sqrt": _unary(np.sqrt),
    "Tan": _unary(np.tan),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "BitShift": bit_shift,
    "BitwiseAnd": _binary(np.bitwise_and),
    "BitwiseOr": _binary(np.bitwise_or),
    "BitwiseXor": _binary(np.bitwise_xor),
    "Div": div,
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Mod": mod,
    "Mul": _binary(np.multiply),
    "Or": _binary(np.logical_or),
    "Pow": power,
    "Sub": _binary(np.subtract),
    "Xor": _binary(np.logical_xor),
    "Max": _variadic(np.maximum),
    "Mean": mean,
    "Min": _variadic(np.minimum),
    "Sum": _variadic(np.add),
    "Cast": cast,
    "CastLike": cast_like,
    "Clip": clip,
    "Dropout": dropout,
    "Where": where,
}
