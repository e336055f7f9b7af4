"""Many calls of a stream's graph as one: a loop around it, which runs as one native call like any other loop.

A model that takes a chunk per call is called once for each chunk, and one that processes hops one by one, once for each
hop. The loop's body is the graph of one call, so results are bit-identical, and no Python runs between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.streaming.flow import Part

__all__ = ["TOGETHER", "repeated", "stacked"]

TOGETHER = 64
"""Calls per loop: the overhead before and after is less than a percent of their time, and their frames stay small."""


def stacked(name: str) -> str:
    """Return the name of an input or output with a leading axis for the calls."""
    return f"{name} of all calls"


def repeated(part: Part, moving: Sequence[str]) -> Part:
    """Return `TOGETHER` calls of `part` as one.

    Inputs in `moving` have their `stacked` names, as all outputs but the new states do; other inputs are the same for
    all calls.
    """
    specs = {spec.name: spec for spec in part.graph.inputs}
    count = len(part.outputs)
    shown, states = part.graph.outputs[:count], part.graph.outputs[count:]
    body = part.graph.replace(inputs=tuple(specs[name] for name in (*part.states, *moving)), outputs=(*states, *shown))
    ends = [f"{name} at the end" for name in part.states]
    loop = Node(
        "Scan",
        (*part.states, *map(stacked, moving)),
        (*ends, *(stacked(spec.name) for spec in shown)),
        {"body": body, "num_scan_inputs": len(moving)},
        "calls",
    )
    inputs = tuple(_stacked(spec) if spec.name in moving else spec for spec in specs.values())
    after = [TensorSpec(end, spec.shape, spec.dtype) for end, spec in zip(ends, states, strict=True)]
    return Part(Graph(inputs, (*map(_stacked, shown), *after), (loop,), {}), part.outputs, part.states)


def _stacked(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(stacked(spec.name), (TOGETHER, *spec.shape), spec.dtype)
