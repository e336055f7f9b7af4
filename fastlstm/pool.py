"""Many streams in one place: any of them advance together, as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError
from fastlstm.native import Call, never
from fastlstm.program import Program

if TYPE_CHECKING:
    from fastlstm.model import Model

__all__ = ["StreamPool"]

Array = npt.NDArray[Any]
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rows that programs are made for; what is over runs in several, what is short is filled up with empty rows."""
WINDOW = 256  # time steps of `push` that run at once: rows that are shorter cost little


class StreamPool:
    """Room for `capacity` streams of one model.

    Every stream has the same bits as a `Stream` of its own. A pool is used from one thread at a time.

    Parameters
    ----------
    model : Model
    capacity : int
        Most streams open at once; their states are all the memory that grows with it.
    state : mapping of str to str, optional
        State inputs and outputs paired by hand, as in `Model.stream`.
    """

    def __init__(self, model: Model, capacity: int, state: Mapping[str, str] | None = None) -> None:
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
            raise InputError(f"capacity should be a whole number from 1 on; got {capacity!r}.")
        self.capacity = capacity
        self._segment = model.streaming_engine(state).segment
        (self._input, (_, self._in_axes, self._features)) = next(iter(self._segment.inputs.items()))
        (self._output, (_, self._out_axes, self._width)) = next(iter(self._segment.outputs.items()))
        self._dtype = np.dtype(np.float32 if self._features else np.int64)
        self._states = {s.name: np.zeros((capacity, s.width), np.float32) for s in self._segment.states}
        self._is_open = np.zeros(capacity, bool)
        self._mark = np.zeros(capacity, np.int64)
        self._free = list(range(capacity))[::-1]
        self._programs: dict[int, tuple[Program, Call]] = {}

    def __len__(self) -> int:
        return self.capacity - len(self._free)

    def open(self) -> int:
        """Return the id of a new stream, in its initial state; InputError if the pool is full."""
        if not self._free:
            raise InputError(f"All {self.capacity} streams of this pool are open; close one, or make a larger pool.")
        new = self._free.pop()
        for store in self._states.values():
            store[new] = 0
        self._is_open[new] = True
        return new

    def close(self, stream: int) -> None:
        """Give a stream back; its id may be given out again."""
        (number,) = self._checked([stream])
        self._is_open[number] = False
        self._free.append(int(number))

    def reset(self, stream: int) -> None:
        """Set a stream back to its initial state."""
        (number,) = self._checked([stream])
        for store in self._states.values():
            store[number] = 0

    def state(self, stream: int) -> dict[str, Array]:
        """Return a copy of a stream's state, of the kind that `Stream.state` has: [1, size] by name."""
        (number,) = self._checked([stream])
        return {name: store[number][None].copy() for name, store in self._states.items()}

    def set_state(self, stream: int, value: Mapping[str, Any]) -> None:
        """Set a stream's state to one that `state`, or `Stream.state` with one row, returned."""
        (number,) = self._checked([stream])
        expected = {name: (1, store.shape[1]) for name, store in self._states.items()}
        given = {name: np.asarray(array, np.float32) for name, array in value.items()}
        if {name: array.shape for name, array in given.items()} != expected:
            raise InputError(
                f"This pool's state has the arrays {expected}; "
                f"got { {name: array.shape for name, array in given.items()} }."
            )
        for name, store in self._states.items():
            store[number] = given[name][0]

    def step(self, streams: Sequence[int] | Array, frames: Any, out: Array | None = None) -> Array:
        """Advance some streams by one time step, in one call.

        Parameters
        ----------
        streams : sequence of int
            Ids of open streams, each once.
        frames : array [streams, features]
            (ids of an embedding: [streams])
        out : float32 array [streams, width], optional
            Written and returned instead of a new array.

        Returns
        -------
        array [streams, width]
        """
        numbers = self._checked(streams)
        array = self._checked_frames(frames, (len(numbers), self._features) if self._features else (len(numbers),))
        if out is None:
            out = np.empty((len(numbers), self._width), np.float32)
        elif not isinstance(out, np.ndarray) or out.shape != (len(numbers), self._width) or out.dtype != np.float32:
            raise InputError(f"out should be a float32 array of shape {[len(numbers), self._width]}.")
        for at in range(0, len(numbers), BATCHES[-1]):
            some = numbers[at : at + BATCHES[-1]]
            out[at : at + len(some)] = self._step(some, array[at : at + len(some)])
        return out

    def push(self, streams: Sequence[int] | Array, chunks: Sequence[Any]) -> list[Array]:
        """Advance some streams, each by a chunk of its own length.

        Parameters
        ----------
        streams : sequence of int
        chunks : sequence of arrays [n, features]
            One for each stream (ids of an embedding: [n]); n may be zero.

        Returns
        -------
        list of arrays [n, width]
        """
        numbers = self._checked(streams)
        if len(chunks) != len(numbers):
            raise InputError(f"Expected a chunk for each of {len(numbers)} streams; got {len(chunks)}.")
        tail = (self._features,) if self._features else ()
        arrays = [self._checked_frames(chunk, (np.shape(chunk)[:1] or (1,)) + tail) for chunk in chunks]
        results = [np.empty((len(array), self._width), np.float32) for array in arrays]
        # Longest first: the rows that are still active are then a prefix.
        order = sorted(range(len(arrays)), key=lambda i: -len(arrays[i]))
        for at in range(0, len(order), BATCHES[-1]):
            some = order[at : at + BATCHES[-1]]
            for start in range(0, len(arrays[some[0]]), WINDOW):
                left = [i for i in some if len(arrays[i]) > start]
                pieces = [arrays[i][start : start + WINDOW] for i in left]
                for i, piece in zip(left, self._push(numbers[left], pieces), strict=True):
                    results[i][start : start + WINDOW] = piece
        return results

    def _checked(self, streams: Any) -> Array:
        """Return the ids as an array, all of them open and each there once."""
        numbers = np.asarray(streams)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise InputError(f"Expected a list of stream ids; got {streams!r:.80}.")
        numbers = numbers.astype(np.intp, copy=False)
        known = (numbers >= 0) & (numbers < self.capacity)
        known[known] = self._is_open[numbers[known]]
        if not known.all():
            raise InputError(f"There is no open stream {numbers[~known].tolist()} in this pool.")
        places = np.arange(len(numbers))
        self._mark[numbers] = places
        twice = self._mark[numbers] != places
        if twice.any():
            raise InputError(f"Stream {numbers[twice].tolist()} is there more than once; a call advances each once.")
        return numbers

    def _checked_frames(self, frames: Any, shape: tuple[int, ...]) -> Array:
        array = np.asarray(frames)
        if array.shape != shape or array.dtype.kind not in ("fiu" if self._features else "iu"):
            wanted = "numbers" if self._features else "whole numbers"
            raise InputError(f"Expected {wanted} of the shape {list(shape)}; got {array.dtype}{list(array.shape)}.")
        return array.astype(self._dtype, copy=False)

    def _program(self, rows: int) -> tuple[Program, Call]:
        """Return a program of at least so many rows, and its entry for one step."""
        batch = next(b for b in BATCHES if b >= rows)
        found = self._programs.get(batch)
        if found is None:
            program = self._segment.program(batch)
            call: Call = never
            if self._features:
                call = self._segment.entry(program, 1, keep=True, time_axis=False)
            found = self._programs[batch] = program, call
        return found

    def _gather(self, program: Program, numbers: Array) -> None:
        for state in self._segment.states:
            rows = program.rows(state.slot)
            rows[: len(numbers), : state.width] = self._states[state.name][numbers]
            rows[len(numbers) :] = 0

    def _scatter(self, program: Program, numbers: Array) -> None:
        for state in self._segment.states:
            self._states[state.name][numbers] = program.rows(state.slot)[: len(numbers), : state.width]

    def _step(self, numbers: Array, frames: Array) -> Array:
        program, call = self._program(len(numbers))
        self._gather(program, numbers)
        if program.batch > len(numbers):
            padding = [(0, program.batch - len(numbers))] + [(0, 0)] * (frames.ndim - 1)
            frames = np.pad(frames, padding)
        result = call(np.ascontiguousarray(frames))
        if result is None:
            result = self._advance(program, frames[None], None)[0]
        self._scatter(program, numbers)
        rows: Array = result[: len(numbers)]
        return rows

    def _push(self, numbers: Array, pieces: list[Array]) -> list[Array]:
        """Advance streams by pieces sorted by length, longest first."""
        program, _ = self._program(len(numbers))
        self._gather(program, numbers)
        lengths = np.array([len(piece) for piece in pieces])
        x = np.zeros((lengths[0], program.batch, *pieces[0].shape[1:]), self._dtype)
        for row, piece in enumerate(pieces):
            x[: len(piece), row] = piece
        active = np.array([*(np.count_nonzero(lengths > t) for t in range(lengths[0])), 0], np.int64)
        y = self._advance(program, x, active)
        self._scatter(program, numbers)
        return [y[:length, row] for row, length in enumerate(lengths)]

    def _advance(self, program: Program, x: Array, active: Array | None) -> Array:
        """Run time-major frames through the program; return the outputs time-major."""
        at = self._in_axes.index("T"), self._in_axes.index("B")
        array = np.ascontiguousarray(np.moveaxis(x, (0, 1), at))
        result = self._segment.advance(program, {self._input: array}, x.shape[0], program.batch, active)[self._output]
        back = self._out_axes.index("T"), self._out_axes.index("B")
        return np.moveaxis(result, back, (0, 1)).reshape(x.shape[0], program.batch, self._width)
