"""Loops of TorchScript programs, as ONNX's Loop: a count, states that are handed on, values that are collected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastlstm.converters.common.builder import GraphBuilder
from fastlstm.converters.torch.aten.graph import Arguments, AtenGraph, Handler
from fastlstm.converters.torch.program import LoopBody, Tensor

__all__ = ["HANDLERS"]


def _loop(graph: AtenGraph, c: Arguments) -> list[str]:
    body: LoopBody = c.get("body")
    builder, axes = graph.builder, graph.ints([0])
    trips = builder.node("Squeeze", graph.number(c.get("trips")), axes)
    initial = [graph.value(tensor) for tensor in c.get("initial")]
    going = builder.constant("going", np.array(True))
    outputs = [output for output in c.call.outputs if isinstance(output, str)]
    return builder.nodes_out("Loop", [trips, going, *initial], outputs, body=_body(graph, body))


def _body(graph: AtenGraph, body: LoopBody) -> object:
    """Build the body's graph: it reads outer values by name, so names are unique across both graphs."""
    inner = GraphBuilder("loop")
    inner.share_names(graph.builder)
    with graph.within(inner, replace(graph.program, calls=body.calls, outputs=body.results)):
        position = inner.input("round", (), "int64")
        going = inner.input("going", (), "bool")
        graph.rounds[body.index] = position
        for name in body.carried:
            meta = graph.meta(name)
            graph.bind(name, inner.input(name, ["..."] if meta.shape else (), meta.dtype))
        graph.add_calls()
        inner.output(going, "going_on", (), "bool")
        for name in (*body.results, *body.collected):
            meta = graph.meta(name)
            inner.output(graph.value(Tensor(name)), f"{name}_out", ["..."] if meta.shape else (), meta.dtype)
        return inner.graph_in_another()


HANDLERS: dict[str, Handler] = {"script.loop": _loop}
