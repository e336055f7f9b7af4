"""What a stream runs on: one native call for most models, a graph run part by part for the others.

`choosing.py` decides. A `SegmentEngine` has the whole model in one segment, whose program keeps the states where the
kernels read them. A `GraphEngine` runs the graph made by `timeline.py`, in which the states are inputs and outputs.
Both `open` a *run*: the states of one stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from fastlstm.errors import InputError, UnsupportedError
from fastlstm.executor import Executor
from fastlstm.graph import Graph, TensorSpec
from fastlstm.lowering.tapes.by_shape import Tapes
from fastlstm.program.memory import check_memory
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.entry import stream_entry
from fastlstm.runtime.native import Call, never
from fastlstm.runtime.segment import Segment
from fastlstm.streaming.delay import HOPS, Waiting
from fastlstm.streaming.flow import Part, Unrolled
from fastlstm.streaming.ports import Port
from fastlstm.streaming.repeating import TOGETHER, repeated, stacked
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Engine", "GraphEngine", "GraphRun", "SegmentEngine", "SegmentRun"]

Arrays = Mapping[str, Array]


class SegmentRun:
    """The states of one stream, in a program of its own."""

    def __init__(self, engine: SegmentEngine, batch: int) -> None:
        self.engine, self.batch = engine, batch
        check_memory(f"A stream of {batch} rows", engine.segment.least_bytes(batch))
        self.program = engine.segment.bound(batch)
        self.busy = self.program.busy
        self.shapes = {state.name: (batch, state.width) for state in engine.segment.states}
        self.reset()

    def advance(self, arrays: Mapping[str, Array], steps: int) -> dict[str, Array]:
        """Run over `steps` time steps."""
        return self.engine.segment.advance(self.program, arrays, steps, self.batch)

    def entry(self, steps: int, time_axis: bool, batch_axis: bool) -> Call:
        """Return a built-in for frames of `steps` time steps (0: any number), with or without axes of size 1."""
        connections = self.engine.segment.connections()
        return stream_entry(connections, self.program, self.engine.shown, steps, time_axis, batch_axis)

    def warmup(self) -> None:
        """Prepare for the first step and the end of a sequence; here there is nothing to do."""

    def finish(self) -> dict[str, Array]:
        """Return no frames for each output: there is no delay."""
        return {name: port.nothing(self.batch) for name, port in self.engine.outputs.items()}

    def before(self) -> dict[str, Array] | None:
        """Return what `restore` needs to undo a refused call; None if no call is refused midway."""
        return self.state() if self.engine.has_ids else None

    def restore(self, before: dict[str, Array] | None) -> None:
        """Restore the states."""
        if before is not None:
            self.set_state(before)

    def reset(self) -> None:
        """Go back to the initial state."""
        for state in self.engine.segment.states:
            rows = self.program.rows(state.slot)
            rows[:] = 0
            if state.name in self.engine.initial:
                rows[:, : state.width] = self.engine.initial[state.name]

    def state(self) -> dict[str, Array]:
        """Return a copy of the states."""
        states = self.engine.segment.states
        return {s.name: self.program.rows(s.slot)[:, : s.width].copy() for s in states}

    def set_state(self, value: Mapping[str, Array]) -> None:
        """Replace the states; their shapes have been checked."""
        for s in self.engine.segment.states:
            self.program.rows(s.slot)[:, : s.width] = value[s.name]


@dataclass(frozen=True)
class SegmentEngine:
    """A model that is one native call from its inputs to its outputs."""

    segment: Segment
    initial: Mapping[str, Array]  # initial states other than zero
    shown: tuple[str, ...]  # the outputs, in the model's order

    by_call = False
    hop, delay = 1, 0
    reasons: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<SegmentEngine of {self.segment!r}, {self.state_bytes:,} bytes of states a row>"

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one row."""
        return sum(4 * state.width for state in self.segment.states)

    @cached_property
    def inputs(self) -> dict[str, Port]:
        """The inputs by name."""
        return {name: _port(axes, features) for name, (_, axes, features) in self.segment.inputs.items()}

    @cached_property
    def outputs(self) -> dict[str, Port]:
        """The outputs by name."""
        return {name: _port(*self.segment.outputs[name][1:]) for name in self.shown}

    @property
    def rows(self) -> dict[str, int]:
        """Frames of each output per hop."""
        return dict.fromkeys(self.outputs, 1)

    @cached_property
    def has_ids(self) -> bool:
        """Whether an input holds ids, which only kernels check against their table."""
        return any(not features for _, _, features in self.segment.inputs.values())

    def open(self, batch: int) -> SegmentRun:
        """Return the states of a new stream."""
        return SegmentRun(self, batch)


def _port(axes: str, features: int) -> Port:
    fixed = {"T": None, "B": None, "1": 1, "F": features}
    return Port(axes, tuple(fixed[axis] for axis in axes), "float32" if features else "int64")


class GraphRun:
    """The states of one stream, as arrays."""

    def __init__(self, engine: GraphEngine, batch: int) -> None:
        self.engine, self.batch = engine, batch
        self.busy = Busy()
        self.states: dict[str, Array] = {}
        check_memory(f"A stream of {batch} rows", batch * engine.state_bytes)
        self.reset()
        self.shapes = {c.name: c.outside(self.states[c.given]).shape for c in engine.carried}

    def advance(self, arrays: Mapping[str, Array], steps: int) -> dict[str, Array]:
        """Run over `steps` hops."""
        outputs, self.states = self.engine.advance(self.states, arrays, steps)
        return outputs

    def calls(self, stacks: Mapping[str, Array], still: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Run `count` chunks of a model that takes one per call; return the stacked outputs."""
        outputs, self.states = self.engine.calls(self.states, stacks, still, count)
        return outputs

    def entry(self, steps: int, time_axis: bool, batch_axis: bool) -> Call:  # noqa: ARG002
        """Return an entry that never applies: every call goes through Python."""
        return never

    def warmup(self) -> None:
        """Run on frames of zeros until every hop is a call, and finish."""
        steps = self.engine.waiting
        if steps:
            hops = {n: p.shape(self.engine.hop * steps, self.batch) for n, p in self.engine.inputs.items()}
            self.advance(
                {n: np.zeros([s or 1 for s in shape], self.engine.inputs[n].dtype) for n, shape in hops.items()}, steps
            )
            self.finish()

    def finish(self) -> dict[str, Array]:
        """Return the remaining frames of each output."""
        return self.engine.finish(self.states, self.batch)

    def before(self) -> dict[str, Array]:
        """Return what `restore` needs to undo a refused call; the arrays are never written to."""
        return self.states

    def restore(self, before: dict[str, Array] | None) -> None:
        """Restore the states."""
        if before is not None:
            self.states = before

    def reset(self) -> None:
        """Go back to the initial state."""
        self.states = {c.given: c.start(self.batch) for c in self.engine.carried}

    def state(self) -> dict[str, Array]:
        """Return a copy of the states."""
        return {c.name: c.outside(self.states[c.given]).copy() for c in self.engine.carried}

    def set_state(self, value: Mapping[str, Array]) -> None:
        """Replace the states; their shapes have been checked."""
        self.engine.check_together(value)
        self.states = {c.given: np.array(c.inside(value[c.name]), c.dtype) for c in self.engine.carried}


class GraphEngine:
    """A model that runs part by part, with its states as inputs and outputs."""

    def __init__(self, unrolled: Unrolled, threads: int, target: Target | None = None) -> None:
        self.unrolled, self._threads, self._target = unrolled, threads, target
        self._executors: dict[str, Executor] = {}
        self._loops: dict[tuple[str, ...], tuple[Part, Executor]] = {}  # by the inputs that vary
        self.at_once, self.hop, self.delay = unrolled.at_once, unrolled.hop, unrolled.delay
        self.reasons, self.waiting = unrolled.reasons, unrolled.waiting
        self.inputs = {spec.name: _port_of(spec, unrolled.axes) for spec in unrolled.inputs}
        self.outputs = {spec.name: _port_of(spec, unrolled.axes) for spec in unrolled.outputs}
        self.rows = {name: unrolled.rows.get(name, 1) for name in self.outputs}
        """Frames of each output per hop."""
        self._moving = [name for name, port in self.inputs.items() if "T" in port.axes]
        self.by_call = not self._moving
        """Whether a step is a whole call of the model, with one chunk as its input."""
        self.delayed = Waiting(unrolled, self.inputs) if unrolled.waiting else None
        self.carried = (*unrolled.carried, *(self.delayed.carried if self.delayed else ()))
        self.executor = self.executor_for("steady")

    def executor_for(self, which: str) -> Executor:
        """Return the executor of the graph of one kind of call, made when first needed."""
        if which not in self._executors:
            part = getattr(self.unrolled, which)
            graph = part if isinstance(part, Graph) else part.graph
            self._executors[which] = Executor(graph, self._threads, target=self._target)
        return self._executors[which]

    def __repr__(self) -> str:
        return f"<GraphEngine of {self.executor!r}, {self.state_bytes:,} bytes of states a row>"

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one row."""
        return sum(c.row_bytes for c in self.carried)

    @property
    def has_usual_steps(self) -> bool:
        """Whether a step is one `call`, with one frame in and one out from the first step on."""
        return self.hop == 1 and not self.waiting and set(self.rows.values()) == {1}

    def call(self, values: Arrays) -> Sequence[Array]:
        """Run the graph once on inputs and states by name; return its outputs followed by the new states."""
        return self.executor.run(values)

    @property
    def tapes(self) -> Tapes | None:
        """The executor that `call` uses, None if there is none."""
        return self.executor.tapes

    def open(self, batch: int) -> GraphRun:
        """Return the states of a new stream; UnsupportedError if the model takes another number of rows."""
        with_rows = any("B" in port.axes for port in self.inputs.values())
        if batch > 1 and not (with_rows and all(c.row_axis is not None for c in self.carried)):
            raise UnsupportedError("This model is for one batch row: open a stream for each, or a pool.")
        return GraphRun(self, batch)

    def groups(self, states: Mapping[str, Array]) -> Array | None:
        """Return a number for each stream from its states; streams with equal numbers may advance together."""
        return None if self.delayed is None else states[HOPS].reshape(-1)

    def check_together(self, states: Mapping[str, Array]) -> None:
        """Raise InputError if rows are set to states that cannot advance together."""
        found = self.groups(states)
        if found is not None and (found.min() < 0 or len(set(found.tolist())) > 1):
            raise InputError(
                f"All rows of a stream must have taken the same number of hops; got {found.tolist()} in '{HOPS}'."
            )

    def advance(self, states: Arrays, arrays: Arrays, steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run `steps` hops from given states; return the outputs and the new states."""
        waiting = self.delayed
        if waiting is None:
            return self._steady(states, arrays, steps)
        done = int(states[HOPS].flat[0])
        if done >= waiting.hops:
            outputs, after = self._steady(states, arrays, steps)
        elif done + steps < waiting.hops:
            after = waiting.stored(states, arrays, done)
            outputs = {}
        else:
            first, rest = waiting.gathered(states, arrays, done)
            outputs, after = self._run("first", states, first)
            after = {**states, **after}
            left = done + steps - waiting.hops
            if left:
                more, after = self._steady(after, rest, left)
                outputs = {name: self._joined(name, [outputs.get(name), more[name]]) for name in self.outputs}
        after = {**after, HOPS: np.full_like(states[HOPS], min(done + steps, waiting.hops)), **waiting.latest(arrays)}
        batch = len(states[HOPS])
        return {name: self._late(name, outputs.get(name), steps, batch) for name in self.outputs}, after

    def finish(self, states: Arrays, batch: int) -> dict[str, Array]:
        """Return the remaining frames of each output from given states."""
        waiting, done = self.delayed, 0 if self.delayed is None else int(states[HOPS].flat[0])
        found: dict[str, Array] = {}
        if waiting is not None and 0 < done < waiting.hops:
            own = {c.given: states[c.given] for c in self.unrolled.carried if c.own}
            results = self.executor_for("whole").run({**waiting.so_far(states, done), **own})
            names = [spec.name for spec in self.executor_for("whole").graph.outputs]
            found = dict(zip(names, results, strict=True))
        elif self.unrolled.last is not None and (waiting is None or done):
            found, _ = self._run("last", states, {} if waiting is None else waiting.so_far(states, 0))
        return {
            name: self._as_frames(name, found[name]) if name in found else port.nothing(batch)
            for name, port in self.outputs.items()
        }

    def _as_frames(self, name: str, result: Array) -> Array:
        return result if "T" in self.outputs[name].axes else result[None]

    def _joined(self, name: str, parts: list[Array | None]) -> Array:
        """Return the frames of several calls joined; each call has one of an output of the last time step."""
        known = [self._as_frames(name, part) if i == 0 else part for i, part in enumerate(parts) if part is not None]
        axes = self.outputs[name].axes
        return np.concatenate(known, axes.index("T") if "T" in axes else 0)

    def _late(self, name: str, result: Array | None, steps: int, batch: int) -> Array:
        """Return an output with zeros in front for the frames that are still delayed."""
        port = self.outputs[name]
        rows = steps * self.rows[name] if "T" in port.axes else steps
        axis = port.axes.index("T") if "T" in port.axes else 0
        if result is not None and result.ndim == len(port.axes):
            result = self._as_frames(name, result)
        have = 0 if result is None else result.shape[axis]
        if have == rows and result is not None:
            return result
        shape = port.shape(rows - have, batch) if "T" in port.axes else (rows - have, *port.shape(1, batch))
        if None in shape and result is not None:
            shape = (*result.shape[:axis], rows - have, *result.shape[axis + 1 :])
        zeros = np.zeros([size or 1 for size in shape], port.dtype)
        return zeros if result is None else np.concatenate([zeros, result], axis)

    def _steady(self, states: Arrays, arrays: Arrays, steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
        if (self.at_once and steps) or self.by_call:
            return self._run("steady", states, arrays)
        if not steps:
            return self._nothing(states, arrays)
        stacks = {name: _by_hop(arrays[name], self.inputs[name].axes, steps) for name in self._moving}
        still = {name: array for name, array in arrays.items() if name not in stacks}
        outputs, after = self.calls(states, stacks, still, steps)
        return {name: _joined(array, self.outputs[name].axes) for name, array in outputs.items()}, after

    def calls(
        self, states: Arrays, stacks: Arrays, still: Arrays, count: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the steady graph `count` times; return the stacked outputs and the new states.

        `stacks` have a leading axis for the calls; `still` are the same for all of them.
        """
        parts: list[dict[str, Array]] = []
        done = 0
        while done < count:
            if count - done >= TOGETHER:
                outputs, states = self._together(
                    states, {n: a[done : done + TOGETHER] for n, a in stacks.items()}, still
                )
                done += TOGETHER
            else:
                one, states = self._run("steady", states, {**still, **{n: a[done] for n, a in stacks.items()}})
                outputs = {name: array[None] for name, array in one.items()}
                done += 1
            parts.append(outputs)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}, dict(states)

    def _together(self, states: Arrays, stacks: Arrays, still: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run `TOGETHER` calls as one."""
        names = tuple(stacks)
        if names not in self._loops:
            part = repeated(self.unrolled.steady, names)
            self._loops[names] = part, Executor(part.graph, self._threads, target=self._target)
        part, executor = self._loops[names]
        given = {**states, **still, **{stacked(name): np.ascontiguousarray(array) for name, array in stacks.items()}}
        results = executor.run({spec.name: given[spec.name] for spec in part.graph.inputs})
        after = dict(zip(part.states, map(np.asarray, results[len(part.outputs) :]), strict=True))
        return dict(zip(part.outputs, results, strict=False)), {**states, **after}

    def _run(self, which: str, states: Arrays, arrays: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the graph of one kind of call; states that it does not return stay."""
        executor, part = self.executor_for(which), getattr(self.unrolled, which)
        if which == "steady" and self.delayed is None:
            given = {**arrays, **states}
        else:
            given = {
                spec.name: (arrays if spec.name in arrays else states)[spec.name] for spec in executor.graph.inputs
            }
        results = executor.run(given)
        outputs = dict(zip(part.outputs, results, strict=False))
        after = dict(zip(part.states, map(np.asarray, results[len(outputs) :]), strict=True))
        return outputs, after if len(after) == len(states) else {**states, **after}

    def _nothing(self, states: Arrays, arrays: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the outputs for no frames, shaped like those of one hop."""
        blank = {
            name: np.zeros(port.shape(self.hop, _rows(port, arrays[name])), port.dtype)
            if "T" in port.axes
            else arrays[name]
            for name, port in self.inputs.items()
        }
        outputs, _ = self._run("steady", states, blank)
        empty = {
            name: np.take(outputs[name], [], port.axes.index("T")) if "T" in port.axes else outputs[name][None][:0]
            for name, port in self.outputs.items()
        }
        return empty, dict(states)


Engine = SegmentEngine | GraphEngine


class Streamed(Protocol):
    """What streams need from a model."""

    @property
    def graph(self) -> Graph:
        """The model's graph."""

    @property
    def threads(self) -> int | None:
        """Most threads to use, None for the number of cores."""

    def streaming_engine(self, state: Mapping[str, str] | None = None) -> Engine:
        """Return the engine that a stream runs on."""


def _by_hop(array: Array, axes: str, hops: int) -> Array:
    """Return the frames with a leading axis for the hops."""
    at = axes.index("T")
    return np.moveaxis(array.reshape(*array.shape[:at], hops, -1, *array.shape[at + 1 :]), at, 0)


def _joined(array: Array, axes: str) -> Array:
    """Return the frames of all hops one after another; values without frames keep their axis for the hops."""
    if "T" not in axes:
        return array
    at = axes.index("T")
    moved = np.moveaxis(array, 0, at)
    return moved.reshape(*moved.shape[:at], -1, *moved.shape[at + 2 :])


def _rows(port: Port, array: Array) -> int:
    return int(array.shape[port.axes.index("B")]) if "B" in port.axes else 1


def _port_of(spec: TensorSpec, axes: Mapping[str, str]) -> Port:
    letters = axes.get(spec.name, "." * len(spec.shape))
    if "..." in spec.shape:
        return Port(letters, (None,) * len(letters), spec.dtype or "float32")
    sizes = tuple(
        size if isinstance(size, int) and axis == "." else None for axis, size in zip(letters, spec.shape, strict=False)
    )
    return Port(letters, sizes, spec.dtype or "float32")
