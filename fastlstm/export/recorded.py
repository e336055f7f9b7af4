"""Models of more than one segment, as routines: a tape of the whole graph for the sizes that it is called with.

A stream's graph has its states as inputs and outputs (`fastlstm.streaming.timeline`): its tape ends by copying the new
states to where the next step reads them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import UnsupportedError
from fastlstm.executor import Executor
from fastlstm.export.interface import Port, StateField
from fastlstm.export.source import STATES, Copy, Region, Routine, Seat, Source
from fastlstm.export.streams import port_names
from fastlstm.export.struct import alignment
from fastlstm.memory import memory_of
from fastlstm.program import place
from fastlstm.streaming.engines import GraphEngine
from fastlstm.streaming.ports import Port as StreamPort
from fastlstm.streaming.timeline import Carried
from fastlstm.tapes.tape import record_program
from fastlstm.target import Target

__all__ = ["stream_source", "whole_source"]

Array = npt.NDArray[Any]

BLOCK = 16
"""Steps of a block: the weights of a convolution, or of an input's projection, are used for so many frames at once."""

LARGEST_BLOCK = 1 << 20  # bytes of the state struct, for the memory of a block


def whole_source(executor: Executor, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Source:
    """Return what one call of a graph computes for inputs of these shapes."""
    program, places, made = record_program(executor, inputs, {})
    ins = _ports("x", [(name, array.shape, array.dtype, False) for name, array in inputs.items()])
    outs = _ports("y", [(name, array.shape, array.dtype, False) for name, array in zip(outputs, made, strict=True)])
    before = tuple(_given(port, array, None) for port, array in zip(ins, places, strict=True))
    after = tuple(_taken(port, array, None) for port, array in zip(outs, made, strict=True))
    return Source(ins, outs, (), 0, Routine(program, 1, 1, before=before, after=after))


def stream_source(engine: GraphEngine, batch: int, hop: int, blocks: bool) -> Source:
    """Return what a stream computes that runs part by part; with `blocks`, several steps at a time too."""
    if batch > 1 and not (_has_rows(engine) and all(c.row_axis is not None for c in engine.carried)):
        raise UnsupportedError("This model is for one batch row; it cannot be exported for more.")
    target = engine.executor.plan.target
    fields, seats, size = _states(engine.carried, batch, target)
    packed: dict[Hashable, Any] = {}
    recorded = _Recorded(engine, batch, hop, 1, seats, packed)
    ins = _ports("x", [_shown(engine.inputs[name], name, array, hop) for name, array in recorded.inputs.items()])
    outs = _ports("y", [_shown(engine.outputs[name], name, array, hop) for name, array in recorded.outputs.items()])
    chunks = not any(port.moves for port in ins)
    if chunks:  # a step is a call of the model, so each takes arrays of its own
        ins, outs = (tuple(replace(port, moves=True) for port in ports) for ports in (ins, outs))
    step = recorded.routine(ins, outs)
    block = None
    if blocks and engine.at_once and not chunks:
        several = _Recorded(engine, batch, hop, BLOCK, seats, packed)
        if sum(array.nbytes for array in several.program.scratch) <= LARGEST_BLOCK:
            block = several.routine(ins, outs)
    return Source(ins, outs, fields, size, step, block)


class _Recorded:
    """A stream's tape for so many steps."""

    def __init__(
        self,
        engine: GraphEngine,
        batch: int,
        hop: int,
        steps: int,
        seats: Mapping[str, Seat],
        packed: dict[Hashable, Any],
    ) -> None:
        self.engine, self.batch, self.steps = engine, batch, steps
        given = {
            name: np.zeros(_sizes(port, name, steps * hop, batch), port.dtype) for name, port in engine.inputs.items()
        }
        states = {c.given: c.start(batch) for c in engine.carried}
        self.program, places, made = record_program(engine.executor, {**given, **states}, packed)
        count = len(engine.inputs)
        self.inputs = dict(zip(engine.inputs, places[:count], strict=True))
        self.outputs = dict(zip(engine.outputs, made, strict=False))
        self._before = dict(zip(states, places[count:], strict=True))
        self._after = dict(zip(states, made[len(engine.outputs) :], strict=True))
        self._memory = {id(memory_of(array)): seats[name] for name, array in self._before.items()}

    def routine(self, ins: Sequence[Port], outs: Sequence[Port]) -> Routine:
        """Return the routine: frames in, the program, results and states out."""
        axes = {name: port.axes.find("T") for name, port in [*self.engine.inputs.items(), *self.engine.outputs.items()]}
        before = [_given(port, self.inputs[port.name], _axis(axes[port.name])) for port in ins]
        after = [_taken(port, self.outputs[port.name], _axis(axes[port.name])) for port in outs]
        regions: dict[Region, int] = {}
        last: list[Copy] = []
        for name, source in self._after.items():
            target = self._before[name]
            others = [array for other, array in self._before.items() if other != name]
            if any(np.may_share_memory(source, other) for other in others):
                aside = Region(f"new {name}")
                regions[aside] = source.nbytes
                seat, steps = Seat(aside), _strides(source.shape, source.itemsize)
                after.append(_moved(source, seat, steps, str(source.dtype)))
                kind = str(source.dtype)
                last.append(Copy(source.shape, seat, kind, steps, _seat(target), kind, target.strides, False))
            else:
                after.append(_moved(source, _seat(target), target.strides, str(target.dtype)))
        return Routine(
            self.program, 1, self.steps, False, {}, self._memory, regions, tuple(before), (*after, *last)
        )  # fmt: skip


def _axis(found: int) -> int | None:
    return None if found < 0 else found


def _has_rows(engine: GraphEngine) -> bool:
    return any("B" in port.axes for port in engine.inputs.values())


def _sizes(port: StreamPort, name: str, frames: int, batch: int) -> tuple[int, ...]:
    shape = port.shape(frames, batch)
    if any(size is None for size in shape):
        raise UnsupportedError(f"The input '{name}' of this stream may have any size on an axis that is not time.")
    return shape


def _shown(port: StreamPort, name: str, array: Array, hop: int) -> tuple[str, tuple[int, ...], Any, bool]:
    """Return a port's name, the shape of one step, its type, and whether it moves."""
    axis = port.axes.find("T")
    if axis < 0:
        return name, array.shape, array.dtype, False
    rest = tuple(size for i, size in enumerate(array.shape) if i != axis)
    return name, ((hop, *rest) if hop > 1 else rest), array.dtype, True


def _ports(letter: str, values: Sequence[tuple[str, tuple[int, ...], Any, bool]]) -> tuple[Port, ...]:
    names = port_names(letter, len(values))
    return tuple(
        Port(name, parameter, "float32" if np.dtype(dtype) == np.float32 else "int32", shape, moves)
        for parameter, (name, shape, dtype, moves) in zip(names, values, strict=True)
    )


def _states(
    carried: Sequence[Carried], batch: int, target: Target
) -> tuple[tuple[StateField, ...], dict[str, Seat], int]:
    """Return the states, where the tape finds each of them, and the bytes that they take."""
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


def _given(port: Port, array: Array, axis: int | None) -> Copy:
    """Return the copy of a port's elements into a tape's memory, frame by frame."""
    shape, steps = _frames(array, axis)
    return Copy(
        shape, Seat(port.parameter), port.dtype, _strides(shape, 4), _seat(array), str(array.dtype), steps, False
    )  # fmt: skip


def _taken(port: Port, array: Array, axis: int | None) -> Copy:
    """Return the copy of a result to a port."""
    shape, steps = _frames(array, axis)
    return Copy(
        shape, _seat(array), str(array.dtype), steps, Seat(port.parameter), port.dtype, _strides(shape, 4), False
    )  # fmt: skip


def _moved(source: Array, target: Seat, steps: tuple[int, ...], kind: str) -> Copy:
    return Copy(source.shape, _seat(source), str(source.dtype), source.strides, target, kind, steps, False)


def _frames(array: Array, axis: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return sizes and strides of an array with its time axis in front."""
    if axis is None:
        return array.shape, array.strides
    moved = np.moveaxis(array, axis, 0)
    return moved.shape, moved.strides


def _strides(shape: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(size * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _seat(array: Array) -> Seat:
    at = place(array)
    return Seat(at.memory, at.offset)
