"""Random recurrent models of every source, for comparing versions of fastlstm: drawn, and built for its readers.

Sizes and options come from short lists, so that many models share their kernels: each kernel costs seconds of
compiling, once for each version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

import fastlstm

__all__ = ["STATES", "Drawn", "Layer", "batch_first", "draw", "layer_of_arrays", "onnx_model", "state_dict"]

Array = npt.NDArray[Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}
UNITS = (1, 5, 8, 16, 20, 33, 48, 64, 72, 96, 128, 144)
PROJECTIONS = (3, 8, 20, 32)
FEATURES = (1, 3, 8, 20, 40, 64)
BATCHES = (1, 1, 1, 2, 3, 4, 8, 19)
STEPS = (1, 2, 3, 5, 8, 13)
# Options of a cell; every set has kernels of its own.
PLAIN: dict[str, Any] = {"activations": (), "clip": 0.0, "input_forget": 0, "peepholes": False, "reset_before": False}
CELLS: dict[str, tuple[dict[str, Any], ...]] = {
    "LSTM": (
        *[PLAIN] * 6,
        PLAIN | {"activations": ("HardSigmoid", "Tanh", "Softsign"), "clip": 0.7},
        PLAIN | {"peepholes": True, "input_forget": 1},
    ),
    "GRU": (
        *[PLAIN] * 3,
        PLAIN | {"reset_before": True},
        PLAIN | {"activations": ("Sigmoid", "Relu"), "clip": 0.7},
    ),
    "RNN": (PLAIN, PLAIN, PLAIN | {"activations": ("Relu",)}),
}


@dataclass(frozen=True)
class Layer:
    """One recurrent layer and its options.

    Attributes
    ----------
    activations : tuple of str
        Of one direction; empty for the operator's own.
    clip : float
        0 for none.
    reset_before : bool
        Whether a GRU's reset gate comes before the product with the recurrent weights.
    states : str
        "zero", "constant" or "given".
    """

    op: str
    units: int
    projection: int
    direction: str
    activations: tuple[str, ...]
    clip: float
    input_forget: int
    peepholes: bool
    reset_before: bool
    bias: bool
    states: str

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def width(self) -> int:
        """The size of one direction's output."""
        return self.projection or self.units


@dataclass(frozen=True)
class Drawn:
    """One random model, and what it is run on.

    Attributes
    ----------
    source : str
        "onnx", "state dict" (projections) or "arrays" (a layer made from arrays, which only runs whole sequences).
    lengths : str
        "full", "constant" or "given".
    steps : tuple of int
        Lengths of the sequences that it runs on, one after the other.
    """

    key: tuple[int, int]
    source: str
    layers: tuple[Layer, ...]
    features: int
    dense: int
    lengths: str
    layout: int
    batch: int
    steps: tuple[int, int]
    precision: str
    threads: int

    def __str__(self) -> str:
        chain = " | ".join(
            " ".join([f"{layer.op} {layer.units}", *_options(layer, ("op", "units"))]) for layer in self.layers
        )
        return f"{self.source}: {self.features} -> {chain}; " + " ".join(_options(self, ("key", "source", "layers")))

    @property
    def fixed(self) -> bool:
        """Whether constants of the model have the size of its batch."""
        return self.lengths == "constant" or any(layer.states == "constant" for layer in self.layers)

    def rng(self, stream: int) -> np.random.Generator:
        """Return random numbers of the model's own: 0 chose it, 1 are its weights, 2 and on what it runs on."""
        return np.random.default_rng([*self.key, stream])

    def valid_steps(self, longest: int) -> Array:
        """Return the length of each row of a ragged batch, from 0 to `longest`."""
        return self.rng(2).integers(0, longest + 1, self.batch).astype(np.int32)


def _options(thing: Any, besides: Iterable[str]) -> list[str]:
    """Return the fields that say something, as words."""
    named = ((field.name, getattr(thing, field.name)) for field in fields(thing) if field.name not in besides)
    return [f"{name}={value}" for name, value in named if value]


def draw(seed: int, number: int) -> Drawn:
    """Return the model of this number."""
    rng = np.random.default_rng([seed, number, 0])

    def one(options: Iterable[Any]) -> Any:
        options = tuple(options)
        return options[rng.integers(len(options))]

    source = one(["onnx"] * 7 + ["state dict", "arrays"])
    onnx = source == "onnx"
    projection = one(PROJECTIONS) if source == "state dict" or (source == "arrays" and one((True, False))) else 0
    op = "LSTM" if projection else one(("LSTM", "LSTM", "GRU", "RNN"))
    direction = one((*["forward"] * 5, "bidirectional", "reverse" if onnx else "bidirectional"))
    units = [
        one([u for u in UNITS if u > projection]) for _ in range(1 if source == "arrays" else one((1, 1, 1, 2, 3)))
    ]
    cell, bias = PLAIN if projection or not onnx else one(CELLS[op]), one((True, True, True, False))
    layers = [
        Layer(
            op=op,
            units=size if onnx else units[0],  # PyTorch has one size for all layers
            projection=projection,
            direction=direction,
            bias=bias,
            states=one(("zero", "zero", "constant", "given")) if onnx else "zero",
            **cell,
        )
        for size in units
    ]
    return Drawn(
        (seed, number),
        source,
        tuple(layers),
        features=one(FEATURES),
        dense=one((0, 0, 4, 17)) if onnx else 0,
        lengths=one((*["full"] * 5, "constant", "given")) if source != "state dict" else "full",
        layout=one((0, 0, 1)) if onnx else 0,
        batch=one(BATCHES),
        steps=(one(STEPS), one((0, 1, *STEPS))),
        precision=one(("float32", "float32", "int16", "int8")),
        threads=one((1, 1, 1, 2)),
    )


# ---------------------------------------------------------------- models


def weights(drawn: Drawn) -> list[dict[str, Array]]:
    """Return the arrays of each layer, float32, one more axis in front for the directions."""
    rng, size, found = drawn.rng(1), drawn.features, []
    for layer in drawn.layers:
        D, H, G, P = layer.directions, layer.units, GATES[layer.op], layer.width
        shapes: dict[str, tuple[int, ...]] = {"W": (D, G * H, size), "R": (D, G * H, P)}
        shapes |= {"B": (D, 2 * G * H)} if layer.bias else {}
        shapes |= {"P": (D, 3 * H)} if layer.peepholes else {}
        shapes |= {"V": (D, P, H)} if layer.projection else {}
        shapes |= dict.fromkeys(STATES[layer.op], (D, drawn.batch, H)) if layer.states == "constant" else {}
        scale = H**-0.5
        found.append({name: rng.uniform(-scale, scale, shape).astype(np.float32) for name, shape in shapes.items()})
        size = D * P
    return found


def onnx_model(drawn: Drawn) -> Any:
    """Return the model as a ModelProto; time is open, the batch too unless constants have its size."""
    tensors: dict[str, Array] = {}
    inputs, outputs, nodes, x = [], [], [], "x"
    batch: int | str = drawn.batch if drawn.fixed else "batch"
    axes = [batch, "time"] if drawn.layout else ["time", batch]
    inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [*axes, drawn.features]))
    if drawn.lengths == "given":
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]))
    elif drawn.lengths == "constant":
        tensors["lengths"] = drawn.valid_steps(min(drawn.steps))
    for number, (layer, arrays) in enumerate(zip(drawn.layers, weights(drawn), strict=True)):
        last, D, H = number == len(drawn.layers) - 1, layer.directions, layer.units
        named = {name: f"{name}_{number}" for name in arrays}
        tensors |= {named[name]: batch_first(a, bool(drawn.layout) and name in "hc") for name, a in arrays.items()}
        shape = [batch, D, H] if drawn.layout else [D, batch, H]
        if layer.states == "given":
            named |= {name: f"{name}_{number}" for name in STATES[layer.op]}
            inputs += [helper.make_tensor_value_info(named[n], TensorProto.FLOAT, shape) for n in STATES[layer.op]]
        shown = [f"{name}n_{number}" if last or layer.states == "given" else "" for name in STATES[layer.op]]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in shown if name]
        order = ["W", "R", "B", "lengths", "h", *["c", "P"] * (layer.op == "LSTM")]
        named |= {} if drawn.lengths == "full" else {"lengths": "lengths"}
        given = [x, *(named.get(name, "") for name in order)]
        nodes.append(helper.make_node(layer.op, given, [f"Y_{number}", *shown], **_attributes(layer, drawn.layout)))
        x = f"y_{number}"
        _merge(nodes, tensors, f"Y_{number}", x, drawn.layout, D)
    size = D * H
    if drawn.dense:
        tensors["dense"] = drawn.rng(1).uniform(-0.3, 0.3, (size, drawn.dense)).astype(np.float32)
        tensors["dense_bias"] = drawn.rng(1).uniform(-0.3, 0.3, drawn.dense).astype(np.float32)
        nodes += [helper.make_node("MatMul", [x, "dense"], ["m"]), helper.make_node("Add", ["m", "dense_bias"], ["d"])]
        x, size = "d", drawn.dense
    outputs.insert(0, helper.make_tensor_value_info(x, TensorProto.FLOAT, [*axes, size]))
    constants = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "drawn", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _attributes(layer: Layer, layout: int) -> dict[str, Any]:
    found: dict[str, Any] = {"hidden_size": layer.units, "direction": layer.direction, "layout": layout}
    found |= {"activations": list(layer.activations * layer.directions)} if layer.activations else {}
    found |= {"clip": layer.clip} if layer.clip else {}
    found |= {"input_forget": 1} if layer.input_forget else {}
    return found | ({"linear_before_reset": int(not layer.reset_before)} if layer.op == "GRU" else {})


def _merge(nodes: list[Any], tensors: dict[str, Array], y: str, to: str, layout: int, directions: int) -> None:
    """Add what turns Y [T, D, B, H], or batch first [B, T, D, H], into [T, B, D*H], or [B, T, D*H]."""
    if not layout and directions == 1:
        tensors["one"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Squeeze", [y, "one"], [to]))
        return
    if not layout:
        nodes.append(helper.make_node("Transpose", [y], [y + "t"], perm=[0, 2, 1, 3]))
    tensors["flat"] = np.array([0, 0, -1], np.int64)
    nodes.append(helper.make_node("Reshape", [y if layout else y + "t", "flat"], [to]))


def state_dict(drawn: Drawn) -> dict[str, Array]:
    """Return the weights under PyTorch's names."""
    names = {"W": "weight_ih", "R": "weight_hh", "V": "weight_hr"}
    found: dict[str, Array] = {}
    for number, arrays in enumerate(weights(drawn)):
        both = np.split(arrays.pop("B"), 2, axis=1) if "B" in arrays else []
        named = {names[name]: array for name, array in arrays.items()}
        named |= dict(zip(("bias_ih", "bias_hh"), both, strict=False))
        for name, array in named.items():
            ends = ("", "_reverse")[: drawn.layers[number].directions]
            found |= {f"{name}_l{number}{end}": array[place] for place, end in enumerate(ends)}
    return found


def layer_of_arrays(drawn: Drawn) -> Callable[..., Any]:
    """Return the one layer of the model, made from its arrays."""
    (layer,), (arrays,) = drawn.layers, weights(drawn)
    options: dict[str, Any] = {"threads": drawn.threads, "precision": drawn.precision}
    biases = layer.units * (4 if layer.op == "GRU" else GATES[layer.op])
    options |= {"bias": arrays["B"][:, :biases]} if layer.bias else {}
    options |= {"weight_hr": arrays["V"]} if layer.projection else {}
    return getattr(fastlstm, layer.op)(arrays["W"], arrays["R"], **options)  # type: ignore[no-any-return]


def batch_first(array: Array, wanted: bool) -> Array:
    """Return the array with its first two axes exchanged, if that is wanted."""
    return array.swapaxes(0, 1) if wanted else array
