"""How values advance in time, what a stream keeps, and the graphs that it runs.

A step takes a *hop*, the smallest number of frames for which every value has a whole number of rows. After n hops a
value has ``rows * n + extra`` rows if the sequence ends there. If more may follow, ``rows * n - lag`` of them are known
(never fewer than none): padding in front makes rows known sooner, look-ahead makes them known later, and values that
are combined wait for each other. Each call computes the rows that become known in it. After some hops their number is
the same in every call (`Phase.STEADY`). Until then frames wait, to be processed in one call that has fewer rows
(`FIRST`). After the last frame the remaining rows are computed (`LAST`). So no layer ever sees a row that does not
belong to the sequence.
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
"""Names for the numbers of time steps and of batch rows in the shapes of an unrolled graph."""

FAR = 1 << 40


class Phase(Enum):
    """The calls of a stream that a graph is for."""

    FIRST = auto()
    STEADY = auto()
    LAST = auto()


@dataclass(frozen=True)
class Padding:
    """Constant rows still to be added before and after a value; negative numbers are rows to leave out."""

    before: int = 0
    after: int = 0
    value: Array | float = 0.0


@dataclass(frozen=True)
class Flow:
    """How a value advances in time.

    Attributes
    ----------
    axis : int
        Its time axis; -1 for a value of the last time step, which has none.
    rows, extra, lag : int
        See above. For a value of the last time step, `lag` is the number of hops that have none.
    merged : tuple of int or str
        Sizes of the axes that are merged into its time axis, time last; empty if there are no others.
    sizes : bool
        Whether it is a shape, or computed from one, of a value with these `rows`, `extra` and `lag`.
    overlaps : bool
        Whether every call begins with -lag rows of the previous call, which the model itself carries over.
    tail : str
        The state of which it is the new value, the last rows of what follows the state; "" if it is none.
    padding : Padding, optional
        What the next node finds around it; not counted in `extra` and `lag`.
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
        """What values whose rows correspond have in common."""
        return self.rows, self.extra, self.lag, self.merged, self.overlaps


@dataclass(frozen=True)
class Carried:
    """A state kept from call to call: the output `shown` is the next call's input `given`.

    `shape` may contain `ROWS`; `initial` is the initial state, zeros if None. The model's `own` states are shown in
    the model's shape, all others as [rows, size].
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
        """Return the state for what a user sees as `array`."""
        if self.own or self.row_axis is None:
            return array
        others = [int(size) for size in self.shape if size != ROWS]
        return np.moveaxis(array.reshape(len(array), *others), 0, self.row_axis)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; a constant initial state may be for a fixed number of rows only."""
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
    """The graph of one kind of call, without the values that have no rows in it.

    Attributes
    ----------
    graph : Graph
    outputs : tuple of str
        The model's outputs that the graph's first outputs are.
    states : tuple of str
        The states that its other outputs are, by the inputs that take them; states not listed stay as they were.
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
        A letter for each axis of the frames and the outputs: T for time, B for the batch rows, else a dot.
    at_once : bool
        Whether one call may process several hops.
    hop, delay : int
    rows : mapping of str to int
        Frames of each output per hop.
    waiting : int
        Hops that the first call processes.
    first, last : Part, optional
        For the first call, and for the end of a sequence; None if not needed.
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
    """Raised if a value's rows do not correspond to frames: another axis is time, or the model is unusual."""


class LongerHopError(Exception):
    """Raised if a hop does not make a whole number of rows; a hop of `hop` frames does, as far as known."""

    def __init__(self, hop: int) -> None:
        super().__init__(hop)
        self.hop = hop


TRACED = (
    "If it is a loop over time that was traced, export it by torch.jit.script instead, or trace one step with the "
    "states as inputs and outputs and pair them: model.stream(state={'h': 'h_out', 'c': 'c_out'})."
)
"""Advice for a loop whose length was fixed at export."""


def refusal(node: Node, reason: str, hint: str = "Run it on whole sequences.") -> UnsupportedError:
    """Return the error that says why a model cannot stream and what to do about it."""
    what = f"The {'layer' if node.op in RECURRENT_OPS else node.op + ' node'} '{node.name or node.output(0)}'"
    return UnsupportedError(f"{what} {reason}, so this model cannot stream. {hint}")
