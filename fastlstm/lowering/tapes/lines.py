"""Operators over whole axes: softmax, normalisation, reductions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.graph import Node
from fastlstm.lowering.tapes.elementwise import apply
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value, axis_of
from fastlstm.program.arguments.arrays import LayerNorm, Lines
from fastlstm.program.program import place

__all__ = ["EMITTERS", "reduction"]


def _softmax(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float or x.array.ndim == 0:
        return None
    axis = axis_of(node.attrs.get("axis", -1), x.array.ndim)
    moved = Value(np.moveaxis(rec.padded(x), axis, -1), fixed=False, padded=True)
    source, out = rec.contiguous(moved), rec.memory(moved.array.shape)
    if out.array.size:
        count = source.shape[-1]
        kernel = ("lines.softmax", (rec.target.lanes, node.op == "LogSoftmax"))
        rec.emit(*kernel, Lines(place(source), place(out.array), source.size // count, count))
    return [Value(np.moveaxis(out.array, -1, axis), fixed=False, padded=True)]


def _layer_norm(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, scale, bias = [*operands, None][:3]
    if x is None or not x.is_float or scale is None or not scale.fixed or (bias is not None and not bias.fixed):
        return None
    if any(node.outputs[1:]):
        return None
    axis = axis_of(node.attrs.get("axis", -1), x.array.ndim)
    normed = x.array.shape[axis:]
    count = int(np.prod(normed, dtype=np.int64))
    if np.broadcast_shapes(scale.array.shape, normed) != normed:
        return None
    rows = []
    for value, default in ((scale, 1.0), (bias, 0.0)):
        full = np.full(normed, default, np.float32) if value is None else np.broadcast_to(value.array, normed)
        rows.append(rec.contiguous(Value(np.ascontiguousarray(full, np.float32), fixed=True)))
    source, out = rec.contiguous(x), rec.memory(x.array.shape)
    if out.array.size:
        args = LayerNorm(place(source), place(out.array), source.size // count, count, *map(place, rows))
        rec.emit("lines.layer_norm", (rec.target.lanes, float(node.attrs.get("epsilon", 1e-5))), args)
    return [out]


def reduction(node: Node, x: Value, axes: Value | None) -> tuple[list[int], list[int]] | None:
    """Return the axes that a node reduces and the remaining shape, None if there are none or only a run knows them."""
    rank = x.array.ndim
    if (axes is not None and not axes.fixed) or rank == 0:
        return None
    if axes is not None and axes.array.size:
        which = sorted({axis_of(a, rank) for a in axes.array.reshape(-1)})
    elif node.attrs.get("noop_with_empty_axes", 0):
        return None
    else:
        which = list(range(rank))
    if not node.attrs.get("keepdims", 1):
        return which, [n for i, n in enumerate(x.array.shape) if i not in which]
    return which, [1 if i in which else n for i, n in enumerate(x.array.shape)]


def _reduce(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, axes = [*operands, None][:2]
    found = None if x is None or not x.is_float else reduction(node, x, axes)
    if x is None or found is None:
        return None
    return _reduced(rec, node.op.removeprefix("Reduce"), x, *found)


def _reduced(rec: Recorder, name: str, x: Value, which: Sequence[int], shape: Sequence[int]) -> list[Value] | None:
    kept = [i for i in range(x.array.ndim) if i not in which]
    moved = Value(rec.padded(x).transpose(*kept, *which), fixed=False, padded=True)
    count = int(np.prod([x.array.shape[i] for i in which], dtype=np.int64))
    out = rec.memory(shape)
    if not out.array.size or not count:
        return None if out.array.size else [out]
    source = rec.contiguous(moved)
    kernel = {"L2": "SumSquare"}.get(name, name)
    rec.emit(
        "lines.reduce", (rec.target.lanes, kernel), Lines(place(source), place(out.array), source.size // count, count)
    )
    return [apply(rec, "Sqrt", None, None, out.array)] if name == "L2" else [out]


def _global_mean(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x = operands[0]
    if x is None or not x.is_float or x.array.ndim < 3:
        return None
    which = list(range(2, x.array.ndim))
    return _reduced(rec, "Mean", x, which, (*x.array.shape[:2], *[1] * len(which)))


EMITTERS: Mapping[str, Emitter] = {
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare"), _reduce),
    "GlobalAveragePool": _global_mean,
}
