"""How a program's slots connect to a model's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastlstm.errors import InputError
from fastlstm.typing import Array

__all__ = ["Connections", "Port", "State", "axes_of", "check_state"]


class State(NamedTuple):
    """A state of one direction of a layer: where it is stored, and which values set and return it."""

    slot: int
    width: int
    direction: int
    directions: int  # of its layer
    given: str  # value name of the initial state, "" for zero
    shown: str  # value name of the final state, "" if not requested
    name: str


class Port(NamedTuple):
    """An input or output of the model: the fields of `fastlstm.graph.TensorSpec`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Connections(NamedTuple):
    """The slots of a segment's values.

    Attributes
    ----------
    inputs, outputs : mapping of str to (int, str, int)
        By value: slot, axes, features (0: ids).
    states : tuple of State
    lengths : str
        The value with the rows' lengths, "" if there is none.
    masks : tuple of (int, str, bool)
        Slot, value, whether it is read backwards in time.
    flat : bool
        Whether all axes of the one input but the last are rows.
    tables : mapping of int to int
        Rows of the smallest table that the ids of a slot point into.
    """

    inputs: Mapping[str, tuple[int, str, int]]
    outputs: Mapping[str, tuple[int, str, int]]
    states: tuple[State, ...]
    lengths: str
    masks: tuple[tuple[int, str, bool], ...]
    flat: bool
    tables: Mapping[int, int]


def check_state(state: State, given: Array, batch: int) -> None:
    """Raise InputError unless an initial state has the expected shape."""
    if (
        given.ndim != 3
        or given.shape[0] != state.directions
        or given.shape[2] != state.width
        or given.shape[1] not in (1, batch)
    ):
        raise InputError(
            f"The initial state '{state.given}' should have the shape "
            f"[{state.directions}, {batch}, {state.width}]; got {list(given.shape)}."
        )


def axes_of(axes: str) -> tuple[int | None, int | None]:
    """Return the positions of time and batch among a value's axes, None if absent."""
    return (axes.index("T") if "T" in axes else None), (axes.index("B") if "B" in axes else None)
