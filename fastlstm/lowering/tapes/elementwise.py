"""Elementwise functions, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.graph import Node
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value, five, loops
from fastlstm.operators import OPERATORS, Function, Operation
from fastlstm.program.arguments.arrays import Binary, Loops, Unary
from fastlstm.program.program import place
from fastlstm.typing import Array

__all__ = ["EMITTERS", "apply", "combine"]

FUNCTIONS = {name: op.lowering for name, op in OPERATORS.items() if isinstance(op.lowering, Function)}
OPERATIONS = [name for name, op in OPERATORS.items() if isinstance(op.lowering, Operation)]
MOST_RANK = 8
JOINING = frozenset({"Add", "Mul", "Round", "Sub"})
"""Functions, beside Clip, that join the operation before them: they take less time than passing over the array."""


def apply(rec: Recorder, name: str, alpha: float | None, beta: float | None, x: Array) -> Value:
    """Emit an elementwise function of a contiguous array."""
    out = rec.memory(x.shape)
    args = Unary(place(x), place(out.array), x.size)
    rec.emit("arrays.unary", (rec.target.lanes, name, alpha, beta), args)
    return out


def combine(rec: Recorder, name: str, a: Value, b: Value) -> Value:
    """Emit an elementwise operation on two values, with broadcasting."""
    shape = np.broadcast_shapes(a.array.shape, b.array.shape)
    out = rec.memory(shape)
    if not out.array.size:
        return out
    views = [np.broadcast_to(rec.padded(value), shape) for value in (a, b)]
    words = _words(views, out.array)
    if words is None:
        views = [np.broadcast_to(rec.contiguous(value), shape) for value in (a, b)]
        words = _words(views, out.array)
    if words is None:  # more loops than a kernel has: operands of full size need one
        full = []
        for view in views:
            whole = rec.memory(shape).array
            rec.copy(view, whole)
            full.append(whole)
        views, words = full, _words(full, out.array)
    assert words is not None
    left, right = map(place, views)
    sizes, a_steps, b_steps = words
    args = Binary(left, right, place(out.array), sizes, a_steps, b_steps, 0)
    rec.emit("arrays.binary", (rec.target.lanes, name), args, out.array.size)
    rec.chain(out)
    return out


def _joins(rec: Recorder, name: str, a: Value, b: Value) -> Value | None:
    """Return the one of two operands whose instruction computes the operation too, the other being one element."""
    for side, (value, other) in enumerate(((a, b), (b, a)), 1):
        one = other.array.size == 1 and other.array.ndim <= value.array.ndim
        if name in JOINING and one and rec.extend(value, (name, None, None, side), other):
            return value
    return None


def _words(views: Sequence[Array], out: Array) -> list[Loops] | None:
    """Return sizes and strides for the kernel, None if it cannot read these views."""
    sizes, steps = loops(out.shape, *(view.strides for view in views), out.strides)
    if any(step[-1] not in (0, 4) for step in steps):
        return None
    return five(sizes, *steps[:2])


def _unary(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float:
        return None
    alpha, beta = (None if p is None else float(p) for p in FUNCTIONS[node.op].given(node.attrs))
    if node.op == "Relu" and rec.absorb(x, low=0.0):
        return [x]
    if node.op in JOINING and rec.extend(x, (node.op, alpha, beta, 0)):
        return [x]
    if node.op == "LeakyRelu" and rec.absorb(x, slopes=np.array([alpha])):
        return [x]
    return [apply(rec, node.op, alpha, beta, rec.contiguous(x))]


def _log(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float:
        return None
    source, out = rec.contiguous(x), rec.memory(x.array.shape)
    rec.emit("arrays.logarithm", (), Unary(place(source), place(out.array), source.size))
    return [out]


def _gelu(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float:
        return None
    name = "GeluTanh" if node.attrs.get("approximate", "none") == "tanh" else "Gelu"
    return [apply(rec, name, None, None, rec.contiguous(x))]


def _clip(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, *bounds = [*operands, None, None][:3]
    if x is None or not x.is_float or any(b is not None and not b.fixed for b in bounds):
        return None
    low, high = (
        given if b is None else float(b.array.reshape(-1)[0])
        for b, given in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    if np.isnan(low) or np.isnan(high):
        return None
    if rec.absorb(x, low, high):
        return [x]
    if rec.extend(x, ("Clip", low, high, 0)):
        return [x]
    return [apply(rec, "Clip", low, high, rec.contiguous(x))]


def _pow(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, exponent = operands[0], operands[1]
    if x is None or exponent is None or not x.is_float or not exponent.fixed or exponent.array.size != 1:
        return None
    names = {0.5: "Sqrt", -1.0: "Reciprocal"}
    power = float(exponent.array.reshape(-1)[0])
    if exponent.array.ndim > x.array.ndim:
        return None
    if power == 2.0:
        return [combine(rec, "Mul", x, x)]
    if power not in names:
        return None
    return [apply(rec, names[power], None, None, rec.contiguous(x))]


def _binary(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    a, b = operands[0], operands[1]
    if a is None or b is None or not a.is_float or not b.is_float:
        return None
    if max(a.array.ndim, b.array.ndim) > MOST_RANK:
        return None
    if node.op == "PRelu" and b.fixed and _per_channel(a, b) and rec.absorb(a, slopes=b.array.reshape(-1)):
        return [a]
    return [_joins(rec, node.op, a, b) or combine(rec, node.op, a, b)]


def _per_channel(x: Value, slope: Value) -> bool:
    """Whether there is one slope, or one for each channel."""
    ahead = x.array.ndim - slope.array.ndim
    shape = (1,) * ahead + slope.array.shape
    return bool(ahead >= 0 and math.prod(shape[:1] + shape[2:]) == 1)


def _batch_normalization(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, *rest = operands
    if x is None or not x.is_float or any(c is None or not c.fixed for c in rest) or len(rest) != 4:
        return None
    scale, bias, mean, variance = (c.array.astype(np.float64) for c in rest if c is not None)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN and infinity are valid results
        factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    behind = (-1, *[1] * (x.array.ndim - 2))
    by, shift = (Value(v.astype(np.float32).reshape(behind), fixed=True) for v in (factor, bias - mean * factor))
    return [combine(rec, "Add", combine(rec, "Mul", x, by), shift)]


EMITTERS: Mapping[str, Emitter] = {
    **dict.fromkeys(FUNCTIONS, _unary),
    **dict.fromkeys(OPERATIONS, _binary),
    "Gelu": _gelu,
    "Log": _log,
    "Clip": _clip,
    "Pow": _pow,
    "BatchNormalization": _batch_normalization,
}
