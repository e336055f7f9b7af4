"""What a stream runs on: one native call for most models, a graph run part by part for the others.

`choosing.py` says which. A `SegmentEngine` has the whole model in one segment, whose program keeps the states where the
kernels read them. A `GraphEngine` runs the graph that `timeline.py` has made, in which the states are inputs
and outputs. Both `open` a *run*: the states of one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm.busy import Busy
from fastlstm.errors import UnsupportedError
from fastlstm.executor import Executor
from fastlstm.graph import Graph, TensorSpec
from fastlstm.memory import check_memory
from fastlstm.native import Call, never
from fastlstm.segments.segment import Segment
from fastlstm.streaming.ports import Port
from fastlstm.streaming.timeline import Unrolled
from fastlstm.target import Target

__all__ = ["Engine", "GraphEngine", "GraphRun", "SegmentEngine", "SegmentRun"]

Array = npt.NDArray[Any]


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
        """Return a built-in for arrays of one shape, if this engine has any."""
        if not self.engine.has_entries:
            return never
        return self.engine.segment.entry(self.program, steps, keep=True, time_axis=time_axis, batch_axis=batch_axis)

    def before(self) -> dict[str, Array] | None:
        """Return what `restore` takes to undo what a refused call has done; None if no call is refused midway."""
        return self.state() if self.engine.has_ids else None

    def restore(self, before: dict[str, Array] | None) -> None:
        """Put the states back to what they were."""
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
        """Take over states of the right shapes."""
        for s in self.engine.segment.states:
            self.program.rows(s.slot)[:, : s.width] = value[s.name]


@dataclass(frozen=True)
class SegmentEngine:
    """A model that is one native call from its inputs to its outputs."""

    segment: Segment
    initial: Mapping[str, Array]  # states that do not start from zero
    shown: tuple[str, ...]  # the outputs, in the model's order

    by_call = False

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

    @cached_property
    def has_ids(self) -> bool:
        """Whether an input holds ids, which only the kernels find to lie outside their table."""
        return any(not features for _, _, features in self.segment.inputs.values())

    @cached_property
    def has_entries(self) -> bool:
        """Whether one float input goes in and one output comes out."""
        ports = list(self.inputs.values())
        return len(ports) == len(self.segment.outputs) == 1 and ports[0].dtype == "float32"

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
        """Run over `steps` time steps."""
        outputs, self.states = self.engine.advance(self.states, arrays, steps)
        return outputs

    def entry(self, steps: int, time_axis: bool, batch_axis: bool) -> Call:  # noqa: ARG002
        """Return nothing: every call goes through Python."""
        return never

    def before(self) -> dict[str, Array]:
        """Return what `restore` takes to undo what a refused call has done; the arrays are never written to."""
        return self.states

    def restore(self, before: dict[str, Array] | None) -> None:
        """Put the states back to what they were."""
        if before is not None:
            self.states = before

    def reset(self) -> None:
        """Go back to the initial state."""
        self.states = {c.given: c.start(self.batch) for c in self.engine.carried}

    def state(self) -> dict[str, Array]:
        """Return a copy of the states."""
        return {c.name: c.outside(self.states[c.given]).copy() for c in self.engine.carried}

    def set_state(self, value: Mapping[str, Array]) -> None:
        """Take over states of the right shapes."""
        self.states = {c.given: np.array(c.inside(value[c.name]), c.dtype) for c in self.engine.carried}


class GraphEngine:
    """A model that runs part by part, with its states as inputs and outputs."""

    def __init__(self, unrolled: Unrolled, threads: int, target: Target | None = None) -> None:
        self.executor = Executor(unrolled.graph, threads, target=target)
        self.carried, self.at_once = unrolled.carried, unrolled.at_once
        count = len(self.carried)
        graph = unrolled.graph
        own_inputs = graph.inputs[: len(graph.inputs) - count]
        own_outputs = graph.outputs[: len(graph.outputs) - count]
        self.inputs = {spec.name: _port_of(spec, unrolled.axes) for spec in own_inputs}
        self.outputs = {spec.name: _port_of(spec, unrolled.axes) for spec in own_outputs}

        self.by_call = not any("T" in port.axes for port in self.inputs.values())
        """Whether a step is a whole call of the model, with one chunk as its input."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one row."""
        return sum(c.row_bytes for c in self.carried)

    def open(self, batch: int) -> GraphRun:
        """Return the states of a new stream; UnsupportedError if the model takes another number of rows."""
        with_rows = any("B" in port.axes for port in self.inputs.values())
        if batch > 1 and not (with_rows and all(c.row_axis is not None for c in self.carried)):
            raise UnsupportedError("This model is for one batch row: open a stream for each, or a pool.")
        return GraphRun(self, batch)

    def advance(
        self, states: Mapping[str, Array], arrays: Mapping[str, Array], steps: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run over `steps` time steps from some states; return the outputs and the new states."""
        moving = {name for name, port in self.inputs.items() if "T" in port.axes}
        if (self.at_once and steps) or not moving:
            return self._run(states, arrays)
        if not steps:
            return self._nothing(states, arrays)
        parts: list[dict[str, Array]] = []
        for t in range(steps):
            now = {
                name: np.take(array, [t], self.inputs[name].axes.index("T")) if name in moving else array
                for name, array in arrays.items()
            }
            outputs, states = self._run(states, now)
            parts.append(outputs)
        joined = {
            name: np.concatenate([part[name] for part in parts], port.axes.index("T"))
            if "T" in port.axes
            else np.stack([part[name] for part in parts])
            for name, port in self.outputs.items()
        }
        return joined, dict(states)

    def _run(
        self, states: Mapping[str, Array], arrays: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        results = self.executor.run({**arrays, **states})
        outputs = dict(zip(self.outputs, results, strict=False))
        after = results[len(outputs) :]
        return outputs, {c.given: np.asarray(a) for c, a in zip(self.carried, after, strict=True)}

    def _nothing(
        self, states: Mapping[str, Array], arrays: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return what no frames give: the shapes are those that one frame would give."""
        blank = {
            name: np.zeros(port.shape(1, _rows(port, arrays[name])), port.dtype) if "T" in port.axes else arrays[name]
            for name, port in self.inputs.items()
        }
        outputs, _ = self._run(states, blank)
        empty = {
            name: np.take(outputs[name], [], port.axes.index("T")) if "T" in port.axes else outputs[name][None][:0]
            for name, port in self.outputs.items()
        }
        return empty, dict(states)


Engine = SegmentEngine | GraphEngine


class Streamed(Protocol):
    """What streams ask of a model."""

    @property
    def graph(self) -> Graph:
        """The model's graph."""

    @property
    def threads(self) -> int | None:
        """Threads to use at most, None for the machine's cores."""

    def streaming_engine(self, state: Mapping[str, str] | None = None) -> Engine:
        """Return what a stream runs on."""


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
