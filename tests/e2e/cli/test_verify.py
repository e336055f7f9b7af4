"""`fastlstm verify` finds what differs, by file and by layer."""

from __future__ import annotations

import numpy as np
from command_line import ONNX, WEIGHTS, data, told

from fastlstm.cli import main
from fastlstm.files import fileformat


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
