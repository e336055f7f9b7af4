"""Algebra: operations without effect, and slices and concatenations that cancel."""

from __future__ import annotations

import numpy as np

from fastlstm.graph import Node
from fastlstm.operators import dims
from fastlstm.operators.movement import FAR, slice_bounds
from fastlstm.operators.values import Operands, normal_axis
from fastlstm.passes.rewrite import Scope
from fastlstm.passes.shapes import operands

__all__ = [
    "cast_of_rows",
    "cast_to_same",
    "concat_of_slices",
    "cut_of_concat",
    "gather_of_one",
    "gather_with_plain_index",
    "join_of_one",
    "neutral_operand",
    "same_shape",
    "squeeze_of_cut",
    "unread_dropout",
]


LARGEST_TABLE = 1 << 22  # elements of a table of bytes that may take four times the memory


def _identity(node: Node, value: str) -> list[Node]:
    return [Node("Identity", (value,), node.outputs[:1])]


def unread_dropout(scope: Scope, node: Node) -> list[Node] | None:
    """``Dropout(x)`` outside training  →  ``x``."""
    training = scope.numbers(node.input(2)) if node.input(2) else [0]
    if training != [0] or (node.output(1) and scope.uses[node.output(1)]):
        return None
    return _identity(node, node.input(0))


def cast_to_same(scope: Scope, node: Node) -> list[Node] | None:
    """``Cast(x)`` to the dtype that x has  →  ``x``."""
    at = operands(node, scope.infos)
    same = at[0].dtype is not None and at[0].dtype == at.cast_to()
    return _identity(node, node.input(0)) if same else None


def cast_of_rows(scope: Scope, node: Node) -> list[Node] | None:
    """``Cast(Gather(bytes, i))`` of a constant table  →  ``Gather(Cast(bytes), i)``: floats have kernels."""
    rows = scope.maker(node.input(0), "Gather")
    table = None if rows is None else scope.const(rows.input(0))
    floats = scope.infer(node)[0].dtype == "float32"
    if rows is None or table is None or table.dtype.name not in ("int8", "uint8") or not floats:
        return None
    if not 0 < table.size <= LARGEST_TABLE:
        return None
    name = scope.constant(f"{rows.input(0)}.floats", table.astype(np.float32))
    return [Node("Gather", (name, rows.input(1)), node.outputs, dict(rows.attrs), node.name)]


def join_of_one(scope: Scope, node: Node) -> list[Node] | None:
    """``Concat(x)``, ``Sum(x)``, ``Max(x)``  →  ``x``; operands of length 0 leave a Concat."""
    if len(node.inputs) == 1:
        return _identity(node, node.input(0))
    if node.op != "Concat":
        return None
    shapes = [scope.shape(name) for name in node.inputs]
    axis = int(node.attrs.get("axis", 0))
    kept = [v for v, s in zip(node.inputs, shapes, strict=True) if not (s and s[axis] == 0)]
    if len(kept) == len(node.inputs) or not kept:
        return None
    return [Node("Concat", tuple(kept), node.outputs, node.attrs, node.name)]


def same_shape(scope: Scope, node: Node) -> list[Node] | None:
    """Slice of all, Expand to the same shape, Tile once, Pad by nothing, Transpose to the same order → x."""
    at = operands(node, scope.infos)
    if node.op == "Slice":
        return _whole_slice(scope, node, at)
    if node.op == "Expand":
        same = at[0].shape is not None and scope.infer(node)[0].shape == at[0].shape
    elif node.op == "Transpose":
        perm = node.attrs.get("perm")
        same = perm is not None and list(perm) == sorted(perm)
    else:
        same = at[1].fill == (1 if node.op == "Tile" else 0) and at[1].const is not None
    return _identity(node, node.input(0)) if same else None


def _whole_slice(scope: Scope, node: Node, at: Operands) -> list[Node] | None:
    """Drop the axes of a Slice that are kept whole; with none left, the Slice is x."""
    bounds, shape = slice_bounds(at), at[0].shape
    if bounds is None or shape is None:
        return None
    cut = [(a, s, e, step) for a, s, e, step in bounds if not _is_whole(shape[a], s, e, step)]
    if not cut:
        return _identity(node, node.input(0))
    if len(cut) == len(bounds) or not all(isinstance(end, int) for _, _, end, _ in cut):
        return None
    axes, starts, ends, steps = map(list, zip(*cut, strict=True))
    return [scope.slice(node.input(0), node.outputs[0], starts, ends, axes, steps, node.name)]


def _is_whole(size: dims.Dim, start: int, end: dims.Dim, step: int) -> bool:
    far = end == size or (isinstance(end, int) and (end >= FAR or (isinstance(size, int) and end >= size)))
    begins = start == 0 or (isinstance(size, int) and start <= -size)
    return step == 1 and begins and far


def neutral_operand(scope: Scope, node: Node) -> list[Node] | None:
    """``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ** 1``  →  ``x``, if the shape stays the same."""
    if len(node.inputs) != 2:
        return None
    neutral = 0 if node.op in ("Add", "Sub") else 1
    result = scope.infer(node)[0]
    for here, there in ((0, 1), (1, 0)) if node.op in ("Add", "Mul") else ((0, 1),):
        other, info = scope.info(node.input(there)), scope.info(node.input(here))
        array = scope.const(node.input(there))
        if array is None or other.fill != neutral or info.shape is None:
            continue
        if info.shape == result.shape and info.dtype == other.dtype:
            return _identity(node, node.input(here))
    return None


def gather_with_plain_index(scope: Scope, node: Node) -> list[Node] | None:
    """``Gather(x, i)`` with i computed from shapes  →  a constant i; the last element is always index -1."""
    shape, index = scope.shape(node.input(0)), scope.info(node.input(1))
    if shape is None or index.shape != () or index.const is None or index.const[0] is None:
        return None
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(shape))
    size, wanted = shape[axis], index.const[0]
    if size != 1 and wanted == dims.subtract(size, 1):
        wanted = -1
    elif size == 1 and wanted == -1:
        wanted = 0
    constant = scope.const(node.input(1))
    if not isinstance(wanted, int) or (constant is not None and constant == wanted):
        return None
    name = scope.constant(f"{node.outputs[0]}.index", wanted)
    return [Node("Gather", (node.input(0), name), node.outputs, node.attrs, node.name)]


def gather_of_one(scope: Scope, node: Node) -> list[Node] | None:
    """``Gather(x, 0)`` along an axis of size 1  →  ``Squeeze(x)``."""
    shape, index = scope.shape(node.input(0)), scope.info(node.input(1))
    if not shape or index.shape != () or index.const not in ((0,), (-1,)):
        return None
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(shape))
    if shape[axis] != 1:
        return None
    return [Node("Squeeze", (node.input(0), scope.constant(f"{node.outputs[0]}.axes", [axis])), node.outputs)]


def squeeze_of_cut(scope: Scope, node: Node) -> list[Node] | None:
    """``Squeeze(Slice(x, i:i+1))``, ``Squeeze(Gather(x, [i]))``  →  ``Gather(x, i)``, the index a scalar."""
    cut = scope.maker(node.input(0), "Slice", "Gather")
    axes = scope.numbers(node.input(1)) if node.input(1) else None
    shape = scope.shape(cut.input(0)) if cut is not None else None
    if cut is None or axes is None or len(axes) != 1 or shape is None:
        return None
    axis = normal_axis(axes[0], len(shape))
    if cut.op == "Gather":
        index = scope.numbers(cut.input(1))
        same = axis == normal_axis(int(cut.attrs.get("axis", 0)), len(shape))
        if not same or index is None or scope.shape(cut.input(1)) != (1,):
            return None
        start = index[0]
    else:
        bounds = slice_bounds(operands(cut, scope.infos))
        if bounds is None or len(bounds) != 1 or bounds[0][0] != axis or bounds[0][3] != 1:
            return None
        start, end = bounds[0][1], bounds[0][2]
        last = start == -1 and (end == shape[axis] or (isinstance(end, int) and end >= FAR))
        if not last and not (isinstance(end, int) and end == start + 1 and (start >= 0 or end < 0)):
            return None
    name = scope.constant(f"{node.outputs[0]}.index", start)
    return [Node("Gather", (cut.input(0), name), node.outputs, {"axis": axis}, node.name)]


def cut_of_concat(scope: Scope, node: Node) -> list[Node] | None:
    """``Gather(Concat(a, b), i)``, ``Slice(Concat(a, b))`` inside one operand  →  the cut of that operand."""
    join = scope.maker(node.input(0), "Concat")
    shape = scope.shape(node.input(0))
    if join is None or shape is None:
        return None
    axis = normal_axis(int(join.attrs["axis"]), len(shape))
    sizes = [s[axis] if s is not None else None for s in (scope.shape(v) for v in join.inputs)]
    if not all(isinstance(size, int) for size in sizes):
        return None
    starts = np.cumsum([0, *(int(size or 0) for size in sizes)]).tolist()
    if node.op == "Gather":
        index = scope.numbers(node.input(1))
        here = normal_axis(int(node.attrs.get("axis", 0)), len(shape)) == axis
        if not here or index is None or scope.shape(node.input(1)) != ():
            return None
        first = normal_axis(index[0], starts[-1])
        length = 1
    else:
        bounds = slice_bounds(operands(node, scope.infos))
        if bounds is None or len(bounds) != 1 or bounds[0][0] != axis or bounds[0][3] != 1:
            return None
        if not isinstance(bounds[0][2], int):
            return None
        kept = range(starts[-1])[slice(bounds[0][1], bounds[0][2])]
        first, length = kept.start, len(kept)
    for value, start, end in zip(join.inputs, starts, starts[1:], strict=False):
        if length and start <= first and first + length <= end:
            return _cut_again(scope, node, value, axis, first - start, length)
    return None


def _cut_again(scope: Scope, node: Node, value: str, axis: int, first: int, length: int) -> list[Node]:
    hint = node.outputs[0]
    if node.op == "Gather":
        index = scope.constant(f"{hint}.index", first)
        return [Node("Gather", (value, index), node.outputs, {"axis": axis}, node.name)]
    return [scope.slice(value, hint, [first], [first + length], [axis], name=node.name)]


def concat_of_slices(scope: Scope, node: Node) -> list[Node] | None:
    """``Concat(x[:, :, 0:H], x[:, :, H:2H])`` along the sliced axis  →  ``x[:, :, 0:2H]``, or x itself."""
    pieces = [scope.maker(v, "Slice") for v in node.inputs]
    source = pieces[0].input(0) if pieces and pieces[0] is not None else ""
    shape = scope.shape(source)
    if shape is None or any(p is None or p.input(0) != source for p in pieces):
        return None
    axis = normal_axis(int(node.attrs["axis"]), len(shape))
    begin = end = None
    for piece in pieces:
        bounds = slice_bounds(operands(piece, scope.infos)) if piece is not None else None
        size = shape[axis]
        if bounds is None or len(bounds) != 1 or not isinstance(size, int):
            return None
        where, start, stop, step = bounds[0]
        if not isinstance(stop, int):
            return None
        kept = range(size)[slice(start, stop)]
        if where != axis or step != 1 or (end is not None and kept.start != end):
            return None
        begin, end = kept.start if begin is None else begin, kept.stop
    if begin is None or end is None:
        return None
    return [scope.slice(source, node.outputs[0], [begin], [end], [axis], name=node.name)]
