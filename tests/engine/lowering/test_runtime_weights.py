"""Weights that are given or computed at run time are checked before a kernel sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.errors import FastLSTMError, InputError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations

Array = npt.NDArray[Any]

SIZE, H = 3, 2  # sizes at which a B that is one short splits into parts that still broadcast
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def weights(op: str) -> dict[str, Array]:
    rng, G = np.random.default_rng(0), GATES[op]
    shapes = {"W": (1, G * H, SIZE), "R": (1, G * H, H), "B": (1, 2 * G * H)}
    shapes |= {"P": (1, 3 * H)} if op == "LSTM" else {}
    return {name: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def feeds(op: str) -> dict[str, Array]:
    states = {name: np.zeros((1, 2, H), np.float32) for name in (("h", "c") if op == "LSTM" else ("h",))}
    x = np.random.default_rng(1).standard_normal((4, 2, SIZE)).astype(np.float32)
    return {"x": x, **weights(op), "lengths": np.array([4, 2], np.int32), **states}


def model(op: str, body: str, constants: dict[str, Array] | None = None) -> ModelProto:
    """Return a layer all of whose inputs are the model's, but `constants`, which an Add computes (with zeros given)."""
    names = ["x", "W", "R", "B", "lengths", "h", *(["c", "P"] if op == "LSTM" else [])]
    given, nodes, initializers = feeds(op), [], []
    for name, array in (constants or {}).items():
        given.pop(name)
        initializers += [numpy_helper.from_array(array, f"{name}0")]
        nodes.append(helper.make_node("Expand", [f"{name}0", f"{name} shape"], [name]))
        initializers.append(numpy_helper.from_array(np.array([1, *array.shape[1:]]), f"{name} shape"))
    layer = helper.make_node(op, names, ["y", "h_n"], "layer", hidden_size=H)
    shown = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "h_n")]
    if body == "Loop":
        scalars = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("go", 9))]
        on, again = helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["h in"], ["out"])
        state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h in", "out")]
        on_spec = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
        inside = helper.make_graph([layer, on, again], "body", [*scalars, state[0]], [on_spec, state[1], *shown])
        initializers += [numpy_helper.from_array(np.array(v), n) for n, v in (("rounds", 2), ("start", True))]
        nodes.append(helper.make_node("Loop", ["rounds", "start", "h"], ["o", "ys", "hs"], body=inside))
        shown = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("ys", "hs")]
    else:
        nodes.append(layer)
    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(n, types[a.dtype.name], [f"{n}.{i}" for i in range(a.ndim)])
        for n, a in given.items()
    ]
    graph = helper.make_graph(nodes, "weights", inputs, shown, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def misfits(array: Array) -> list[Array]:
    """Return arrays whose shapes are not that one's: longer, shorter, one short, of other ranks."""
    found = [np.concatenate([array] * 2, axis=1), array[:, : array.shape[1] // 2], array[:, :-1], array[:0]]
    found += [np.concatenate([array] * 100, axis=1), np.concatenate([array] * 2), array[0], array[None]]
    if array.ndim == 3:
        found += [np.concatenate([array] * 5, axis=2), array[:, :, :-1]]
    return [np.array(a, order="C") for a in found]


@pytest.mark.parametrize("body", ["", "Loop"])
@pytest.mark.parametrize("op", GATES)
def test_what_is_given_at_run_time_has_to_fit_the_layer(op: str, body: str) -> None:
    made, good = fastlstm.from_onnx(model(op, body)), feeds(op)
    expected = made.run(good)
    for name in [n for n in good if n != "x"]:
        wrong = [good[name][:1], good[name][None]] if name == "lengths" else misfits(good[name])
        for array in wrong:
            if name in ("h", "c") and array.shape == (1, 1, H):
                continue  # one state for all rows
            with pytest.raises(InputError):
                made.run({**good, name: array})
    for key, value in made.run(good).items():
        np.testing.assert_array_equal(value, expected[key], err_msg="a refused call changes nothing")


@pytest.mark.parametrize("body", ["", "Loop"])
@pytest.mark.parametrize("name", ["W", "R", "B", "P"])
def test_what_a_file_computes_has_to_fit_the_layer(name: str, body: str) -> None:
    """Folded while the file is loaded or not: R of [1, 4 * H, 512] made the first call read past its states."""
    given = feeds("LSTM")
    right = given.pop(name)
    fastlstm.from_onnx(model("LSTM", body, {name: right})).run(given)
    wide = np.zeros((*right.shape[:-1], 512), np.float32)
    for wrong in [*misfits(right), wide]:
        with pytest.raises(FastLSTMError):
            fastlstm.from_onnx(model("LSTM", body, {name: wrong})).run(given)


def test_a_value_may_be_the_input_and_the_weights() -> None:
    attrs = {"hidden_size": 2, "directions": ["forward"], "activations": default_activations("RNN"), "clip": None}
    node = Node("RNN", ("x", "x", "r"), ("y",), attrs, "layer")
    inputs = (TensorSpec("x", ("a", "b", "c")), TensorSpec("r", (1, 2, 2)))
    made = fastlstm.Model(Graph(inputs, (TensorSpec("y", ("...",)),), (node,)))
    x = np.random.default_rng(0).standard_normal((1, 2, 3)).astype(np.float32)
    y = made.run({"x": x, "r": np.zeros((1, 2, 2), np.float32)})["y"]
    np.testing.assert_allclose(y, np.tanh(x @ x[0].T), rtol=1e-5)


def test_layers_whose_features_do_not_meet_are_refused() -> None:
    attrs = {"hidden_size": 8, "directions": ["forward"], "activations": default_activations("RNN"), "clip": None}
    nodes = tuple(Node("RNN", (x, f"w{y}", "r"), (y,), attrs, f"layer {y}") for x, y in (("x", "a"), ("a", "b")))
    constants = {"wa": np.zeros((1, 8, 3)), "wb": np.zeros((1, 8, 512)), "r": np.zeros((1, 8, 8))}
    constants = {name: a.astype(np.float32) for name, a in constants.items()}
    made = Graph((TensorSpec("x", ("time", "batch", 3)),), (TensorSpec("b", ("...",)),), nodes, constants)
    with pytest.raises(UnsupportedError, match=r"expects x to be \[time, batch, 512\]"):
        fastlstm.Model(made)
