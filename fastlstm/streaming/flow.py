"""How values go on in time, what a stream keeps, and the graphs that it runs.

A step takes a *hop*, the smallest number of frames that gives every value a whole number of rows. Of n hops a value has
``rows * n + extra`` rows if the sequence ends there. If more may come, ``rows * n - lag`` of them are known, and never
less than none: padding in front brings the known rows nearer, looking ahead puts them off, and values that meet wait
for each other. Each call computes the rows that it makes known, which after some hops are the same number in every call
(`Phase.STEADY`). Until then frames wait, and go through in one call (`FIRST`), in which there are fewer rows. After the
last frame come the rows that are still missing (`LAST`). So no layer ever sees a row that is not one of the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np

from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec
from fastlstm.typing import Array

__all__ = [
    "FAR",
    "FRAMES",
    "ROWS",
    "TRACED",
    "Carried",
    "Flow",
    "LongerHopError",
    "Padding",
    "Part",
    "Phase",
    "Unrolled",
    "WrongAxesError",
    "refusal",
]

FRAMES, ROWS = "stream_frames", "stream_rows"
"""Names of the number of time steps and of batch rows in the shapes of a graph that is unrolled."""

FAR = 1 << 40


class Phase(Enum):
    """Which calls of a stream a graph is for."""

    FIRST = auto()
    STEADY = auto()
    LAST = auto()


@dataclass(frozen=True)
class Padding:
    """Rows of constants before and behind a value, which are not in it yet; fewer than none are rows to leave out."""

    before: int = 0
    after: int = 0
    value: Array | float = 0.0


@dataclass(frozen=True)
class Flow:
    """How a value goes on in time.

    Attributes
    ----------
    axis : int
        Its time axis; -1 for a value of the last time step, which has none.
    rows, extra, lag : int
        See above. Of a value of the last time step `lag` is the number of hops that give none.
    merged : tuple of int or str
        The sizes of the axes that are one axis in it, the time axis last; empty if it is the time axis alone.
    sizes : bool
        It is a shape, or made of one; of a value with these `rows`, `extra` and `lag`.
    overlaps : bool
        Every call begins with -lag rows of the call before, which the model itself carries.
    tail : str
        It is the last rows of what stands behind this state, "" if it is not.
    padding : Padding, optional
        What the next node finds around it. `extra` and `lag` do not count it.
    """

    axis: int
    rows: int = 1
    extra: int = 0
    lag: int = 0
    merged: tuple[int | str, ...] = ()
    sizes: bool = False
    overlaps: bool = False
    tail: str = ""
    padding: Padding | None = None

    @property
    def pace(self) -> tuple[Any, ...]:
        """What values have in common whose rows belong together."""
        return self.rows, self.extra, self.lag, self.merged, self.overlaps


@dataclass(frozen=True)
class Carried:
    """What a stream keeps from call to call: the output `shown` is the next call's input `given`.

    `shape` may hold `ROWS`; `initial` is what it starts from, zeros if None. A state that is the model's `own` is shown
    as the model has it, any other as [rows, size].
    """

    name: str
    given: str
    shown: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    initial: Array | None = None
    own: bool = False

    def outside(self, array: Array) -> Array:
        """Return the state as a user sees it."""
        if self.own or self.row_axis is None:
            return array
        return np.moveaxis(array, self.row_axis, 0).reshape(array.shape[self.row_axis], -1)

    def inside(self, array: Array) -> Array:
        """Return the state that a user sees as `array`."""
        if self.own or self.row_axis is None:
            return array
        others = [int(size) for size in self.shape if size != ROWS]
        return np.moveaxis(array.reshape(len(array), *others), 0, self.row_axis)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; an initial state that is a constant may fit another number of rows alone."""
        return np.dtype(self.dtype).itemsize * math.prod(1 if size == ROWS else int(size) for size in self.shape)

    def start(self, batch: int) -> Array:
        """Return the initial state of `batch` rows."""
        shape = tuple(batch if size == ROWS else int(size) for size in self.shape)
        if self.initial is None:
            return np.zeros(shape, self.dtype)
        fits = ROWS in self.shape and self.initial.ndim == len(shape)
        rows = self.initial.shape[self.shape.index(ROWS)] if fits else 1
        if rows not in (1, batch):
            raise InputError(
                f"The model holds initial states for {rows} rows; {batch} asked for. "
                f"Open a stream with batch={rows}; a pool's streams have one row each."
            )
        return np.array(np.broadcast_to(self.initial, shape), self.dtype)

    @property
    def row_axis(self) -> int | None:
        """The axis of the batch rows, None if the state has none."""
        return self.shape.index(ROWS) if ROWS in self.shape else None


@dataclass(frozen=True)
class Part:
    """The graph of some calls of a stream, without the values that have no rows in it.

    Attributes
    ----------
    graph : Graph
    outputs : tuple of str
        Which of the model's outputs the graph's first outputs are.
    states : tuple of str
        Which states the others are, by the inputs that take them; those that are not there stay as they were.
    """

    graph: Graph
    outputs: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True)
class Unrolled:
    """A stream's graphs.

    Attributes
    ----------
    steady : Part
    carried : tuple of Carried
    inputs, outputs : tuple of TensorSpec
        The model's own, without states.
    axes : mapping of str to str
        A letter for every axis of the frames and the outputs: T, B for the batch rows, else a dot.
    at_once : bool
        Whether several hops may go through in one call; else they go one by one.
    hop, delay : int
    rows : mapping of str to int
        How many frames of each output a hop gives.
    waiting : int
        Hops that go through in the first call.
    first, last : Part, optional
        Of the first call, and after the last frame; None where they are not needed.
    whole : Graph, optional
        The whole model, for sequences that end before the first call.
    reasons : tuple of str
        Where hop and delay come from.
    """

    steady: Part
    carried: tuple[Carried, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, str]
    at_once: bool
    hop: int = 1
    delay: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    first: Part | None = None
    last: Part | None = None
    whole: Graph | None = None
    reasons: tuple[str, ...] = ()


class WrongAxesError(UnsupportedError):
    """Raised where a value has not one row a frame: the axes that were taken for time are not, or the model is odd."""


class LongerHopError(Exception):
    """Raised where a hop does not make a whole number of rows; `hop` does, so far."""

    def __init__(self, hop: int) -> None:
        super().__init__(hop)
        self.hop = hop


TRACED = (
    "If it is a loop over time that was traced, export it by torch.jit.script instead, or trace one step with the "
    "states as inputs and outputs and pair them: model.stream(state={'h': 'h_out', 'c': 'c_out'})."
)
"""What to do about a loop whose length the export has fixed."""


def refusal(node: Node, reason: str, hint: str = "Run it on whole sequences.") -> UnsupportedError:
    """Return the error that says why a model cannot stream, and what to do."""
    what = f"The {'layer' if node.op in RECURRENT_OPS else node.op + ' node'} '{node.name or node.output(0)}'"
    return UnsupportedError(f"{what} {reason}, so this model cannot stream. {hint}")
