"""The states of a pool's streams, and how some of them advance as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.arguments.rows import Pooled, PooledState
from fastlstm.memory import aligned_zeros
from fastlstm.native import Call
from fastlstm.program import Argument, Instruction, Stage, Table, place
from fastlstm.segments.program import BoundProgram
from fastlstm.streaming.engines import GraphEngine, SegmentEngine
from fastlstm.streaming.ports import Port

__all__ = ["MOST", "GraphRows", "NativeRows", "Rows"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
SIZES = (1, 8, 64)
"""Rows that programs are made for; a program runs as many of its rows as there are streams to advance."""
MOST = SIZES[-1]  # streams that advance in one native call: more rows would not use a weight more often
FEW = 8
"""More streams than these advance by a multiple of them, and the rest, where memory is kept for each number of rows:
that makes 15 numbers of rows instead of 64."""
WINDOW = 256  # time steps of `push` that run at once: rows that are shorter cost little


class Rows(Protocol):
    """What a pool asks of the states of its streams, which it knows by their numbers."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of one stream's states, by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""

    def reset(self, number: int) -> None:
        """Put a stream's states back to what a new one has."""

    def state(self, number: int) -> Arrays:
        """Return a copy of a stream's states."""

    def set_state(self, number: int, value: Arrays) -> None:
        """Set a stream's states, whose names and shapes are checked already."""

    def before(self, numbers: Array) -> Arrays:
        """Return a copy of the states of some streams, for `restore`."""

    def restore(self, numbers: Array, before: Arrays) -> None:
        """Undo what a refused call has done to these streams."""

    def quick(self, numbers: Array, frames: Any, out: Any) -> Any:
        """Advance by one step, if frames and out are just as expected; else return None."""

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        """Advance the streams, `MOST` at most, by a frame each; inputs and outputs have a row a stream."""

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        """Advance each stream by a chunk of its own length."""


class _Stored:
    """States of many streams: of each an array whose first axis is the stream's number."""

    _states: Arrays

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._states.values())

    def before(self, numbers: Array) -> Arrays:
        return {name: store[numbers] for name, store in self._states.items()}

    def restore(self, numbers: Array, before: Arrays) -> None:
        for name, store in self._states.items():
            store[numbers] = before[name]


class NativeRows(_Stored):
    """The states of streams whose step is one native call, which gathers and scatters them."""

    def __init__(self, engine: SegmentEngine, capacity: int) -> None:
        self._engine, self._segment = engine, engine.segment
        self._states = {s.name: aligned_zeros((capacity, s.width), np.float32) for s in self._segment.states}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: (1, store.shape[1]) for name, store in self._states.items()}
        # The rows to gather and scatter: how many, and their numbers.
        self._list = aligned_zeros(1 + MOST, np.int64)
        self._programs: dict[tuple[int, bool], BoundProgram] = {}
        self._entries: dict[int, Call] = {}

    def reset(self, number: int) -> None:
        for name, store in self._states.items():
            store[number] = self._engine.initial.get(name, 0)

    def state(self, number: int) -> Arrays:
        return {name: store[number][None].copy() for name, store in self._states.items()}

    def set_state(self, number: int, value: Arrays) -> None:
        for name, store in self._states.items():
            store[number] = value[name][0]

    def quick(self, numbers: Array, frames: Any, out: Any) -> Any:
        count = len(numbers)
        if not count or not self._engine.has_entries:
            return None
        program = self._program(count, False)
        call = self._entries.get(count)
        if call is None:
            call = self._segment.entry(program, 1, keep=True, time_axis=False)
            self._entries[count] = call
        self._list[0] = count
        self._list[1 : 1 + count] = numbers
        return call(frames) if out is None else call(frames, out)

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        self._list[0] = len(numbers)
        self._list[1 : 1 + len(numbers)] = numbers
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

    def _window(self, numbers: Array, pieces: list[Arrays], results: list[Arrays], left: list[int], start: int) -> None:
        """Advance streams by the frames of one window, longest first."""
        steps = [min(len(next(iter(pieces[i].values()))) - start, WINDOW) for i in left]
        self._list[0] = len(left)
        self._list[1 : 1 + len(left)] = numbers[left]
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

    def _program(self, count: int, chunks: bool) -> BoundProgram:
        """Return a program that runs `count` rows; chunks, which need more memory, have programs of their own."""
        size = next(size for size in SIZES if size >= count)
        program = self._programs.get((size, chunks))
        if program is None:
            words: list[Argument] = []
            for state in self._segment.states:
                store = self._states[state.name]
                words += PooledState(state.slot, place(store), store.strides[0], state.width)
            given = Pooled(place(self._list), len(self._segment.states), Table(words))
            lanes = self._segment.program.target.lanes
            before, after = (
                Stage(layout.ONCE, (Instruction(kernel, (lanes,), given),))
                for kernel in ("gather.gather", "gather.scatter")
            )
            program = self._segment.bound(size, (before,), (after,))
            self._programs[size, chunks] = program
        if program.used != count:
            program.use(count)
        return program

    def _advance(self, program: BoundProgram, arrays: Arrays, steps: int, active: Array | None) -> Arrays:
        """Run time-major frames [time, streams, …] through the program; return the outputs so."""
        given = {name: np.ascontiguousarray(_as_model(self._engine.inputs[name], a)) for name, a in arrays.items()}
        results = self._segment.advance(program, given, steps, program.used, active)
        return {name: _as_rows(port, results[name]) for name, port in self._engine.outputs.items()}


def _as_model(port: Port, array: Array) -> Array:
    """Return an array [time, streams, …] with its axes where the model has them."""
    return np.moveaxis(array, (0, 1), (port.axes.index("T"), port.axes.index("B")))


def _as_rows(port: Port, array: Array) -> Array:
    """Return an array with the model's axes as [time, streams, …]."""
    if "1" in port.axes:
        array = np.squeeze(array, port.axes.index("1"))
    axes = port.axes.replace("1", "")
    return np.moveaxis(array, (axes.index("T"), axes.index("B")), (0, 1))


class GraphRows(_Stored):
    """The states of streams that run part by part.

    Where every state and every output has an axis for batch rows, streams advance together, as the model runs a batch.
    An input without that axis (a sample rate, say) is then one value for the whole batch: only streams that are given
    the same advance together.
    """

    def __init__(self, engine: GraphEngine, capacity: int) -> None:
        self._engine = engine
        self._carried = engine.carried
        inputs = engine.inputs.values()
        self._together = (
            all(c.row_axis is not None for c in self._carried)
            and all("B" in port.axes for port in engine.outputs.values())
            and all("B" in port.axes for port in inputs if "T" in port.axes)
            and any("B" in port.axes for port in inputs)
        )
        self._single = [name for name, port in engine.inputs.items() if "B" not in port.axes]
        start = {c.name: c.start(1) for c in self._carried}
        self.shapes: Mapping[str, tuple[int, ...]] = {c.name: c.outside(start[c.name]).shape for c in self._carried}
        self._start = {c.name: _by_row(start[c.name], c.row_axis)[0] for c in self._carried}
        self._states = {name: np.zeros((capacity, *row.shape), row.dtype) for name, row in self._start.items()}

    def reset(self, number: int) -> None:
        for name, store in self._states.items():
            store[number] = self._start[name]

    def state(self, number: int) -> Arrays:
        states = self._gathered([number])
        return {c.name: np.array(c.outside(states[c.given])) for c in self._carried}

    def set_state(self, number: int, value: Arrays) -> None:
        self._scatter([number], {c.given: c.inside(value[c.name]) for c in self._carried})

    def quick(self, numbers: Array, frames: Any, out: Any) -> None:  # noqa: ARG002
        return None

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        moving = [name for name, port in self._engine.inputs.items() if "T" in port.axes]
        chunks = {name: a[:, None] if name in moving else a for name, a in arrays.items()}
        found = self._advance(numbers, chunks, 1)
        return found if self._engine.by_call else {name: a[:, 0] for name, a in found.items()}

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        lengths = np.array([_length(piece, self._engine) for piece in pieces], np.int64)
        if self._engine.by_call:
            return self._push_calls(numbers, pieces, lengths)
        results: list[Arrays] = [{} for _ in pieces]
        for steps in np.unique(lengths):
            some = np.flatnonzero(lengths == steps)
            for at in range(0, len(some), MOST):
                part = some[at : at + MOST]
                arrays = {name: np.stack([pieces[i][name] for i in part]) for name in self._engine.inputs}
                found = self._advance(numbers[part], arrays, int(steps))
                for row, i in enumerate(part):
                    results[i] = {name: a[row] for name, a in found.items()}
        return results

    def _push_calls(self, numbers: Array, pieces: list[Arrays], lengths: Array) -> list[Arrays]:
        """Advance streams whose chunks are calls of the model: the first of each, then the second, and so on."""
        parts: list[list[Arrays]] = [[] for _ in pieces]
        for t in range(int(lengths.max(initial=0))):
            left = np.flatnonzero(lengths > t)
            for at in range(0, len(left), MOST):
                part = left[at : at + MOST]
                arrays = {name: np.stack([pieces[i][name][t] for i in part]) for name in self._engine.inputs}
                found = self._advance(numbers[part], arrays, 1)
                for row, i in enumerate(part):
                    parts[i].append({name: a[row] for name, a in found.items()})
        return [
            {name: np.stack([one[name] for one in some]) if some else _nothing(p) for name, p in self._outputs.items()}
            for some in parts
        ]

    @property
    def _outputs(self) -> Mapping[str, Port]:
        return self._engine.outputs

    def _advance(self, numbers: Array, arrays: Arrays, steps: int) -> Arrays:
        """Advance streams by as many steps each; arrays are [streams, time, …], or [streams, …] without a time axis."""
        groups = self._groups(arrays, len(numbers))
        if len(groups) == 1:
            return self._batch(numbers, arrays, steps)
        parts = [self._batch(numbers[rows], {n: a[rows] for n, a in arrays.items()}, steps) for rows in groups]
        back = np.argsort(np.concatenate(groups))
        return {name: np.concatenate([part[name] for part in parts])[back] for name in self._outputs}

    def _groups(self, arrays: Arrays, count: int) -> list[Array]:
        """Return which rows advance together, for some streams."""
        if not self._together:
            return [np.array([i]) for i in range(count)]
        alike: dict[tuple[bytes, ...], list[int]] = {}
        single = [arrays[name] for name in self._single if arrays[name].strides[0]]  # else given once for all
        for i in range(count if single else 0):
            alike.setdefault(tuple(array[i, ...].tobytes() for array in single), []).append(i)
        groups = []
        for some in map(np.array, alike.values() if single else [range(count)]):
            whole = len(some) if len(some) < FEW else len(some) // FEW * FEW
            groups += [part for part in (some[:whole], some[whole:]) if len(part)]
        return groups

    def _batch(self, numbers: Array, arrays: Arrays, steps: int) -> Arrays:
        """Advance streams as one batch (of one, where the model has no axis for it)."""
        given = {name: _given(port, arrays[name]) for name, port in self._engine.inputs.items()}
        outputs, after = self._engine.advance(self._gathered(numbers), given, steps)
        shown = {name: self._rows_of(port, outputs[name]) for name, port in self._outputs.items()}
        self._scatter(numbers, after)
        return shown

    def _rows_of(self, port: Port, result: Array) -> Array:
        """Return an output as [streams, time, …], or [streams, …] if a step is a call."""
        axes = port.axes if "T" in port.axes or self._engine.by_call else "T" + port.axes
        rows = _by_row(result, axes.index("B") if "B" in axes else None)
        return _moved(rows, 1 + axes.replace("B", "").index("T"), 1) if "T" in axes else rows

    def _gathered(self, numbers: Any) -> Arrays:
        """Return the states of streams as the model takes them."""
        found = {}
        for c in self._carried:
            rows = self._states[c.name][numbers]
            found[c.given] = rows[0] if c.row_axis is None else np.ascontiguousarray(_moved(rows, 0, c.row_axis))
        return found

    def _scatter(self, numbers: Any, states: Mapping[str, Array]) -> None:
        for c in self._carried:
            self._states[c.name][numbers] = _by_row(states[c.given], c.row_axis)


def _moved(array: Array, source: int, target: int) -> Array:
    """Return an array with one axis in another place; np.moveaxis took half the time of a small pool's step."""
    if source == target:
        return array
    order = list(range(array.ndim))
    order.insert(target, order.pop(source))
    return array.transpose(order)


def _by_row(array: Array, axis: int | None) -> Array:
    """Return an array with its batch rows on the first axis; it is one row if it has no axis for them."""
    return array[None] if axis is None else _moved(array, axis, 0)


def _given(port: Port, rows: Array) -> Array:
    """Return an input as the model takes it, of rows [streams, time, …] or [streams, …]."""
    array = _moved(rows, 1, 1 + port.axes.replace("B", "").index("T")) if "T" in port.axes else rows
    return np.asarray(_moved(array, 0, port.axes.index("B")) if "B" in port.axes else array[0, ...], order="C")


def _nothing(port: Port) -> Array:
    """Return what no chunks give."""
    return np.empty((0, *(size or 0 for size in port.shape(1, 1, "B"))), port.dtype)


def _length(piece: Arrays, engine: GraphEngine) -> int:
    return next(len(a) for name, a in piece.items() if engine.by_call or "T" in engine.inputs[name].axes)
