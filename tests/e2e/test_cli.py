"""The command line: what was asked holds and the status says so, or one sentence on stderr and the status says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper
from written_out import CELLS, looped, unrolled

import fastlstm
from fastlstm import fileformat, precision
from fastlstm.cli import main
from fastlstm.cli.demo import DATA
from fastlstm.cli.files import read_inputs
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec

ONNX, WEIGHTS = str(DATA / "forecaster.onnx"), str(DATA / "forecaster.safetensors")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("model") / "m.fastlstm")
    assert main(["convert", ONNX, "-o", path]) == 0
    return path


@pytest.fixture
def series(tmp_path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((1, 40, 1)).astype(np.float32))
    return path


def told(capsys, *words, status=2) -> str:
    """Run a command that should not succeed and return its one sentence."""
    assert main([str(word) for word in words]) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.strip()
    return captured.err


def data(capsys, *words, status=0):
    """Run a command with --json and return what it printed: stdout holds nothing else."""
    assert main([str(word) for word in [*words, "--json"]]) == status
    return json.loads(capsys.readouterr().out)


# --- convert ---------------------------------------------------------------------------------------------


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
    assert "beside float32" in capsys.readouterr().out
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


# --- verify ----------------------------------------------------------------------------------------------


def test_verify_replays_golden_samples(converted, capsys):
    report = data(capsys, "verify", converted)
    assert report["holds"]
    assert report["compared_with"].startswith("the golden samples of onnxruntime")


def test_verify_compares_two_files_by_position_of_their_outputs(tmp_path, capsys):
    assert main(["convert", WEIGHTS, "-o", str(tmp_path / "w.fastlstm"), "--layers", "lstm | linear"]) == 0
    capsys.readouterr()
    report = data(capsys, "verify", ONNX, tmp_path / "w.fastlstm")
    assert report["compared_with"].startswith("onnxruntime")


def test_verify_finds_a_changed_weight(converted, tmp_path, capsys):
    stored = fileformat.read(converted)
    constants = dict(stored.graph.constants)
    name = next(name for name, array in constants.items() if array.ndim >= 2 and array.dtype == np.float32)
    constants[name] = constants[name] * np.float32(1.01)
    other = tmp_path / "other.fastlstm"
    fileformat.write(other, stored.graph.replace(constants=constants), stored.golden)
    report = data(capsys, "verify", other, status=1)
    assert report["outputs"][0]["ratio"] > 1
    assert data(capsys, "verify", ONNX, other, status=1)["holds"] is False
    assert data(capsys, "verify", converted, other, status=1)["holds"] is False


def test_verify_by_layer(converted, capsys):
    assert "agree with float64" in data(capsys, "verify", converted, "--by-layer")["by_layer"]
    report = data(capsys, "verify", converted, "--by-layer", "--atol", "1e-12", "--rtol", "0", status=1)
    assert report["by_layer"].startswith("first layer that differs: LSTM")


def test_verify_needs_something_to_compare_with(tmp_path, capsys):
    main(["convert", ONNX, "-o", str(tmp_path / "m.fastlstm"), "--no-verify"])
    assert "holds no golden samples" in told(capsys, "verify", tmp_path / "m.fastlstm")


# --- run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_run_writes_what_the_model_gives(converted, series, tmp_path, suffix):
    target = tmp_path / f"y.{suffix}"
    assert main(["run", converted, str(series), "-o", str(target)]) == 0
    expected = fastlstm.load(converted)(np.load(series))
    if suffix == "csv":  # nine digits are enough to give every float32 back
        np.testing.assert_array_equal(np.loadtxt(target, delimiter=",", dtype=np.float32), expected[0, :, 0])
    else:
        found = np.load(target) if suffix == "npy" else np.load(target)["forecast"]
        np.testing.assert_array_equal(found, expected)
    assert sorted(os.listdir(tmp_path)) == ["x.npy", target.name]


def test_run_streams_to_the_same_bits(converted, series, tmp_path):
    assert main(["run", converted, str(series), "--stream", "-o", str(tmp_path / "y.npy")]) == 0
    whole = fastlstm.load(converted)(np.load(series))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole[0])


def test_run_takes_tables_with_and_without_names(converted, series, tmp_path, capsys):
    x = np.load(series)
    np.savetxt(tmp_path / "plain.csv", x[0], delimiter=",")
    np.savetxt(tmp_path / "named.csv", x[0], delimiter=",", header="value", comments="")
    np.savez(tmp_path / "x.npz", x=x)
    expected = fastlstm.load(converted)(x)
    for name in ("plain.csv", "named.csv", "x.npz"):
        found = data(capsys, "run", converted, tmp_path / name)["forecast"]
        np.testing.assert_array_equal(np.array(found["values"], np.float32), expected)


def test_a_line_of_names_is_said_and_a_damaged_line_of_numbers_is_none(converted, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("spots\n1\n2\n")
    assert main(["run", converted, str(tmp_path / "x.csv")]) == 0
    assert "the first line is taken for names and left out: spots" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("1,2.O,3\n1,2,3\n")
    assert "its first line holds 2 numbers and '2.O'" in told(capsys, "run", converted, tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("number", "said"),
    [("1e999", "the number 1e999 is larger than a float64"), ("-1e300", "cannot hold the number -1e+300")],
)
def test_a_number_too_large_for_the_model_is_refused(converted, tmp_path, capsys, number, said):
    (tmp_path / "x.csv").write_text(f"1\n{number}\n")
    assert said in told(capsys, "run", converted, tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("1\n-inf\n")  # said outright
    assert main(["run", converted, str(tmp_path / "x.csv")]) == 0


@pytest.mark.parametrize(("dtype", "number"), [("int32", 2**40), ("uint8", -1), ("int64", 1e300), ("bool", 2)])
def test_a_whole_number_that_does_not_fit_is_refused(tmp_path, dtype, number):
    spec = TensorSpec("ids", (2,), dtype)
    graph = Graph((spec,), (TensorSpec("y", (2,), dtype),), (Node("Identity", ("ids",), ("y",)),))
    np.save(tmp_path / "x.npy", np.array([1, number]))
    with pytest.raises(InputError, match="cannot hold the number"):
        read_inputs([str(tmp_path / "x.npy")], graph)


def test_no_output_replaces_what_is_read(converted, series, tmp_path, capsys, monkeypatch):
    before = series.read_bytes()
    monkeypatch.chdir(tmp_path)
    os.link(series, "same.npy")
    for words in (("run", converted, series, "-o", "./x.npy"), ("run", converted, f"x={series}", "-o", "same.npy")):
        assert "is what is read" in told(capsys, *words)
    assert "is what is read" in told(capsys, "convert", converted, "-o", converted)
    assert series.read_bytes() == before


def test_run_in_parts_of_the_batch_gives_the_same_bits(converted, tmp_path):
    x = np.random.default_rng(1).standard_normal((600, 3, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert main(["run", converted, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), fastlstm.load(converted)(x))


def test_run_unpickles_nothing(converted, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "cannot be read as .npy" in told(capsys, "run", converted, tmp_path / "x.npy")


# --- the other verbs -------------------------------------------------------------------------------------


def test_inspect_names_loops_that_run_as_written_and_says_what_is_unrolled(tmp_path, capsys):
    fastlstm.Model(looped([CELLS["gru"]])).save(tmp_path / "layer.fastlstm")
    fastlstm.Model(looped([CELLS["gru"]], trips=-1)).save(tmp_path / "loop.fastlstm")
    fastlstm.Model(unrolled([CELLS["gru"]])).save(tmp_path / "steps.fastlstm")
    assert data(capsys, "inspect", tmp_path / "layer.fastlstm")["loops"] == []
    assert data(capsys, "inspect", tmp_path / "loop.fastlstm")["loops"] == ["while"]
    for words in ([], ["--plan"]):
        assert main(["inspect", str(tmp_path / "loop.fastlstm"), *words]) == 0
        assert "The loop 'while' is none of the recurrent cells that are recognised" in capsys.readouterr().out
    (note,) = data(capsys, "inspect", tmp_path / "steps.fastlstm")["assumed"]
    assert "over 4 time steps" in note


def test_inspect_shows_layers_with_what_they_cost(converted, capsys):
    report = data(capsys, "inspect", converted, "--plan")
    lstm = [layer for layer in report["layers"] if layer["op"] == "LSTM"]
    assert [layer["macs"] for layer in lstm] == [4 * 32 * (1 + 32), 4 * 32 * (32 + 32)]
    assert [layer["kernel"] for layer in lstm] == ["recurrent.lstm", "recurrent.lstm"]
    assert report["parameters"] == sum(layer["parameters"] for layer in report["layers"])
    assert sum(step["share"] for step in report["plan"]) == pytest.approx(1, abs=0.01)
    for words in (["inspect", converted], ["inspect", ONNX, "--plan"]):
        assert main(words) == 0
        assert "recurrent.lstm" in capsys.readouterr().out


def test_bench_times_a_model_beside_its_own_framework(converted, capsys):
    report = data(capsys, "bench", converted, "--against", ONNX, "--steps", "7", "--rounds", "2")
    ours, theirs = report["results"].values()
    assert theirs["name"].startswith("onnxruntime")
    assert ours["steps_per_call"] == 7
    assert ours["ratio"] == 1
    assert report["settings"]["threads"] == 1


def test_bench_latency_draws_its_distribution(converted, tmp_path, capsys):
    words = ["bench", converted, "--latency", "--seconds", "0.1", "--sample-rate", "100"]
    report = data(capsys, *words, "--plot", tmp_path / "a.svg")
    assert report["median"] <= report["p99"] <= report["p99.9"] <= report["max"]
    assert report["real_time_factor"] == pytest.approx(report["median"] * 100)
    picture = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert picture.tag.endswith("svg")
    assert "p99.9" in (tmp_path / "a.svg").read_text()
    assert report["deadline"] == 0.01
    assert report["missed"] <= report["calls"]
    assert "deadline" in (tmp_path / "a.svg").read_text()
    pool = data(capsys, *words, "--pool", "3")
    assert pool["steps_per_call"] == 1
    blocks = data(capsys, *words, "--block", "8")
    assert blocks["real_time_factor"] == pytest.approx(blocks["median"] / 8 * 100)
    assert main(words) == 0
    assert "█" in capsys.readouterr().out


def test_warmup_and_latency_know_pairs_of_states_and_sizes(tmp_path, capsys):
    def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((1, 9, 3)).astype(np.float32), name) for name in ("w", "r")
    ]
    node = helper.make_node("GRU", ["x", "w", "r", "", "", "memory"], ["", "result"], hidden_size=3)
    inputs = [info("x", 1, "rows", 3), info("memory", 1, "rows", 3)]
    graph = helper.make_graph([node], "one step", inputs, [info("result", 1, "rows", 3)], weights)
    path = tmp_path / "step.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)
    pairs = ["--state", "memory=result", "--size", "rows=1"]
    assert data(capsys, "bench", path, "--latency", "--seconds", "0.05", *pairs)["calls"] > 0
    assert main(["warmup", str(path), *pairs, "--pool", "2"]) == 0
    assert "ready" in capsys.readouterr().out
    assert "nothing" in told(capsys, "warmup", path, "--state", "memory=nothing")
    assert "There is no open dimension 'time'" in told(capsys, "bench", path, "--latency", "--size", "time=5")


def test_bench_compares_files_by_position_where_names_differ(converted, tmp_path, capsys):
    proto = onnx.load(ONNX)
    for value in (*proto.graph.input, *proto.graph.output):
        old, value.name = value.name, f"other {value.name}"
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [value.name if name == old else name for name in names]
    onnx.save(proto, tmp_path / "renamed.onnx")
    report = data(capsys, "bench", converted, "--against", tmp_path / "renamed.onnx", "--steps", "5", "--rounds", "2")
    assert len(report["results"]) == 2


def test_doctor_describes_the_machine(capsys):
    report = data(capsys, "doctor")
    assert report["fastlstm"] == fastlstm.__version__
    assert report["numba"] != "not installed"
    assert report["lanes"] in (4, 8, 16)
    assert main(["doctor"]) == 0
    assert "instruction set" in capsys.readouterr().out


def test_doctor_writes_a_report_that_can_be_sent(tmp_path, capsys, monkeypatch):
    path = tmp_path / "report.json"
    monkeypatch.setattr("fastlstm.report.SECONDS", 0.01)
    assert main(["doctor", "--report", str(path)]) == 0
    assert f"{path} says all that" in capsys.readouterr().out
    text = path.read_text()
    assert not {str(Path.home()), str(tmp_path), os.uname().nodename} & set(text.replace('"', " ").split())
    rows = json.loads(text)["models"]
    assert len(rows) > 5
    assert all(row["the same bits"] and row["microseconds"] > 0 for row in rows)

    wrong = {row["model"]: row["expected"] for row in rows} | {rows[0]["model"]: "0" * 16}
    monkeypatch.setattr("fastlstm.report.expected", lambda: wrong)
    found = data(capsys, "doctor", "--report", path, status=1)
    assert [row["the same bits"] for row in found["models"]] == [False, *[True] * (len(rows) - 1)]
    assert json.loads(path.read_text()) == found


def test_warmup_leaves_nothing_to_compile(converted, capsys):
    assert main(["warmup", converted]) == 0
    assert "ready in" in capsys.readouterr().out


# --- manners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspect", "absent.onnx"], "No such file or directory: 'absent.onnx'"),
        (["inspect", "model.xyz"], "files ending in '.xyz' are not supported"),
        (["convert", ONNX, "-o", "m.onnx"], "expected an output file ending in .fastlstm"),
        (["convert", "absent.onnx", "-o", "absent/m.fastlstm"], "there is no folder 'absent'"),
        (["convert", ONNX, "-o", "m.fastlstm", "--size", "time"], "--size takes a dimension and a whole number"),
        (["convert", ONNX, "-o", "m.fastlstm", "--size", "width=3"], "no open dimension 'width'"),
        (["convert", ONNX, "-o", "m.fastlstm", "--layers", "lstm"], "no option 'layers'"),
        (["convert", WEIGHTS, "-o", "m.fastlstm", "--layers", "lstm | nonsense"], "nonsense"),
        (["run", ONNX], "needs inputs"),
        (["run", ONNX, "x.txt"], "expected a file ending in .npy, .npz or .csv"),
        (["run", ONNX, "y=x.npy"], "there is no input 'y'; the model's are x"),
        (["run", ONNX, "wide.npy"], "expected 1 where"),
        (["run", ONNX, "x.npy", "-o", "y.txt"], "expected an output file ending in"),
        (["run", ONNX, "short.npy"], "cannot be read as .npy"),
        (["run", ONNX, "header.npy"], "cannot be read as .npy"),
        (["run", ONNX, "words.csv"], "cannot be read as .csv"),
        (["run", ONNX, "x.npy", "x.npy"], "one file too many: the model's inputs are x"),
        (["run", "absent.onnx", "x.npy", "-o", "absent/y.npy"], "there is no folder 'absent'"),
        (
            ["convert", ONNX, "-o", "m.fastlstm", "--data", "x.npy"],
            "--data goes with --precision, --max-error or --metric",
        ),
        (["bench", "absent.onnx", "--latency", "--plot", "absent/a.svg"], "there is no folder 'absent'"),
        (["bench", ONNX, "--plot", "a.png"], "draws the histogram of --latency"),
        (["verify", WEIGHTS, "--layers", "lstm | linear", "--input", "x=words.csv"], "words.csv"),
    ],
)
def test_bad_use_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((1, 3, 1), np.float32))
    np.save("wide.npy", np.ones((1, 3, 2), np.float32))
    Path("short.npy").write_bytes(Path("x.npy").read_bytes()[:-4])
    Path("header.npy").write_bytes(Path("x.npy").read_bytes().replace(b"}", b"("))
    Path("words.csv").write_text("a,b\nc,d\n")
    Path("model.xyz").write_bytes(b"")
    before = sorted(os.listdir())
    assert sentence in told(capsys, *words)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("words", [[], ["bake"], ["convert"], ["inspect", "--nonsense", "x"]])
def test_bad_words_are_argparse_errors(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: fastlstm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench", ONNX, "--threads", "0"], "--threads: expected a whole number from 1 on; got '0'"),
        (["inspect", ONNX, "--plan", "--batch", "x"], "--batch: expected a whole number from 1 on; got 'x'"),
        (["bench", ONNX, "--latency", "--seconds", "nan"], "--seconds: expected a number above 0; got 'nan'"),
        (["verify", ONNX, "--atol=-1"], "--atol: expected a number from 0 on; got '-1'"),
        (["convert", ONNX, "-o", "m.fastlstm", "--max-error", "0"], "--max-error: expected a number above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_told(words, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_damaged_models_are_told_by_every_verb(converted, tmp_path, monkeypatch, capsys, series):
    broken = tmp_path / "m.fastlstm"
    content = bytearray(Path(converted).read_bytes())
    content[-5] ^= 1
    broken.write_bytes(content)
    for words in (["inspect"], ["verify"], ["bench"], ["warmup"], ["convert", "-o", "n.fastlstm"]):
        assert "is damaged" in told(capsys, words[0], broken, *words[1:])
    assert "is damaged" in told(capsys, "run", broken, series)


def test_weights_of_the_wrong_shape_are_told(tmp_path, capsys):
    tensors = safetensors.numpy.load_file(WEIGHTS)
    tensors["lstm.weight_hh_l0"] = tensors["lstm.weight_hh_l0"][:, :-1].copy()
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    said = told(capsys, "inspect", tmp_path / "w.safetensors", "--layers", "lstm | linear")
    assert "weight_hh [128, 31]" in said


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyboardInterrupt(), "stopped"),
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "Permission denied", "m.onnx"), "Permission denied: 'm.onnx'"),
        (RuntimeError("wheels fell off"), "should not happen: RuntimeError: wheels fell off"),
        (RecursionError("deep"), "should not happen: RecursionError"),
    ],
)
def test_whatever_happens_is_one_sentence(monkeypatch, capsys, error, sentence):
    def fail(_):
        raise error

    monkeypatch.delenv("FASTLSTM_TRACEBACK", raising=False)
    monkeypatch.setattr("fastlstm.cli.doctor.run", fail)
    assert sentence in told(capsys, "doctor")
    monkeypatch.setenv("FASTLSTM_TRACEBACK", "1")
    assert main(["doctor"]) == 2
    assert "Traceback" in capsys.readouterr().err


def start(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from fastlstm.cli import main; sys.exit(main())", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_reader_that_leaves_early_is_no_accident():
    process = start("doctor")
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


def test_a_terminal_without_unicode_is_no_accident():
    process = start("bench", ONNX, "--rounds", "1", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert b"median ?s" in out


def test_help_imports_no_engine():
    code = "import sys; from fastlstm.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'numba', 'numpy', 'onnx', 'torch'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


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
