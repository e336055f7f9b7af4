"""Many streams in one place: any of them advance together, as one batch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import machine
from fastlstm.errors import InputError
from fastlstm.kernels import compiler
from fastlstm.segments.program import address_of
from fastlstm.streaming.engines import SegmentEngine
from fastlstm.streaming.pool_rows import MOST, GraphRows, NativeRows, Rows
from fastlstm.streaming.ports import Port, by_name, check_frames, check_out, checked_state

if TYPE_CHECKING:
    from fastlstm.model import Model

__all__ = ["StreamPool"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


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
        engine = model.streaming_engine(state)
        self._inputs: dict[str, Port] = engine.inputs
        self._outputs: dict[str, Port] = engine.outputs
        self._by_call = not any("T" in port.axes for port in self._inputs.values())
        self._rows: Rows = (
            NativeRows(engine, capacity) if isinstance(engine, SegmentEngine) else GraphRows(engine, capacity)
        )
        # A word for each stream, -1 while it is closed: see kernels/gather.py.
        self._marks = np.full(capacity, -1, np.int64)
        self._words = np.array([capacity, address_of(self._marks), 0], np.int64)
        self._few = np.zeros(MOST, np.int64)  # ids of a call
        self._check = _check_function()
        self._addresses = address_of(self._words), address_of(self._few)
        self._free = list(range(capacity))[::-1]

    def __len__(self) -> int:
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of the streams' states: what grows with the capacity."""
        return self._rows.nbytes

    def open(self) -> int:
        """Return the id of a new stream, in its initial state; InputError if the pool is full."""
        if not self._free:
            raise InputError(f"All {self.capacity} streams of this pool are open; close one, or make a larger pool.")
        new = self._free.pop()
        self._rows.reset(new)
        self._marks[new] = 0
        return new

    def close(self, stream: int) -> None:
        """Give a stream back; its id may be given out again."""
        (number,) = self._checked([stream])
        self._marks[number] = -1
        self._free.append(int(number))

    def reset(self, stream: int) -> None:
        """Set a stream back to its initial state."""
        (number,) = self._checked([stream])
        self._rows.reset(int(number))

    def state(self, stream: int) -> Arrays:
        """Return a copy of a stream's state, of the kind that `Stream.state` has for one row."""
        (number,) = self._checked([stream])
        return self._rows.state(int(number))

    def set_state(self, stream: int, value: Mapping[str, Any]) -> None:
        """Set a stream's state to one that `state`, or `Stream.state` with one row, returned."""
        (number,) = self._checked([stream])
        self._rows.set_state(int(number), checked_state(value, self._rows.shapes, "pool"))

    def step(self, streams: Sequence[int] | Array, frames: Any, out: Any = None) -> Any:
        """Advance some streams by one time step, in one call.

        Parameters
        ----------
        streams : sequence of int
            Ids of open streams, each once.
        frames : array [streams, features]
            (ids of an embedding: [streams]); with several inputs a dict of them.
        out : array [streams, width], or dict of them, optional
            Written and returned instead of a new array.

        Returns
        -------
        array [streams, width]; with several outputs a dict
        """
        numbers = self._checked(streams)
        if len(numbers) <= MOST:
            known = self._rows.quick(numbers, frames, out)
            if known is not None:
                return known
        arrays = {
            name: self._checked_frames(name, a, (len(numbers),)) for name, a in by_name(self._inputs, frames).items()
        }
        shapes = {name: (len(numbers), *port.shape(1, 1, "TB1")) for name, port in self._outputs.items()}
        targets: Arrays = {} if out is None else check_out(self._outputs, out, shapes)
        for at in range(0, len(numbers), MOST):
            some = slice(at, at + MOST)
            results = self._rows.step(numbers[some], {name: array[some] for name, array in arrays.items()})
            for name, result in results.items():
                if name not in targets:
                    targets[name] = np.empty((len(numbers), *result.shape[1:]), result.dtype)
                targets[name][some] = result
        if not len(numbers):
            for name, port in self._outputs.items():
                targets.setdefault(name, np.empty([0, *(size or 0 for size in port.shape(1, 1, "TB1"))], port.dtype))
        if out is not None:
            return out
        return next(iter(targets.values())) if len(targets) == 1 else targets

    def push(self, streams: Sequence[int] | Array, chunks: Sequence[Any]) -> list[Any]:
        """Advance some streams, each by a chunk of its own length.

        Parameters
        ----------
        streams : sequence of int
        chunks : sequence of arrays [n, features]
            One for each stream (ids of an embedding: [n]; several inputs: a dict of arrays); n may be zero.

        Returns
        -------
        list of arrays [n, width]; with several outputs a list of dicts
        """
        numbers = self._checked(streams)
        if len(chunks) != len(numbers):
            raise InputError(f"Expected a chunk for each of {len(numbers)} streams; got {len(chunks)}.")
        pieces: list[Arrays] = []
        for chunk in chunks:
            named = by_name(self._inputs, chunk)
            lengths = {np.shape(a)[:1] for n, a in named.items() if self._by_call or "T" in self._inputs[n].axes}
            if len(lengths) != 1 or lengths == {()}:
                raise InputError(f"A chunk's inputs should have as many frames each; got {sorted(lengths)}.")
            (front,) = lengths
            pieces.append(
                {
                    name: self._checked_frames(
                        name, a, front if self._by_call or "T" in self._inputs[name].axes else ()
                    )
                    for name, a in named.items()
                }
            )
        results = self._rows.push(numbers, pieces)
        return [next(iter(r.values())) if len(self._outputs) == 1 else r for r in results]

    def _checked(self, streams: Any) -> Array:
        """Return the ids as an array, all of them open and each there once."""
        numbers = np.asarray(streams)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise InputError(f"Expected a list of stream ids; got {streams!r:.80}.")
        numbers = np.ascontiguousarray(numbers, np.int64)
        count = len(numbers)
        self._words[2] += 1
        if count <= MOST:
            self._few[:count] = numbers
            wrong = self._check(self._addresses[0], self._addresses[1], count)
        else:
            wrong = self._check(self._addresses[0], address_of(numbers), count)
        if wrong < 0:
            raise InputError(f"There is no open stream {int(numbers[-1 - wrong])} in this pool.")
        if wrong > 0:
            raise InputError(f"Stream {int(numbers[wrong - 1])} is there more than once; a call advances each once.")
        return numbers

    def _checked_frames(self, name: str, frames: Any, front: tuple[int, ...]) -> Array:
        """Return the frames of an input as an array of its dtype; `front` is what stands before a frame's sizes."""
        port = self._inputs[name]
        array = np.asarray(frames)
        check_frames(f"Frames of '{name}'", port, array, [(*front, *port.shape(1, 1, "TB"))])
        return np.asarray(array, port.dtype)


@cache
def _check_function() -> Any:
    """Return the compiled check of ids, which keeps the interpreter lock: it takes less than a microsecond."""
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(compiler.address(compiler.Kernel("gather.check"), machine.detect()))
