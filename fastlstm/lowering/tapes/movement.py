"""Operators that move data. Many are views, the same memory with other sizes and strides, and need no instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm import operators
from fastlstm.graph import Node
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value, axis_of
from fastlstm.typing import Array

__all__ = ["EMITTERS"]

MOST_PARTS = 512  # most copies that make up a gather or scatter


def _known(operands: Sequence[Value | None]) -> bool:
    """Whether everything but the first value is fixed."""
    first, *rest = operands
    return first is not None and first.is_float and first.padded and all(c is None or c.fixed for c in rest)


def _view(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    """Return the view that NumPy makes, or emit a copy if NumPy copies."""
    x = operands[0]
    if x is None or not isinstance(x.array, np.ndarray) or any(c is not None and not c.fixed for c in operands[1:]):
        return None
    if x.is_float and not x.padded:
        return None
    given = [None if c is None else c.array for c in operands]
    results = operators.evaluate(node, given)
    if all(np.may_share_memory(r, x.array) or not r.size for r in results):
        return [Value(r, fixed=False, padded=x.padded) for r in results]
    if not x.is_float:
        return None
    given[0] = rec.contiguous(x)
    results = operators.evaluate(node, given)
    if not all(np.may_share_memory(r, given[0]) or not r.size for r in results):
        return None
    return [Value(r, fixed=False, padded=True) for r in results]


def _gather(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, index = operands[0], operands[1]
    if not _known(operands) or x is None or index is None:
        return None
    axis = axis_of(node.attrs.get("axis", 0), x.array.ndim)
    size = x.array.shape[axis]
    places = index.array.reshape(-1).astype(np.int64)
    if places.size and (places.min() < -size or places.max() >= size):
        return None  # with its own message
    places = np.where(places < 0, places + size, places)
    before = (slice(None),) * axis
    if index.array.ndim == 0:
        return [Value(x.array[(*before, int(places[0]))], fixed=False, padded=True)]
    runs = _runs(places)
    if len(runs) > MOST_PARTS:
        return None
    shape = (*x.array.shape[:axis], *index.array.shape, *x.array.shape[axis + 1 :])
    if len(runs) == 1:  # splitting one axis into several is always a view
        return [Value(x.array[(*before, _slice(*runs[0]))].reshape(shape), fixed=False, padded=True)]
    out = rec.memory((*x.array.shape[:axis], places.size, *x.array.shape[axis + 1 :])).array
    at = 0
    for first, step, count in runs:
        rec.copy(x.array[(*before, _slice(first, step, count))], out[(*before, slice(at, at + count))])
        at += count
    return [Value(out.reshape(shape), fixed=False, padded=True)]


def _expand(_rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, target = operands[0], operands[1]
    if not _known(operands) or x is None or target is None:
        return None
    try:
        shape = np.broadcast_shapes(x.array.shape, tuple(int(n) for n in target.array.reshape(-1)))
    except ValueError:
        return None  # with its own message
    return [Value(np.broadcast_to(x.array, shape), fixed=False, padded=True)]


def _runs(places: Array) -> list[tuple[int, int, int]]:
    """Return the numbers as arithmetic progressions: first, step, count."""
    runs: list[tuple[int, int, int]] = []
    for place in places.tolist():
        if runs:
            first, step, count = runs[-1]
            if count == 1 and place != first:
                runs[-1] = (first, place - first, 2)
                continue
            if count > 1 and place == first + step * count:
                runs[-1] = (first, step, count + 1)
                continue
        runs.append((place, 1, 1))
    return runs


def _slice(first: int, step: int, count: int) -> slice:
    last = first + step * count
    return slice(first, None if last < 0 else last, step)


def _concat(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    if not all(c is not None and c.is_float for c in operands):
        return None
    arrays = [rec.padded(c) for c in operands if c is not None]
    rank = arrays[0].ndim
    axis = axis_of(node.attrs["axis"], rank)
    rest = {(*a.shape[:axis], *a.shape[axis + 1 :]) for a in arrays}
    if rank == 0 or len(rest) != 1 or any(a.ndim != rank for a in arrays):
        return None
    total = sum(a.shape[axis] for a in arrays)
    out = rec.memory((*arrays[0].shape[:axis], total, *arrays[0].shape[axis + 1 :]))
    at = 0
    for array in arrays:
        size = array.shape[axis]
        rec.copy(array, out.array[(*(slice(None),) * axis, slice(at, at + size))])
        at += size
    return [out]


def _pad(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, pads, constant, axes = [*operands, None, None, None][:4]
    mode = node.attrs.get("mode", "constant")
    if not _known(operands) or x is None or pads is None or mode not in ("constant", "reflect"):
        return None
    rank = x.array.ndim
    which = list(range(rank)) if axes is None else [axis_of(a, rank) for a in axes.array.reshape(-1)]
    before, after = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    given = pads.array.reshape(2, -1)
    before[which], after[which] = given[0], given[1]
    if min(before.min(initial=0), after.min(initial=0)) < 0:
        return None
    if mode == "reflect" and any(p >= s for p, s in zip(np.maximum(before, after), x.array.shape, strict=True)):
        return None
    shape = [int(b + s + a) for b, s, a in zip(before, x.array.shape, after, strict=True)]
    out = rec.memory(shape)
    inside = tuple(slice(int(b), int(b) + s) for b, s in zip(before, x.array.shape, strict=True))
    if mode == "constant" and (before.any() or after.any()):
        rec.fill(
            out.array, 0.0 if constant is None or not constant.array.size else float(constant.array.reshape(-1)[0])
        )
    rec.copy(x.array, out.array[inside])
    if mode == "reflect":
        _reflect(rec, out.array, before, after)
    return [out]


def _reflect(rec: Recorder, out: Array, before: Array, after: Array) -> None:
    """Write the mirrored parts axis by axis; those of later axes mirror the earlier ones' as well."""
    done = [slice(int(b), int(n - a)) for b, a, n in zip(before, after, out.shape, strict=True)]
    for axis, (first, last) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        end = out.shape[axis]

        def part(where: slice, axis: int = axis) -> Array:
            return out[tuple(where if i == axis else done[i] for i in range(out.ndim))]

        if first:
            rec.copy(np.flip(part(slice(first + 1, 2 * first + 1)), axis), part(slice(0, first)))
        if last:
            inside = slice(end - 2 * last - 1, end - last - 1)
            rec.copy(np.flip(part(inside), axis), part(slice(end - last, end)))
        done[axis] = slice(0, end)


def _scatter_nd(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    data, index, updates = operands[:3]
    if data is None or index is None or updates is None or not index.fixed or not (data.is_float and updates.is_float):
        return None
    if node.attrs.get("reduction", "none") != "none":
        return None
    depth = index.array.shape[-1]
    lead = data.array.shape[:depth]
    where = index.array.reshape(-1, depth).astype(np.int64)
    if where.size and (np.any(where < -np.array(lead)) or np.any(where >= np.array(lead))):
        return None
    where = np.where(where < 0, where + np.array(lead), where)
    places = np.ravel_multi_index(tuple(where.T), lead) if depth else np.zeros(len(where), np.int64)
    runs = _runs(places)
    if len(runs) > MOST_PARTS:
        return None
    out = rec.memory(data.array.shape)
    rec.copy(rec.padded(data), out.array)
    rows = out.array.reshape(-1, *data.array.shape[depth:])
    parts = rec.contiguous(updates).reshape(-1, *data.array.shape[depth:])
    at = 0
    for first, step, count in runs:
        rec.copy(parts[at : at + count], rows[_slice(first, step, count)])
        at += count
    return [out]


EMITTERS: Mapping[str, Emitter] = {
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"), _view),
    "Expand": _expand,
    "Gather": _gather,
    "Concat": _concat,
    "Pad": _pad,
    "ScatterND": _scatter_nd,
}
