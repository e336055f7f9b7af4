"""Dense layers and products of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.graph import Node
from fastlstm.lowering.pack import panels_of, plain_panels
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value
from fastlstm.program.arguments.arrays import MatMul, Pack
from fastlstm.program.layout import TOGETHER
from fastlstm.program.program import Place, place
from fastlstm.typing import Array

__all__ = ["EMITTERS"]

MOST_VECTORS = 4


def _vectors(rec: Recorder, columns: int) -> int:
    return min(MOST_VECTORS, panels_of(columns, rec.target.lanes))


def _bias(rec: Recorder, bias: Value | None, columns: int) -> Array:
    room = -(-columns // (MOST_VECTORS * rec.target.lanes)) * MOST_VECTORS * rec.target.lanes

    def padded(array: Array) -> Array:
        row = np.zeros(room, np.float32)
        row[:columns] = np.broadcast_to(array.reshape(-1), (columns,))
        return row

    return rec.prepared(Value(np.zeros(1), fixed=True) if bias is None else bias, ("bias", columns), padded)


def _multiply(
    rec: Recorder, a: Array, batch: int, rows: int, panels: tuple[Place, int], bias: Array, out: Array, n: int
) -> None:
    """Emit ``out = bias + a @ panels`` for `a` [batch, rows, k]; `panels` is an address and the bytes per batch."""
    lanes, vectors, k = rec.target.lanes, _vectors(rec, n), a.shape[-1]
    width = -(-n // (lanes * vectors)) * lanes * vectors
    scratch = rec.scratch(8 * TOGETHER + 4 * TOGETHER * width)
    args = MatMul(
        place(a), 4 * rows * k, 4 * k, batch, rows, k, panels[0], panels[1], place(bias), place(out), n, *scratch
    )  # fmt: skip
    rec.emit("contraction.matmul", (lanes, vectors, rec.target.max_sums), args, batch * rows * k * n)


def _dense(rec: Recorder, _node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, weight, bias, scale = [*operands, None, None][:4]
    if x is None or weight is None or not x.is_float or not weight.is_float or scale is not None:
        return None
    if not weight.fixed or (bias is not None and not bias.fixed) or x.array.ndim == 0:
        return None
    k, n = weight.array.shape
    if x.array.shape[-1] != k or not k or not n:  # what is empty is left to NumPy
        return None
    lanes, vectors = rec.target.lanes, _vectors(rec, n)
    packed = rec.prepared(weight, ("panels", vectors), lambda array: plain_panels(array, vectors, lanes))
    out = rec.memory((*x.array.shape[:-1], n))
    if out.array.size:
        _multiply(rec, rec.contiguous(x), 1, out.array.size // n, (place(packed), 0), _bias(rec, bias, n), out.array, n)
    return [out]


def _matmul(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    a, b = operands[0], operands[1]
    if a is None or b is None or not a.is_float or not b.is_float or min(a.array.ndim, b.array.ndim) < 2:
        return None
    if b.fixed and b.array.ndim == 2:
        return _dense(rec, node, operands)
    if a.array.shape[-1] != b.array.shape[-2] or not a.array.shape[-1]:
        return None
    lead = np.broadcast_shapes(a.array.shape[:-2], b.array.shape[:-2])
    rows, k, n = a.array.shape[-2], a.array.shape[-1], b.array.shape[-1]
    out = rec.memory((*lead, rows, n))
    if not out.array.size:
        return [out]
    if a.array.shape[:-2] != lead:
        spread = rec.memory((*lead, rows, k))
        rec.copy(rec.padded(a), spread.array)
        a = spread
    if b.array.shape[:-2] not in (lead, ()):
        spread = rec.memory((*lead, k, n))
        rec.copy(rec.padded(b), spread.array)
        b = spread
    batch = int(np.prod(b.array.shape[:-2], dtype=np.int64))
    weights = rec.padded(b)
    if not _evenly_spaced(weights):
        weights = rec.contiguous(b)
    lanes, vectors = rec.target.lanes, _vectors(rec, n)
    panel_floats = -(-n // (lanes * vectors)) * lanes * vectors * k
    packed = rec.memory((batch, panel_floats)).array
    step = weights.strides[-3] if weights.ndim > 2 else 0
    rec.emit(
        "contraction.pack",
        (lanes, vectors),
        Pack(place(weights), place(packed), batch, k, n, step, weights.strides[-2], weights.strides[-1]),
    )
    times = int(np.prod(lead, dtype=np.int64))
    if batch == 1:
        batch_rows = (1, times * rows, 0)
    else:
        batch_rows = (times, rows, 4 * panel_floats)
    _multiply(
        rec, rec.contiguous(a), batch_rows[0], batch_rows[1], (place(packed), batch_rows[2]), _bias(rec, None, n),
        out.array, n,
    )  # fmt: skip
    return [out]


def _einsum(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    """A sum over axes that two values share: a matrix product for each index of the axes that remain."""
    equation = str(node.attrs["equation"]).replace(" ", "")
    a, b = [*operands, None, None][:2]
    if len(operands) != 2 or a is None or b is None or not a.is_float or not b.is_float or "." in equation:
        return None
    given, arrow, result = equation.partition("->")
    left, _, right = given.partition(",")
    if not arrow or any(len(set(axes)) != len(axes) for axes in (left, right, result)):
        return None
    if (len(left), len(right)) != (a.array.ndim, b.array.ndim) or set(left + right) < set(result):
        return None
    stay = [axis for axis in left if axis in right and axis in result]
    summed = [axis for axis in left if axis in right and axis not in result]
    rows, columns = [axis for axis in left if axis not in right], [axis for axis in right if axis not in left]
    sizes = {**dict(zip(left, a.array.shape, strict=True)), **dict(zip(right, b.array.shape, strict=True))}
    agree = all(sizes[axis] == size for axis, size in zip(left, a.array.shape, strict=True))
    if not summed or not agree or set(rows + columns) - set(result) or not all(sizes[axis] for axis in summed):
        return None  # a sum over one value only, or none
    parts = [math.prod(sizes[axis] for axis in axes) for axes in (stay, rows, summed, columns)]

    def matrices(array: Array, axes: str, order: Sequence[str], shape: Sequence[int]) -> Array:
        return array.transpose([axes.index(axis) for axis in order]).reshape(shape)

    batch, count, k, n = parts
    moved = Value(a.array.transpose([left.index(axis) for axis in (*stay, *rows, *summed)]), a.fixed, a.padded)
    x = rec.contiguous(moved).reshape(batch, count, k)
    out = rec.memory((batch, count, n))
    if b.fixed and out.array.size:
        lanes, vectors = rec.target.lanes, _vectors(rec, n)

        def panels(array: Array) -> Array:
            each = matrices(array, right, (*stay, *summed, *columns), (batch, k, n))
            return np.stack([plain_panels(matrix, vectors, lanes) for matrix in each])

        packed = rec.prepared(b, ("einsum", equation, vectors), panels)
        of_batch = packed.nbytes // batch
        _multiply(rec, x, batch, count, (place(packed), of_batch), _bias(rec, None, n), out.array, n)
    elif out.array.size:
        turned = b.array.transpose([right.index(axis) for axis in (*stay, *summed, *columns)])
        weights = rec.contiguous(Value(turned, b.fixed, b.padded)).reshape(batch, k, n)
        (out,) = _matmul(rec, node, [Value(x, False, True), Value(weights, False, True)]) or [out]
    made = out.array.reshape([sizes[axis] for axis in (*stay, *rows, *columns)])
    order = [[*stay, *rows, *columns].index(axis) for axis in result]
    return [Value(made.transpose(order), fixed=False, padded=True)]


def _evenly_spaced(array: Array) -> bool:
    """Whether the axes before the last two can be one axis with one stride."""
    lead = [(size, step) for size, step in zip(array.shape[:-2], array.strides[:-2], strict=True) if size != 1]
    return len(lead) <= 1 and (not lead or array.ndim == 3)


EMITTERS: Mapping[str, Emitter] = {"Dense": _dense, "MatMul": _matmul, "Einsum": _einsum}
