"""What shape a view gives: axes are taken in groups of equal products, whose sizes stay, join or fall apart."""

from __future__ import annotations

import math

from fastlstm.converters.torch.aten.shapes_call import CallShapes, Rule, Shape, UnknownShapeError
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["view"]


def view(name: str) -> Rule:
    """Axes are taken in groups of equal products, from the front: sizes stay, join or fall apart."""

    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        have, want = c.shape("self"), c.size_list(name)
        total = math.prod(size.value for size in have)
        known = math.prod(size.value for size in want if size is not None)
        c.expect(total > 0 and all(size is None or size.value > 0 for size in want), "a size should be above zero")
        missing = Size(total // max(known, 1), "literal")
        wanted = [missing if size is None else size for size in want]
        _regroup(z, list(have), list(wanted))
        return [wanted]

    return rule


def _regroup(z: Sizes, have: Shape, want: Shape) -> None:
    while have or want:
        left, right = have[:1], want[:1]
        del have[:1], want[:1]
        a, b = (math.prod(size.value for size in side) for side in (left, right))
        while a != b:
            side, rest = (left, have) if a < b else (right, want)
            if not rest:
                raise UnknownShapeError
            side.append(rest.pop(0))
            a, b = (math.prod(size.value for size in side) for side in (left, right))
        if len(left) == 1 or len(right) == 1:
            _join(z, left, right)
        elif not _shared(z, left, right) and not _spread(z, left, right):
            z.fix(*left, *right)


def _shared(z: Sizes, left: Shape, right: Shape) -> bool:
    """Heads joined with the batch: [B, F] as [B * n, F / n]; say whether it is that."""
    if len(left) != 2 or len(right) != 2 or left[1].is_open or right[1].is_open:
        return False
    times, rest = divmod(right[1].value, left[1].value)
    if rest == 0 and left[0].value == right[0].value * times:  # neighbours joined: [T, F] as [T / n, F * n]
        z.same(right[0], z.ratio(left[0], times))
        z.fix(left[1], right[1])
        return True
    if right[0].value % left[0].value:
        return False
    z.same(right[0], z.product([left[0], z.fixed(right[0].value // left[0].value)]))
    z.fix(left[1], right[1])
    return True


def _spread(z: Sizes, left: Shape, right: Shape) -> bool:
    """Give each axis on the right the open sizes on the left that it is made of; say whether there is one way."""
    open_sizes = [atom for size in left for atom in _atoms(size)]
    known, loose = [size for size in right if size.is_open], [size for size in right if not size.is_open]
    loose += [part for size in known for part in size.root.parts if part.root.kind == "literal" and part.value > 1]
    for atom in (atom for size in known for atom in _atoms(size)):
        if not any(atom is other for other in open_sizes):
            return False
        open_sizes = [other for other in open_sizes if other is not atom]
    if len(open_sizes) > 6 or len(loose) > 4:
        return False
    ways: list[list[Shape]] = []

    def place(position: int, taken: list[Shape]) -> None:
        if position == len(open_sizes):
            ways.append([list(sizes) for sizes in taken])
            return
        for size, sizes in zip(loose, taken, strict=True):
            sizes.append(open_sizes[position])
            if size.value % math.prod(s.value for s in sizes) == 0:
                place(position + 1, taken)
            sizes.pop()

    place(0, [[] for _ in loose])
    if len(ways) != 1:
        return False
    for size, sizes in zip(loose, ways[0], strict=True):
        rest = size.value // math.prod(s.value for s in sizes)
        z.same(size, z.product([*sizes, z.fixed(rest)]))
    return True


def _atoms(size: Size) -> list[Size]:
    """Return the open sizes whose product a size is, but for a number."""
    root = size.root
    if root.kind == "product":
        return [atom for part in root.parts for atom in _atoms(part)]
    return [root] if root.is_open else []


def _join(z: Sizes, left: Shape, right: Shape) -> None:
    """Say that the axes on the left are those on the right, made one or fallen apart.

    Factors find each other by their values in the example: a product does not say in which order it was taken.
    """
    whole, parts = (left[0], right) if len(left) == 1 else (right[0], left)
    factors = [size for size in whole.root.parts if size.value != 1] if whole.root.kind == "product" else [whole.root]
    matching = [size for size in parts if size.value != 1]
    factors, matching = (sorted(side, key=lambda size: size.value) for side in (factors, matching))
    if [f.value for f in factors] == [p.value for p in matching]:
        for factor, part in zip(factors, matching, strict=True):
            z.same(factor, part)
        z.fix(*(size for size in parts if size.value == 1 and len(parts) > 1))
    elif len(left) == 1 and left[0].is_open:
        z.fix(*left, *right)
    else:
        z.same(whole, z.product(parts))
