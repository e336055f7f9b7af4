"""Recordings in pieces: the bits of the whole, however many run side by side."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from data_sets import classifier, rejected, scored
from random_stacks import WIDTH, Stack

import fastlstm
from fastlstm.cli import main
from fastlstm.errors import InputError
from fastlstm.graph import TensorSpec


@pytest.fixture
def folder(tmp_path):
    """Three recordings of one channel, one of them without samples, and one that is no WAV file."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, count in {"a": 10_001, "b": 4096, "c": 0}.items():
        with wave.open(str(tmp_path / "data" / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, count, "NONE", ""))
            file.writeframes(rng.integers(-9000, 9000, count).astype("<i2").tobytes())
    (tmp_path / "data" / "d.wav").write_bytes(b"RIFF no sound")
    return tmp_path / "data"


@pytest.mark.parametrize(("features", "streams", "workers"), [(1, 1, 1), (1, 16, 2), (4, 2, 1)])
def test_blocks_have_the_bits_of_the_whole_recording(features, streams, workers, tmp_path, folder):
    model = classifier(features=features, layers="lstm | linear")
    summary = fastlstm.score(model, folder, tmp_path / "out", stream=True, streams=streams, workers=workers)
    found = scored(tmp_path / "out")
    assert summary.rejected == 1
    assert [(r["row"], r["recording"]) for r in rejected(tmp_path / "out")] == [(3, "d.wav")]
    for name in ("a.wav", "b.wav"):
        with wave.open(str(folder / name)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
        frames = np.concatenate([samples, np.zeros(-len(samples) % features, np.float32)]).reshape(-1, features)
        rows = [row for row in found.to_pylist() if row["recording"] == name]
        assert [row["first_frame"] for row in rows] == list(range(0, len(frames), 4096))
        outputs = [output for row in rows for output in row["output"]]
        assert np.array_equal(np.float32(outputs), model(frames.astype(np.float32)[None])[0])
    with pytest.raises(InputError, match="is no"):
        fastlstm.score(model, folder, tmp_path / "stopped", stream=True, on_error="stop")


def test_a_model_that_looks_ahead_answers_every_frame(tmp_path, folder):
    stack = Stack(3)
    stack.last = stack.add("Transpose", "x", perm=[0, 2, 1])
    stack.last = stack.add("Conv", stack.last, stack.weight(WIDTH, 1, 5), "", pads=[2, 2], group=1)
    stack.recurrent()
    stack.last = stack.add("Transpose", stack.last, perm=[0, 2, 1])
    x, y = TensorSpec("x", ("batch", "time", 1)), TensorSpec(stack.last, ("batch", "time", WIDTH))
    model = fastlstm.Model(stack.graph().replace(inputs=(x,), outputs=(y,)))
    assert model.stream().delay == 2
    fastlstm.score(model, folder, tmp_path / "out", stream=True)
    found = scored(tmp_path / "out").to_pylist()
    for name in ("a.wav", "b.wav"):
        with wave.open(str(folder / name)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
        got = np.float32([output for row in found if row["recording"] == name for output in row[y.name]])
        assert np.array_equal(got, model(samples.astype(np.float32)[None, :, None])[0])


def test_the_command_line_says_with_its_status_that_a_recording_was_left_out(tmp_path, folder, capsys):
    classifier(features=1, layers="lstm | linear").save(tmp_path / "m.fastlstm")
    words = ["score", str(tmp_path / "m.fastlstm"), str(folder), "-o", str(tmp_path / "out"), "--stream"]
    assert main(words) == 1
    assert "1 recordings could not be scored" in capsys.readouterr().err
    (folder / "d.wav").unlink()
    assert main([*words[:4], str(tmp_path / "other"), "--stream"]) == 0
    assert main([*words, "--memory", "1G"]) == 2
