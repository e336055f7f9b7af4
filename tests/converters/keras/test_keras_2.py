"""What Keras 2 wrote and Keras 3 does not: CuDNN layers, functions of TensorFlow as layers, its rules for masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_files import layer, write_h5

from fastlstm import UnsupportedError
from fastlstm.converters import load_graph
from fastlstm.operators import reference

RNG = np.random.default_rng(5)
X, Y = (RNG.normal(size=(2, 5, 3)).astype("f4") for _ in range(2))


def test_cudnn_layers_give_what_keras_makes_of_them() -> None:
    graph = load_graph(Path(__file__).parent / "files" / "cudnn_keras2.h5")
    x = np.sin(np.arange(2 * 5 * 3)).reshape(2, 5, 3).astype("f4")
    (found,) = reference.run(graph, {graph.inputs[0].name: x}).values()
    np.testing.assert_allclose(found, [[0.34010762, -0.06308933], [0.16312946, 0.02669463]], atol=1e-6)


def call(function: str, *nodes: Any) -> dict[str, Any]:
    """Return a layer that stands for a function of TensorFlow; `nodes` are its inputs as the file has them."""
    kind = "SlicingOpLambda" if function == "__operators__.getitem" else "TFOpLambda"
    return {**layer(kind, "f", function=function), "name": "f", "inbound_nodes": list(nodes)}


ELLIPSIS = {"class_name": "__ellipsis__"}


def whole(start: int | None = None, stop: int | None = None, step: int | None = None) -> dict[str, Any]:
    return {"start": start, "stop": stop, "step": step}


CALLS: list[tuple[dict[str, Any], Any]] = [
    (call("__operators__.add", ["x", 0, 0, {"y": ["y", 0, 0], "name": None}]), X + Y),
    (call("math.subtract", ["_CONSTANT_VALUE", -1, 1, {"y": ["x", 0, 0], "name": None}]), 1 - X),
    (call("math.truediv", ["x", 0, 0, {"y": 2.0}]), X / 2),
    (call("concat", [["x", 0, 0, {"axis": 1}], ["y", 0, 0, {"axis": 1}]]), np.concatenate([X, Y], 1)),
    (call("math.reduce_mean", ["x", 0, 0, {"axis": 1, "keepdims": True}]), X.mean(1, keepdims=True)),
    (call("nn.softmax", ["x", 0, 0, {"axis": 1}]), np.exp(X) / np.exp(X).sum(1, keepdims=True)),
    (call("linalg.matmul", ["x", 0, 0, {"b": ["y", 0, 0], "transpose_b": True}]), X @ Y.transpose(0, 2, 1)),
    (call("compat.v1.transpose", ["x", 0, 0, {"perm": [0, 2, 1], "name": "transpose"}]), X.transpose(0, 2, 1)),
    (call("__operators__.getitem", ["x", 0, 0, {"slice_spec": [whole(), -1]}]), X[:, -1]),
    (call("__operators__.getitem", ["x", 0, 0, {"slice_spec": [ELLIPSIS, whole(1)]}]), X[..., 1:]),
    (call("clip_by_value", ["x", 0, 0, {"clip_value_min": -0.1, "clip_value_max": 0.5}]), np.clip(X, -0.1, 0.5)),
]  # fmt: skip


def functional(outputs: str, *layers: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        {"class_name": "InputLayer", "name": name, "inbound_nodes": [],
         "config": {"name": name, "batch_input_shape": [None, 5, 3], "dtype": "float32"}}
        for name in ("x", "y")
    ]  # fmt: skip
    config = {"name": "m", "layers": [*inputs, *layers], "input_layers": [["x", 0, 0], ["y", 0, 0]]}
    return {"class_name": "Functional", "config": {**config, "output_layers": [[outputs, 0, 0]]}}


@pytest.mark.parametrize(("data", "expected"), CALLS, ids=lambda case: "")
def test_functions_of_tensorflow(tmp_path: Path, data: dict[str, Any], expected: np.ndarray) -> None:
    graph = load_graph(write_h5(tmp_path / "m.h5", functional("f", data), {}))
    (found,) = reference.run(graph, {"x": X, "y": Y}).values()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "named"),
    [(call("signal.fft", ["x", 0, 0, {}]), "signal.fft"), (call("math.add", ["x", 0, 0, {"y": 1, "z": 2}]), "'z'")],
)
def test_other_functions_are_refused_by_name(tmp_path: Path, data: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        load_graph(write_h5(tmp_path / "m.h5", functional("f", data), {}))
