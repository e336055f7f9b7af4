"""`inspect`, `bench`, `warmup` and `doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from command_line import ONNX, data, told
from onnx import TensorProto, helper
from written_out import CELLS, looped, unrolled

import fastlstm
from fastlstm.cli import main


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
    monkeypatch.setattr("fastlstm.conformance.report.SECONDS", 0.01)
    assert main(["doctor", "--report", str(path)]) == 0
    assert f"{path} says all that" in capsys.readouterr().out
    text = path.read_text()
    assert not {str(Path.home()), str(tmp_path), os.uname().nodename} & set(text.replace('"', " ").split())
    rows = json.loads(text)["models"]
    assert len(rows) > 5
    assert all(row["the same bits"] and row["microseconds"] > 0 for row in rows)

    wrong = {row["model"]: row["expected"] for row in rows} | {rows[0]["model"]: "0" * 16}
    monkeypatch.setattr("fastlstm.conformance.report.expected", lambda: wrong)
    found = data(capsys, "doctor", "--report", path, status=1)
    assert [row["the same bits"] for row in found["models"]] == [False, *[True] * (len(rows) - 1)]
    assert json.loads(path.read_text()) == found


def test_warmup_leaves_nothing_to_compile(converted, capsys):
    assert main(["warmup", converted]) == 0
    assert "ready in" in capsys.readouterr().out
