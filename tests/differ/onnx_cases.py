"""Random ONNX models of several recurrent layers; what is said of a layer is drawn for each layer by itself.

Lengths, masks, initial states and weights come from nowhere, from constants, from the model's inputs, or are computed
inside the model. ONNX has no masks: they are added to the graph that the model is converted to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastlstm.graph import Graph, Node, TensorSpec

Array = npt.NDArray[Any]

SIZES = (1, 3, 5, 8, 12, 16, 20, 24, 31, 33, 40, 64)  # few, so that kernels are shared
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BETWEEN = ("", "Tanh", "Dense", "Skip", "Concat", "Turned")
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


@dataclass(frozen=True)
class Layer:
    """A recurrent layer; the first value of every field in `SIMPLEST` is the simplest one."""

    op: str
    direction: str
    hidden: int
    reads: int  # which value so far
    weights: str
    bias: str
    peephole: str
    lengths: str
    h: str
    c: str
    mask: str
    body: str  # in which body it stands
    between: str  # what follows it
    shown: bool  # its final states are outputs

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def width(self) -> int:
        return self.directions * self.hidden


SIMPLEST: dict[str, tuple[Any, ...]] = {
    "body": ("", "If", "Loop"),
    "between": BETWEEN,
    "mask": ("none", "constant", "given", "computed"),
    "lengths": ("none", "shared", "given", "constant", "computed"),
    "c": ("none", "given", "constant", "computed"),
    "h": ("none", "given", "constant", "computed"),
    "peephole": ("none", "constant", "given", "computed"),
    "bias": ("none", "constant", "given", "computed"),
    "weights": ("constant", "given", "computed"),
    "direction": ("forward", "reverse", "bidirectional"),
    "op": ("LSTM", "GRU", "RNN"),
    "shown": (False, True),
}


@dataclass(frozen=True)
class Case:
    """A model, and the time steps and batch rows of its input."""

    layers: tuple[Layer, ...]
    size: int
    T: int
    B: int
    seed: int

    @property
    def masked(self) -> bool:
        return any(layer.mask != "none" for layer in self.layers)

    @property
    def fixed(self) -> bool:
        """Whether constants hold the batch or the time."""
        return any("constant" in (layer.lengths, layer.h, layer.c, layer.mask) for layer in self.layers)

    def simpler(self) -> Iterator[Case]:
        """Yield cases with a little less in them, the largest steps first."""
        for i in range(len(self.layers)):
            if len(self.layers) > 1:
                kept = [replace(a, reads=a.reads - (a.reads > i)) for a in self.layers if a is not self.layers[i]]
                yield replace(self, layers=tuple(replace(a, reads=min(a.reads, n)) for n, a in enumerate(kept)))
        for i, layer in enumerate(self.layers):
            for name, (simplest, *_) in SIMPLEST.items():
                if getattr(layer, name) != simplest:
                    changed = replace(layer, **{name: simplest})
                    yield replace(self, layers=(*self.layers[:i], changed, *self.layers[i + 1 :]))
        for name in ("T", "B"):
            if getattr(self, name) > 2:
                yield replace(self, **{name: 2})

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.T} steps, {self.B} rows of {self.size} features"]
        for layer in self.layers:
            told = [f"{f.name}={getattr(layer, f.name)}" for f in fields(layer)]
            lines.append("  " + " ".join(t for t in told if not t.endswith(("=none", "=", "=False"))))
        return "\n".join(lines)


def draw(seed: int) -> Case:
    """Return the case of a seed."""
    rng = random.Random(seed)
    layers = []
    for number in range(rng.choice([1, 2, 2, 3, 3, 4])):
        drawn = {name: rng.choice(values) for name, values in SIMPLEST.items()}
        for name, rarely in (("body", 0.25), ("mask", 0.2), ("peephole", 0.3), ("weights", 0.4)):
            if rng.random() > rarely:
                drawn[name] = SIMPLEST[name][0]
        if drawn["body"]:
            drawn |= {"mask": "none"}
        if drawn["op"] != "LSTM":
            drawn |= {"c": "none", "peephole": "none"}
        reads = number if rng.random() < 0.8 else rng.randrange(number + 1)
        layers.append(Layer(hidden=rng.choice(SIZES), reads=reads, **drawn))
    return Case(tuple(layers), rng.choice(SIZES), rng.randint(1, 9), rng.choice([1, 1, 2, 3, 5, 8]), seed)


class Writer:
    """Collects the nodes, constants and inputs of a case's model, and what its inputs are fed with."""

    def __init__(self, case: Case, steps: int, batch: int, run: int) -> None:
        self.case, self.T, self.B = case, steps, batch
        self._own = np.random.default_rng([case.seed, 1])  # constants
        self._fed = np.random.default_rng([case.seed, 2, run])
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.feeds: dict[str, Array] = {}
        self.outputs: list[str] = []
        self.masks: dict[str, tuple[str, Array]] = {}  # layer -> where its mask comes from, the mask
        self.empty = False  # whether any row has no steps
        self._names = 0

    def name(self, hint: str) -> str:
        self._names += 1
        return f"{hint}_{self._names}"

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node of one output; return its name."""
        made = self.name(op)
        self.nodes.append(helper.make_node(op, inputs, [made], **attrs))
        return made

    def constant(self, array: Array, hint: str = "constant") -> str:
        name = self.name(hint)
        self.constants[name] = np.array(array, order="C")
        return name

    def random(self, source: str, *shape: int, scale: float = 0.5) -> Array:
        rng = self._fed if source == "given" else self._own
        return (scale * rng.uniform(-1, 1, shape)).astype(np.float32)

    def value(self, source: str, hint: str, array: Array) -> str:
        """Return the name of a value that holds the array, from where `source` says."""
        if source == "none":
            return ""
        if source == "constant":
            return self.constant(array, hint)
        name = self.name(hint)
        if source == "given":
            self.feeds[name] = array
            return name
        # Exact whatever computes it: halves that are added, an integer more that is taken off again.
        if array.dtype == np.int32:
            self.feeds[name] = array + np.int32(1)
            return self.add("Sub", name, self.constant(np.int32(1)))
        self.feeds[name] = array / np.float32(2)
        return self.add("Add", name, name)

    def lengths(self, source: str) -> str:
        if source == "shared" and "lengths" in self.feeds:
            return "lengths"
        rng = self._own if source == "constant" else self._fed
        most = self.case.T  # a second run has more steps
        lengths = rng.integers(int(rng.random() < 0.8), most + 1, self.B).astype(np.int32)
        self.empty |= source != "none" and not lengths.all()
        if source != "shared":
            return self.value(source, "lengths", lengths)
        self.feeds["lengths"] = lengths
        return "lengths"

    def layer(self, number: int, layer: Layer, x: str, size: int) -> str:
        """Add a layer over x [T, B, size]; return its outputs [T, B, D * H]."""
        D, H, G = layer.directions, layer.hidden, GATES[layer.op]

        def weight(source: str, hint: str, *shape: int) -> str:
            return self.value(source, f"{hint}{number}", self.random(source, *shape, scale=shape[-1] ** -0.5))

        W, R = (weight(layer.weights, hint, D, G * H, k) for hint, k in (("W", size), ("R", H)))
        inputs = [x, W, R, weight(layer.bias, "B", D, 2 * G * H), self.lengths(layer.lengths)]
        for source, hint in ((layer.h, "h"), (layer.c, "c"))[: 2 if layer.op == "LSTM" else 1]:
            inputs.append(self.value(source, f"{hint}{number}", self.random(source, D, self.B, H)))
        if layer.op == "LSTM":
            inputs.append(weight(layer.peephole, "P", D, 3 * H))
        attrs: dict[str, Any] = {"hidden_size": H, "direction": layer.direction}
        attrs |= {"linear_before_reset": (number + self.case.seed) % 2} if layer.op == "GRU" else {}
        names = ["y", "h_n", "c_n"][: 3 if layer.op == "LSTM" else 2]
        made = [f"{name}{number}" for name in names]
        if layer.mask != "none":
            self.masks[f"layer{number}"] = (layer.mask, self._fed.random((self.T, self.B)) < 0.7)
            if layer.mask == "constant":
                self.masks[f"layer{number}"] = ("constant", self._own.random((self.T, self.B)) < 0.7)
        node = helper.make_node(layer.op, inputs, made, f"layer{number}", **attrs)
        self.nodes.append(node) if not layer.body else self.enclosed(layer, node, D, H)
        if layer.shown:
            self.outputs += made[1:]
        turned = self.add("Transpose", made[0], perm=[0, 2, 1, 3])
        return self.add("Reshape", turned, self.constant(np.array([0, 0, -1])))

    def enclosed(self, layer: Layer, node: NodeProto, D: int, H: int) -> None:
        """Add a layer that stands in the body of a branch, or of a loop that runs it twice, its state handed on."""
        outputs = list(node.output)
        inner = [f"{name}_inside" for name in outputs]
        del node.output[:]
        node.output.extend(inner)
        shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner]
        if layer.body == "If":
            body = helper.make_graph([node], "body", [], shown)
            condition = self.constant(np.array(True))
            if self.case.seed % 2:
                self.feeds[condition] = self.constants.pop(condition)
            self.nodes.append(helper.make_node("If", [condition], outputs, then_branch=body, else_branch=body))
            return
        start = node.input[5] or self.add("Expand", self.constant(np.zeros((D, 1, H), np.float32)), self.rows(D, H))
        node.input[5] = "state"
        taken = [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ]
        on = helper.make_node("Identity", ["go"], ["on"])
        given = [helper.make_tensor_value_info("on", TensorProto.BOOL, []), shown[1], shown[0], *shown[2:]]
        body = helper.make_graph([node, on], "body", taken, given)
        stacked = [self.name("all") for _ in outputs[::2]]
        rounds = [self.constant(np.array(2)), self.constant(np.array(True)), start]
        self.nodes.append(helper.make_node("Loop", rounds, [outputs[1], *stacked], body=body))
        for whole, name in zip(stacked, outputs[::2], strict=True):
            self.nodes.append(helper.make_node("Gather", [whole, self.constant(np.array(1))], [name], axis=0))

    def rows(self, D: int, H: int) -> str:
        """Return the shape of a state, computed."""
        batch = self.add("Shape", "x", start=1, end=2)
        return self.add("Concat", self.constant(np.array([D])), batch, self.constant(np.array([H])), axis=0)

    def model(self) -> ModelProto:
        """Write all layers; return the model."""
        x = self._fed.standard_normal((self.T, self.B, self.case.size)).astype(np.float32)
        self.feeds["x"] = x
        values, widths = ["x"], [self.case.size]
        for number, layer in enumerate(self.case.layers):
            at = layer.reads
            y = self.layer(number, layer, values[at], widths[at])
            y, width = self.between(layer, y, values[at], widths[at])
            values.append(y)
            widths.append(width)
        read = {layer.reads for layer in self.case.layers}
        self.outputs += [value for i, value in enumerate(values) if i not in read]
        inputs = [self._spec(name, array) for name, array in self.feeds.items()]
        graph = helper.make_graph(
            self.nodes,
            "case",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def between(self, layer: Layer, y: str, x: str, size: int) -> tuple[str, int]:
        """Add what follows a layer; return the value and its features."""
        width, what = layer.width, layer.between
        if what == "Tanh" or (what == "Skip" and size != width):
            return self.add("Tanh", y), width
        if what == "Skip":
            return self.add("Add", x, y), width
        if what == "Concat":
            return self.add("Concat", y, x, axis=2), width + size
        if what == "Dense":
            product = self.add("MatMul", y, self.constant(self.random("constant", width, 8, scale=width**-0.5)))
            return self.add("Add", product, self.constant(self.random("constant", 8))), 8
        if what == "Turned":
            turned = self.add("Tanh", self.add("Transpose", y, perm=[1, 0, 2]))
            return self.add("Transpose", turned, perm=[1, 0, 2]), width
        return y, width

    def _spec(self, name: str, array: Array) -> Any:
        shape = [f"{name}.{i}" for i in range(array.ndim)]
        if name == "x":
            shape = [*shape[:2], self.case.size] if not self.case.fixed else list(array.shape)
        return helper.make_tensor_value_info(name, TYPES[array.dtype.name], shape)


def masked(graph: Graph, masks: dict[str, tuple[str, Array]]) -> tuple[Graph, dict[str, Array]]:
    """Return the graph with a mask for each of the layers named, and what its further inputs are fed with."""
    nodes, inputs, constants = [], list(graph.inputs), dict(graph.constants)
    feeds: dict[str, Array] = {}
    for node in graph.nodes:
        if node.name in masks and node.op in GATES:
            source, mask = masks[node.name]
            name = f"mask of {node.name}"
            if source == "constant":
                constants[name] = mask
            else:
                inputs.append(TensorSpec(name, (f"{name}.0", f"{name}.1"), "bool"))
                feeds[name] = mask
            if source == "computed":
                feeds[name] = ~mask
                nodes.append(Node("Not", (name,), (f"{name}, turned",)))
                name = f"{name}, turned"
            own = [*node.inputs, *[""] * 6]
            own[5] = name
            node = replace(node, inputs=tuple(own[: max(6, len(node.inputs))]))
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes), inputs=tuple(inputs), constants=constants), feeds
