"""What was asked holds and the status says so, or one sentence on stderr and the status says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from command_line import ONNX, WEIGHTS, told

from fastlstm.cli import main


def test_no_output_replaces_what_is_read(converted, series, tmp_path, capsys, monkeypatch):
    before = series.read_bytes()
    monkeypatch.chdir(tmp_path)
    os.link(series, "same.npy")
    for words in (("run", converted, series, "-o", "./x.npy"), ("run", converted, f"x={series}", "-o", "same.npy")):
        assert "is what is read" in told(capsys, *words)
    assert "is what is read" in told(capsys, "convert", converted, "-o", converted)
    assert series.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspect", "absent.onnx"], "No such file or directory: 'absent.onnx'"),
        (["inspect", "model.xyz"], "files ending in '.xyz' are not supported"),
        (["verify", "nowhere"], "No such file or directory: 'nowhere'"),
        (["inspect", str(Path(__file__).parents[3] / "LICENSE")], "files whose name has no ending are not supported"),
        (["convert", ONNX, "-o", "m.onnx"], "expected an output file ending in .fastlstm"),
        (["convert", "absent.onnx", "-o", "absent/m.fastlstm"], "there is no folder 'absent'"),
        (["convert", ONNX, "-o", "m.fastlstm", "--size", "time"], "--size takes a dimension and a positive integer"),
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
        (["bench", ONNX, "--threads", "0"], "--threads: expected a positive integer; got '0'"),
        (["inspect", ONNX, "--plan", "--batch", "x"], "--batch: expected a positive integer; got 'x'"),
        (["bench", ONNX, "--latency", "--seconds", "nan"], "--seconds: expected a number above 0; got 'nan'"),
        (["verify", ONNX, "--atol=-1"], "--atol: expected a number that is not negative; got '-1'"),
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
