"""Random ONNX models and graphs that lie about one shape: refused in a sentence, or computed as they say.

Run in check mode (``FASTLSTM_CHECK=1``), in which instructions are compared with what they touch, and everything
kernels use lies between protected pages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_cases
from onnx import GraphProto, ModelProto, numpy_helper
from onnx_differ import TOLERANCE

import fastlstm
from fastlstm.converters.onnx import load as onnx_loading
from fastlstm.errors import FastLSTMError, InputError
from fastlstm.graph import Graph
from fastlstm.operators import reference

__all__ = ["difference", "draw"]

Array = npt.NDArray[Any]
MOST_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Case:
    """A model and the number of the lie that is told about it."""

    model: onnx_cases.Case
    lie: int

    def simpler(self) -> Iterator[Case]:
        for model in self.model.simpler():
            yield replace(self, model=model)

    def __str__(self) -> str:
        return f"lie {self.lie} about {self.model}"


def draw(seed: int) -> Case:
    """Return the case of a seed: many lies about each of few models, of small layers."""
    drawn = onnx_cases.draw(seed // 8)
    layers = [replace(layer, hidden=min(layer.hidden, 20)) for layer in drawn.layers[:2]]
    return Case(replace(drawn, layers=tuple(layers), T=min(drawn.T, 4), size=min(drawn.size, 20)), seed)


def misshapen(rng: random.Random, array: Array) -> Array:
    """Return an array of another shape."""
    axis = rng.randrange(array.ndim) if array.ndim else 0
    size = array.shape[axis] if array.ndim else 1
    other = rng.choice([2 * size, 100 * size, 3 * size, size + 1, size - 1, size // 2, 0, 1, 512])
    kind = rng.choice(["size"] * 6 + ["rank", "fewer", "turned"])
    if kind == "rank" or not array.ndim:
        return array[None]
    if kind == "fewer":
        return array[0] if array.shape[0] else array.reshape(array.shape[1:][:-1] or (0,))
    if kind == "turned":
        return np.array(array.T, order="C")
    shape = (*array.shape[:axis], max(other, 0), *array.shape[axis + 1 :])
    if np.prod(shape) > MOST_ELEMENTS or not array.size:
        return np.zeros(0, array.dtype)
    return np.resize(array, shape)


def difference(case: Case) -> str:
    """Return what is wrong with what a lie leads to, "" if nothing is."""
    rng = random.Random(case.lie)
    writer = onnx_cases.Writer(case.model, case.model.T, case.model.B, 0)
    proto = writer.model()
    feeds = dict(writer.feeds)
    lie: Callable[..., Any] = rng.choice(
        [_of_constants, _of_constants, _of_feeds, _of_attributes, _of_specs, _of_graph]
    )
    try:
        if lie is _of_feeds:
            _of_feeds(rng, feeds)
        elif lie is not _of_graph:
            lie(rng, proto)
        graph = onnx_loading.from_onnx(proto)
        graph, more = onnx_cases.masked(graph, writer.masks)
        if lie is _of_graph:
            graph = _of_graph(rng, graph)
        feeds |= more
        found = fastlstm.Model(graph).run(feeds)
    except FastLSTMError:
        return ""
    try:
        expected = reference.run(graph, feeds)
    except InputError:
        return ""  # the reference broadcasts less than ops do; nothing was read that is not there
    for name, value in found.items():
        other = np.asarray(expected[name])
        if value.shape != other.shape:
            return f"{name}: the shape {list(value.shape)}, {list(other.shape)} of the reference"
        if not np.allclose(value, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            return f"{name}: {float(np.abs(value - other).max()):.2g} off the reference"
    return ""


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _of_constants(rng: random.Random, proto: ModelProto) -> None:
    tensor = rng.choice(proto.graph.initializer)
    array = misshapen(rng, np.array(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(np.array(array, order="C"), tensor.name))


def _of_feeds(rng: random.Random, feeds: dict[str, Array]) -> None:
    name = rng.choice(sorted(feeds))
    feeds[name] = misshapen(rng, feeds[name])


def _of_attributes(rng: random.Random, proto: ModelProto) -> None:
    nodes = [n for g in _graphs(proto.graph) for n in g.node if n.op_type in onnx_cases.GATES]
    node = rng.choice(nodes)
    for attribute in node.attribute:
        if attribute.name == "hidden_size":
            attribute.i = rng.choice([*onnx_cases.SIZES[:8], 0, -1, 1 << 40])
        elif attribute.name == "direction" and rng.random() < 0.5:
            attribute.s = rng.choice([b"forward", b"reverse", b"bidirectional"])


def _of_specs(rng: random.Random, proto: ModelProto) -> None:
    spec = rng.choice(proto.graph.input)
    dims = spec.type.tensor_type.shape.dim
    if not dims or rng.random() < 0.2:
        dims.add().dim_value = rng.choice([1, 2, 512])
        return
    dim = rng.choice(dims)
    dim.Clear()
    dim.dim_value = rng.choice([0, 1, 2, 3, 8, 512, 1 << 40])


def _of_graph(rng: random.Random, graph: Graph) -> Graph:
    """Lie in the canonical form, as a `.fastlstm` file may."""
    names = sorted(name for name, array in graph.constants.items() if array.dtype == np.float32)
    if names and rng.random() < 0.7:
        name = rng.choice(names)
        return graph.replace(constants={**graph.constants, name: misshapen(rng, graph.constants[name])})
    places = [i for i, node in enumerate(graph.nodes) if node.op in onnx_cases.GATES]
    if not places:
        return graph
    at = rng.choice(places)
    attrs = {**graph.nodes[at].attrs, "hidden_size": rng.choice(onnx_cases.SIZES[:8])}
    return graph.replace(nodes=(*graph.nodes[:at], replace(graph.nodes[at], attrs=attrs), *graph.nodes[at + 1 :]))
