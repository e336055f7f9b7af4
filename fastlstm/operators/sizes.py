"""Bounds on what is allocated or run: a small model file must not be able to take all memory, or all time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fastlstm.typing import Array

__all__ = [
    "MAX_ELEMENTS", "MAX_ROUNDS", "check_broadcast", "checked_rounds", "checked_shape", "integer", "is_small",
]  # fmt: skip

MAX_ELEMENTS = 2**28
"""The largest tensor that an operator makes out of a shape alone: 1 GiB of float32."""


MAX_ROUNDS = 2**24
"""The most rounds that a loop may run: a small model file must not be able to run for ever."""


def checked_rounds(rounds: int) -> int:
    """Return a loop's number of rounds, or the number that it has run.

    Raises
    ------
    ValueError
        If there are more than `MAX_ROUNDS`.
    """
    if rounds > MAX_ROUNDS:
        raise ValueError(f"a loop may run {MAX_ROUNDS:,} rounds; this one goes on")
    return rounds


def is_small(shape: Iterable[int], most: int = MAX_ELEMENTS) -> bool:
    """Tell whether an array of `shape` has `most` elements or fewer."""
    return math.prod(map(int, shape)) <= most


def integer(value: Array) -> int:
    """Return the only element of an array, of whatever rank, as an int."""
    return int(np.asarray(value).reshape(()))


def check_broadcast(*arrays: Array) -> None:
    """Check what arrays make that are spread along one another's axes.

    Raises
    ------
    ValueError
        If they do not fit, or the result has more than `MAX_ELEMENTS` elements and more than all of them together.
    """
    if math.prod(array.size for array in arrays) <= MAX_ELEMENTS:  # nearly always: 0.3 µs, where the rest takes 3
        return
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    # Two rows of a megabyte each, one along another axis, would make a terabyte.
    if not is_small(shape, sum(array.size for array in arrays)):
        checked_shape(shape)


def checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """Return `shape` as a tuple of ints.

    Raises
    ------
    ValueError
        If a dimension is negative or there are more than `MAX_ELEMENTS` elements.
    """
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"the result would have the shape {list(sizes)}, which has a negative dimension")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(
            f"the result would have the shape {list(sizes)}, more than the {MAX_ELEMENTS} elements allowed"
        )
    return sizes
