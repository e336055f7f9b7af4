"""Sizes of axes as unknowns: which ones a program leaves open, and which it fixes.

Every `Size` has the value of one example. It is *fixed* (it is that number for every input), *open*, or a
*literal*: a number written in the program that may be the size of an input's axis put down as a number.
Equal sizes are joined (union-find); joining an open size with a fixed one fixes it, joining a literal with an
open one says what the literal means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Size", "Sizes", "alike"]


class Size:
    """The size of an axis in an example, and how it is calculated (`kind` of `parts` and `number`)."""

    def __init__(self, value: int, kind: str, parts: tuple[Size, ...] = (), number: int = 0, name: str = "") -> None:
        self.value = value
        self.kind = kind
        self.parts = parts
        self.number = number
        self.name = name
        self.same_as: Size | None = None

    @property
    def root(self) -> Size:
        """The size that stands for all that are equal to this one."""
        size = self
        while size.same_as is not None:
            size = size.same_as
        return size

    @property
    def is_open(self) -> bool:
        """Whether it depends on the input."""
        root = self.root
        return root.kind == "leaf" or any(part.is_open for part in root.parts)

    def __str__(self) -> str:
        root = self.root
        if not root.is_open:
            return str(root.value)
        parts = sorted((str(part) for part in root.parts), key=lambda text: (not text.isdecimal(), text))
        if root.kind == "leaf":
            return root.name
        if root.kind == "product":
            return "*".join(text if text.isidentifier() or text.isdecimal() else f"({text})" for text in parts)
        if root.kind == "sum":
            return " + ".join(parts)
        if root.kind == "shift":
            return f"{parts[0]} {'-' if root.number < 0 else '+'} {abs(root.number)}"
        return f"({parts[0]})//{root.number}"


class Sizes:
    """Makes sizes and joins them."""

    def fixed(self, value: int) -> Size:
        """Return a size that is the same for every input."""
        return Size(value, "fixed")

    def literal(self, value: int) -> Size:
        """Return a number of the program that may stand for the size of an axis."""
        return Size(value, "literal")

    def leaf(self, value: int, name: str) -> Size:
        """Return the size of an input's axis, open as long as nothing fixes it."""
        return Size(value, "leaf", name=name)

    def fix(self, *sizes: Size) -> None:
        """Fix these sizes to what they are in the example."""
        for size in sizes:
            root = size.root
            root.kind = "fixed"
            parts, root.parts = root.parts, ()
            self.fix(*parts)

    def has_at_least(self, _size: Size, _number: int) -> bool:
        """Say whether an axis of unknown size may be assumed to have so many elements."""
        return False

    def asked(self, size: Size) -> None:
        """Say that a number of the program may have come from the size."""
        self.fix(size)

    def same(self, a: Size, b: Size) -> None:
        """Say that two sizes are equal."""
        a, b = a.root, b.root
        if a is b:
            return
        if a.value == b.value and a.kind == b.kind == "product" and not alike(a, b):
            rest = _left_over(a, b)
            if rest is not None:
                self.same(*rest)
                return
        if a.value != b.value or (a.parts and b.parts and not alike(a, b)):
            self.fix(a, b)
        elif a.kind == "fixed":
            self.fix(b)
        elif b.kind == "fixed":
            self.fix(a)
        elif a.kind == "literal" or (b.kind != "literal" and not a.parts and not _within(a, b)):
            a.same_as = b
        elif not _within(b, a):
            b.same_as = a
        else:
            self.fix(a, b)

    def broadcast(self, a: Size, b: Size) -> Size:
        """Return the size that two axes give together, where one may be 1."""
        if a.value == b.value == 1 and a.root.kind != b.root.kind:
            return b if a.root.kind in ("fixed", "literal") else a
        if a.value == b.value:
            self.same(a, b)
            return a
        one, other = (a, b) if a.value == 1 else (b, a)
        self.fix(one)
        return other

    def product(self, sizes: Sequence[Size]) -> Size:
        """Return the size of several axes merged into one."""
        kept = [size.root for size in sizes if size.value != 1 or size.root.kind != "fixed"]
        factors = [f for size in kept for f in (size.parts if size.kind == "product" else (size,))]
        value = math.prod(size.value for size in sizes)
        return kept[0] if len(kept) == 1 else Size(value, "product", tuple(factors)) if kept else self.fixed(1)

    def sum(self, sizes: Sequence[Size]) -> Size:
        """Return the size of several axes concatenated."""
        return sizes[0] if len(sizes) == 1 else Size(sum(size.value for size in sizes), "sum", tuple(sizes))

    def shift(self, size: Size, number: int) -> Size:
        """Return the size with a number added."""
        root = size.root
        if root.kind == "shift":
            root, number = root.parts[0].root, root.number + number
        return root if number == 0 else Size(root.value + number, "shift", (root,), number)

    def ratio(self, size: Size, number: int) -> Size:
        """Return the size divided by a number, rounded down."""
        root = size.root
        if number == 1:
            return root
        if root.kind == "shift" and root.number % number == 0:
            return self.shift(self.ratio(root.parts[0], number), root.number // number)
        if root.kind == "ratio":
            root, number = root.parts[0].root, root.number * number
        return Size(root.value // number, "ratio", (root,), number)


def _left_over(a: Size, b: Size) -> tuple[Size, Size] | None:
    """Return the single factor by which two products differ, on each side; None if there are more."""
    ours, theirs = [part.root for part in a.parts], [part.root for part in b.parts]
    for factor in list(ours):
        match = next((other for other in theirs if other is factor), None)
        if match is not None:
            ours.remove(factor)
            theirs.remove(match)
    return (ours[0], theirs[0]) if len(ours) == len(theirs) == 1 else None


def alike(a: Size, b: Size) -> bool:
    """Say whether two sizes are calculated in the same way from the same axes."""
    return (a.kind, a.number) == (b.kind, b.number) and str(a) == str(b)


def _within(size: Size, other: Size) -> bool:
    return size is other.root or any(_within(size, part) for part in other.root.parts)
