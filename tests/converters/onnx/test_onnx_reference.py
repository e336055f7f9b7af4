"""Operators that ONNX's reference implementation runs: right, said by `inspect`, and bounded in what they take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm import cli
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.model import Model
from fastlstm.operators.onnx_reference import REFERENCE, REFERRED

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any] | None = None, opset: int = 20
) -> Any:
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def value(name: str, shape: list[int | str] | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def warped() -> Any:
    """Frames are warped by a grid before an LSTM reads their rows."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.normal(size=(1, 32, 6)).astype(np.float32),
        "R": rng.normal(size=(1, 32, 8)).astype(np.float32) / 3,
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("GridSample", ["x", "grid"], ["warped"], name="warp", align_corners=1, padding_mode="border"),
        helper.make_node("Squeeze", ["warped", "axis"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["time_major"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["time_major", "W", "R"], ["", "h"], hidden_size=8),
    ]
    inputs = [value("x", ["batch", 1, 9, 6]), value("grid", ["batch", "time", 6, 2])]
    return model(nodes, inputs, [value("h", None)], weights)


def grid_inputs() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x, grid = rng.normal(size=(2, 1, 9, 6)), rng.uniform(-1.2, 1.2, (2, 5, 6, 2))
    return {"x": x.astype(np.float32), "grid": grid.astype(np.float32)}


def agree(proto: Any, feeds: dict[str, Any]) -> None:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = fastlstm.from_onnx(proto).run(feeds)
    for spec, theirs in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert ours[spec.name].dtype == theirs.dtype
        np.testing.assert_allclose(ours[spec.name], theirs, rtol=1e-4, atol=1e-5)


def test_a_model_runs_through_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agree(warped(), grid_inputs())
    source, stored = tmp_path / "warped.onnx", tmp_path / "warped.fastlstm"
    onnx.save(warped(), source)
    assert cli.main(["inspect", str(source)]) == 0
    assert "Runs through ONNX's reference implementation (slow; needs the package onnx): GridSample." in (
        capsys.readouterr().out
    )
    assert cli.main(["convert", str(source), "-o", str(stored)]) == 0
    assert cli.main(["verify", str(stored)]) == 0
    before = fastlstm.load(source).run(grid_inputs())["h"]
    assert np.array_equal(before, fastlstm.load(stored).run(grid_inputs())["h"])


def test_boxes_are_suppressed_as_onnxruntime_does() -> None:
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 5, (1, 12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 4, (1, 12, 2))], axis=2).astype(np.float32)
    weights = {"most": np.array([4]), "overlap": np.float32([0.4]), "least": np.float32([0.1])}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *weights], ["chosen"])
    inputs = [value("boxes", [1, "n", 4]), value("scores", [1, 2, "n"])]
    proto = model([node], inputs, [value("chosen", None, INT64)], weights)
    agree(proto, {"boxes": boxes, "scores": rng.uniform(0, 1, (1, 2, 12)).astype(np.float32)})


def test_groups_with_a_scale_each() -> None:
    weights = {"scale": np.float32([1.5, 0.5]), "bias": np.float32([0.1, -0.2])}
    node = helper.make_node("GroupNormalization", ["x", *weights], ["y"], num_groups=2)
    proto = model([node], [value("x", ["batch", 6, "time"])], [value("y", None)], weights, opset=18)
    agree(proto, {"x": np.random.default_rng(3).normal(size=(2, 6, 7)).astype(np.float32)})


def test_normalisation_in_training_is_said() -> None:
    weights = {"s": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    node = helper.make_node("BatchNormalization", ["x", *"sbbs"], ["y"], name="norm", training_mode=1)
    graph = from_onnx(model([node], [value("x", ["batch", 3, 4])], [value("y", None)], weights, opset=15))
    assert "'norm' is written for training" in graph.notes[0]
    x = np.random.default_rng(4).normal(2, 3, (5, 3, 4)).astype(np.float32)
    (y,) = Model(graph).run({"x": x}).values()
    centred = x - x.mean((0, 2), keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(y, centred / np.sqrt(x.var((0, 2), keepdims=True, dtype=np.float64) + 1e-5), atol=1e-5)


def huge_models() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Small files that ask the reference implementation for much memory or for a long time."""
    ones = np.ones((1, 1, 2, 2), np.float32)
    image = [value("x", [1, 1, 2, 2])]
    unpool = helper.make_node("MaxUnpool", ["x", "at", "shape"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    wide = helper.make_node("MaxUnpool", ["x", "at"], ["y"], kernel_shape=[2**20, 2**20])
    at = np.arange(4).reshape(1, 1, 2, 2)
    boundless = {"rois": np.float32([[0, 0, 1e30, 1e30]]), "which": np.array([0])}
    region = helper.make_node("RoiAlign", ["x", *boundless], ["y"], output_height=1, output_width=1)
    crop = helper.make_node("CenterCropPad", ["x", "shape"], ["y"])
    affine = helper.make_node("AffineGrid", ["x", "shape"], ["y"])
    sample = helper.make_node("GridSample", ["x", "grid"], ["y"])
    tile = helper.make_node("Expand", ["g", "shape"], ["grid"])
    out = [value("y", None)]
    return {
        "MaxUnpool by its shape": (
            model([unpool], image, out, {"at": at, "shape": np.array([1, 1, 2**20, 2**20])}),
            {"x": ones},
        ),
        "MaxUnpool by its kernel": (model([wide], image, out, {"at": at}), {"x": ones}),
        "RoiAlign": (model([region], image, out, boundless), {"x": ones}),
        "CenterCropPad": (model([crop], image, out, {"shape": np.array([1, 1, 2**20, 2**20])}), {"x": ones}),
        "AffineGrid": (
            model([affine], [value("x", [1, 2, 3])], out, {"shape": np.array([1, 1, 2**20, 2**20])}),
            {"x": np.ones((1, 2, 3), np.float32)},
        ),
        "GridSample": (
            model([tile, sample], [*image, value("g", [1, 1, 1, 2])], out, {"shape": np.array([1, 5000, 5000, 2])}),
            {"x": ones, "g": np.zeros((1, 1, 1, 2), np.float32)},
        ),
    }


@pytest.mark.parametrize("name", huge_models())
def test_what_would_take_too_much_is_refused_first(name: str) -> None:
    proto, feeds = huge_models()[name]
    began = time.perf_counter()
    with pytest.raises(FastLSTMError, match=name.split()[0]) as refusal:
        fastlstm.from_onnx(proto).run(feeds)
    assert str(refusal.value).endswith((".", "allowed"))
    assert time.perf_counter() - began < 5  # the promise for hostile files; it takes milliseconds


@pytest.mark.parametrize(
    "op", ["ImageDecoder", "RegexFullMatch", "StringNormalizer", "Bernoulli", "OptionalHasElement"]
)
def test_other_operators_stay_refused_by_name(op: str) -> None:
    attrs = {"pattern": "(a+)+$"} if op == "RegexFullMatch" else {}
    node = helper.make_node(op, ["x"], ["y"], **attrs)
    with pytest.raises(UnsupportedError, match=op):
        fastlstm.from_onnx(model([node], [value("x", [1])], [value("y", None)]))


def test_a_stored_file_cannot_name_another_operator() -> None:
    attrs = {"operator": "RegexFullMatch", "opset": 20, "attributes": [["pattern", "(a+)+$"]]}
    node = Node(REFERENCE, ("x",), ("y",), attrs)
    hostile = Model(Graph((TensorSpec("x", (1,)),), (TensorSpec("y", (1,)),), (node,)))
    assert "RegexFullMatch" not in REFERRED
    with pytest.raises(UnsupportedError, match="RegexFullMatch"):
        hostile.run({"x": np.zeros(1, np.float32)})


def run_once(graph: Graph) -> None:
    Model(graph).run({"x": np.zeros((1, 1, 2, 2), np.float32), "g": np.zeros((1, 1, 1, 2), np.float32)})


@pytest.mark.parametrize("attributes", [3, [3], [["mode"]], [["no_such", 1]], [[["mode"], 1]], [["mode", [None]]]])
def test_damaged_attributes_are_an_error(attributes: Any) -> None:
    node = Node(REFERENCE, ("x", "g"), ("y",), {"operator": "GridSample", "opset": 20, "attributes": attributes})
    inputs = (TensorSpec("x", (1, 1, 2, 2)), TensorSpec("g", (1, 1, 1, 2)))
    with pytest.raises(FastLSTMError, match=r"GridSample|the attribute 'attributes' should be"):
        run_once(Graph(inputs, (TensorSpec("y", ("...",)),), (node,)))
