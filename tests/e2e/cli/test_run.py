"""`fastlstm run` reads inputs of several kinds and writes what the model gives."""

from __future__ import annotations

import os

import numpy as np
import pytest
from command_line import data, told

import fastlstm
from fastlstm.cli import main
from fastlstm.cli.files import read_inputs
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec


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


def test_run_in_parts_of_the_batch_gives_the_same_bits(converted, tmp_path):
    x = np.random.default_rng(1).standard_normal((600, 3, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert main(["run", converted, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), fastlstm.load(converted)(x))


def test_run_unpickles_nothing(converted, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "cannot be read as .npy" in told(capsys, "run", converted, tmp_path / "x.npy")
