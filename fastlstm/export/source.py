"""What a call of an exported model computes: programs for a target, and where inputs, outputs and states lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastlstm.export.interface import Port, StateField
from fastlstm.program.program import Program
from fastlstm.typing import Array

__all__ = ["Beginning", "Copy", "Ending", "Region", "Routine", "Seat", "Source"]


@dataclass(frozen=True)
class Region:
    """A region of the state struct."""

    name: str


STATES = Region("states")
"""What persists from call to call."""


@dataclass(frozen=True, eq=False)
class Seat:
    """Where a slot or an array lies.

    Attributes
    ----------
    base : str, Region or array
        A port's parameter, a region of the state struct, or memory that a program uses.
    offset : int
        Bytes from the base.
    time, row : int
        Bytes from one time step and from one batch row to the next; for a copy made at each step, from one step to
        the next.
    """

    base: str | Region | Array
    offset: int = 0
    time: int = 0
    row: int = 0


@dataclass(frozen=True)
class Copy:
    """Elements copied before or after a routine's program runs, step by step."""

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
        Time steps of a call; if `varies`, at most.
    varies : bool
        Whether each call says how many steps there are.
    slots : mapping of int to Seat
        Slots that lie outside of the program's own memory.
    memory : mapping of int to Seat
        The same for arrays, by their id.
    regions : mapping of Region to int
        Sizes in bytes of the regions that the seats name, besides the states.
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
    """The first steps of a stream that looks ahead: their frames wait and are all processed in the last of these steps.

    Attributes
    ----------
    steps : int
    counter : StateField
        How many of them have been taken.
    waits : tuple of Copy
        Copies of a step's frames into the state.
    first : Routine
        What the last of them computes. It does not touch outputs that are still delayed, which are zeros.
    always : tuple of Copy
        Copies that all of them make.
    """

    steps: int
    counter: StateField
    waits: tuple[Copy, ...]
    first: Routine
    always: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Ending:
    """What a sequence returns at its end: some frames of every output, and the routine that computes them."""

    frames: int
    routine: Routine | None = None


@dataclass(frozen=True)
class Source:
    """Everything that an export computes on one target.

    Attributes
    ----------
    inputs, outputs : tuple of Port
    states : tuple of StateField
    state_bytes : int
        Size of all states.
    step : Routine
        One step, or the whole call of a model that does not stream.
    block : Routine or None
        Several steps at once, if that is faster.
    hop, delay : int
        Frames that a step takes, and output frames before the first computed one.
    beginning : Beginning or None
        What comes before the first `step`, if anything.
    endings : tuple of Ending
        For sequences of 0, 1, ... steps; the last one also serves all longer sequences.
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
        """The most frames that the end of a sequence returns."""
        return max(ending.frames for ending in self.endings)
