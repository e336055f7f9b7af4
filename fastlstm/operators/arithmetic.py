"""Arithmetic, comparison and logic on the elements of several values that broadcast."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import RARE, Lowering, Operation, Operator, ShapeRule, Stream, table
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.rules import broadcast_shapes
from fastlstm.operators.sizes import check_broadcast
from fastlstm.operators.values import CONTENT_LIMIT, Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS", "broadcast"]


def _pair(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
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


def bit_shift(x: Array, by: Array, *, direction: Literal["LEFT", "RIGHT"]) -> Array:
    """Return x shifted by a number of bits to the "LEFT" or the "RIGHT"."""
    check_broadcast(x, by)
    return np.asarray({"LEFT": np.left_shift, "RIGHT": np.right_shift}[direction](x, by))


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return x where the condition holds, else y."""
    _same_dtype(x, y)
    check_broadcast(condition, x, y)
    return np.where(condition, x, y)


def mean(*arrays: Array) -> Array:
    """Return the mean of any number of arrays."""
    check_broadcast(*arrays)
    return np.asarray(reduce(np.add, arrays) / len(arrays), dtype=arrays[0].dtype)


# --- what is known of the results before they are computed -------------------------------------------------


def _broadcast_info(at: Operands) -> ValueInfo:
    infos = [info for i, info in enumerate(at.infos) if at.given(i)]
    dtype = next((info.dtype for info in infos if info.dtype), None)
    shape = broadcast_shapes([info.shape for info in infos])
    content = _content(at, shape)
    if content is not None and shape is not None:
        return ValueInfo.of_content(content, shape, dtype)
    return ValueInfo(shape, dtype, None, _filled(at))


def _compare_info(at: Operands) -> ValueInfo:
    shape = broadcast_shapes([at[0].shape, at[1].shape])
    content = _content(at, shape)
    if content is not None and shape is not None:
        return ValueInfo.of_content(content, shape, "bool")
    return ValueInfo(shape, "bool")


def _filled(at: Operands) -> float | str | None:
    """Return the one number of a sum or product of such; a product with 0 counts as 0.

    (0 times infinity or NaN is NaN, but an exporter's ``x * 0`` stands for its framework's zeros_like.)
    """
    a, b = at[0].fill, at[1].fill
    if at.node.op == "Mul" and (a == 0 or b == 0):
        return 0
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None or len(at.infos) != 2:
        return None
    if at.node.op in ("Add", "Sub"):
        return a + b if at.node.op == "Add" else a - b
    return a * b if at.node.op == "Mul" else None


def _content(at: Operands, shape: Shape | None) -> tuple[Dim | None, ...] | None:
    """Compute whole-number content element by element for rank 0 and 1."""
    if shape is None or len(shape) > 1 or len(at.infos) != 2:
        return None
    a, b = at[0].const, at[1].const
    size = 1 if not shape else shape[0]
    if a is None or b is None or not isinstance(size, int) or size > CONTENT_LIMIT:
        return None
    if {len(a), len(b)} - {1, size}:
        return None
    floating = any("float" in (info.dtype or "float") for info in at.infos)
    return tuple(_element(at.node.op, a[i % len(a)], b[i % len(b)], floating) for i in range(size))


def _element(op: str, a: Dim | None, b: Dim | None, floating: bool) -> Dim | None:
    if a is None or b is None:
        return 0 if op == "Mul" and (a == 0 or b == 0) else None
    if op in _ARITHMETIC:
        return _ARITHMETIC[op](a, b)
    if op == "Div":
        if b == 0:
            return None
        exact = dims.divide(a, b)
        if exact is not None or floating or not isinstance(b, int) or b < 0:
            return exact
        # Integer division truncates; it is the floor where the quotient cannot be negative.
        return dims.floor_divide(a, b) if dims.at_least(a, 0) else None
    if op in ("Max", "Min"):
        low, high = (a, b) if dims.at_least(b, a) else (b, a)
        return (high if op == "Max" else low) if dims.at_least(high, low) else None
    return _comparison(op, a, b)


_ARITHMETIC = {"Add": dims.add, "Sub": dims.subtract, "Mul": dims.multiply}


def _comparison(op: str, a: Dim, b: Dim) -> int | None:
    """Decide a comparison where it holds, or fails, whatever the names stand for."""
    if isinstance(a, int) and isinstance(b, int):
        decided = {
            "And": bool(a and b), "Or": bool(a or b), "Xor": bool(a) != bool(b), "Equal": a == b,
            "Greater": a > b, "GreaterOrEqual": a >= b, "Less": a < b, "LessOrEqual": a <= b,
        }  # fmt: skip
        return int(decided[op]) if op in decided else None
    if op in ("Greater", "GreaterOrEqual"):
        return _comparison({"Greater": "Less", "GreaterOrEqual": "LessOrEqual"}[op], b, a)
    if op == "LessOrEqual":
        return 1 if dims.at_least(b, a) else 0 if dims.at_least(a, dims.add(b, 1)) else None
    if op == "Less":
        return 1 if dims.at_least(b, dims.add(a, 1)) else 0 if dims.at_least(a, b) else None
    if op == "Equal":
        if a == b:
            return 1
        apart = dims.at_least(a, dims.add(b, 1)) or dims.at_least(b, dims.add(a, 1))
        return 0 if apart else None
    return None


def _where_info(at: Operands) -> ValueInfo:
    shape = broadcast_shapes([at[0].shape, at[1].shape, at[2].shape])
    dtype = at[1].dtype or at[2].dtype
    condition, yes, no = at[0].numbers, at[1].const, at[2].const
    if shape is None or len(shape) > 1 or not condition or not yes or not no:
        return ValueInfo(shape, dtype)
    size = shape[0] if shape else 1
    if not isinstance(size, int) or size > CONTENT_LIMIT:
        return ValueInfo(shape, dtype)
    chosen = [yes if condition[i % len(condition)] else no for i in range(size)]
    return ValueInfo.of_content(tuple(c[i % len(c)] for i, c in enumerate(chosen)), shape, dtype)


# --- the operators ----------------------------------------------------------------------------------------


def broadcast(
    name: str, compute: Callable[..., Any], lowering: Operation | Lowering | str, infer: ShapeRule = _broadcast_info
) -> Operator:
    """Return an operator on values that broadcast."""
    return Operator(name, compute, infer, lowering, Stream.BROADCAST)


def _compare(name: str, compute: Callable[..., Any]) -> Operator:
    return broadcast(name, _pair(compute), Lowering.TAPE, _compare_info)


OPERATORS = table(
    broadcast("Add", _pair(np.add), Operation(lambda _: lambda a, b: a + b)),
    broadcast("Sub", _pair(np.subtract), Operation(lambda _: lambda a, b: a - b)),
    broadcast("Mul", _pair(np.multiply), Operation(lambda _: lambda a, b: a * b)),
    broadcast("Div", div, Operation(lambda _: lambda a, b: a / b)),
    broadcast("Pow", power, Lowering.TAPE),
    broadcast("Mod", mod, RARE),
    broadcast("Max", _variadic(np.maximum), Lowering.TAPE),
    broadcast("Min", _variadic(np.minimum), Lowering.TAPE),
    broadcast("Sum", _variadic(np.add), RARE),
    broadcast("Mean", mean, RARE),
    _compare("Equal", np.equal),
    _compare("Greater", np.greater),
    _compare("GreaterOrEqual", np.greater_equal),
    _compare("Less", np.less),
    _compare("LessOrEqual", np.less_equal),
    broadcast("And", _pair(np.logical_and), Lowering.TAPE),
    broadcast("Or", _pair(np.logical_or), Lowering.TAPE),
    broadcast("Xor", _pair(np.logical_xor), Lowering.TAPE),
    broadcast("BitShift", bit_shift, RARE),
    broadcast("BitwiseAnd", _pair(np.bitwise_and), RARE),
    broadcast("BitwiseOr", _pair(np.bitwise_or), RARE),
    broadcast("BitwiseXor", _pair(np.bitwise_xor), RARE),
    broadcast("Where", where, Lowering.TAPE, _where_info),
)
