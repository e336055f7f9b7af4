"""Models of more than one segment as routines: a tape of the whole graph for given sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.executor import Executor
from fastlstm.export.delayed import beginning, endings, latest
from fastlstm.export.elements import Elements, port_type
from fastlstm.export.interface import Port
from fastlstm.export.phases import StreamTapes
from fastlstm.export.source import Routine, Source
from fastlstm.export.streams import port_names
from fastlstm.lowering.tapes.tape import record_program
from fastlstm.streaming.engines import GraphEngine
from fastlstm.typing import Array

__all__ = ["stream_source", "whole_source"]

BLOCK = 16
"""Steps of a block: weights of convolutions and input projections are read once for this many frames."""

LARGEST_BLOCK = 1 << 20  # bytes that a block may take in the state struct


def whole_source(executor: Executor, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Source:
    """Return the routine of one call of a graph with inputs of these shapes."""
    program, places, made = record_program(executor, inputs, {})
    ins = _ports("x", list(inputs), places)
    outs = _ports("y", outputs, made)
    before = tuple(Elements.of_port(p, a.shape).to(Elements.of(a)) for p, a in zip(ins, places, strict=True))
    after = tuple(Elements.of(a).to(Elements.of_port(p, a.shape)) for p, a in zip(outs, made, strict=True))
    return Source(ins, outs, (), 0, Routine(program, 1, 1, before=before, after=after))


def _ports(letter: str, names: Sequence[str], arrays: Sequence[Array]) -> tuple[Port, ...]:
    return tuple(
        Port(name, parameter, port_type(array.dtype), array.shape, moves=False)
        for name, parameter, array in zip(names, port_names(letter, len(names)), arrays, strict=True)
    )


def stream_source(engine: GraphEngine, batch: int, blocks: bool) -> Source:
    """Return the routines of a stream that runs as a tape; with `blocks`, also one for several steps at a time."""
    stream = StreamTapes(engine, batch)
    kept = latest(stream)
    steady = stream.phase("steady", 1)
    step, block = steady.routine([*kept, *steady.from_call()]), None
    if blocks and engine.at_once and not engine.by_call:
        several = stream.phase("steady", BLOCK)
        if sum(array.nbytes for array in several.program.scratch) <= LARGEST_BLOCK:
            block = several.routine([*kept, *several.from_call()])
    return Source(
        stream.inputs, stream.outputs, stream.fields, stream.state_bytes, step, block, engine.hop, engine.delay,
        beginning(stream, kept), endings(stream),
    )  # fmt: skip
