"""The states of a pool's streams, and how some of them advance as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.memory import aligned_zeros
from fastlstm.native import Call
from fastlstm.program import Instruction, Stage, place
from fastlstm.segments.program import BoundProgram
from fastlstm.streaming.engines import GraphEngine, SegmentEngine
from fastlstm.streaming.ports import Port

__all__ = ["MOST", "GraphRows", "NativeRows", "Rows"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
SIZES = (1, 8, 64)
"""Rows that programs are made for; a program runs as many of its rows as there are streams to advance."""
MOST = SIZES[-1]  # streams that advance in one native call: more rows would not use a weight more often
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

    def quick(self, numbers: Array, frames: Any, out: Any) -> Any:
        """Advance by one step, if frames and out are just as expected; else return None."""

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        """Advance the streams by a frame each; inputs and outputs have a row a stream."""

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        """Advance each stream by a chunk of its own length."""


class NativeRows:
    """The states of streams whose step is one native call, which gathers and scatters them."""

    def __init__(self, engine: SegmentEngine, capacity: int) -> None:
        self._engine, self._segment = engine, engine.segment
        self._states = {s.name: aligned_zeros((capacity, s.width), np.float32) for s in self._segment.states}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: (1, store.shape[1]) for name, store in self._states.items()}
        # The rows to gather and scatter: how many, and their numbers.
        self._list = aligned_zeros(1 + MOST, np.int64)
        self._programs: dict[tuple[int, bool], BoundProgram] = {}
        self._entries: dict[int, Call] = {}

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._states.values())

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
            words: list[int | Array] = [self._list, len(self._segment.states)]
            for state in self._segment.states:
                store = self._states[state.name]
                words += [state.slot, place(store), store.strides[0], state.width]
            lanes = self._segment.program.target.lanes
            before, after = (
                Stage(layout.ONCE, (Instruction(kernel, (lanes,), tuple(words)),))
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


class GraphRows:
    """The states of streams that run part by part."""

    def __init__(self, engine: GraphEngine, capacity: int) -> None:
        self._engine = engine
        self._carried = engine.carried
        ports = (*engine.inputs.values(), *engine.outputs.values())
        # Together as a batch where every value has an axis for it, else one by one.
        by_call = not any("T" in port.axes for port in engine.inputs.values())
        with_rows = all(c.row_axis is not None for c in self._carried) and all("B" in p.axes for p in ports)
        self._together = with_rows and not by_call
        self._start = {c.name: c.start(1) for c in self._carried}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            c.name: c.outside(self._start[c.name]).shape for c in self._carried
        }
        self._states = {c.name: np.zeros((capacity, *self._start[c.name].shape), c.dtype) for c in self._carried}

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._states.values())

    def reset(self, number: int) -> None:
        for name, store in self._states.items():
            store[number] = self._start[name]

    def state(self, number: int) -> Arrays:
        return {c.name: c.outside(self._states[c.name][number]).copy() for c in self._carried}

    def set_state(self, number: int, value: Arrays) -> None:
        for c in self._carried:
            self._states[c.name][number] = c.inside(value[c.name])

    def quick(self, numbers: Array, frames: Any, out: Any) -> None:  # noqa: ARG002
        return None

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        pieces = [{name: a[i] for name, a in arrays.items()} for i in range(len(numbers))]
        if not self._together:
            results = [self._alone(number, piece, None) for number, piece in zip(numbers, pieces, strict=True)]
            return {name: np.stack([result[name] for result in results]) for name in self._engine.outputs}
        moving = {name for name, port in self._engine.inputs.items() if "T" in port.axes}
        chunks = [{name: a[None] if name in moving else a for name, a in piece.items()} for piece in pieces]
        found = self._batch(numbers, chunks, 1)
        return {name: np.stack([result[name][0] for result in found]) for name in self._engine.outputs}

    def push(self, numbers: Array, pieces: list[Arrays]) -> list[Arrays]:
        results: list[Arrays] = [{} for _ in pieces]
        if not self._together:
            for i, piece in enumerate(pieces):
                results[i] = self._alone(numbers[i], piece, _length(piece, self._engine))
            return results
        groups: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            groups.setdefault(_length(piece, self._engine), []).append(i)
        for steps, members in groups.items():
            for at in range(0, len(members), MOST):
                some = members[at : at + MOST]
                for i, result in zip(some, self._batch(numbers[some], [pieces[i] for i in some], steps), strict=True):
                    results[i] = result
        return results

    def _alone(self, number: int, piece: Arrays, steps: int | None) -> Arrays:
        """Advance one stream: by one step, or by a chunk."""
        engine = self._engine
        states = {c.given: self._states[c.name][number] for c in self._carried}
        by_call = not any("T" in port.axes for port in engine.inputs.values())
        if by_call and steps is not None:
            parts = [self._alone(number, {n: a[t] for n, a in piece.items()}, None) for t in range(steps)]
            return {name: np.stack([part[name] for part in parts]) for name in engine.outputs}
        given = {}
        for name, port in engine.inputs.items():
            array = piece[name]
            if "T" in port.axes and steps is None:
                array = array[None]
            if "T" in port.axes:
                rest = port.axes.replace("B", "")
                array = np.moveaxis(array, 0, rest.index("T"))
            given[name] = np.expand_dims(array, port.axes.index("B")) if "B" in port.axes else array
        outputs, after = engine.advance(states, given, 1 if steps is None else steps)
        for c in self._carried:
            self._states[c.name][number] = after[c.given]
        shown = {}
        for name, port in engine.outputs.items():
            result, axes = outputs[name], port.axes
            if "T" not in axes and not by_call:
                axes = "T" + axes
            if "B" in axes:
                result, axes = np.squeeze(result, axes.index("B")), axes.replace("B", "")
            if "T" in axes:
                result = np.moveaxis(result, axes.index("T"), 0)
            shown[name] = result[0] if "T" in axes and steps is None else result
        return shown

    def _batch(self, numbers: Array, pieces: list[Arrays], steps: int) -> list[Arrays]:
        """Advance streams by chunks of one length, as one batch."""
        engine = self._engine
        states = {
            c.given: np.concatenate([self._states[c.name][n] for n in numbers], c.row_axis) for c in self._carried
        }
        given = {}
        for name, port in engine.inputs.items():
            if "T" in port.axes:
                array = _as_model(port, np.stack([piece[name] for piece in pieces], 1))
            else:
                array = np.stack([piece[name] for piece in pieces], port.axes.index("B"))
            given[name] = np.ascontiguousarray(array)
        outputs, after = engine.advance(states, given, steps)
        for c in self._carried:
            rows = np.split(after[c.given], len(numbers), c.row_axis or 0)
            for number, row in zip(numbers, rows, strict=True):
                self._states[c.name][number] = row
        shown = {}
        for name, port in engine.outputs.items():
            whole = port if "T" in port.axes else Port("T" + port.axes, (None, *port.sizes), port.dtype)
            shown[name] = _as_rows(whole, outputs[name])
        return [{name: rows[:, i] for name, rows in shown.items()} for i in range(len(numbers))]


def _length(piece: Arrays, engine: GraphEngine) -> int:
    by_call = not any("T" in port.axes for port in engine.inputs.values())
    return next(len(a) for name, a in piece.items() if by_call or "T" in engine.inputs[name].axes)
