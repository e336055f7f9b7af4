"""Operations that give a tensor's axes another order, for handlers and shape rules alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastlstm.converters.torch.aten.arguments import CallArguments

__all__ = ["PERMUTATIONS", "Permutation"]

Permutation = Callable[[CallArguments, int], list[int]]
"""Returns the order in which the axes of a tensor of a rank are taken."""


def _permute(c: CallArguments, rank: int) -> list[int]:
    axes = c.axes_of(rank, "dims")
    c.expect(sorted(axes) == list(range(rank)), f"'dims' should be all axes once; got {axes}")
    return axes


def _transpose(c: CallArguments, rank: int) -> list[int]:
    a, b, order = c.axis_of(rank, "dim0"), c.axis_of(rank, "dim1"), list(range(rank))
    if order:
        order[a], order[b] = b, a
    return order


def _turned(_c: CallArguments, rank: int) -> list[int]:
    """Swap the last two axes."""
    order = list(range(rank))
    return [*order[:-2], *order[:-3:-1]]


def _movedim(c: CallArguments, rank: int) -> list[int]:
    source, destination = c.axes_of(rank, "source"), c.axes_of(rank, "destination")
    c.expect(len(set(source)) == len(source) == len(destination), "'source' and 'destination' do not fit each other")
    order = [axis for axis in range(rank) if axis not in source]
    for to, axis in sorted(zip(destination, source, strict=True)):
        order.insert(to, axis)
    return order


PERMUTATIONS: Mapping[str, Permutation] = {
    "mT": _turned,
    "movedim": _movedim,
    "permute": _permute,
    "t": _turned,
    "transpose": _transpose,
}
"""By the operation's name without its overload."""
