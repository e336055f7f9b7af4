"""What a call of an exported model computes: programs for a target, and where their inputs, outputs and states lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastlstm.export.interface import Port, StateField
from fastlstm.program.program import Program
from fastlstm.typing import Array

__all__ = ["Beginning", "Copy", "Ending", "Region", "Routine", "Seat", "Source"]


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
        Bytes from one time step and from one batch row to the next; of a copy that is made once a step, from one step
        to the next.
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
class Beginning:
    """The first steps of a stream that looks ahead: their frames wait, and go through in the last one of them.

    Attributes
    ----------
    steps : int
    counter : StateField
        How many of them have been taken.
    waits : tuple of Copy
        A step's frames, into the state.
    first : Routine
        What the last one computes. It leaves the outputs alone that are still late; those are zeros.
    always : tuple of Copy
        What all of them copy.
    """

    steps: int
    counter: StateField
    waits: tuple[Copy, ...]
    first: Routine
    always: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Ending:
    """What comes of a sequence that ends: so many frames of every output, by a routine if there are any."""

    frames: int
    routine: Routine | None = None


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
    hop, delay : int
        Frames that a step takes, and output frames that come before the first one that was computed.
    beginning : Beginning or None
        What comes before the first `step`, if anything does.
    endings : tuple of Ending
        After no step, after one, and so on; the last one after all later steps too.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[StateField, ...]
    state_bytes: int
    step: Routine
    block: Routine | None = None
    hop: int = 1
    delay: int = 0
    beginning: Beginning | None = None
    endings: tuple[Ending, ...] = (Ending(0),)

    @property
    def routines(self) -> tuple[Routine, ...]:
        """All routines."""
        first = None if self.beginning is None else self.beginning.first
        found = (self.step, self.block, first, *(ending.routine for ending in self.endings))
        return tuple(routine for routine in found if routine is not None)

    @property
    def tail(self) -> int:
        """The most frames that come when a sequence ends."""
        return max(ending.frames for ending in self.endings)
