"""Random recurrent models over the options that ONNX, PyTorch and Keras define, against the oracle and onnxruntime.

Activations, clip, peepholes and the like are compiled in, so they come in fixed sets that together hold every value
of each option; shapes, directions, layouts, lengths, states, bias and outputs are free.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm import reference
from fastlstm.converters.onnx_ import from_onnx
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec

Array = npt.NDArray[Any]

# What ONNX can say. Parameters are always written out: onnxruntime takes 0 for some that ONNX gives a default.
ONNX_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [
        {},
        {"P": True},
        {"P": True, "clip": 0.7, "input_forget": 1, "activations": ["HardSigmoid", "Softsign", "ScaledTanh"],
         "activation_alpha": [0.3, 1.3], "activation_beta": [0.4, 0.7]},
        {"activations": ["sigmoid", "RELU", "Elu"], "activation_alpha": [0.8]},
    ],
    "GRU": [
        {"linear_before_reset": 1},
        {"linear_before_reset": 0},
        {"linear_before_reset": 1, "clip": 0.6, "activations": ["HardSigmoid", "Softplus"],
         "activation_alpha": [0.2], "activation_beta": [0.5]},
        {"linear_before_reset": 0, "clip": 0.8, "activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.1]},
    ],
    "RNN": [
        {},
        {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1], "clip": 0.9},
        {"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]},
    ],
}  # fmt: skip
STATES = {"LSTM": ["initial_h", "initial_c"], "GRU": ["initial_h"], "RNN": ["initial_h"]}
OUTPUTS = {"LSTM": ["Y", "Y_h", "Y_c"], "GRU": ["Y", "Y_h"], "RNN": ["Y", "Y_h"]}


@st.composite
def onnx_models(draw: Any) -> tuple[Any, dict[str, Array], bool]:
    """Draw a model, its inputs, and whether onnxruntime computes what ONNX says for it."""
    op = draw(st.sampled_from(sorted(RECURRENT_OPS)))
    options = dict(draw(st.sampled_from(ONNX_OPTIONS[op])))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    layout, D, G = draw(st.integers(0, 1)), 1 + (direction == "bidirectional"), RECURRENT_OPS[op]
    T, B, size, H = (draw(st.integers(1, most)) for most in (6, 5, 5, 20))
    rng = np.random.default_rng(draw(st.integers(0, 999)))

    def random(*shape: int) -> Array:
        return rng.uniform(-0.8, 0.8, shape).astype(np.float32)

    arrays = {"W": random(D, G * H, size), "R": random(D, G * H, H) / np.float32(H**0.5)}
    arrays["B"] = random(D, 2 * G * H)
    state = (B, D, H) if layout else (D, B, H)
    arrays.update(initial_h=random(*state), initial_c=random(*state), P=random(D, 3 * H))
    names = ["X", "W", "R", draw(st.sampled_from(["", "B"])), draw(st.sampled_from(["", "sequence_lens"]))]
    names += [draw(st.sampled_from(["", name])) for name in STATES[op]]
    names += ["P"] if options.pop("P", False) else []
    arrays["sequence_lens"] = rng.integers(0, T + 1, B).astype(np.int32)
    outputs = draw(st.lists(st.booleans(), min_size=len(OUTPUTS[op]), max_size=len(OUTPUTS[op])).filter(any))
    results = [name if asked else "" for name, asked in zip(OUTPUTS[op], outputs, strict=True)]
    if "activations" in options:
        for key in ("activations", "activation_alpha", "activation_beta"):
            options[key] = options.get(key, []) * D
    constant = draw(st.sampled_from([(), ("W", "R", "B", "P"), ("W", "R", "B", "P", "initial_h", "initial_c")]))
    feeds = {"X": random(*((B, T, size) if layout else (T, B, size)))}
    feeds |= {name: arrays[name] for name in names if name in arrays and name not in constant}
    node = helper.make_node(
        op, names, results, "layer", hidden_size=H, direction=direction, layout=layout,
        **{key: value for key, value in options.items() if value != []},
    )  # fmt: skip
    types = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int32"): TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, types[a.dtype], a.shape) for name, a in feeds.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results if name],
        [numpy_helper.from_array(arrays[name], name) for name in constant if name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    # onnxruntime refuses layout=1 and an RNN's zero lengths, and returns zeros for the states of empty rows.
    empty = "sequence_lens" in names and not arrays["sequence_lens"].all()
    known = not layout and not (empty and (op == "RNN" or "initial_h" in names or "initial_c" in names))
    return model, feeds, known


@settings(max_examples=150, deadline=None, derandomize=True)
@given(onnx_models())
def test_models_of_onnx_agree_with_the_oracle_and_with_onnxruntime(drawn: tuple[Any, dict[str, Array], bool]) -> None:
    model, feeds, known_to_onnxruntime = drawn
    exact = reference.run(from_onnx(model), feeds)
    found = fastlstm.from_onnx(model).run(feeds)
    for name, value in exact.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    if known_to_onnxruntime:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        theirs = session.run(list(exact), feeds)
        for (name, value), other in zip(exact.items(), theirs, strict=True):
            np.testing.assert_allclose(found[name], other, rtol=1e-4, atol=1e-5, err_msg=name)
            # Not worse than theirs, with 2e-7 of slack: a rounding or two of numbers around 1.
            assert np.abs(found[name] - value).max(initial=0) <= 1.5 * np.abs(other - value).max(initial=0) + 2e-7


# What PyTorch and Keras add: projections, masks, and activations that ONNX does not list.
LAYER_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"P": 3, "peephole": True, "clip": 0.6}),
    ("LSTM", {"P": 5, "input_forget": 1, "activations": [["HardSigmoid", 1 / 6, 0.5], ["Selu"], ["Linear"]]}),
    ("LSTM", {"mask": True, "activations": [["Sigmoid"], ["Gelu"], ["Silu"]]}),
    ("LSTM", {"mask": True, "P": 2}),
    ("GRU", {"mask": True, "reset_after": 1}),
    ("GRU", {"mask": True, "reset_after": 0, "activations": [["HardSigmoid"], ["GeluTanh"]]}),
    ("RNN", {"mask": True, "activations": [["Exp"]], "clip": 0.5}),
]


def stack(
    op: str, options: dict[str, Any], directions: list[str], layers: int, sizes: tuple[int, int], seed: int
) -> Graph:
    """Return layers over x, with lengths, a mask where asked for, and every state given and shown."""
    (inputs, hidden), rng, gates = sizes, np.random.default_rng(seed), RECURRENT_OPS[op]
    D, size = len(directions), options.get("P", hidden)

    def random(*shape: int) -> Array:
        return rng.uniform(-0.7, 0.7, shape).astype(np.float32)

    given = ["lengths", "mask" if options.get("mask") else ""]
    specs = [TensorSpec("x", ("time", "batch", inputs)), TensorSpec("lengths", ("batch",), "int64")]
    specs += [TensorSpec("mask", ("time", "batch"), "bool")] if options.get("mask") else []
    constants, nodes, outputs, x = {}, [], [], "x"
    for layer in range(layers):
        arrays = {"w_ih": random(D, gates * hidden, inputs), "w_hh": random(D, gates * hidden, size)}
        arrays["bias"] = random(D, (4 if op == "GRU" else gates) * hidden)
        states = {"h_0": random(D, 1, size), **({"c_0": random(D, 1, hidden)} if op == "LSTM" else {})}
        more = {"peephole": random(D, 3 * hidden)} if options.get("peephole") else {}
        more |= {"w_hr": random(D, size, hidden)} if "P" in options else {}
        constants |= {f"{name}_{layer}": a for name, a in {**arrays, **states, **more}.items()}
        own = [f"{name}_{layer}" for name in arrays]
        own = [x, *own, *given, *(f"{name}_{layer}" for name in states)]
        own += [f"{name}_{layer}" if name in more else "" for name in ("peephole", "w_hr")] if op == "LSTM" else []
        default = {"LSTM": [["Sigmoid"], ["Tanh"], ["Tanh"]], "GRU": [["Sigmoid"], ["Tanh"]], "RNN": [["Tanh"]]}[op]
        attrs: dict[str, Any] = {"hidden_size": hidden, "directions": directions, "clip": options.get("clip")}
        attrs["activations"] = [[[*a, None, None][:3] for a in options.get("activations", default)]] * D
        attrs |= {"LSTM": {"input_forget": options.get("input_forget", 0)}, "RNN": {}}.get(
            op, {"reset_after": options.get("reset_after", 1)}
        )
        results = [f"{name}_{layer}" for name in ("y", "h_n", "c_n")[: 3 if op == "LSTM" else 2]]
        nodes.append(Node(op, tuple(own), tuple(results), attrs, f"layer{layer}"))
        outputs += [TensorSpec(name, ("...",)) for name in results]
        x, inputs = results[0], D * size
    return Graph(tuple(specs), tuple(outputs), tuple(nodes), constants)


@pytest.mark.parametrize(("op", "options"), LAYER_OPTIONS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    directions=st.sampled_from([["forward"], ["reverse"], ["forward", "reverse"]]), layers=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 5), st.integers(5, 20)), T=st.integers(0, 6), B=st.integers(1, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_layers_that_only_frameworks_have_agree_with_the_oracle(
    op: str,
    options: dict[str, Any],
    directions: list[str],
    layers: int,
    sizes: tuple[int, int],
    T: int,
    B: int,
    seed: int,
) -> None:
    graph, rng = stack(op, options, directions, layers, sizes, seed), np.random.default_rng(seed + 1)
    feeds = {"x": rng.standard_normal((T, B, sizes[0])).astype(np.float32), "lengths": rng.integers(0, T + 1, B)}
    if options.get("mask"):
        feeds["mask"] = rng.random((T, B)) < 0.7
    found, exact = fastlstm.Model(graph).run(feeds), reference.run(graph, feeds)
    for name, value in exact.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("op", "options"), [(op, o) for op, o in LAYER_OPTIONS if not o.get("mask")])
def test_streams_give_the_bits_of_the_whole(op: str, options: dict[str, Any]) -> None:
    graph = stack(op, options, ["forward"], 2, (3, 12), 0)
    # Neither lengths nor states: a stream keeps the states itself.
    nodes = tuple(replace(n, inputs=(*n.inputs[:4], *[""] * 4, *n.inputs[8:])) for n in graph.nodes)
    last = TensorSpec(nodes[-1].outputs[0], ("time", "batch", options["P"]))
    model = fastlstm.Model(graph.replace(inputs=graph.inputs[:1], nodes=nodes, outputs=(last,)))
    x = np.random.default_rng(1).standard_normal((30, 2, 3)).astype(np.float32)
    stream = model.stream(batch=2)
    np.testing.assert_array_equal(np.stack([stream.step(frame) for frame in x]), model(x))


def test_the_layer_classes_take_peepholes_and_a_direction_of_their_own() -> None:
    rng = np.random.default_rng(0)
    w_ih, w_hh, bias, peephole = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((32, 3), (32, 8), 32, 24))
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    layer = fastlstm.LSTM(w_ih, w_hh, bias, peephole=peephole, directions=["reverse"])
    output, (h_n, c_n) = layer(x)
    exact = reference.lstm(x, w_ih[None], w_hh[None], bias[None], peephole=peephole[None], directions=["reverse"])
    for ours, theirs in zip((output, h_n, c_n), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(fastlstm.InputError, match="directions should name"):
        fastlstm.LSTM(w_ih, w_hh, bias, directions=["sideways"])
    with pytest.raises(fastlstm.InputError, match="neither peepholes"):
        fastlstm.RNN(w_ih, w_hh[:, :32], peephole=peephole)


def test_parameters_that_are_not_given_are_the_defaults() -> None:
    rng = np.random.default_rng(1)
    w_ih, w_hh = rng.uniform(-1, 1, (8, 3)).astype(np.float32), rng.uniform(-1, 1, (8, 8)).astype(np.float32)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    given = fastlstm.RNN(w_ih, w_hh, activations=[[["Affine", 1.0, 0.0]]], clip=0.9)
    short = fastlstm.RNN(w_ih, w_hh, activations=[[["Affine", None, None]]], clip=0.9)
    np.testing.assert_array_equal(short(x)[0], given(x)[0])
    assert np.abs(given(x)[0]).max() > 0
