"""The interface of the states of a pool's streams, and the states of streams whose step is one native call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fastlstm.program import layout
from fastlstm.program.arguments.rows import Pooled, PooledState
from fastlstm.program.memory import aligned_zeros
from fastlstm.program.program import Argument, Instruction, Stage, Table, place
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.entry import stream_entry
from fastlstm.runtime.native import Call
from fastlstm.runtime.program import BoundProgram
from fastlstm.streaming.engines import SegmentEngine
from fastlstm.streaming.pool_entry import Seat
from fastlstm.streaming.ports import Port
from fastlstm.typing import Array

__all__ = ["MOST", "WAITING", "NativeRows", "Rows"]

Arrays = dict[str, Array]
SIZES = (1, 8, 64)
"""Batch sizes that programs are made for; a program runs as many of its rows as there are streams to advance."""
MOST = SIZES[-1]  # most streams per native call: more rows would not save any reads of weights
WINDOW = 256  # time steps of `push` that run at once: little is wasted on shorter rows


WAITING = -3  # mark of a stream whose first hops are waiting: compiled code leaves its steps to Python


class Rows(Protocol):
    """What a pool needs from the states of its streams, which it knows by their numbers."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of one stream's states, by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""

    @property
    def waits(self) -> bool:
        """Whether a stream's first hops wait until there are enough for a call."""

    def marks(self, numbers: Array) -> Array:
        """Return the marks of open streams: `WAITING`, or 0 for those that have reached the steady state."""

    def reset(self, number: int) -> None:
        """Set a stream's states back to the initial ones."""

    def state(self, number: int) -> Arrays:
        """Return a copy of a stream's states."""

    def set_state(self, number: int, value: Arrays) -> None:
        """Set a stream's states, whose names and shapes have been checked."""

    def before(self, numbers: Array) -> Arrays:
        """Return a copy of the states of some streams, for `restore`."""

    def restore(self, numbers: Array, before: Arrays) -> None:
        """Undo what a refused call did to these streams."""

    @property
    def seats(self) -> Sequence[Seat]:
        """The seats of threads that advance streams at the same time."""

    def entries(self, whole: Busy, streams: Array) -> list[Call]:
        """Return for each seat the built-in that does the whole of a usual step; for the arguments see `PoolEntry`."""

    def quick(self, numbers: Array, frames: Any, out: Any, seat: int = 0) -> Any:
        """Advance by one step if frames and out are exactly as expected; else return None."""

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        """Advance at most `MOST` streams by a frame each; inputs and outputs have a row for each stream."""

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        """Advance each stream by a chunk of its own length."""

    def finish(self, numbers: Array) -> list[Arrays]:
        """Return the remaining frames of each stream."""


class NativeRows:
    """The states of streams whose step is one native call, which also gathers and scatters them."""

    def __init__(self, engine: SegmentEngine, capacity: int, seats: int) -> None:
        self._engine, self._segment = engine, engine.segment
        self._states = {s.name: aligned_zeros((capacity, s.width), np.float32) for s in self._segment.states}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: (1, store.shape[1]) for name, store in self._states.items()}
        self.seats = [Seat(MOST) for _ in range(seats)]
        self._programs: dict[tuple[int, int, bool], BoundProgram] = {}  # by seat, batch size and whether for chunks
        self._entries: dict[tuple[int, int], Call] = {}  # by seat and number of streams

    def entries(self, whole: Busy, streams: Array) -> list[Call]:
        return [seat.prepare(self._segment.program.target, whole, streams) for seat in self.seats]

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._states.values())

    waits = False

    def marks(self, numbers: Array) -> Array:
        return np.zeros(len(numbers), np.int64)

    def before(self, numbers: Array) -> Arrays:
        return {name: store[numbers] for name, store in self._states.items()}

    def restore(self, numbers: Array, before: Arrays) -> None:
        for name, store in self._states.items():
            store[numbers] = before[name]

    def reset(self, number: int) -> None:
        for name, store in self._states.items():
            store[number] = self._engine.initial.get(name, 0)

    def state(self, number: int) -> Arrays:
        return {name: store[number][None].copy() for name, store in self._states.items()}

    def set_state(self, number: int, value: Arrays) -> None:
        for name, store in self._states.items():
            store[number] = value[name][0]

    def quick(self, numbers: Array, frames: Any, out: Any, seat: int = 0) -> Any:
        count = len(numbers)
        if not count:
            return None
        if count > MOST:
            return self._many(numbers, frames, out)
        program = self._program(count, False, seat)
        call = self._entries.get((seat, count))
        if call is None:
            connections = self._segment.connections()
            call = stream_entry(connections, program, self._engine.shown, 1, time_axis=False, batch_axis=True)
            self._entries[seat, count] = call
            self.seats[seat].add(call, program.frame)
        self.seats[seat].set_rows(numbers)
        return call(frames) if out is None else call(frames, out)

    def _many(self, numbers: Array, frames: Any, out: Any) -> Any:
        """Advance more streams than a program has rows, `MOST` at a time; None if nothing was done."""
        given = frames if isinstance(frames, dict) else {"": frames}
        if out is not None or not all(type(a) is np.ndarray and a.shape[:1] == numbers.shape for a in given.values()):
            return None
        before, parts = self.before(numbers), []
        try:
            for at in range(0, len(numbers), MOST):
                some = slice(at, at + MOST)
                cut = {name: array[some] for name, array in given.items()}
                parts.append(self.quick(numbers[some], cut if isinstance(frames, dict) else cut[""], None))
                if parts[-1] is None:
                    self.restore(numbers, before)
                    return None
        except BaseException:
            self.restore(numbers, before)
            raise
        if isinstance(parts[0], dict):
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return np.concatenate(parts)

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        self.seats[0].set_rows(numbers)
        program = self._program(len(numbers), False)
        results = self._advance(program, {name: array[None] for name, array in arrays.items()}, 1, None)
        return {name: result[0] for name, result in results.items()}

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        lengths = [len(next(iter(piece.values()))) for piece in pieces]
        results = [
            {n: np.empty((length, *port.shape(1, 1, "TB1")), np.float32) for n, port in self._engine.outputs.items()}
            for length in lengths
        ]
        # Longest first: the rows that are still active are then a prefix.
        order = sorted(range(len(pieces)), key=lambda i: -lengths[i])
        for at in range(0, len(order), MOST):
            some = order[at : at + MOST]
            for start in range(0, lengths[some[0]], WINDOW):
                left = [i for i in some if lengths[i] > start]
                self._window(numbers, pieces, results, left, start)
        return results

    def finish(self, numbers: Array) -> list[Arrays]:
        nothing = {n: np.empty((0, *p.shape(1, 1, "TB1")), np.float32) for n, p in self._engine.outputs.items()}
        return [dict(nothing) for _ in numbers]

    def _window(self, numbers: Array, pieces: list[Arrays], results: list[Arrays], left: list[int], start: int) -> None:
        """Advance streams by the frames of one window, longest first."""
        steps = [min(len(next(iter(pieces[i].values()))) - start, WINDOW) for i in left]
        self.seats[0].set_rows(numbers[left])
        program = self._program(len(left), True)
        arrays = {}
        for name, first in pieces[left[0]].items():
            x = np.zeros((steps[0], len(left), *first.shape[1:]), first.dtype)
            for row, i in enumerate(left):
                x[: steps[row], row] = pieces[i][name][start : start + steps[row]]
            arrays[name] = x
        counts = np.bincount(steps, minlength=steps[0] + 1)
        active = np.append(len(left) - np.cumsum(counts)[:-1], 0).astype(np.int64)
        outputs = self._advance(program, arrays, steps[0], active if steps[-1] < steps[0] else None)
        for name, y in outputs.items():
            for row, i in enumerate(left):
                results[i][name][start : start + steps[row]] = y[: steps[row], row]

    def _program(self, count: int, chunks: bool, seat: int = 0) -> BoundProgram:
        """Return a program for `count` rows; chunks, which need more memory, have programs of their own."""
        size = next(size for size in SIZES if size >= count)
        program = self._programs.get((seat, size, chunks))
        if program is None:
            words: list[Argument] = []
            for state in self._segment.states:
                store = self._states[state.name]
                words += PooledState(state.slot, place(store), store.strides[0], state.width)
            given = Pooled(place(self.seats[seat].rows), len(self._segment.states), Table(words))
            lanes = self._segment.program.target.lanes
            before, after = (
                Stage(layout.ONCE, (Instruction(kernel, (lanes,), given),))
                for kernel in ("gather.gather", "gather.scatter")
            )
            program = self._segment.bound(size, (before,), (after,))
            self._programs[seat, size, chunks] = program
        if program.used != count:
            program.use(count)
        return program

    def _advance(self, program: BoundProgram, arrays: Arrays, steps: int, active: Array | None) -> Arrays:
        """Run time-major frames [time, streams, …] through the program; return the outputs in that layout."""
        given = {name: np.ascontiguousarray(_as_model(self._engine.inputs[name], a)) for name, a in arrays.items()}
        results = self._segment.advance(program, given, steps, program.used, active)
        return {name: _as_rows(port, results[name]) for name, port in self._engine.outputs.items()}


def _as_model(port: Port, array: Array) -> Array:
    """Return an array [time, streams, …] with the model's order of axes."""
    return np.moveaxis(array, (0, 1), (port.axes.index("T"), port.axes.index("B")))


def _as_rows(port: Port, array: Array) -> Array:
    """Return an array with the model's order of axes as [time, streams, …]."""
    if "1" in port.axes:
        array = np.squeeze(array, port.axes.index("1"))
    axes = port.axes.replace("1", "")
    return np.moveaxis(array, (axes.index("T"), axes.index("B")), (0, 1))
