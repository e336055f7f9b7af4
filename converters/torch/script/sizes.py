"""Sizes of a program whose inputs' shapes are not written down: made up, until an operation asks for one.

Axes of unknown size get large prime numbers. An operation that asks for another size raises a `Demand`; the
program is then followed again from the start with that in place (`fastlstm.converters.torch.torchscript`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastlstm.converters.torch.sizes import Size, Sizes, alike

__all__ = ["Demand", "MismatchError", "NeedsSizeError", "Pinned", "TrackedSizes", "United", "leaves"]

_FIRST_PRIME = 1009
_DIVISIBLE = 240
"""Made-up sizes are multiples of it, so that they fall apart as real ones do."""
_LARGEST = 5000


class Demand(Exception):  # noqa: N818 - not an error: it says how to go on
    """What a program asks of its inputs."""


class Pinned(Demand):
    """An axis has to be of one size."""

    def __init__(self, leaf: str, value: int) -> None:
        super().__init__(f"{leaf} = {value}")
        self.leaf, self.value = leaf, value


class United(Demand):
    """Two axes have to be of the same size."""

    def __init__(self, leaf: str, other: str) -> None:
        super().__init__(f"{leaf} = {other}")
        self.leaf, self.other = leaf, other


class MismatchError(Demand):
    """The ranks, dtypes or sizes of some inputs do not fit what is done with them."""

    def __init__(self, reason: str, inputs: frozenset[str]) -> None:
        super().__init__(reason)
        self.inputs = inputs


class NeedsSizeError(Demand):
    """The size of an axis has to be known."""

    def __init__(self, *names: str) -> None:
        super().__init__(", ".join(names))
        self.names = names


class TrackedSizes(Sizes):
    """Sizes that say by a `Demand` what is asked of those that are made up.

    A number in the program is that number: what it may have stood for is looked at later
    (`fastlstm.converters.torch.free_axes`).

    Parameters
    ----------
    traced : bool
        Whether the program was made by following an example, so that its numbers may be the example's sizes.
    """

    def __init__(self, traced: bool = False) -> None:
        self.traced = traced
        self._made_up: set[int] = set()
        self._prime = _FIRST_PRIME

    def made_up(self, name: str) -> Size:
        """Return the size of an axis about which nothing is known."""
        size = self.leaf(self._prime * _DIVISIBLE, name)
        self._made_up.add(id(size))
        self._prime = next(n for n in range(self._prime + 2, 2 * self._prime) if _is_prime(n))
        return size

    def is_made_up(self, size: Size) -> bool:
        """Say whether the size is worked out from one that is made up."""
        return any(id(leaf) in self._made_up for leaf in leaves(size))

    def literal(self, value: int) -> Size:
        """Return a number of the program."""
        return self.fixed(value)

    def has_at_least(self, _size: Size, _number: int) -> bool:
        """Say whether an axis of unknown size may be taken to have so many places: if the code asks for them."""
        return 0 < _number < _LARGEST and self.is_made_up(_size) and (_number == 1 or not self.traced)

    def asked(self, size: Size) -> None:
        """Say that a number of the program may have come from the size: it may if the program was traced."""
        if self.traced or not self.is_made_up(size):
            self.fix(size)

    def fix(self, *sizes: Size) -> None:
        """Say that sizes have to be what they are, which has to be known."""
        for size in sizes:
            if self.is_made_up(size):
                raise NeedsSizeError(*(leaf.name for leaf in leaves(size)))
        super().fix(*sizes)

    def same(self, a: Size, b: Size) -> None:
        """Say that two sizes are equal."""
        a, b = a.root, b.root
        if a.kind == "literal" or b.kind == "literal":  # a size that is worked out from the others
            super().same(a, b)
            return
        if a is b or (a.parts and b.parts and alike(a, b)):
            return
        if not self.is_made_up(a):
            a, b = b, a
        if not self.is_made_up(a):
            if a.value != b.value:
                raise MismatchError(f"the sizes {a.value} and {b.value} should be equal", frozenset())
            super().same(a, b)
            return
        if not a.parts and not b.is_open:
            raise Pinned(a.name, b.value)
        if not b.parts and self.is_made_up(b) and a.parts and not leaves_of(a, b):
            a, b = b, a
        if not a.parts and not b.parts:
            raise United(a.name, b.name)
        solved = None if b.is_open else _solved(a, b.value)
        if solved is None:
            raise NeedsSizeError(*(leaf.name for size in (a, b) for leaf in leaves(size)))
        raise Pinned(*solved)

    def broadcast(self, a: Size, b: Size) -> Size:
        """Return the size that two axes give together, where one may be 1."""
        if a.value != b.value and 1 not in (a.value, b.value):
            self.same(a, b)
        return super().broadcast(a, b)


def leaves(size: Size) -> Iterator[Size]:
    """Yield the sizes of inputs' axes that a size is worked out from."""
    root = size.root
    if root.kind == "leaf":
        yield root
    for part in root.parts:
        yield from leaves(part)


def leaves_of(size: Size, leaf: Size) -> bool:
    """Say whether the size is worked out from the leaf."""
    return any(part is leaf for part in leaves(size))


def _solved(size: Size, value: int) -> tuple[str, int] | None:
    """Return the one leaf of a size and what it should be for the size to have the value; the roundest if several."""
    found = {id(leaf): leaf for leaf in leaves(size)}
    if len(found) != 1:
        return None
    (leaf,) = found.values()
    fitting = [n for n in range(1, _LARGEST) if _evaluated(size, n) == value]
    return (leaf.name, max(fitting, key=lambda n: (n & -n, -n))) if fitting else None


def _evaluated(size: Size, number: int) -> int:
    root = size.root
    if root.kind == "leaf":
        return number
    parts = [_evaluated(part, number) for part in root.parts]
    if root.kind == "product":
        return math.prod(parts)
    if root.kind == "sum":
        return sum(parts)
    if root.kind == "shift":
        return parts[0] + root.number
    if root.kind == "ratio":
        return parts[0] // root.number
    return root.value


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
