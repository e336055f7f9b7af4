"""A stream whose step is one segment, as routines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.export.interface import Port, StateField
from fastlstm.export.source import STATES, Copy, Region, Routine, Seat, Source
from fastlstm.export.struct import alignment
from fastlstm.runtime.segment import Segment
from fastlstm.streaming.engines import SegmentEngine

__all__ = ["port_names", "segment_source"]

LONGEST_BLOCK = 16  # as fast as 64, with a quarter of the struct
MOST_BLOCK_BYTES = 256 << 10  # of the state struct, for a block's buffers


def segment_source(engine: SegmentEngine, batch: int, blocks: bool, order: Sequence[str]) -> Source:
    """Return the routines of a stream over one segment; with `blocks`, also one for several steps at a time.

    `order` names the inputs in the order of the model.
    """
    segment = engine.segment
    states, slots, size = _states(engine, batch)
    inputs = _ports(segment.inputs, tuple(name for name in order if name in segment.inputs), "x", batch)
    outputs = _ports(segment.outputs, engine.shown, "y", batch)
    step = _routine(segment, slots, inputs, outputs, batch, 1, False)
    block = None
    if blocks:
        each = 4 * batch * sum(slot.stride for slot in segment.program.slots if slot.kind == "time")
        steps = min(LONGEST_BLOCK, MOST_BLOCK_BYTES // max(each, 1))
        steps = min([steps, *(stage.block(batch) for stage in segment.program.stages)])
        block = _routine(segment, slots, inputs, outputs, batch, steps, True) if steps > 1 else None
    return Source(inputs, outputs, states, size, step, block)


def port_names(letter: str, count: int) -> list[str]:
    """Return the names of the C parameters for `count` inputs or outputs."""
    return [letter] if count == 1 else [f"{letter}{i}" for i in range(count)]


def _ports(
    values: Mapping[str, tuple[int, str, int]], names: tuple[str, ...], letter: str, batch: int
) -> tuple[Port, ...]:
    found = []
    for name, parameter in zip(names, port_names(letter, len(names)), strict=True):
        _, axes, features = values[name]
        shape = ((batch,) if batch > 1 else ()) + ((features,) if features else ())
        found.append(Port(name, parameter, "float32" if features else "int32", shape, "T" in axes))
    return tuple(found)


def _states(engine: SegmentEngine, batch: int) -> tuple[tuple[StateField, ...], dict[int, Seat], int]:
    """Return the states, where their slots lie, and their size in bytes."""
    segment = engine.segment
    align = alignment(segment.program.target)
    fields, seats, at = [], {}, 0
    for state in segment.states:
        row = 4 * segment.program.slots[state.slot].stride
        initial = np.zeros((batch, state.width), np.float32)
        if state.name in engine.initial:
            initial[:] = engine.initial[state.name]
        fields.append(StateField(state.name, (batch, state.width), "float32", at, (row, 4), initial))
        seats[state.slot] = Seat(STATES, at, 0, row)
        at += -(-batch * row // align) * align
    return tuple(fields), seats, at


def _routine(
    segment: Segment,
    states: Mapping[int, Seat],
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    batch: int,
    steps: int,
    varies: bool,
) -> Routine:
    if segment.masks or segment.lengths:
        raise UnsupportedError(f"The stream of {', '.join(segment.names)} reads a mask or lengths.")
    slots, regions, before = dict(states), {}, []
    for port in inputs:
        slot, _, features = segment.inputs[port.name]
        if features:
            slots[slot] = _seat(port, batch, features)
            continue
        # Kernels read 64-bit ids.
        region = Region(f"ids of {port.name}")
        regions[region] = 8 * batch * steps
        slots[slot] = Seat(region, 0, 8 * batch if port.moves else 0, 8)
        source, target = Seat(port.parameter, 0, 4 * batch), Seat(region, 0, 8 * batch)
        before.append(Copy((batch,), source, "int32", (4,), target, "int64", (8,), port.moves))
    for port in outputs:
        slot, _, features = segment.outputs[port.name]
        slots[slot] = _seat(port, batch, features)
    return Routine(segment.program, batch, steps, varies, slots, {}, regions, tuple(before))


def _seat(port: Port, batch: int, features: int) -> Seat:
    return Seat(port.parameter, 0, 4 * batch * features if port.moves else 0, 4 * features)
