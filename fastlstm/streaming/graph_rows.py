"""The states of a pool's streams that run part by part, and how streams advance as one batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.program import layout
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.native import Call, never
from fastlstm.streaming.delay import HOPS
from fastlstm.streaming.engines import GraphEngine
from fastlstm.streaming.layouts import Layout
from fastlstm.streaming.pool_entry import Seat
from fastlstm.streaming.pool_rows import MOST, WAITING
from fastlstm.streaming.ports import Port, check_out, fits
from fastlstm.streaming.stores import Store
from fastlstm.streaming.taped import Step, TapedStep
from fastlstm.typing import Array

__all__ = ["GraphRows"]

Arrays = dict[str, Array]
FEW = 8
"""If memory is kept for each batch size, larger batches are split into a multiple of this many streams and the rest, so
that there are 15 batch sizes instead of 64. That takes up to 1.4 times as long, so frequent sizes are not split."""
OFTEN, MOST_WHOLE = 32, 8
"""Steps after which a batch size is no longer split; and the most batch sizes that are not split."""
MOST_TAPED = 64


class GraphRows:
    """The states of streams that run part by part.

    If every state and every output has an axis of batch rows, streams advance together as one batch. An input without
    that axis (a sample rate, say) has one value for the whole batch: only streams with the same value advance together.
    """

    def __init__(self, engine: GraphEngine, capacity: int, seats: int) -> None:
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
        self._stores = {c.given: Store(c, capacity) for c in self._carried}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            c.name: c.outside(self._stores[c.given].start).shape for c in self._carried
        }
        self._layouts = {
            name: Layout(port.axes, engine.hop > 1 and "T" in port.axes) for name, port in engine.inputs.items()
        }
        for name, port in engine.outputs.items():
            self._layouts[name] = Layout(port.axes, "T" in port.axes and (engine.hop > 1 or engine.rows[name] > 1))
        self._usual = self._usual_frames()
        self.seats = [Seat(MOST) for _ in range(seats)]
        # For each seat, by the number of streams and the values given once for all.
        self._taped: list[dict[Hashable, TapedStep]] = [{} for _ in self.seats]
        self._steps: dict[int, int] = {}  # by the number of streams, up to `OFTEN`

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores.values())

    def reset(self, number: int) -> None:
        self._scatter(np.array([number]), {given: store.start for given, store in self._stores.items()})

    def state(self, number: int) -> Arrays:
        states = self._gathered(np.array([number]))
        return {c.name: np.array(c.outside(states[c.given])) for c in self._carried}

    def set_state(self, number: int, value: Arrays) -> None:
        self._scatter(np.array([number]), {c.given: c.inside(value[c.name]) for c in self._carried})

    def before(self, numbers: Array) -> Arrays:
        return {given: store.rows(numbers) for given, store in self._stores.items()}

    def restore(self, numbers: Array, before: Arrays) -> None:
        for given, store in self._stores.items():
            store.put(numbers, before[given])

    def _usual_frames(self) -> list[_Usual]:
        """Return what frames of each input look like; empty if a step in the steady state is more than one call."""
        engine, delayed = self._engine, self._engine.delayed
        given = set(self._outputs) == set(engine.unrolled.steady.outputs)
        if not self._together or not given or (delayed is not None and delayed.latest_labels):
            return []
        return [_Usual.of(name, port, engine.hop) for name, port in engine.inputs.items()]

    @property
    def waits(self) -> bool:
        return self._engine.waiting > 0

    def marks(self, numbers: Array) -> Array:
        if not self.waits:
            return np.zeros(len(numbers), np.int64)
        return np.where(self._in_swing(numbers), 0, WAITING)

    def _in_swing(self, numbers: Array) -> Array:
        """Return which streams have reached the steady state, in which every hop is a call."""
        hops: Array = self._stores[HOPS].rows(numbers).reshape(len(numbers))
        return hops >= self._engine.waiting

    def entries(self, whole: Busy, streams: Array) -> list[Call]:
        return [seat.prepare(self._engine.executor.plan.target, whole, streams) for seat in self.seats]

    def quick(self, numbers: Array, frames: Any, out: Any, seat: int = 0) -> Any:
        arrays, count = self._usual_arrays(frames, len(numbers)), len(numbers)
        if arrays is None or (self.waits and not self._in_swing(numbers).all()):
            return None
        if out is not None:
            check_out(self._outputs, out, {n: (count, *self._shape(n)) for n in self._outputs})
        parts = list(self._parts(count))
        if len(parts) == 1:
            shown = self._some(numbers, arrays, seat)
        else:
            before = self.before(numbers)
            try:
                some = [self._some(numbers[part], self._cut(arrays, part), seat) for part in parts]
            except BaseException:
                self.restore(numbers, before)
                raise
            shown = {name: np.concatenate([part[name] for part in some]) for name in self._outputs}
        if out is None:
            return next(iter(shown.values())) if len(shown) == 1 else shown
        for name, target in check_out(self._outputs, out, {n: a.shape for n, a in shown.items()}).items():
            target[...] = shown[name]
        return out

    def _parts(self, count: int) -> Iterator[slice]:
        """Yield which streams advance together, `MOST` at a time."""
        rest = count % MOST
        few = rest if rest <= FEW or self._comes_often(rest) else rest - rest % FEW
        start = 0
        for size in (*[MOST] * (count // MOST), few, rest - few):
            if size:
                yield slice(start, start + size)
            start += size

    def _comes_often(self, count: int) -> bool:
        """Count a step of this many streams; return whether the batch size counts as frequent."""
        steps = self._steps.get(count, 0)
        if steps < OFTEN and (steps < OFTEN - 1 or sum(n == OFTEN for n in self._steps.values()) < MOST_WHOLE):
            self._steps[count] = steps + 1
        return self._steps[count] == OFTEN

    def _shape(self, name: str) -> tuple[int | None, ...]:
        """Return the shape of one stream's output of a step."""
        front = (self._engine.rows[name],) if self._layouts[name].several else ()
        return (*front, *self._outputs[name].shape(1, 1, "TB"))

    def _usual_arrays(self, frames: Any, count: int) -> Arrays | None:
        """Return the frames by name if they are exactly as expected."""
        named = frames if isinstance(frames, Mapping) else {usual.name: frames for usual in self._usual[:1]}
        if not count or not self._usual or len(named) != len(self._usual):
            return None
        for usual in self._usual:
            array = named.get(usual.name)
            if type(array) is not np.ndarray or array.dtype != usual.dtype or not array.flags.c_contiguous:
                return None
            if not fits((count, *usual.frame) if usual.rows else usual.frame, array.shape):
                return None
        return dict(named)

    def _cut(self, arrays: Arrays, some: slice) -> Arrays:
        """Return the batch rows of some streams."""
        return {usual.name: arrays[usual.name][some] if usual.rows else arrays[usual.name] for usual in self._usual}

    def _some(self, numbers: Array, arrays: Arrays, seat: int) -> Arrays:
        """Advance streams that can advance together; return the outputs by rows."""
        key = (
            len(numbers),
            *(arrays[u.name].shape if u.rows else arrays[u.name].tobytes() for u in self._usual),
        )
        taped = self._taped[seat].get(key)
        with ExitStack() as others:
            for some in self._taped[:seat]:
                if key in some:  # every seat has a tape of its own
                    others.enter_context(some[key].withheld())
            shown = None if taped is None else taped.run(numbers, arrays)
            if shown is None or taped is None:
                return self._called(numbers, arrays, key, seat)
        if taped.call is not never:
            self.seats[seat].add(taped.call, self._counted(len(numbers)))
        return shown

    def _counted(self, rows: int) -> Array:
        """Return a frame that tells an entry its number of rows."""
        frame = np.zeros(layout.ROWS + 1, np.int64)
        frame[layout.ROWS] = rows
        return frame

    def _called(self, numbers: Array, arrays: Arrays, key: Hashable, seat: int) -> Arrays:
        """Advance streams by a call of the model; return the outputs, and remember the tape of such calls."""
        steady = self._engine.unrolled.steady
        values = {
            spec.name: self._stores[spec.name].gathered(numbers)
            if spec.name in self._stores
            else np.asarray(self._layouts[spec.name].as_model(arrays[spec.name]), order="C")
            for spec in self._engine.executor.graph.inputs
        }
        results = self._engine.call(values)
        found = dict(zip(steady.outputs, results, strict=False))
        shown = {name: np.array(self._layouts[name].as_rows(found[name]), order="C") for name in self._outputs}
        after = dict(zip(steady.states, results[len(found) :], strict=True))
        self._scatter(numbers, after)
        tapes = self._engine.tapes
        place = None if tapes is None else tapes.find(values)
        if place is not None:
            kept, rows = self._taped[seat], self.seats[seat].rows
            if len(kept) >= MOST_TAPED:
                kept.clear()
            call = Step(arrays, {name: shown[name] for name in steady.outputs}, steady.states, self._layouts)
            kept[key] = TapedStep(place, call, self._stores, rows, self._engine.executor.plan.target)
        return shown

    def step(self, numbers: Array, arrays: Arrays) -> Arrays:
        moving = [name for name, port in self._engine.inputs.items() if "T" in port.axes]
        alone = moving if self._engine.hop == 1 else []  # frames without a time axis
        found = self._advance(numbers, {name: a[:, None] if name in alone else a for name, a in arrays.items()}, 1)
        if self._engine.by_call:
            return found
        several = {
            name
            for name, port in self._outputs.items()
            if "T" in port.axes and (self._engine.hop > 1 or self._engine.rows[name] > 1)
        }
        return {name: a if name in several else a[:, 0] for name, a in found.items()}

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
                found = self._advance(numbers[part], arrays, int(steps) // self._engine.hop)
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
            {n: np.stack([one[n] for one in some]) if some else p.nothing(1, "B") for n, p in self._outputs.items()}
            for some in parts
        ]

    def finish(self, numbers: Array) -> list[Arrays]:
        if self._engine.by_call:
            return [{name: port.nothing(1, "B") for name, port in self._outputs.items()} for _ in numbers]
        tails = [self._engine.finish(self._gathered(np.array([number])), 1) for number in numbers]
        return [{name: self._rows_of(port, tail[name])[0] for name, port in self._outputs.items()} for tail in tails]

    @property
    def _outputs(self) -> Mapping[str, Port]:
        return self._engine.outputs

    def _advance(self, numbers: Array, arrays: Arrays, steps: int) -> Arrays:
        """Advance streams by as many steps each; arrays are [streams, time, …], or [streams, …] without a time axis."""
        groups = self._groups(numbers, arrays)
        if len(groups) == 1:
            return self._batch(numbers, arrays, steps)
        parts = [self._batch(numbers[rows], {n: a[rows] for n, a in arrays.items()}, steps) for rows in groups]
        back = np.argsort(np.concatenate(groups))
        return {name: np.concatenate([part[name] for part in parts])[back] for name in self._outputs}

    def _groups(self, numbers: Array, arrays: Arrays) -> list[Array]:
        """Return which of some streams advance together."""
        count = len(numbers)
        if not self._together:
            return [np.array([i]) for i in range(count)]
        alike: dict[tuple[bytes, ...], list[int]] = {}
        single = [arrays[name] for name in self._single if arrays[name].strides[0]]  # else given once for all
        if self._engine.waiting:  # streams before their first call wait for it, each in its own time
            single.append(self._stores[HOPS].rows(numbers))
        for i in range(count if single else 0):
            alike.setdefault(tuple(array[i, ...].tobytes() for array in single), []).append(i)
        groups = []
        for some in map(np.array, alike.values() if single else [range(count)]):
            whole = len(some) if len(some) < FEW else len(some) // FEW * FEW
            groups += [part for part in (some[:whole], some[whole:]) if len(part)]
        return groups

    def _batch(self, numbers: Array, arrays: Arrays, steps: int) -> Arrays:
        """Advance streams as one batch (of one stream if the model has no batch axis)."""
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

    def _gathered(self, numbers: Array) -> Arrays:
        """Return the states of streams as the model takes them."""
        return {given: store.gathered(numbers) for given, store in self._stores.items()}

    def _scatter(self, numbers: Array, states: Mapping[str, Array]) -> None:
        """Store the states that the model returned, all or none."""
        rows = {given: self._stores[given].fitting(state, len(numbers)) for given, state in states.items()}
        for given, new in rows.items():
            self._stores[given].put(numbers, new)


@dataclass(frozen=True)
class _Usual:
    """What a step's arrays look like if they are exactly as expected.

    `rows` tells whether every stream has its own; `frame` is the shape of one, with None for any size.
    """

    name: str
    dtype: Any
    rows: bool
    frame: tuple[int | None, ...]

    @classmethod
    def of(cls, name: str, port: Port, hop: int) -> _Usual:
        """Return the expectation for an input."""
        front = (hop,) if hop > 1 and "T" in port.axes else ()
        return cls(name, np.dtype(port.dtype), "B" in port.axes, (*front, *port.shape(1, 1, "TB")))


def _moved(array: Array, source: int, target: int) -> Array:
    """Return an array with one axis moved; np.moveaxis took half the time of a small pool's step."""
    if source == target:
        return array
    order = list(range(array.ndim))
    order.insert(target, order.pop(source))
    return array.transpose(order)


def _by_row(array: Array, axis: int | None) -> Array:
    """Return an array with its batch rows on the first axis; without a batch axis it is one row."""
    return array[None] if axis is None else _moved(array, axis, 0)


def _given(port: Port, rows: Array) -> Array:
    """Return an input as the model takes it, of rows [streams, time, …] or [streams, …]."""
    array = _moved(rows, 1, 1 + port.axes.replace("B", "").index("T")) if "T" in port.axes else rows
    return np.asarray(_moved(array, 0, port.axes.index("B")) if "B" in port.axes else array[0, ...], order="C")


def _length(piece: Arrays, engine: GraphEngine) -> int:
    return next(len(a) for name, a in piece.items() if engine.by_call or "T" in engine.inputs[name].axes)
