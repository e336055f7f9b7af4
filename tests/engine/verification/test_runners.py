"""A source runs in its own framework, by the names of the graph; whatever the framework says is one error."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fastlstm.errors import DependencyError, UnsupportedError
from fastlstm.graph import Graph, TensorSpec
from fastlstm.verification.runners import RunnerError, own_framework, torch_runner


@pytest.fixture
def onnx_file(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 2]), value("z", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


GRAPH = Graph((TensorSpec("x", ("n", 2)),), (TensorSpec("y", ("n", 2)), TensorSpec("z", ("n", 2))), ())


class Two(torch.nn.Module):
    """Two outputs, in a nest."""

    def forward(self, x):
        return x * x, (-x,)


X = np.array([[1, 2], [3, 4]], np.float32)


def check(runner):
    found = runner.run({"x": X})
    np.testing.assert_array_equal(found["y"], X * X)
    np.testing.assert_array_equal(found["z"], -X)


def test_onnx_runs_in_onnxruntime(onnx_file):
    runner = own_framework(onnx_file, GRAPH, threads=1)
    assert runner.name.startswith("onnxruntime ")
    check(runner)
    with pytest.raises(RunnerError, match=r"onnxruntime .* refuses it"):
        runner.run({"x": np.ones(3, np.float32)})


def test_torch_runs_exported_programs_archives_and_modules(tmp_path):
    program = torch.export.export(Two(), (torch.ones(2, 2),))
    torch.export.save(program, tmp_path / "m.pt2")
    check(own_framework(tmp_path / "m.pt2", GRAPH, trusted=True))
    torch.jit.save(torch.jit.trace(Two(), torch.ones(2, 2)), tmp_path / "m.pt")
    check(own_framework(tmp_path / "m.pt", GRAPH, trusted=True))
    check(torch_runner(Two(), GRAPH))


def test_torch_loads_only_what_is_trusted(tmp_path):
    torch.jit.save(torch.jit.trace(Two(), torch.ones(2, 2)), tmp_path / "m.pt")
    for name in ("m.pt", "m.pt2"):
        with pytest.raises(UnsupportedError, match=r"may run code from .* --trusted"):
            own_framework(tmp_path / name, GRAPH)


def test_a_module_is_run_as_for_evaluation():
    dropout = torch_runner(torch.nn.Dropout(0.5), GRAPH.replace(outputs=GRAPH.outputs[:1]))
    np.testing.assert_array_equal(dropout.run({"x": X})["y"], X)


def test_the_number_of_outputs_is_checked():
    with pytest.raises(RunnerError, match="2 outputs came, 1 were expected"):
        torch_runner(Two(), GRAPH.replace(outputs=GRAPH.outputs[:1])).run({"x": X})


def test_a_damaged_file_is_the_frameworks_error(onnx_file):
    onnx_file.write_bytes(b"nonsense")
    with pytest.raises(RunnerError, match="onnxruntime"):
        own_framework(onnx_file, GRAPH)


def test_weights_alone_are_no_program(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "m.pt")
    for name in ("m.pt", "m.safetensors", "m.fastlstm"):
        with pytest.raises(UnsupportedError, match="holds no program"):
            own_framework(tmp_path / name, GRAPH)


@pytest.mark.parametrize(("suffix", "package"), [("onnx", "onnxruntime"), ("pt2", "torch"), ("keras", "keras")])
def test_an_absent_framework_is_told_with_the_command(tmp_path, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=f"pip install {package}"):
        own_framework(tmp_path / f"m.{suffix}", GRAPH, trusted=True)
