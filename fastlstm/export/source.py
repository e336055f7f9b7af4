"""What a call of an exported model computes: programs for a target, and where their inputs, outputs and states lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from fastlstm.export.interface import Port, StateField
from fastlstm.program import Program

__all__ = ["Copy", "Region", "Routine", "Seat", "Source"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Region:
    """A piece of the state struct."""

    name: str


STATES = Region("states")
"""What goes on from call to call."""


@dataclass(frozen=True, eq=False)
class Seat:
    """Where a slot or an array lies.

    Attributes
    ----------
    base : str, Region or array
        A port's parameter, a piece of the state struct, or memory that a program uses.
    offset : int
        Bytes behind it.
    time, row : int
        Bytes from one time step and from one batch row to the next.
    """

    base: str | Region | Array
    offset: int = 0
    time: int = 0
    row: int = 0


@dataclass(frozen=True)
class Copy:
    """Elements copied before a routine's program runs, or behind it, one step's after the other's."""

    shape: tuple[int, ...]
    source: Seat
    source_kind: str
    source_strides: tuple[int, ...]
    target: Seat
    target_kind: str
    target_strides: tuple[int, ...]
    each_step: bool = True


@dataclass(frozen=True)
class Routine:
    """A program, and how it is called.

    Attributes
    ----------
    program : Program
    batch : int
    steps : int
        Time steps of a call; the most of one, if `varies`.
    varies : bool
        Whether a call says how many there are.
    slots : mapping of int to Seat
        Slots that the program does not have to itself.
    memory : mapping of int to Seat
        The same for arrays, by their id.
    regions : mapping of Region to int
        Bytes of pieces of the state struct that the seats name, beside the states.
    before, after : tuple of Copy
    """

    program: Program
    batch: int
    steps: int
    varies: bool = False
    slots: Mapping[int, Seat] = field(default_factory=dict)
    memory: Mapping[int, Seat] = field(default_factory=dict)
    regions: Mapping[Region, int] = field(default_factory=dict)
    before: tuple[Copy, ...] = ()
    after: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Source:
    """All that is computed for one target.

    Attributes
    ----------
    inputs, outputs : tuple of Port
    states : tuple of StateField
    state_bytes : int
        Of their region.
    step : Routine
        One step, or the whole call of a model that does not stream.
    block : Routine or None
        Several steps at once, where that is faster.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[StateField, ...]
    state_bytes: int
    step: Routine
    block: Routine | None = None
