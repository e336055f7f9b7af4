"""Many streams in one place: any of them advance together, as one batch."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.memory import address_of, check_memory
from fastlstm.runtime.busy import Busy, in_use, is_free
from fastlstm.runtime.conversion import converted
from fastlstm.runtime.foreign import as_array, with_tensors
from fastlstm.streaming.engines import SegmentEngine, Streamed
from fastlstm.streaming.graph_rows import GraphRows
from fastlstm.streaming.pool_rows import MOST, NativeRows, Rows
from fastlstm.streaming.ports import Port, by_name, check_frames, check_out, checked_state, frames_text
from fastlstm.streaming.turns import Turn, Turns, in_turn
from fastlstm.target.machine import cores, detect
from fastlstm.typing import Array

__all__ = ["StreamPool"]

Arrays = dict[str, Array]
CLOSED, FINISHED = -1, -2  # marks of streams that take no frames
MOST_SEATS = 8  # threads that advance streams at the same time; more than there are cores would only wait
BOOKKEEPING = 64  # bytes per stream: its mark, and its number while it is free


class StreamPool:
    """Room for `capacity` streams of one model.

    The results of every stream are bit-identical to those of a separate `Stream`. Several threads may call a pool.
    Steps of different streams run at the same time, one on each core; other calls take turns, and steps that wait for
    their turn run as one batch. They have to be of different streams: a step raises InputError if one of the same
    stream is already waiting. So does a call whose arguments do not fit; either way nothing has changed. Copying and
    pickling work as for a stream, and include all streams and their ids.

    Parameters
    ----------
    model : Streamed
    capacity : int
        Most streams open at once; their states are all the memory that grows with it.
    state : mapping of str to str, optional
        State inputs and outputs paired by hand, as in `Model.stream`.

    Raises
    ------
    InputError
        If there is no memory for so many streams; a call raises it if ids or frames do not fit.
    UnsupportedError
        If the model cannot stream.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"gru.weight_ih_l0": np.ones((6, 3)), "gru.weight_hh_l0": np.ones((6, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="gru", batch_first=True)
    >>> pool = model.streams(capacity=1000)
    >>> first, second = pool.open(), pool.open()
    >>> pool.step([first, second], np.ones((2, 3), np.float32)).shape
    (2, 2)
    >>> pool.step([second], np.ones((1, 3), np.float32)).shape
    (1, 2)
    """

    def __init__(self, model: Streamed, capacity: int, state: Mapping[str, str] | None = None) -> None:
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
            raise InputError(f"capacity should be a positive integer; got {capacity!r}.")
        self.capacity = capacity
        engine = model.streaming_engine(state)
        check_memory(f"A pool of {capacity} streams", capacity * (engine.state_bytes + BOOKKEEPING))
        self._busy = Busy()
        self._model, self._pairs = model, dict(state or {})
        self._inputs: dict[str, Port] = engine.inputs
        self._outputs: dict[str, Port] = engine.outputs
        self._by_call = engine.by_call
        self.hop: int = engine.hop
        self.delay: int = engine.delay
        self._rows_a_hop = engine.rows
        # Inputs that may be given once for all streams, or all chunks: they have neither batch nor time axis.
        self._single = {name for name, port in self._inputs.items() if not set("TB") & set(port.axes)}
        seats = min(cores(), MOST_SEATS)
        try:
            self._rows: Rows = (
                NativeRows(engine, capacity, seats)
                if isinstance(engine, SegmentEngine)
                else GraphRows(engine, capacity, seats)
            )
            # A word per stream, negative while it is closed or has finished: see kernels/gather.py.
            self._marks = np.full(capacity, CLOSED, np.int64)
        except MemoryError as error:
            raise InputError(f"There is not enough memory for a pool of {capacity} streams.") from error
        self._words = np.zeros(layout.STREAMS_WORDS, np.int64)
        self._words[layout.STREAMS_CAPACITY] = capacity
        self._words[layout.STREAMS_MARKS] = address_of(self._marks)
        self._few = np.zeros(MOST, np.int64)  # ids of a call
        self._check = _check_function()
        self._addresses = address_of(self._words), address_of(self._few)
        self._free = list(range(capacity))[::-1]
        self._entries = self._rows.entries(self._busy, self._words)
        self._turns = Turns(self._busy, [seat.busy for seat in self._rows.seats])
        self._waiting = self._turns.waiting
        self._met: tuple[list[int], Array] = [], np.zeros(0, np.int64)  # the last list of ids that were all open

    def __repr__(self) -> str:
        return f"<fastlstm.StreamPool of {self._model!r}: {len(self)} of {self.capacity} streams open>"

    def _repr_html_(self) -> str:
        from fastlstm.reporting.tables import facts_html  # for notebooks

        facts = {
            "frame": frames_text(self._inputs, 1),
            "output": frames_text(self._outputs, 1),
            "open": f"{len(self)} of {self.capacity} streams",
            "states": f"{self.nbytes:,} bytes",
        }
        return facts_html(facts, "fastlstm.StreamPool")

    def __len__(self) -> int:
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of the streams' states: what grows with the capacity."""
        return self._rows.nbytes

    @in_turn
    def open(self) -> int:
        """Return the id of a new stream, in its initial state; InputError if the pool is full."""
        if not self._free:
            raise InputError(f"All {self.capacity} streams of this pool are open; close one, or make a larger pool.")
        new = self._free.pop()
        self._rows.reset(new)
        self._mark(np.array([new]))
        return new

    @in_turn
    def close(self, stream: int) -> None:
        """Give a stream back; its id may be given out again."""
        number = self._number(stream)
        self._met = [], np.zeros(0, np.int64)
        self._marks[number] = CLOSED
        self._free.append(number)

    @in_turn
    def reset(self, stream: int) -> None:
        """Set a stream back to its initial state."""
        number = self._number(stream)
        self._rows.reset(number)
        self._mark(np.array([number]))

    @in_turn
    def state(self, stream: int) -> Arrays:
        """Return a copy of a stream's state, in the form of `Stream.state` for one row."""
        number = self._number(stream)
        return self._rows.state(number)

    @in_turn
    def set_state(self, stream: int, value: Mapping[str, Any]) -> None:
        """Set a stream's state to one that `state`, or `Stream.state` with one row, returned."""
        number = self._number(stream)
        self._rows.set_state(number, checked_state(value, self._rows.shapes, "pool"))
        self._mark(np.array([number]))

    def step(self, streams: Sequence[int] | Array, frames: Any, out: Any = None) -> Any:
        """Advance some streams by one time step, or by one hop of them, in one call.

        Parameters
        ----------
        streams : sequence of int
            Ids of open streams, each once.
        frames : array [streams, features]
            (ids of an embedding: [streams]); with several inputs a dict of them. An input with neither rows nor time
            among its axes, such as a sample rate, may be given once for all. With a `hop` of more than one frame
            [streams, hop, features].
        out : array [streams, width], or dict of them, optional
            An array to write to and return instead of a new one.

        Returns
        -------
        array [streams, width]; with several outputs a dict
        """
        ids, met = streams, self._met
        if type(streams) is list and streams == met[0]:
            ids = met[1]
        seat = 0
        for entry in () if self._waiting else self._entries:
            known = entry(ids, frames) if out is None else entry(ids, frames, out)
            if known is not None:
                if self._waiting:
                    self._turns.help(self._step_together)
                return known
            if is_free(self._rows.seats[seat].busy):
                break  # the entry refused the arguments, or there is none for them yet
            seat += 1
        seat %= len(self._entries)
        joins = (streams, frames) if out is None and self._are_arrays(frames) else None
        return self._turns.run(Turn(lambda: self._step_alone(streams, frames, out, seat), joins), self._step_together)

    def _step_alone(self, streams: Sequence[int] | Array, frames: Any, out: Any, seat: int = 0) -> Any:
        """Advance some streams by one step while no other call uses the pool."""
        met = self._met
        numbers = met[1] if type(streams) is list and streams == met[0] else self._checked(streams)
        known = self._rows.quick(numbers, frames, out, seat)
        return self._step(numbers, frames, out) if known is None else known

    def _mark(self, numbers: Array) -> None:
        """Record which of these open streams have reached the steady state, and that none has finished."""
        self._marks[numbers] = self._rows.marks(numbers)

    def _are_arrays(self, frames: Any) -> bool:
        """Whether frames are plain arrays, by name if there are several."""
        some = frames.values() if type(frames) is dict else (frames,)
        return len(some) == len(self._inputs) and all(type(array) is np.ndarray for array in some)

    def _step_together(self, turns: Sequence[Turn]) -> None:
        """Run steps of several calls as one, as far as they fit together; see `Turns`."""
        joined: list[tuple[Turn, int, Arrays]] = []
        numbers: list[int] = []
        for turn in turns:
            streams, frames = turn.step
            try:
                ids = self._checked(streams).tolist()
                arrays = self._joinable(len(ids), frames)
            except InputError as error:
                turn.fail(error)
                continue
            if set(ids).intersection(numbers):
                turn.fail(in_use("stream"))
            elif not joined or all(np.array_equal(arrays[name], joined[0][2][name]) for name in self._single):
                joined.append((turn, len(ids), arrays))
                numbers += ids
        if len(joined) < 2:
            return
        frames = {
            name: joined[0][2][name]
            if name in self._single
            else np.concatenate([arrays[name] for *_, arrays in joined])
            for name in self._inputs
        }
        try:
            result = self._step_alone(np.array(numbers), frames, None)
        except InputError:  # running each alone shows which one is wrong
            return
        stop = 0
        for turn, count, _ in joined:
            rows = slice(stop, stop + count)
            stop = rows.stop
            turn.end({n: a[rows] for n, a in result.items()} if isinstance(result, dict) else result[rows])

    def _joinable(self, count: int, frames: Any) -> Arrays:
        """Return the frames of a step as arrays by name; those given once for all stay as they are."""
        named = by_name(self._inputs, frames)
        arrays = {n: self._checked_frames(n, a, (count, *self._hop_size(n))) for n, a in named.items()}
        return {name: named[name] if name in self._single else array for name, array in arrays.items()}

    @with_tensors
    def _step(self, numbers: Array, frames: Any, out: Any) -> Any:
        """Advance some streams by frames that the entry did not accept."""
        arrays = {
            name: self._checked_frames(name, a, (len(numbers), *self._hop_size(name)))
            for name, a in by_name(self._inputs, frames).items()
        }
        sizes = {name: (*self._time(name), *port.shape(1, 1, "TB1")) for name, port in self._outputs.items()}
        if out is not None:
            shapes = {name: (len(numbers), *size) for name, size in sizes.items()}
            check_out(self._outputs, out, shapes)
        before = self._rows.before(numbers)
        try:
            parts = []
            for at in range(0, len(numbers), MOST):
                some = slice(at, at + MOST)
                parts.append(self._rows.step(numbers[some], {name: array[some] for name, array in arrays.items()}))
            results = {
                name: np.concatenate([part[name] for part in parts])
                if parts
                else np.empty([0, *(size or 0 for size in sizes[name])], port.dtype)
                for name, port in self._outputs.items()
            }
            if out is None:
                return next(iter(results.values())) if len(results) == 1 else results
            targets = check_out(self._outputs, out, {name: result.shape for name, result in results.items()})
        except BaseException:
            self._rows.restore(numbers, before)
            raise
        finally:
            if self._rows.waits:
                self._mark(numbers)
        for name, target in targets.items():
            target[...] = results[name]
        return out

    def push(self, streams: Sequence[int] | Array, chunks: Sequence[Any]) -> list[Any]:
        """Advance some streams, each by a chunk of its own length.

        Parameters
        ----------
        streams : sequence of int
        chunks : sequence of arrays [n, features]
            One for each stream (ids of an embedding: [n]; several inputs: a dict of arrays); n may be zero. An input
            with neither rows nor time among its axes may be given once for all frames.

        Returns
        -------
        list of arrays [n, width]; with several outputs a list of dicts
        """
        results: list[Any] = self._turns.run(
            Turn(lambda: self._push(self._checked(streams), chunks)), self._step_together
        )
        return results

    @with_tensors
    def _push(self, numbers: Array, chunks: Sequence[Any]) -> list[Any]:
        """Advance each stream by its own chunk."""
        if len(chunks) != len(numbers):
            raise InputError(f"Expected a chunk for each of {len(numbers)} streams; got {len(chunks)}.")
        pieces = [self._piece(chunk) for chunk in chunks]
        for piece in pieces if self.hop > 1 else ():
            (frames,) = {len(array) for name, array in piece.items() if "T" in self._inputs[name].axes}
            if frames % self.hop:
                raise InputError(
                    f"These streams take frames by hops of {self.hop}; got {frames}. Keep the rest for later."
                )
        before = self._rows.before(numbers)
        try:
            results = self._rows.push(numbers, pieces)
        except BaseException:
            self._rows.restore(numbers, before)
            raise
        finally:
            if self._rows.waits:
                self._mark(numbers)
        return [next(iter(r.values())) if len(self._outputs) == 1 else r for r in results]

    @in_turn
    def finish(self, streams: Sequence[int] | Array) -> list[Any]:
        """End the sequences of some streams: return the outputs that were waiting for frames to come.

        A stream that has finished has to be reset, or given a state, before it takes frames again.

        Parameters
        ----------
        streams : sequence of int

        Returns
        -------
        list of arrays [n, width]; with several outputs a list of dicts
            As `Stream.finish` returns them.
        """
        numbers = self._checked(streams)
        tails = self._rows.finish(numbers)
        self._marks[numbers] = FINISHED
        self._met = [], np.zeros(0, np.int64)
        return [next(iter(t.values())) if len(self._outputs) == 1 else t for t in tails]

    def _hop_size(self, name: str) -> tuple[int, ...]:
        """Return the leading sizes of a hop of an input, in front of a frame's."""
        return (self.hop,) if self.hop > 1 and "T" in self._inputs[name].axes else ()

    def _time(self, name: str) -> tuple[int, ...]:
        """Return the leading sizes of a step's output, in front of a frame's."""
        several = "T" in self._outputs[name].axes and (self.hop > 1 or self._rows_a_hop[name] > 1)
        return (self._rows_a_hop[name],) if several else ()

    def blank_frames(self, streams: int) -> Any:
        """Return frames of zeros for a number of streams, of the shape and dtype that `step` takes."""
        blank = {}
        for name, port in self._inputs.items():
            front = () if name in self._single else (streams, *self._hop_size(name))
            blank[name] = np.zeros((*front, *(size or 1 for size in port.shape(1, 1, "TB"))), port.dtype)
        return next(iter(blank.values())) if len(blank) == 1 else blank

    def _piece(self, chunk: Any) -> Arrays:
        """Return the arrays of one stream's chunk, checked."""
        named = by_name(self._inputs, chunk)
        counted = {
            name
            for name, port in self._inputs.items()
            if "T" in port.axes
            or (self._by_call and not (name in self._single and np.ndim(named[name]) == len(port.axes)))
        }
        lengths = {np.shape(named[name])[:1] for name in counted}
        if len(lengths) != 1 or lengths == {()}:
            raise InputError(f"A chunk's inputs should all have the same number of frames; got {sorted(lengths)}.")
        (front,) = lengths
        return {
            name: self._checked_frames(name, a, front if self._by_call or name in counted else ())
            for name, a in named.items()
        }

    def clone(self) -> StreamPool:
        """Return a new pool of the same model, with all streams of this one and their ids."""
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model, self.capacity, self._pairs), self._contents()

    @in_turn
    def _contents(self) -> tuple[list[int], list[int], Arrays]:
        """Return the free ids in the order in which they will be given out, the finished ids, and the open streams."""
        finished = np.flatnonzero(self._marks == FINISHED)
        return list(self._free), finished.tolist(), self._rows.before(np.flatnonzero(self._marks != CLOSED))

    def __setstate__(self, contents: tuple[list[int], list[int], Arrays]) -> None:
        free, finished, states = contents
        self._free = list(free)
        self._marks[:] = 0
        self._marks[self._free] = CLOSED
        opened = np.flatnonzero(self._marks != CLOSED)
        self._rows.restore(opened, states)
        self._mark(opened)
        self._marks[finished] = FINISHED

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamPool:
        return copy.copy(self)  # a model holds no state: copies of a pool share it, and its weights

    def _is_finished(self, number: int) -> bool:
        return 0 <= number < self.capacity and int(self._marks[number]) == FINISHED

    def _number(self, stream: Any) -> int:
        """Return the id of one open stream, which may have finished."""
        if np.ndim(stream) == 0 and np.asarray(stream).dtype.kind in "iu" and self._is_finished(int(stream)):
            return int(stream)
        (number,) = self._checked([stream])
        return int(number)

    def _checked(self, streams: Any) -> Array:
        """Return the ids as an array, after checking that all are open and none is repeated."""
        numbers = np.asarray(streams)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise InputError(f"Expected a list of stream ids; got {streams!r:.80}.")
        numbers = np.ascontiguousarray(numbers, np.int64)
        count = len(numbers)
        if count <= MOST:
            self._few[:count] = numbers
            wrong = self._check(self._addresses[0], self._addresses[1], count)
        else:
            wrong = self._check(self._addresses[0], address_of(numbers), count)
        if wrong < 0 and self._rows.waits:
            wrong = self._wrong(numbers)
        if wrong < 0:
            number = int(numbers[-1 - wrong])
            if self._is_finished(number):
                raise InputError(
                    f"Stream {number} has finished; reset it, or set its state, before it takes frames again."
                )
            raise InputError(f"There is no open stream {number} in this pool.")
        if wrong > 0:
            raise InputError(
                f"Stream {int(numbers[wrong - 1])} is listed more than once; a call advances each stream once."
            )
        if type(streams) is list:
            self._met = list(streams), numbers
        return numbers

    def _wrong(self, numbers: Array) -> int:
        """Do what `gather.check` does, allowing for streams whose first hops are waiting."""
        seen = set[int]()
        for i, number in enumerate(numbers.tolist()):
            if not 0 <= number < self.capacity or self._marks[number] in (CLOSED, FINISHED):
                return -1 - i
            if number in seen:
                return 1 + i
            seen.add(number)
        return 0

    def _checked_frames(self, name: str, frames: Any, front: tuple[int, ...]) -> Array:
        """Return the frames of an input as an array of its dtype; `front` holds the sizes before a frame's."""
        port = self._inputs[name]
        array = as_array(frames, f"Frames of '{name}'")
        one = port.shape(1, 1, "TB")
        what = f"Frames of '{name}'"
        check_frames(what, port, array, [(*front, *one), *([one] if name in self._single else [])])
        if array.ndim == len(one):
            array = np.broadcast_to(array, (*front, *array.shape))
        return converted(array, port.dtype, what)


@cache
def _check_function() -> Any:
    """Return the compiled check of ids, which keeps the interpreter lock: it takes less than a microsecond."""
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(address(Kernel("gather.check"), detect()))
