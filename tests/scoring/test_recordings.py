"""Recordings in pieces: the bits of the whole, however many run side by side."""

from __future__ import annotations

import subprocess
import sys
import wave

import numpy as np
import pyarrow.compute as pc
import pytest
from data_sets import classifier, rejected, scored
from random_stacks import WIDTH, Stack

import fastlstm
from fastlstm.cli import main
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec


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


def test_a_frame_may_begin_with_the_last_samples_of_the_one_before(tmp_path, folder):
    model = classifier(features=4, layers="lstm | linear")
    fastlstm.score(model, folder, tmp_path / "out", stream=True, overlap=1)
    found = scored(tmp_path / "out").to_pylist()
    for name in ("a.wav", "b.wav"):
        with wave.open(str(folder / name)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
        padded = np.concatenate([np.zeros(1), samples, np.zeros(-len(samples) % 3)]).astype(np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 4)[::3]
        outputs = [output for row in found if row["recording"] == name for output in row["output"]]
        assert np.array_equal(np.float32(outputs), model(frames[None])[0])
    with pytest.raises(InputError, match="overlap should be less than the 4"):
        fastlstm.score(model, folder, tmp_path / "refused", stream=True, overlap=4)
    np.save(folder / "e.npy", np.zeros((5, 4), np.float32))
    fastlstm.score(model, folder / "e.npy", tmp_path / "frames", stream=True, overlap=1)
    assert "overlap is for samples" in rejected(tmp_path / "frames")[0]["reason"]


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
    assert "1 recording could not be scored" in capsys.readouterr().err
    (folder / "d.wav").unlink()
    assert main([*words[:4], str(tmp_path / "other"), "--stream"]) == 0
    assert main([*words, "--memory", "1G"]) == 2
    assert main([*words[:-1], "--overlap", "1"]) == 2
    assert "--overlap is for recordings" in capsys.readouterr().err


def detector():
    """One call a frame of any number of samples: their mean, times a gain, and a state that goes from call to call."""
    x, gain = TensorSpec("x", ("batch", "samples")), TensorSpec("gain", ())
    before, after = (TensorSpec(name, ("batch", 1)) for name in ("state", "next"))
    nodes = (
        Node("ReduceMean", ("x", "axes"), ("mean",), {"keepdims": 1}),
        Node("Mul", ("mean", "gain"), ("loud",)),
        Node("Add", ("loud", "state"), ("next",)),
        Node("Tanh", ("next",), ("y",)),
    )
    outputs = TensorSpec("y", ("batch", 1)), after
    return fastlstm.Model(Graph((x, gain, before), outputs, nodes, {"axes": np.array([1])}))


def test_frames_whose_size_the_model_leaves_open_have_the_size_that_is_said(tmp_path, folder):
    model, options = detector(), {"stream": True, "state": {"state": "next"}, "constants": {"gain": 0.5}}
    fastlstm.score(model, folder, tmp_path / "out", frame=80, overlap=16, streams=2, **options)
    found = scored(tmp_path / "out").to_pylist()
    for name in ("a.wav", "b.wav"):
        with wave.open(str(folder / name)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
        padded = np.concatenate([np.zeros(16), samples, np.zeros(-len(samples) % 64)]).astype(np.float32)
        state, outputs = np.zeros((1, 1), np.float32), []
        for frame in np.lib.stride_tricks.sliding_window_view(padded, 80)[::64]:
            result = model.run({"x": frame[None], "gain": np.float32(0.5), "state": state})
            state = result["next"]
            outputs.append(result["y"][0, 0])
        got = [output for row in found if row["recording"] == name for output in row["y"]]
        assert np.array_equal(np.float32(got).reshape(-1), np.float32(outputs))
    with pytest.raises(InputError, match=r"overlap should be less than the 1 .* Say how many samples a frame has"):
        fastlstm.score(model, folder, tmp_path / "refused", overlap=16, **options)
    with pytest.raises(InputError, match="was begun with another frame"):
        fastlstm.score(model, folder, tmp_path / "out", frame=96, overlap=16, **options)
    with pytest.raises(InputError, match="frame should be a positive number of samples; got 0"):
        fastlstm.score(model, folder, tmp_path / "refused", frame=0, **options)
    fixed = classifier(features=4, layers="lstm | linear")
    with pytest.raises(InputError, match=r"takes frames of \[4\], which is no 8 samples"):
        fastlstm.score(fixed, folder, tmp_path / "refused", stream=True, frame=8)
    assert not (tmp_path / "refused").exists()


def louder():
    """A layer over frames of two samples whose outputs are multiplied by an input that is the same all along."""
    layer = classifier(features=2, layers="lstm | linear").graph
    (shown,) = layer.outputs
    return fastlstm.Model(
        layer.replace(
            inputs=(*layer.inputs, TensorSpec("gain", ())),
            outputs=(TensorSpec("loud", shown.shape),),
            nodes=(*layer.nodes, Node("Mul", (shown.name, "gain"), ("loud",))),
        )
    )


def test_other_inputs_of_a_stream_have_one_value_for_all_recordings(tmp_path, folder):
    model, plain = louder(), classifier(features=2, layers="lstm | linear")
    (folder / "d.wav").unlink()
    options = {"stream": True, "streams": 2, "workers": 1}
    fastlstm.score(model, folder, tmp_path / "loud", constants={"gain": 4.0}, **options)
    fastlstm.score(plain, folder, tmp_path / "plain", **options)
    loud, quiet = scored(tmp_path / "loud").to_pylist(), scored(tmp_path / "plain").to_pylist()
    assert len(loud) == len(quiet) > 0
    for one, other in zip(loud, quiet, strict=True):
        assert np.array_equal(np.float32(one["loud"]), 4 * np.float32(other["output"]))
    with pytest.raises(InputError, match="was begun with another constants"):
        fastlstm.score(model, folder, tmp_path / "loud", constants={"gain": 5.0}, **options)
    with pytest.raises(InputError, match=r"A recording is one input; give each other of .*gain"):
        fastlstm.score(model, folder, tmp_path / "refused", **options)
    with pytest.raises(InputError, match="There is no input 'volume' of a stream"):
        fastlstm.score(model, folder, tmp_path / "refused", constants={"volume": 1}, **options)
    with pytest.raises(InputError, match="The constant for input 'gain' does not fit it"):
        fastlstm.score(model, folder, tmp_path / "refused", constants={"gain": [1.0, 2.0, 3.0]}, **options)
    assert not (tmp_path / "refused").exists()


def test_arrays_of_frames_are_recordings_too(tmp_path):
    model = classifier(features=3, layers="lstm | linear")
    (tmp_path / "data").mkdir()
    frames = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    np.save(tmp_path / "data" / "a.npy", frames)
    np.save(tmp_path / "data" / "b.npy", frames[:, :2])
    (tmp_path / "data" / "c.npy").write_bytes((tmp_path / "data" / "a.npy").read_bytes()[:-1])
    summary = fastlstm.score(model, tmp_path / "data", tmp_path / "out", stream=True)
    assert (summary.rows, summary.rejected) == (5000, 2)
    outputs = [output for row in scored(tmp_path / "out").to_pylist() for output in row["output"]]
    assert np.array_equal(np.float32(outputs), model(frames[None])[0])
    narrow, short = rejected(tmp_path / "out")
    assert "the model takes numbers [frames, 3]" in narrow["reason"]
    assert "c.npy' ends before its last frame" in short["reason"]


def test_a_recording_that_is_cut_off_goes_aside_and_one_of_unknown_length_is_played(tmp_path, folder):
    model = classifier(features=1, layers="lstm | linear")
    whole = (folder / "b.wav").read_bytes()
    (folder / "d.wav").write_bytes(whole[:-3])
    at = whole.index(b"data") + 4
    (folder / "e.wav").write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
    fastlstm.score(model, folder, tmp_path / "out", stream=True)
    (row,) = rejected(tmp_path / "out")
    count = (len(whole) - at - 4) // 2
    assert f"d.wav' ends before its last sample: its header says {count:,}, and it holds {count - 2:,}" in row["reason"]
    found = scored(tmp_path / "out").to_pylist()
    assert [row["output"] for row in found if row["recording"] == "e.wav"] == [
        row["output"] for row in found if row["recording"] == "b.wav"
    ]
    with pytest.raises(InputError, match="ends before its last sample"):
        fastlstm.score(model, folder / "d.wav", tmp_path / "stopped", stream=True, on_error="stop")


HOUR = """
import resource, sys
from fastlstm.cli import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_an_hour_of_sound_takes_no_more_memory_than_minutes(tmp_path):
    pytest.importorskip("resource")
    model = classifier(features=256, layers="lstm | linear")  # frames of 32 ms, as voice activity is told for
    model.save(tmp_path / "m.fastlstm")
    second = np.random.default_rng(0).integers(-9000, 9000, 8000).astype("<i2")
    held = []
    for minutes in (3, 60):
        folder = tmp_path / f"{minutes}"
        folder.mkdir()
        with wave.open(str(folder / "sound.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            for _ in range(60 * minutes):
                file.writeframes(second.tobytes())
        words = ["score", tmp_path / "m.fastlstm", folder / "sound.wav", "-o", folder / "out", "--stream"]
        done = subprocess.run(
            [sys.executable, "-c", HOUR, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        held.append(int(done.stdout) * (1 if sys.platform == "darwin" else 1024))
        outputs = scored(folder / "out")["output"]
        assert pc.sum(pc.list_value_length(outputs)).as_py() == minutes * 60 * 8000 // 256
    samples = np.tile(second, 60 * 60).astype(np.float32) / 32768
    last = np.float32(outputs[-1].as_py())
    assert np.array_equal(last, model(samples.reshape(1, -1, 256))[0, -len(last) :])
    assert held[1] - held[0] < 16 << 20  # the file is 58 MB
