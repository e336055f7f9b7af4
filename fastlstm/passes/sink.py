"""Layout changes move towards the outputs, past whatever does not depend on the layout, until they cancel."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.graph import Node
from fastlstm.operators import ELEMENTWISE
from fastlstm.operators.movement import slice_bounds
from fastlstm.operators.values import normal_axis
from fastlstm.passes.reshape import RESHAPES, moves_ones_only, reshaped
from fastlstm.passes.rewrite import Scope
from fastlstm.passes.shapes import operands

__all__ = ["BROADCASTING", "merge_transposes", "reshape_after", "transpose_after", "transpose_after_join"]

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where", "Concat")
"""Operators of several inputs that a common Transpose passes through."""

_LAST_AXIS = ("Dense", "LayerNormalization")
_ONE_AXIS = ("Softmax", "LogSoftmax", "Hardmax")


def merge_transposes(scope: Scope, node: Node) -> list[Node] | None:
    """``Transpose(Transpose(x))``  →  one Transpose; a Transpose of ones after a reshape  →  a reshape."""
    perm, shape = node.attrs.get("perm"), scope.shape(node.input(0))
    if perm is None:
        if shape is None:
            return None
        attrs = {"perm": list(range(len(shape)))[::-1]}
        return [Node("Transpose", node.inputs, node.outputs, attrs, node.name)]
    before = scope.maker(node.input(0), "Transpose")
    if before is not None and "perm" in before.attrs:
        merged = [before.attrs["perm"][p] for p in perm]
        return [Node("Transpose", before.inputs, node.outputs, {"perm": merged}, node.name)]
    if shape is not None and moves_ones_only(shape, perm) and scope.maker(node.input(0), *RESHAPES):
        after = tuple(shape[p] for p in perm)
        return reshaped(scope, node.input(0), shape, after, node.outputs[0])
    return None


def transpose_after(scope: Scope, node: Node) -> list[Node] | None:
    """``f(Transpose(x))``  →  ``Transpose(f(x))``: functions of an element or an axis, cuts, reductions."""
    before = scope.maker(node.input(0), "Transpose")
    if before is None or len([v for v in node.outputs if v]) != 1:
        return None
    perm = list(before.attrs["perm"])
    attrs, inputs, after = dict(node.attrs), list(node.inputs[1:]), perm
    if node.op in _LAST_AXIS:
        axis = attrs.get("axis", -1)
        if perm[-1] != len(perm) - 1 or normal_axis(int(axis), len(perm)) != len(perm) - 1:
            return None
    elif node.op in _ONE_AXIS:
        attrs["axis"] = perm[normal_axis(int(attrs.get("axis", -1)), len(perm))]
    elif node.op == "Gather":
        axis = normal_axis(int(attrs.get("axis", 0)), len(perm))
        if scope.shape(node.input(1)) != ():
            return None
        attrs["axis"] = perm[axis]
        after = _without(perm, [axis])
    elif node.op == "Slice":
        bounds = slice_bounds(operands(node, scope.infos))
        if bounds is None:
            return None
        axes = scope.constant(f"{node.outputs[0]}.axes", [perm[axis] for axis, *_ in bounds])
        inputs = [node.input(1), node.input(2), axes, *node.inputs[4:5]]
    elif node.op == "Squeeze" or node.op.startswith("Reduce"):
        axes_given = scope.numbers(node.input(1)) if node.input(1) else None
        if not axes_given:
            return None
        reduced = [normal_axis(a, len(perm)) for a in axes_given]
        inputs = [scope.constant(f"{node.outputs[0]}.axes", [perm[a] for a in reduced])]
        keeps = node.op != "Squeeze" and attrs.get("keepdims", 1)
        after = perm if keeps else _without(perm, reduced)
    elif node.op not in ELEMENTWISE:
        return None
    inner = scope.fresh(node.outputs[0])
    moved = Node(node.op, (before.input(0), *inputs), (inner,), attrs, node.name)
    return [moved, Node("Transpose", (inner,), node.outputs[:1], {"perm": after})]


def _without(perm: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Return the permutation that is left when the result's `axes` are dropped."""
    left = [p for i, p in enumerate(perm) if i not in axes]
    return [sorted(left).index(p) for p in left]


def transpose_after_join(scope: Scope, node: Node) -> list[Node] | None:
    """``Add(Transpose(x), Transpose(y))``  →  ``Transpose(Add(x, y))``.

    An operand may also be one that broadcasts along the transposed axes, or one whose transposition the graph
    holds already.
    """
    makers = [scope.maker(v, "Transpose") for v in node.inputs]
    first = next((maker for maker in makers if maker is not None), None)
    if first is None:
        return None
    perm, place = list(first.attrs["perm"]), scope.order[first.outputs[0]]
    inputs = []
    for value, maker in zip(node.inputs, makers, strict=True):
        if maker is not None and list(maker.attrs["perm"]) == perm:
            inputs.append(maker.input(0))
            continue
        other = _seen_from_before(scope, node, value, perm, place)
        if other is None:
            return None
        inputs.append(other)
    attrs = dict(node.attrs)
    if node.op == "Concat":
        attrs["axis"] = perm[normal_axis(int(attrs["axis"]), len(perm))]
    inner = scope.fresh(node.outputs[0])
    moved = Node(node.op, tuple(inputs), (inner,), attrs, node.name)
    return [moved, Node("Transpose", (inner,), node.outputs, {"perm": perm})]


def _seen_from_before(scope: Scope, node: Node, value: str, perm: Sequence[int], place: int) -> str | None:
    """Return the value that a Transpose with `perm` turns into `value`, if it is free."""
    shape = scope.shape(value)
    if shape is None:
        return None
    if node.op != "Concat" and len(shape) <= len(perm):
        lead = len(perm) - len(shape)
        spread = [i + lead for i, dim in enumerate(shape) if dim != 1]
        if all(perm[i] == i for i in spread) and (lead == 0 or _tail_stays(perm, lead)):
            return value
    if len(shape) != len(perm):
        return None
    inverse = [list(perm).index(i) for i in range(len(perm))]
    for reader in scope.transposes.get(value, ()):
        # The earlier transposition stays in any case; taking the later one too would turn back and forth.
        if list(reader.attrs["perm"]) == inverse and scope.order[reader.outputs[0]] < place:
            return reader.outputs[0]
    return None


def _tail_stays(perm: Sequence[int], lead: int) -> bool:
    return list(perm[lead:]) == list(range(lead, len(perm)))


def reshape_after(scope: Scope, node: Node) -> list[Node] | None:
    """``Dense(Reshape(x: [B, T, I] → [B*T, I]))``  →  ``Reshape(Dense(x))``; also functions of an element."""
    before = scope.maker(node.input(0), "Reshape", "Flatten")
    if before is None or len([v for v in node.outputs if v]) != 1:
        return None
    outer, inner = scope.shape(before.input(0)), scope.shape(node.input(0))
    after = scope.infer(node)[0].shape
    if not outer or not inner or not after or outer[-1] != inner[-1] or len(outer) <= len(inner):
        return None
    if node.op in (*_LAST_AXIS, *_ONE_AXIS):
        if normal_axis(int(node.attrs.get("axis", -1)), len(inner)) != len(inner) - 1:
            return None
    elif node.op in ("Add", "Sub", "Mul", "Div"):
        other = scope.shape(node.input(1))
        if other is None or len(other) > 1 or after != inner:
            return None
    elif node.op not in ELEMENTWISE:
        return None
    attrs = dict(node.attrs)
    if node.op != "Dense" and "axis" in attrs:
        attrs["axis"] = -1
    moved = scope.fresh(node.outputs[0])
    nodes = reshaped(scope, moved, (*outer[:-1], after[-1]), after, node.outputs[0])
    if nodes is None or len(nodes) > 1:
        return None
    return [Node(node.op, (before.input(0), *node.inputs[1:]), (moved,), attrs, node.name), *nodes]
