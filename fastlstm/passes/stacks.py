"""Time steps split and joined again, and sequences reversed."""

from __future__ import annotations

from fastlstm.graph import Node, RecurrentInputs
from fastlstm.operators.movement import FAR, slice_bounds
from fastlstm.operators.values import normal_axis
from fastlstm.passes.rewrite import Scope
from fastlstm.passes.shapes import operands

__all__ = [
    "join_of_cuts",
    "join_of_pieces",
    "plain_reversal",
    "reversal_of_reversal",
    "reversed_layer",
    "step_of_pieces",
    "step_of_reversal",
    "turn_of_one_row",
]


def join_of_cuts(scope: Scope, node: Node) -> list[Node] | None:
    """``Concat(Unsqueeze(x[0]), Unsqueeze(x[1]), …)``  →  x, a part of x, or x reversed; transposed if need be."""
    shape = scope.shape(node.outputs[0]) or scope.infer(node)[0].shape
    if shape is None or len(node.inputs) < 2:
        return None
    to = normal_axis(int(node.attrs["axis"]), len(shape))
    frames = [_frame(scope, name, to) for name in node.inputs]
    found = [frame for frame in frames if frame is not None]
    if len(found) < len(frames) or len({frame[:2] for frame in found}) > 1:
        return None
    (source, axis, first), last = found[0], found[-1][2]
    step = 1 if last > first else -1
    if [frame[2] for frame in found] != list(range(first, last + step, step)):
        return None
    size = (scope.shape(source) or ())[axis]
    nodes, value, out = [], source, node.outputs[0]
    if step < 0 or len(found) != size:
        end = last + step if last + step >= 0 else -FAR - 2
        value = scope.fresh(out)
        nodes.append(scope.slice(source, value, [first], [end], [axis], [step]))
    if to == axis:
        return [*nodes, Node("Identity", (value,), (out,))]
    perm = [i for i in range(len(shape)) if i != axis]
    perm.insert(to, axis)
    return [*nodes, Node("Transpose", (value,), (out,), {"perm": perm})]


def _frame(scope: Scope, name: str, axis: int) -> tuple[str, int, int] | None:
    """Return (x, axis of x, position) of a value that is x at one position, as axis `axis` of size 1."""
    unsqueeze = scope.maker(name, "Unsqueeze")
    cut = scope.maker(unsqueeze.input(0), "Gather") if unsqueeze is not None else None
    shape = scope.shape(cut.input(0)) if cut is not None else None
    out = scope.shape(name)
    if unsqueeze is None or cut is None or shape is None or out is None or len(out) != len(shape):
        return None
    axes, index = scope.numbers(unsqueeze.input(1)), scope.numbers(cut.input(1))
    here = normal_axis(int(cut.attrs.get("axis", 0)), len(shape))
    size = shape[here]
    if axes is None or len(axes) != 1 or index is None:
        return None
    first, last = sorted((normal_axis(axes[0], len(out)), axis))
    if first != last and any(size != 1 for size in out[first : last + 1]):  # among axes of size 1 any is the new one
        return None
    if scope.shape(cut.input(1)) != () or not isinstance(size, int):
        return None
    return cut.input(0), here, normal_axis(index[0], size)


def turn_of_one_row(scope: Scope, node: Node) -> list[Node] | None:
    """``Reshape(x: [1, T, F] → [T, 1, F])``, either way  →  ``Transpose(x)``, which says what is time."""
    before, after = scope.shape(node.input(0)), scope.infer(node)[0].shape
    if before is None or after is None or len(before) != 3 or 1 not in before[:2] or before[0] == before[1]:
        return None
    if after != (before[1], before[0], before[2]):
        return None
    return [Node("Transpose", (node.input(0),), node.outputs, {"perm": [1, 0, 2]}, node.name)]


def join_of_pieces(scope: Scope, node: Node) -> list[Node] | None:
    """``Concat(Split(x))`` of all pieces along the same axis  →  x."""
    split = scope.maker(node.inputs[0], "Split")
    shape = scope.shape(split.input(0)) if split is not None else None
    if split is None or shape is None or node.inputs != split.outputs:
        return None
    axes = [normal_axis(int(n.attrs.get("axis", 0)), len(shape)) for n in (node, split)]
    return [Node("Identity", (split.input(0),), node.outputs)] if axes[0] == axes[1] else None


def plain_reversal(scope: Scope, node: Node) -> list[Node] | None:
    """``ReverseSequence(x)`` of whole sequences  →  ``Slice(x)`` with the step -1."""
    shape, lengths = scope.shape(node.input(0)), scope.info(node.input(1))
    if shape is None or lengths.fill is None:
        return None
    axis = normal_axis(int(node.attrs.get("time_axis", 0)), len(shape))
    if lengths.fill != shape[axis]:
        return None
    return [_reversal(scope, node.input(0), axis, node.outputs[0])]


def _reversal(scope: Scope, value: str, axis: int, out: str) -> Node:
    return scope.slice(value, out, [-1], [-FAR - 2], [axis], [-1])


def _turned(scope: Scope, node: Node | None) -> tuple[str, int] | None:
    """Return (x, axis) of a node that reverses x along one axis."""
    if node is None or node.op != "Slice":
        return None
    bounds, shape = slice_bounds(operands(node, scope.infos)), scope.shape(node.input(0))
    if bounds is None or shape is None or len(bounds) != 1:
        return None
    axis, start, end, step = bounds[0]
    size = shape[axis]
    from_the_end = start == -1 or (isinstance(size, int) and start >= size - 1)
    if step != -1 or not from_the_end or not isinstance(end, int) or end >= -FAR:
        return None
    return node.input(0), axis


def reversal_of_reversal(scope: Scope, node: Node) -> list[Node] | None:
    """``x[::-1][::-1]``  →  ``x``."""
    before, now = _turned(scope, scope.maker(node.input(0))), _turned(scope, node)
    if before is None or now is None or before[1] != now[1]:
        return None
    return [Node("Identity", (before[0],), node.outputs)]


def step_of_reversal(scope: Scope, node: Node) -> list[Node] | None:
    """``x[::-1][0]``  →  ``x[-1]``, and other positions counted from the other end."""
    before, index = _turned(scope, scope.maker(node.input(0))), scope.numbers(node.input(1))
    shape = scope.shape(node.input(0))
    if before is None or index is None or scope.shape(node.input(1)) != () or shape is None:
        return None
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(shape))
    if axis != before[1] or (index[0] not in (0, -1) and not isinstance(shape[axis], int)):
        return None
    turned = scope.constant(f"{node.outputs[0]}.index", -1 - index[0])
    return [Node("Gather", (before[0], turned), node.outputs, node.attrs, node.name)]


def reversed_layer(scope: Scope, node: Node) -> list[Node] | None:
    """``LSTM(x[::-1])``  →  ``LSTM(x)`` in the other direction, with its output (and a mask) reversed."""
    read = RecurrentInputs.of(node)
    if len(node.attrs["directions"]) != 1 or read.lengths:
        return None
    nodes: list[Node] = []
    before = _unturned(scope, read.x, nodes)
    if before is None:
        return None
    inputs = read._replace(x=before)
    if read.mask:
        turned = _unturned(scope, read.mask, nodes)
        inputs = inputs._replace(mask=scope.fresh(read.mask) if turned is None else turned)
        if turned is None:
            nodes.append(_reversal(scope, read.mask, 0, inputs.mask))
    other = {"forward": "reverse", "reverse": "forward"}
    attrs = {**node.attrs, "directions": [other[d] for d in node.attrs["directions"]]}
    y = scope.fresh(node.outputs[0]) if node.output(0) else ""
    nodes.append(Node(node.op, inputs.given(), (y, *node.outputs[1:]), attrs, node.name))
    if y:
        nodes.append(_reversal(scope, y, 0, node.outputs[0]))
    return nodes


def _unturned(scope: Scope, name: str, nodes: list[Node]) -> str | None:
    """Return `name` reversed in time (its first axis), transposed by one of `nodes` if need be."""
    maker = scope.maker(name)
    transpose = maker if maker is not None and maker.op == "Transpose" else None
    turned = _turned(scope, maker if transpose is None else scope.maker(transpose.input(0)))
    first = 0 if transpose is None else transpose.attrs["perm"][0]
    if turned is None or turned[1] != first:
        return None
    if transpose is None:
        return turned[0]
    value = scope.fresh(name)
    nodes.append(Node("Transpose", (turned[0],), (value,), transpose.attrs))
    return value


def step_of_pieces(scope: Scope, node: Node) -> list[Node] | None:
    """``SequenceAt(SplitToSequence(x), k)``  →  ``x[k]``: pieces of one position each, without its axis."""
    cut, position = scope.maker(node.input(0), "SplitToSequence"), scope.info(node.input(1)).numbers
    if cut is None or cut.input(1) or cut.attrs.get("keepdims", 1) or position is None or len(position) != 1:
        return None
    index = scope.constant(f"{node.outputs[0]}.index", position[0])
    return [Node("Gather", (cut.input(0), index), node.outputs, {"axis": int(cut.attrs.get("axis", 0))}, node.name)]
