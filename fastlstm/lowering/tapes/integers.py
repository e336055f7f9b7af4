"""Integers and booleans, which decide how many iterations run, select rows and mask values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import operators
from fastlstm.graph import Node
from fastlstm.lowering.tapes.lines import reduction
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value, axis_of, five, loops
from fastlstm.program.arguments.arrays import Elementwise, Gather, Lines, Loops, Running, Where
from fastlstm.program.layout import KINDS, OPERATIONS
from fastlstm.program.memory import aligned_zeros, memory_of
from fastlstm.program.program import place
from fastlstm.typing import Array

__all__ = ["EMITTERS"]

_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
_LOGIC = ("And", "Or", "Xor", "Not")


def _contiguous(rec: Recorder, value: Value) -> Array | None:
    """Return a value's memory if it is contiguous, else None."""
    if not isinstance(value.array, np.ndarray) or value.array.dtype.name not in KINDS:
        return None
    array = value.array
    if value.is_float:
        array = rec.padded(value)
    elif value.fixed:
        array = np.ascontiguousarray(array)
    return array if array.flags.c_contiguous else None


def _made(rec: Recorder, shape: Sequence[int], dtype: Any) -> Value:
    """Return memory for a result of another type than float32."""
    array = aligned_zeros(tuple(shape), dtype)
    rec.written.append(memory_of(array))
    return Value(array, fixed=False)


def _elementwise(rec: Recorder, name: str, a: Value, b: Value, dtype: Any) -> list[Value] | None:
    """Emit an operation on two values of the same shape, or on a value and a single number."""
    left, right = _contiguous(rec, a), _contiguous(rec, b)
    shape = np.broadcast_shapes(a.array.shape, b.array.shape)
    if left is None or right is None or not all(v.shape == shape or v.size == 1 for v in (left, right)):
        return None
    out = rec.memory(shape) if dtype == np.float32 else _made(rec, shape, dtype)
    steps = [0 if v.size == 1 else v.itemsize for v in (left, right)]
    kinds = [KINDS[v.dtype.name] for v in (left, right)]
    if out.array.size:
        args = Elementwise(
            OPERATIONS[name], out.array.size, place(left), kinds[0], steps[0], place(right), kinds[1], steps[1],
            place(out.array), KINDS[np.dtype(dtype).name],
        )  # fmt: skip
        rec.emit("integers.elementwise", (), args)
    return [out]


def _whole(operands: Sequence[Value | None], *also: str) -> bool:
    """Whether all values are arrays of the same type: integers that the kernel supports, or a given type."""
    types = {getattr(c.array, "dtype", np.dtype("O")).name for c in operands if c is not None}
    return None not in operands and len(types) == 1 and types <= {"int8", "uint8", "int32", "int64", *also}


def _arithmetic(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    a, b = [*operands, None][:2]
    if a is None or b is None or len(operands) != 2 or not _whole(operands):
        return None
    return _elementwise(rec, node.op, a, b, a.array.dtype)


def _comparison(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    a, b = [*operands, None][:2]
    if a is None or b is None or not _whole(operands, "float32", "bool"):
        return None
    return _elementwise(rec, node.op, a, b, np.bool_)


def _logic(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    a, b = operands[0], operands[-1]
    if a is None or b is None or any(c is None or c.array.dtype != np.bool_ for c in operands):
        return None
    return _elementwise(rec, node.op, a, b, np.bool_)


def _cast(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not isinstance(x.array, np.ndarray):
        return None
    target = operators.dtype_of(node.attrs["to"])
    if target == x.array.dtype and (not x.is_float or x.padded):
        return [Value(x.array, fixed=False, padded=x.padded)]
    if target.name not in KINDS or (x.is_float and target != np.bool_):
        return None  # the result for a float outside the integers' range is up to NumPy
    return _elementwise(rec, "Cast", x, x, target)


def _where(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    condition, a, b = operands
    if condition is None or a is None or b is None or not a.is_float or not b.is_float:
        return None
    shape = np.broadcast_shapes(condition.array.shape, a.array.shape, b.array.shape)
    out = rec.memory(shape)
    given = condition.array
    if condition.fixed:
        given = np.ascontiguousarray(given)
    views = [np.broadcast_to(v, shape) for v in (given, rec.padded(a), rec.padded(b))]
    sizes, steps = loops(shape, *(view.strides for view in views), out.array.strides)
    words = five(sizes, *steps[:3])
    if words is None or given.dtype != np.bool_:
        return None
    if out.array.size:
        condition_at, a_at, b_at = map(place, views)
        rec.emit("integers.where", (), Where(condition_at, a_at, b_at, place(out.array), *words), out.array.size)
    return [out]


def _gather(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    """Select slices by indices that are computed at run time."""
    x, index = operands[0], operands[1]
    if x is None or index is None or not x.is_float or index.fixed or index.array.dtype.name not in ("int32", "int64"):
        return None
    places = _contiguous(rec, index)
    axis = axis_of(node.attrs.get("axis", 0), x.array.ndim)
    rest = (*x.array.shape[:axis], *x.array.shape[axis + 1 :])
    if places is None or not x.array.shape[axis]:
        return None
    source = np.moveaxis(rec.padded(x), axis, 0)
    out = rec.memory((*x.array.shape[:axis], *places.shape, *x.array.shape[axis + 1 :]))
    if not out.array.size:
        return [out]
    flat = out.array.reshape(*x.array.shape[:axis], places.size, *x.array.shape[axis + 1 :])
    target = np.moveaxis(flat, axis, 0)
    sizes, steps = loops(rest, source.strides[1:], target.strides[1:])
    words = five(sizes, *steps)
    if words is None:
        return None
    if not rest:
        words = [Loops(1, 1, 1, 1, 1), *[Loops(0, 0, 0, 0, 0)] * 2]
    args = Gather(
        place(source), place(out.array), place(places), KINDS[places.dtype.name], places.size,
        source.shape[0], source.strides[0], target.strides[0], *words,
    )  # fmt: skip
    rec.emit("integers.gather", (), args, out.array.size)
    return [out]


def _argmax(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float or node.attrs.get("select_last_index", 0) or not x.array.size:
        return None
    axis = axis_of(node.attrs.get("axis", 0), x.array.ndim)
    moved = Value(np.moveaxis(rec.padded(x), axis, -1), fixed=False, padded=True)
    source = rec.contiguous(moved)
    out = _made(rec, source.shape[:-1], np.int64)
    count = source.shape[-1]
    rec.emit("integers.argmax", (), Lines(place(source), place(out.array), source.size // count, count))
    return [Value(np.expand_dims(out.array, axis), fixed=False)] if node.attrs.get("keepdims", 1) else [out]


def _reduce(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    """Reduce the first or the last axes, as in computing a mask from features or counting steps."""
    x, axes = [*operands, None][:2]
    found = reduction(node, x, axes) if x is not None and _whole([x], "bool") else None
    source = None if x is None or found is None else _contiguous(rec, x)
    if source is None or found is None or not source.size:
        return None
    which, shape = found
    rank, count = source.ndim, math.prod(source.shape[axis] for axis in which)
    out, lines, size = _made(rec, shape, source.dtype), source.size // count, source.itemsize
    if which == list(range(rank - len(which), rank)):
        steps = count * size, size
    elif which == list(range(len(which))):
        steps = size, lines * size
    else:
        return None
    operation = {"ReduceMax": "Max", "ReduceSum": "Add"}[node.op]
    _emit_running(rec, operation, source, out.array, (lines, count), (*steps, size, 0))
    return [out]


def _running_sum(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    """Accumulate along the first or the last axis."""
    x, along = operands[:2]
    if x is None or along is None or not along.fixed or not _whole([x]) or x.array.ndim == 0:
        return None
    source, axis = _contiguous(rec, x), axis_of(along.array.reshape(-1)[0], x.array.ndim)
    if source is None or not source.size or node.attrs.get("exclusive", 0) or node.attrs.get("reverse", 0):
        return None
    count, size = source.shape[axis], source.itemsize
    out, lines = _made(rec, source.shape, source.dtype), source.size // count
    if axis == source.ndim - 1:
        steps = count * size, size
    elif axis == 0:
        steps = size, lines * size
    else:
        return None
    _emit_running(rec, "Add", source, out.array, (lines, count), (*steps, *steps))
    return [out]


def _emit_running(
    rec: Recorder, operation: str, x: Array, out: Array, sizes: tuple[int, int], steps: tuple[int, int, int, int]
) -> None:
    kind = KINDS[x.dtype.name]
    rec.emit("integers.running", (), Running(OPERATIONS[operation], kind, place(x), place(out), *sizes, *steps))


EMITTERS: Mapping[str, Emitter] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Min", "Max"), _arithmetic),
    **dict.fromkeys(_COMPARISONS, _comparison),
    **dict.fromkeys(_LOGIC, _logic),
    "Cast": _cast,
    "Where": _where,
    "Gather": _gather,
    "ArgMax": _argmax,
    **dict.fromkeys(("ReduceMax", "ReduceSum"), _reduce),
    "CumSum": _running_sum,
}
