"""Long sequences block by block, for models that can stream: memory for a block, not for all of every value.

A model that is one native call divides sequences into blocks itself. Any other would keep every value of its graph for
the whole sequence: an hour of audio took 3.6 GB. A stream's results are bit-identical, so long runs use a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from fastlstm.graph import Graph
from fastlstm.passes import shapes
from fastlstm.streaming.delay import cut
from fastlstm.streaming.engines import Engine, GraphEngine
from fastlstm.typing import Array

__all__ = ["in_blocks"]

BLOCK = 1 << 17
"""Elements of the largest input in a block."""
FEWEST = 4  # fewer blocks are not worth it


def in_blocks(engine: Engine, graph: Graph, inputs: Mapping[str, Array]) -> list[Array] | None:
    """Return the outputs of a whole run through a stream, None if this run is not divided into blocks.

    Parameters
    ----------
    engine : Engine
    graph : Graph
        The model's own.
    inputs : mapping of str to array
        Checked.
    """
    if not isinstance(engine, GraphEngine) or engine.by_call or set(engine.inputs) != set(inputs):
        return None
    ports = engine.outputs
    if list(ports) != [spec.name for spec in graph.outputs] or any("T" not in port.axes for port in ports.values()):
        return None
    moving = {name: port.axes for name, port in engine.inputs.items() if "T" in port.axes}
    (frames, *others) = {inputs[name].shape[axes.index("T")] for name, axes in moving.items()}
    batches = {inputs[name].shape[port.axes.index("B")] for name, port in engine.inputs.items() if "B" in port.axes}
    if others or frames % engine.hop or len(batches) > 1:
        return None
    hops = max(1, BLOCK * frames // max(1, max(inputs[name].size for name in moving)) // engine.hop)
    if frames < FEWEST * hops * engine.hop:
        return None
    sized = [replace(spec, shape=inputs[spec.name].shape) for spec in graph.inputs]
    infos = shapes.infer(graph.replace(inputs=tuple(sized)))
    made = {}
    for name, port in ports.items():
        shape = infos[name].shape if name in infos else None
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        made[name] = _Made(np.empty([int(size) for size in shape], port.dtype), port.axes, -engine.delay)
    for name, part in _parts(engine, inputs, moving, frames, hops * engine.hop, next(iter(batches), 1)):
        made[name].put(part)
    return [some.array for some in made.values()]


def _parts(
    engine: GraphEngine, inputs: Mapping[str, Array], moving: Mapping[str, str], frames: int, block: int, batch: int
) -> Iterator[tuple[str, Array]]:
    """Yield the outputs' names and frames block by block, and then the remaining ones."""
    states: Mapping[str, Array] = {c.given: c.start(batch) for c in engine.carried}
    for first in range(0, frames, block):
        last = min(frames, first + block)
        given = {
            name: np.ascontiguousarray(cut(array, moving[name], first, last)) if name in moving else array
            for name, array in inputs.items()
        }
        outputs, states = engine.advance(states, given, (last - first) // engine.hop)
        yield from outputs.items()
    yield from engine.finish(states, batch).items()


class _Made:
    """An output written frame by frame, starting some frames before its beginning."""

    def __init__(self, array: Array, axes: str, start: int) -> None:
        self.array, self._axes, self._done = array, axes, start

    def put(self, part: Array) -> None:
        """Write the next frames, without those before the beginning."""
        count = part.shape[self._axes.index("T")]
        early = min(max(0, -self._done), count)
        start, self._done = self._done + early, self._done + count
        if self._done > 0:
            cut(self.array, self._axes, start, self._done)[...] = cut(part, self._axes, early, count)
