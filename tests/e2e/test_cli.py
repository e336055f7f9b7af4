"""The command line as it is used: status, stdout, stderr, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.cli import demo, main

MODEL = str(demo.DATA / "forecaster.onnx")


def test_convert_verifies_and_embeds_samples_that_verify_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "m.fastlstm")
    assert main(["convert", MODEL, "-o", target, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["holds"]
    assert report["expected_from"].startswith("onnxruntime")
    assert main(["verify", target]) == 0
    assert "golden samples of onnxruntime" in capsys.readouterr().out
    assert main(["verify", target, MODEL, "--by-layer"]) == 0
    assert "layers agree with float64" in capsys.readouterr().out


def test_convert_past_the_tolerance_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.fastlstm"
    assert main(["convert", MODEL, "-o", str(target), "--atol", "0", "--rtol", "0"]) == 1
    assert "was not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_inspect_lists_layers_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", MODEL]) == 0
    assert "recurrent.lstm" in capsys.readouterr().out
    assert main(["inspect", MODEL, "--plan", "--json"]) == 0
    shares = [row["share"] for row in json.loads(capsys.readouterr().out)["plan"]]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_run_writes_what_the_model_says_whole_and_streamed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for name, more in (("whole.npy", []), ("stream.npy", ["--stream"])):
        assert main(["run", MODEL, "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / name), *more]) == 0
    expected = fastlstm.load(MODEL)(x[None])
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "stream.npy").reshape(expected.shape), expected)


def test_bench_doctor_and_warmup_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", MODEL, "--steps", "5", "--rounds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["fastlstm"]["median"] > 0
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lanes"] in (4, 8, 16)
    assert main(["warmup", MODEL]) == 0
    assert "kernels ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "no-such.onnx"], "no-such.onnx"),
        (["inspect", "model.docx"], "not supported"),
        (["run", MODEL, "-i", "x.txt"], ".npy, .npz or .csv"),
        (["bench", MODEL, "--steps", "0"], "from 1 on"),
        (["convert", MODEL, "-o", "no/such/folder/m.fastlstm"], "no/such/folder"),
    ],
)
def test_bad_use_is_one_sentence_and_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("name", ["forecaster.onnx", "forecaster.safetensors"])
def test_a_truncated_model_is_told(name: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (demo.DATA / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    assert main(["inspect", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert message.strip()
    assert "should not happen" not in message
