"""A stream's calls as routines: the tape of each graph, and the copies before and after it.

A stream's graphs have its states as inputs and outputs (`fastlstm.streaming.flow`). Their tapes read the states where
they lie and end by copying the new ones there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.export.elements import Elements, port_type
from fastlstm.export.interface import Port, StateField
from fastlstm.export.source import STATES, Copy, Region, Routine, Seat
from fastlstm.export.streams import port_names
from fastlstm.export.struct import alignment
from fastlstm.lowering.tapes.tape import record_program
from fastlstm.passes import shapes
from fastlstm.program.memory import memory_of
from fastlstm.streaming.engines import GraphEngine
from fastlstm.streaming.flow import Carried
from fastlstm.streaming.ports import Port as StreamPort
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Phase", "StreamTapes"]

WINDOWS = ("Conv", "MaxPool", "AveragePool", "LpPool")
"""Operators that refuse an input shorter than their window."""


class StreamTapes:
    """Records the graphs of a stream.

    Attributes
    ----------
    engine : GraphEngine
    batch : int
    inputs, outputs : tuple of Port
    fields : tuple of StateField
    seats : dict of str to Seat
        Where each state lies, by the input of the graphs that takes it.
    state_bytes : int
        Of all states.
    """

    def __init__(self, engine: GraphEngine, batch: int) -> None:
        has_rows = any("B" in port.axes for port in engine.inputs.values())
        if batch > 1 and not (has_rows and all(c.row_axis is not None for c in engine.carried)):
            raise UnsupportedError("This model is for one batch row; it cannot be exported for more.")
        self.engine, self.batch = engine, batch
        self.fields, self.seats, self.state_bytes = _states(engine.carried, batch, engine.executor.plan.target)
        self._packed: dict[Hashable, Any] = {}
        self._steady = Phase(self, "steady", 1)
        self.inputs = tuple(
            self._port(engine.inputs[name], name, parameter, array.dtype, array.shape, engine.hop)
            for parameter, (name, array) in _numbered("x", self._steady.inputs)
        )
        self.outputs = tuple(
            self._port(engine.outputs[name], name, parameter, array.dtype, array.shape, engine.rows[name])
            for parameter, (name, array) in _numbered("y", self._steady.outputs)
        )

    def _port(
        self, port: StreamPort, name: str, parameter: str, dtype: Any, shape: tuple[int, ...], frames: int
    ) -> Port:
        """Return an input or output as C sees it: a step's frames one after the other, if there may be several."""
        axis = port.axes.find("T")
        if axis >= 0:
            rest = tuple(size for i, size in enumerate(shape) if i != axis)
            several = frames > 1 or self.engine.hop > 1
            return Port(name, parameter, port_type(dtype), (frames, *rest) if several else rest, True, frames)
        # If a step is a call of the model, it takes all inputs; an output of the last time step comes with every step.
        moves = self.engine.by_call or name in self.engine.outputs
        return Port(name, parameter, port_type(dtype), shape, moves)

    def sizes(self, name: str, frames: int) -> tuple[int, ...]:
        """Return the shape of an input of `frames` frames."""
        shape = self.engine.inputs[name].shape(frames, self.batch)
        if any(size is None for size in shape):
            raise UnsupportedError(
                f"The input '{name}' of this stream may have any size on an axis that is not time. Give that size by "
                "the name it has in the model, which `fastlstm inspect` shows: --size NAME=N (sizes=)."
            )
        return shape

    def axis(self, name: str) -> int | None:
        """Return the time axis of an input or output, None if it has none."""
        ports = self.engine.inputs if name in self.engine.inputs else self.engine.outputs
        found = ports[name].axes.find("T")
        return None if found < 0 else found

    def phase(self, which: str, hops: int) -> Phase:
        """Return the tape of one kind of call ("steady", "first", "last", "whole") over `hops` hops."""
        return self._steady if (which, hops) == ("steady", 1) else Phase(self, which, hops)

    def gives_nothing(self, hops: int) -> bool:
        """Whether a sequence of `hops` hops is too short for the model, or for any output frame."""
        graph, states = self.engine.unrolled.whole, {c.given: c for c in self.engine.carried}
        assert graph is not None
        inputs = (
            replace(spec, shape=self.sizes(spec.name, hops * self.engine.hop))
            if spec.name in self.engine.inputs
            else replace(spec, shape=states[spec.name].start(self.batch).shape)
            for spec in graph.inputs
        )
        sized = graph.replace(inputs=tuple(inputs))
        infos = shapes.infer(sized)
        made = [infos[node.output(0)].shape or () for node in sized.nodes if node.op in WINDOWS]
        too_short = any(isinstance(size, int) and size < 1 for shape in made for size in shape)
        return too_short or all(0 in (infos[name].shape or ()) for name in self.engine.outputs)

    def record(self, which: str, values: Mapping[str, Array]) -> tuple[Any, list[Array], list[Any]]:
        """Record a graph as `record_program` does; all graphs share packed weights."""
        return record_program(self.engine.executor_for(which), values, self._packed)


class Phase:
    """The tape of one kind of call of a stream.

    Attributes
    ----------
    program : Program
    inputs, outputs : dict of str to array
        The tape's arrays of frames and results, as far as the graph has them.
    """

    def __init__(self, stream: StreamTapes, which: str, hops: int) -> None:
        self.stream, self.hops, self._which = stream, hops, which
        engine = stream.engine
        states = {c.given: c for c in engine.unrolled.carried}
        if which == "steady":
            names = [*engine.inputs, *states]
        else:
            names = [spec.name for spec in engine.executor_for(which).graph.inputs]
        values = {
            name: states[name].start(stream.batch)
            if name in states
            else np.zeros(stream.sizes(name, hops * engine.hop), engine.inputs[name].dtype)
            for name in names
        }
        self.program, places, made = stream.record(which, values)
        self.inputs = {n: array for n, array in zip(names, places, strict=True) if n not in states}
        self._before = {n: array for n, array in zip(names, places, strict=True) if n in states}
        if which == "whole":
            shown = [spec.name for spec in engine.executor_for(which).graph.outputs]
            results = dict(zip(shown, made, strict=True))
            self.outputs = {name: results[name] for name in engine.outputs}
            self._after: dict[str, Array] = {}
        else:
            part = getattr(engine.unrolled, which)
            self.outputs = dict(zip(part.outputs, made, strict=False))
            self._after = dict(zip(part.states, made[len(part.outputs) :], strict=True))

    def frames(self, name: str) -> int:
        """Return how many frames of an output there are."""
        array, axis = self.outputs.get(name), self.stream.axis(name)
        return 0 if array is None or not array.size else 1 if axis is None else array.shape[axis]

    def given(self, name: str) -> Elements:
        """Return the tape's frames of an input, with the time axis first."""
        return Elements.of(self.inputs[name]).led_by(self.stream.axis(name))

    def routine(self, before: Sequence[Copy], *, late: bool = False) -> Routine:
        """Return the routine.

        Parameters
        ----------
        before : sequence of Copy
            These bring the frames in.
        late : bool
            Whether the results are the last frames of a step, rather than the first.
        """
        after = []
        for port in self.stream.outputs:
            have = self.frames(port.name)
            if have:
                results = Elements.of(self.outputs[port.name]).led_by(self.stream.axis(port.name))
                skipped = 4 * port.frame_elements * (port.frames - have) if late else 0
                after.append(results.to(Elements.of_port(port, results.shape, skipped)))
        moved, regions = self._new_states()
        memory = {id(memory_of(array)): self.stream.seats[name] for name, array in self._before.items()}
        return Routine(self.program, 1, self.hops, False, {}, memory, regions, tuple(before), (*after, *moved))

    def from_call(self) -> list[Copy]:
        """Return the copies that bring in the frames of a call."""
        found = []
        for port in self.stream.inputs:
            if port.name in self.inputs:
                target = self.given(port.name)
                found.append(Elements.of_port(port, target.shape).to(target))
        return found

    def _new_states(self) -> tuple[list[Copy], dict[Region, int]]:
        """Return the copies of new states over the old ones, by way of a buffer if they are views of other states."""
        regions: dict[Region, int] = {}
        first: list[Copy] = []
        last: list[Copy] = []
        for name, array in self._after.items():
            source = Elements.of(array)
            target = Elements.packed(self.stream.seats[name], source.kind, source.shape)
            others = [other for given, other in self._before.items() if given != name]
            if any(np.may_share_memory(array, other) for other in others):
                aside = Region(f"new {name}")
                regions[aside] = array.nbytes
                first.append(source.to(Elements.packed(Seat(aside), source.kind, source.shape)))
                source = Elements.packed(Seat(aside), source.kind, source.shape)
                last.append(source.to(target))
            else:
                first.append(source.to(target))
        return [*first, *last], regions


def _numbered(letter: str, values: Mapping[str, Array]) -> list[tuple[str, tuple[str, Array]]]:
    return list(zip(port_names(letter, len(values)), values.items(), strict=True))


def _states(
    carried: Sequence[Carried], batch: int, target: Target
) -> tuple[tuple[StateField, ...], dict[str, Seat], int]:
    """Return the states, where the tapes find each, and their size in bytes."""
    align, at = alignment(target), 0
    fields, seats = [], {}
    for one in carried:
        start = np.ascontiguousarray(one.start(batch))
        view = start if one.own or one.row_axis is None else np.moveaxis(start, one.row_axis, 0)
        initial = np.ascontiguousarray(view)
        fields.append(StateField(one.name, view.shape, str(start.dtype), at, view.strides, initial))
        seats[one.given] = Seat(STATES, at)
        at += -(-start.nbytes // align) * align
    return tuple(fields), seats, at
