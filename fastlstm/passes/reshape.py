"""Reshape, Squeeze, Unsqueeze and Flatten: merged, cancelled, and brought to constant targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastlstm.graph import Node
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.values import normal_axis
from fastlstm.passes.rewrite import Scope

__all__ = [
    "RESHAPES",
    "groups",
    "merge_reshapes",
    "moves_ones_only",
    "reshaped",
    "slice_of_split",
    "transpose_before_split",
]

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that keep the elements and their order."""


def moves_ones_only(shape: Shape, perm: Sequence[int]) -> bool:
    """Tell whether a Transpose only moves dimensions of size 1."""
    order = [p for p in perm if shape[p] != 1]
    return order == sorted(order)


def reshaped(scope: Scope, x: str, before: Shape, after: Shape, out: str) -> list[Node] | None:
    """Return the simplest nodes that give `x` of shape `before` the shape `after` as `out`.

    Identity, Squeeze or Unsqueeze with constant axes, Reshape with a constant target of numbers, 0 and at
    most one -1, or Squeeze and Unsqueeze; None if the target has to be computed.
    """
    if before == after:
        return [Node("Identity", (x,), (out,))]
    ones = _ones_apart(before, after)
    if ones is not None and not ones[1]:
        return [Node("Squeeze", (x, scope.constant(f"{out}.axes", ones[0])), (out,))]
    if ones is not None and not ones[0]:
        return [Node("Unsqueeze", (x, scope.constant(f"{out}.axes", ones[1])), (out,))]
    target = _target(before, after)
    if target is not None:
        return [Node("Reshape", (x, scope.constant(f"{out}.shape", target)), (out,))]
    if ones is not None:
        between = scope.fresh(out)
        return [
            Node("Squeeze", (x, scope.constant(f"{out}.axes", ones[0])), (between,)),
            Node("Unsqueeze", (between, scope.constant(f"{out}.axes", ones[1])), (out,)),
        ]
    return None


def _ones_apart(before: Shape, after: Shape) -> tuple[list[int], list[int]] | None:
    """Return the axes of size 1 to drop and then those to add; None if more than ones differ."""
    dropped, added, i, j = [], [], 0, 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and before[i] == after[j]:
            i, j = i + 1, j + 1
        elif i < len(before) and before[i] == 1:
            dropped.append(i)
            i += 1
        elif j < len(after) and after[j] == 1:
            added.append(j)
            j += 1
        else:
            return None
    return dropped, added


def _target(before: Shape, after: Shape) -> list[int] | None:
    """Return a Reshape target of constants, None if there is none."""
    target, computed = [], 0
    for i, dim in enumerate(after):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif i < len(before) and before[i] == dim:
            target.append(0)
        else:
            target.append(-1)
            computed += 1
    return target if computed <= 1 else None


def merge_reshapes(scope: Scope, node: Node) -> list[Node] | None:
    """``Reshape(Squeeze(x)), Flatten(Reshape(x)), …``  →  one plain node from x, or x itself.

    A Transpose in between that only moves dimensions of size 1 is a reshape too. A computed target becomes a
    constant one.
    """
    after = scope.infer(node)[0].shape
    if after is None:
        return None
    source = node.input(0)
    maker = scope.maker(source, *RESHAPES, "Transpose")
    if maker is not None and (maker.op != "Transpose" or _is_reshape(scope, maker)):
        before = scope.shape(maker.input(0))
        paired = node.op == "Unsqueeze" and maker.op == "Squeeze"
        nodes = None if before is None else reshaped(scope, maker.input(0), before, after, node.outputs[0])
        if nodes is not None and not (paired and len(nodes) == 2):
            return nodes
    before = scope.shape(source)
    nodes = None if before is None else reshaped(scope, source, before, after, node.outputs[0])
    if nodes is None or len(nodes) > 1 or _alike(scope, node, nodes[0]):
        return None
    return nodes


def _is_reshape(scope: Scope, transpose: Node) -> bool:
    shape = scope.shape(transpose.input(0))
    return shape is not None and moves_ones_only(shape, transpose.attrs["perm"])


def _alike(scope: Scope, a: Node, b: Node) -> bool:
    """Tell whether two reshapes of one input have the same constant target."""
    if a.op != b.op or scope.const(a.input(1)) is None:
        return False
    x, y = scope.const(a.input(1)), scope.const(b.input(1))
    if x is None or y is None:
        return False
    if a.op == "Reshape":
        return bool(np.array_equal(x, y))
    rank = len(scope.shape(a.input(0)) or ()) + (np.size(x) if a.op == "Unsqueeze" else 0)
    axes = [sorted(normal_axis(int(v), rank) for v in np.ravel(z)) for z in (x, y)]
    return axes[0] == axes[1]


def groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Return which axes of `before` become which axes of `after`, as the finest groups of equal size.

    Axes of size 1 that stand alone form groups with an empty side. None if the groups cannot be found.
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1 and (j >= len(after) or after[j] != 1):
            found.append(([i], []))
            i += 1
            continue
        if j < len(after) and after[j] == 1 and (i >= len(before) or before[i] != 1):
            found.append(([], [j]))
            j += 1
            continue
        if i >= len(before) or j >= len(after):
            return None
        left, right = [i], [j]
        a, b = before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if dims.divide(b, a) is not None and i < len(before):
                a = dims.multiply(a, before[i])
                left.append(i)
                i += 1
            elif dims.divide(a, b) is not None and j < len(after):
                b = dims.multiply(b, after[j])
                right.append(j)
                j += 1
            else:
                return None
        found.append((left, right))
    return found


def _split_groups(scope: Scope, node: Node | None) -> list[tuple[list[int], list[int]]] | None:
    """Return the groups of a reshape that only splits axes (and adds ones), None if it does more."""
    if node is None:
        return None
    before, after = scope.shape(node.input(0)), scope.shape(node.outputs[0])
    if before is None or after is None:
        return None
    found = groups(before, after)
    if found is None or any(len(left) != 1 for left, _ in found):
        return None
    return found


def transpose_before_split(scope: Scope, node: Node) -> list[Node] | None:
    """``Transpose(Reshape(x))``, x's axes split and the parts kept together  →  ``Reshape(Transpose(x))``."""
    split = scope.maker(node.input(0), *RESHAPES)
    found = _split_groups(scope, split)
    if split is None or found is None:
        return None
    perm, order = list(node.attrs["perm"]), []
    places = {p: i for i, p in enumerate(perm)}
    for left, right in found:
        spots = [places[j] for j in right]
        if not spots or spots != list(range(spots[0], spots[0] + len(spots))):
            return None
        order.append((spots[0], left[0]))
    if all(len(right) == 1 for _, right in found):
        return None
    inner = [left for _, left in sorted(order)]
    before, after = scope.shape(split.input(0)), scope.infer(node)[0].shape
    if before is None or after is None:
        return None
    moved = scope.fresh(node.outputs[0])
    nodes = reshaped(scope, moved, tuple(before[i] for i in inner), after, node.outputs[0])
    if nodes is None:
        return None
    return [Node("Transpose", (split.input(0),), (moved,), {"perm": inner}, node.name), *nodes]


def slice_of_split(scope: Scope, node: Node) -> list[Node] | None:
    """``Slice(Reshape(y: [T, B, D*H] → [T, B, D, H]), axis 2)``  →  ``Reshape(Slice(y, axis 2))``.

    The same for a Gather of one constant index.
    """
    split = scope.maker(node.input(0), "Reshape")
    found = _split_groups(scope, split)
    cut = _one_cut(scope, node)
    if split is None or found is None or cut is None:
        return None
    axis, start, length = cut
    shape = scope.shape(node.input(0)) or ()
    whole = scope.shape(split.input(0)) or ()
    left, right = next(((lf, rt) for lf, rt in found if axis in rt), ([], []))
    parts = [j for j in right if shape[j] != 1]
    if len(left) != 1 or len(parts) < 2 or parts[0] != axis:
        return None
    width: Dim = dims.product(shape[j] for j in parts[1:])
    after = scope.infer(node)[0].shape
    if not isinstance(width, int) or after is None:
        return None
    piece = scope.fresh(node.outputs[0])
    cutting = scope.slice(split.input(0), piece, [start * width], [(start + length) * width], left, name=node.name)
    sliced = tuple(length * width if i == left[0] else d for i, d in enumerate(whole))
    nodes = reshaped(scope, piece, sliced, after, node.outputs[0])
    return None if nodes is None else [cutting, *nodes]


def _one_cut(scope: Scope, node: Node) -> tuple[int, int, int] | None:
    """Return (axis, start, length) if a Slice or Gather cuts a known piece out of one axis of known size."""
    shape = scope.shape(node.input(0))
    if not shape:
        return None
    if node.op == "Gather":
        axis = normal_axis(int(node.attrs.get("axis", 0)), len(shape))
        index, size = scope.numbers(node.input(1)), shape[axis]
        if scope.shape(node.input(1)) != () or index is None or not isinstance(size, int):
            return None
        start = normal_axis(index[0], size)
        return (axis, start, 1) if 0 <= start < size else None
    lists = [scope.numbers(node.input(i)) for i in (1, 2)]
    axes = scope.numbers(node.input(3)) if node.input(3) else [0]
    steps = scope.numbers(node.input(4)) if node.input(4) else [1]
    if any(v is None or len(v) != 1 for v in (*lists, axes, steps)) or steps != [1]:
        return None
    axis = normal_axis((axes or [0])[0], len(shape))
    size = shape[axis]
    if not isinstance(size, int):
        return None
    kept = range(size)[slice((lists[0] or [0])[0], (lists[1] or [0])[0])]
    return (axis, kept.start, len(kept)) if len(kept) else None
