"""Conditions on sizes that nobody knows: what they say, and what an error check asks of the inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.converters.torch.script.sizes import NeedsSizeError, TrackedSizes, leaves
from fastlstm.converters.torch.sizes import Size

__all__ = ["COMPARISONS", "Undecided", "compare", "demand"]

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


@dataclass(frozen=True)
class Undecided:
    """A comparison whose result depends on sizes that are made up."""

    comparison: str
    a: Any
    b: Any

    def negated(self) -> Undecided:
        """Return the opposite."""
        return Undecided(_NEGATED[self.comparison], self.a, self.b)

    def names(self) -> list[str]:
        """Return the names of the axes that it depends on."""
        return [leaf.name for size in (self.a, self.b) if isinstance(size, Size) for leaf in leaves(size)]


def compare(z: TrackedSizes, comparison: str, a: Any, b: Any) -> bool | Undecided:
    """Return how two numbers or lists of numbers compare; sizes of an example are taken for what they are."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return _compare_lists(z, comparison, list(a), list(b))
    if isinstance(a, Size) and isinstance(b, Size) and a.root is b.root:
        return COMPARISONS[comparison](0, 0)
    sizes = [size for size in (a, b) if isinstance(size, Size)]
    if not any(z.is_made_up(size) for size in sizes):
        z.fix(*sizes)
        return COMPARISONS[comparison](*(v.value if isinstance(v, Size) else v for v in (a, b)))
    if len(sizes) == 1 and not isinstance(sizes[0], (int, float)):
        number = b if isinstance(a, Size) else a
        if isinstance(number, (int, float)) and number < 1:  # no axis is empty
            return COMPARISONS[comparison](*(1 if isinstance(v, Size) else v for v in (a, b)))
    return Undecided(comparison, a, b)


def _compare_lists(z: TrackedSizes, comparison: str, a: list[Any], b: list[Any]) -> bool | Undecided:
    equal = comparison == "eq"
    if len(a) != len(b):
        return not equal
    found: Undecided | None = None
    for left, right in zip(a, b, strict=True):
        result = compare(z, "eq", left, right)
        if result is False:
            return not equal
        found = result if isinstance(result, Undecided) else found
    return equal if found is None else found if equal else found.negated()


def demand(z: TrackedSizes, condition: Undecided) -> None:
    """Ask for sizes such that a condition holds; that one is more or less than another is left to the user."""
    if condition.comparison != "eq":
        return
    a, b = (
        v if isinstance(v, Size) else z.fixed(v) if isinstance(v, int) else None for v in (condition.a, condition.b)
    )
    if a is None or b is None:
        raise NeedsSizeError(*condition.names())
    z.same(a, b)
