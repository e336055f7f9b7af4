"""What `fastlstm convert` writes is verified, says what it assumed, and is measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from command_line import ONNX, WEIGHTS, data, told
from onnx import TensorProto, helper

import fastlstm
from fastlstm.cli import main
from fastlstm.commands import precision
from fastlstm.files import fileformat


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """A model with a layer large enough to be worth narrowing."""
    rng = np.random.default_rng(0)
    weights = [rng.uniform(-0.1, 0.1, (4 * 64, k)).astype(np.float32) for k in (3, 64)]
    layer = fastlstm.LSTM(*weights)
    path = str(tmp_path_factory.mktemp("wide") / "wide.fastlstm")
    layer._model(False, False).save(path)
    return path


def test_convert_reports_what_narrow_weights_cost_and_the_file_replays(wide, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((30, 2, 3)).astype(np.float32))
    target = tmp_path / "narrow.fastlstm"
    report = data(capsys, "convert", wide, "-o", target, "--precision", "int16", "--data", tmp_path / "x.npy")
    found = report["precision"]
    assert found["layers"] == {"lstm": "int16"}
    assert 0 < found["outputs"]["output"]["max_abs"] < 1e-3
    assert found["outputs"]["output"]["snr_db"] > 40
    assert found["speed"] > 0
    assert found["bytes"] < 0.6 * found["float32_bytes"]
    assert report["file_bytes"] == target.stat().st_size
    assert main(["verify", str(target)]) == 0


def test_the_largest_error_allowed_picks_the_precision(wide, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "_fastest", lambda models, sample: list(models)[-1])  # as if narrower were faster

    def picked(most: float) -> dict:
        return data(capsys, "convert", wide, "-o", tmp_path / "m.fastlstm", "--max-error", most)["precision"]

    loose = picked(1e-2)
    error = loose["outputs"]["output"]["max_abs"]
    assert loose["layers"] == {"lstm": "int8"}
    assert 0 < error <= 1e-2
    tight = picked(0.9 * error)
    assert tight["layers"] == {"lstm": "int16"}
    assert tight["outputs"]["output"]["max_abs"] <= 0.9 * error
    assert picked(1e-9)["layers"] == {"lstm": "float32"}


def test_convert_measures_a_metric_of_the_users_own(wide, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_scores.py").write_text(
        "def energy(outputs, inputs):\n    return (outputs['output'] ** 2).mean() + 0 * inputs['x'].sum()\n"
        "def words(outputs, inputs):\n    return 'good'\n"
        "def wrong(outputs, inputs):\n    return outputs['nothing']\n"
    )
    np.save("x.npy", np.random.default_rng(1).standard_normal((30, 2, 3)).astype(np.float32))
    words = ["convert", wide, "-o", "narrow.fastlstm", "--data", "x.npy", "--metric"]
    found = data(capsys, *words, "own_scores:energy")["metric"]
    x = {"x": np.load("x.npy")}
    for name, value in found.items():
        expected = np.mean(fastlstm.load(wide, precision=name).run(x)["output"] ** 2)
        assert value == pytest.approx(expected, rel=1e-6)  # the mean is a float32 here, a float64 there
    assert list(found) == ["float32", "int16", "int8"]
    assert len(set(found.values())) == 3
    assert main([*words, "own_scores:energy"]) == 0
    assert "against float32" in capsys.readouterr().out
    assert "no function 'absent'" in told(capsys, *words, "own_scores:absent")
    assert "cannot be imported" in told(capsys, *words, "absent_scores:energy")
    Path("no_python.py").write_text("def (")
    assert "cannot be imported: SyntaxError" in told(capsys, *words, "no_python:energy")
    assert "raised KeyError: 'nothing'. It is called with the outputs (output" in told(
        capsys, *words, "own_scores:wrong"
    )
    assert "it gave 'good'" in told(capsys, *words, "own_scores:words")
    assert "as in scores:accuracy" in told(capsys, *words, "energy")
    assert "give some with --data" in told(capsys, "convert", wide, "-o", "n.fastlstm", "--metric", "own_scores:energy")


def test_convert_verifies_against_onnxruntime_and_embeds_samples(tmp_path, capsys):
    report = data(capsys, "convert", ONNX, "-o", tmp_path / "m.fastlstm")
    assert report["holds"]
    assert report["expected_from"].startswith("onnxruntime")
    assert 0 < report["outputs"][0]["max_abs"] < 1e-5
    stored = fileformat.read(tmp_path / "m.fastlstm")
    assert len(stored.golden) == report["golden_samples"] == 3
    assert stored.source == fileformat.Source.of(ONNX)


def test_convert_past_the_tolerance_fails_and_leaves_nothing(tmp_path, capsys):
    # 1e-12 is far below the rounding of float32
    said = told(capsys, "convert", ONNX, "-o", tmp_path / "m.fastlstm", "--atol", "1e-12", "--rtol", "0", status=1)
    assert "was not written" in said
    assert not os.listdir(tmp_path)


def test_convert_says_what_it_assumed_and_why_it_compared_with_the_reference(tmp_path, capsys):
    assert main(["convert", WEIGHTS, "-o", str(tmp_path / "m.fastlstm"), "--layers", "lstm | linear"]) == 0
    captured = capsys.readouterr()
    assert "compared with the float64 reference" in captured.out
    assert "assumed: " in captured.err
    assert "holds no program" in captured.err


def test_convert_compares_sequences_and_writes_them_without_samples(tmp_path, capsys):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "features"])
    s = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    split = helper.make_node("SplitToSequence", ["x"], ["s"], axis=0)
    graph = helper.make_graph([split], "rows", [x], [s])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    report = data(capsys, "convert", tmp_path / "m.onnx", "-o", tmp_path / "m.fastlstm")
    assert report["holds"]
    assert report["golden_samples"] == 0
    rows = fastlstm.load(tmp_path / "m.fastlstm")(np.ones((3, 2), np.float32))
    assert [row.shape for row in rows] == [(1, 2)] * 3


def test_convert_leaves_no_file_that_does_not_load(tmp_path, capsys):
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, [3])
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "plain", [], [same])
    node = helper.make_node("Neg", ["x"], ["y"])
    for level in range(18):  # deeper than a .fastlstm file takes
        y = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [3])
        body = helper.make_graph([node], "body", [], [y])
        node = helper.make_node("If", ["flag"], [f"y{level}"], then_branch=body, else_branch=plain)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [3])
    model = helper.make_model(helper.make_graph([node], "g", [x, flag], [y]), ir_version=8)
    onnx.save(model, tmp_path / "deep.onnx")
    said = told(capsys, "convert", tmp_path / "deep.onnx", "-o", tmp_path / "m.fastlstm")
    assert "more than 16 deep" in said
    assert os.listdir(tmp_path) == ["deep.onnx"]


def test_convert_without_verifying_says_so(tmp_path, capsys):
    assert main(["convert", ONNX, "-o", str(tmp_path / "m.fastlstm"), "--no-verify"]) == 0
    assert "not verified" in capsys.readouterr().err
    assert fileformat.read(tmp_path / "m.fastlstm").golden == ()


def test_convert_calls_verified_only_what_another_engine_confirmed(tmp_path, capsys):
    out = tmp_path / "m.fastlstm"
    assert main(["convert", ONNX, "-o", str(out)]) == 0
    assert "written, verified," in capsys.readouterr().err
    state_dict = ["convert", WEIGHTS, "-o", str(out), "--layers", "lstm | linear"]
    assert main(state_dict) == 0
    said = capsys.readouterr().err
    assert "written, consistent with our own reference," in said
    assert main([*state_dict, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is False


def test_converting_again_keeps_source_and_samples(converted, tmp_path):
    assert main(["convert", converted, "-o", str(tmp_path / "again.fastlstm")]) == 0
    before, after = fileformat.read(converted), fileformat.read(tmp_path / "again.fastlstm")
    assert after.source == before.source
    assert [s.origin for s in after.golden] == [s.origin for s in before.golden]


def test_convert_takes_sizes_and_inputs(tmp_path, series):
    path = tmp_path / "m.fastlstm"
    assert main(["convert", ONNX, "-o", str(path), "--size", "batch=2", "--size", "time=5"]) == 0
    assert {s.inputs["x"].shape for s in fileformat.read(path).golden} == {(2, 5, 1)}
    assert main(["convert", ONNX, "-o", str(path), "--input", f"x={series}"]) == 0
    np.testing.assert_array_equal(fileformat.read(path).golden[0].inputs["x"], np.load(series))


def test_a_checkpoint_is_read_with_what_it_does_not_say(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shapes = {"lstm.weight_ih_l0": (16, 3), "lstm.weight_hh_l0": (16, 4), "fc.weight": (2, 4), "fc.bias": (2,)}
    tensors = {f"model.{k}": rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
    safetensors.numpy.save_file({**tensors, "other.x": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    words = ["--layers", "lstm | last | relu | linear", "--no-batch-first", "--prefix", "model."]
    seen = data(capsys, "inspect", tmp_path / "m.safetensors", *words)
    assert (seen["input"], seen["output"]) == (["input: float32[time, batch, 3]"], ["output: float32[batch, 2]"])
    assert seen["assumed"] == []
    assert main(["convert", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "m.fastlstm"), *words]) == 0
    assert "prefix is for files of other formats" in told(capsys, "inspect", tmp_path / "m.fastlstm", *words[3:])
