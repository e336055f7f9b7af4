"""Recurrent cells that exporters wrote out become recurrent layers, in a graph and in the bodies inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlstm.graph import RECURRENT_OPS, Graph, Node
from fastlstm.operators.values import ValueInfo
from fastlstm.passes import shapes
from fastlstm.passes.rewrite import Names
from fastlstm.typing import Array

__all__ = ["recognise"]

PLAIN = RECURRENT_OPS.keys() | {
    "Dense", "LayerNormalization", "Softmax", "LogSoftmax", "Gather", "Transpose", "Reshape", "Squeeze", "Unsqueeze",
}  # fmt: skip
"""Operators of which no cell is written: it has at least a sum and an activation of its own."""


def recognise(graph: Graph, infos: Mapping[str, ValueInfo]) -> Graph:
    """Return an optimised graph with its written-out cells as layers; the same graph if it has none.

    `infos` is what is known of every value (`fastlstm.passes.shapes.infer`).
    """
    fresh = Names(graph).fresh
    bodies = any(isinstance(value, Graph) for node in graph.nodes for value in node.attrs.values())
    return _recognised(graph, fresh, {}, {}, None) if bodies else _steps(graph, fresh, lambda: infos, {})


def _recognised(
    graph: Graph,
    fresh: Callable[[str], str],
    outer: Mapping[str, ValueInfo],
    constants: Mapping[str, Array],
    inputs: Sequence[ValueInfo] | None,
) -> Graph:
    if any(isinstance(value, Graph) for node in graph.nodes for value in node.attrs.values()):
        graph = _with_bodies(graph, fresh, outer, constants, inputs)
    return _steps(graph, fresh, lambda: {**outer, **shapes.infer(graph, outer, inputs)}, constants)


def _steps(
    graph: Graph,
    fresh: Callable[[str], str],
    infos: Callable[[], Mapping[str, ValueInfo]],
    constants: Mapping[str, Array],
) -> Graph:
    """Return a graph with the cells in it, but not those in its bodies, as layers."""
    if all(node.op in PLAIN for node in graph.nodes) or not any(node.op == "Dense" for node in graph.nodes):
        return graph
    from fastlstm.passes.unrolled import recognise_steps  # the algebra of cells takes a sixth of a model's load

    return recognise_steps(graph, fresh, infos(), constants)


def _with_bodies(
    graph: Graph,
    fresh: Callable[[str], str],
    outer: Mapping[str, ValueInfo],
    constants: Mapping[str, Array],
    inputs: Sequence[ValueInfo] | None,
) -> Graph:
    from fastlstm.passes.loop_layers import layer_of_loop

    infos = known = None
    for node in graph.nodes:
        if not any(isinstance(value, Graph) for value in node.attrs.values()):
            continue
        if infos is None or known is None:
            infos = {**outer, **shapes.infer(graph, outer, inputs)}
            known = {**constants, **graph.constants}
        loops = node.op in ("Loop", "Scan")
        given = shapes.body_inputs(node, infos) if loops else None
        if any(shapes.misfits(body, infos, given) for body in (v for v in node.attrs.values() if isinstance(v, Graph))):
            continue  # what cannot run is not a cell; running it says why
        layers = layer_of_loop(graph, node, infos, known, fresh) if loops else None
        if layers is not None:
            graph, infos = layers, None
            continue
        attrs: dict[str, Any] = {
            key: _recognised(value, fresh, infos, known, given) if isinstance(value, Graph) else value
            for key, value in node.attrs.items()
        }
        if any(attrs[key] is not value for key, value in node.attrs.items()):
            slow = Node(node.op, node.inputs, node.outputs, attrs, node.name)
            graph, infos = graph.replace(nodes=tuple(slow if n is node else n for n in graph.nodes)), None
    return graph
