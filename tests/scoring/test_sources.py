"""Every kind of source gives the same rows; what cannot be read is told in a sentence before anything is written."""

from __future__ import annotations

import io
import re
import sys
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import classifier, digests, expected, rejected, scored, sequences, table
from test_columns import SPELLINGS

import fastlstm
from fastlstm.cli import main
from fastlstm.errors import FileFormatError, InputError

F32 = pa.float32()
PART = 16


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def one_feature():
    return classifier(features=1)


@pytest.fixture(scope="module")
def rows():
    return sequences(50)


# --- an Arrow stream on stdin ------------------------------------------------------------------------------------


def piped(monkeypatch, data: bytes) -> None:
    """Let stdin be these bytes."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def arrow_stream(whole: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=7)
    return sink.getvalue()


def test_an_arrow_stream_on_stdin_is_scored_and_piped_again_goes_on(tmp_path, model, rows, monkeypatch, capsys):
    model.save(tmp_path / "m.fastlstm")
    out, whole = tmp_path / "out", table(rows)
    words = [
        "score",
        str(tmp_path / "m.fastlstm"),
        "-",
        "-o",
        str(out),
        "--column",
        "input=x",
        "--part-rows",
        str(PART),
    ]
    piped(monkeypatch, arrow_stream(whole))
    assert main(words) == 0
    assert scored(out).column("output").to_pylist() == expected(model, rows)
    before = digests(out)
    (out / "part-00000001.parquet").unlink()
    piped(monkeypatch, arrow_stream(whole))
    assert main([*words, "--json"]) == 0
    assert '"scored_now": 16' in capsys.readouterr().out
    assert digests(out) == before


def test_what_is_no_stream_or_ends_too_early_is_told(tmp_path, model, rows, monkeypatch):
    piped(monkeypatch, b"id,x\n1,2\n")
    with pytest.raises(FileFormatError, match="What comes on stdin is no Arrow stream"):
        fastlstm.score(model, "-", tmp_path / "refused")
    piped(monkeypatch, b"")
    with pytest.raises(FileFormatError, match="What comes on stdin is no Arrow stream"):
        fastlstm.score(model, "-", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    piped(monkeypatch, arrow_stream(table(rows))[:-900])
    with pytest.raises(FileFormatError, match="'the Arrow stream' cannot be read"):
        fastlstm.score(model, "-", tmp_path / "out", part_rows=PART)
    piped(monkeypatch, arrow_stream(table(rows)))
    fastlstm.score(model, "-", tmp_path / "out", part_rows=PART)
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(model, rows)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_comes_through_streams_parts_and_files(spelling, tmp_path, model):
    column = SPELLINGS[spelling]
    whole = pa.table({"id": np.arange(len(column)), "x": column})
    fastlstm.score(model, whole.to_reader(), tmp_path / "stream", {"input": "x"}, part_rows=4, memory=1 << 12)
    fastlstm.score(model, whole, tmp_path / "table", {"input": "x"}, part_rows=4)
    assert digests(tmp_path / "stream") == digests(tmp_path / "table")
    assert scored(tmp_path / "table").column("output").to_pylist() == expected(model, sequences(9))
    if not ("view" in spelling or "dictionary" in spelling):  # Parquet has none of these
        pq.write_table(whole, tmp_path / "rows.parquet", row_group_size=2)
        fastlstm.score(model, tmp_path / "rows.parquet", tmp_path / "file", {"input": "x"}, part_rows=4)
        assert digests(tmp_path / "file") == digests(tmp_path / "table")


# --- CSV and .npz ------------------------------------------------------------------------------------------------


def test_columns_of_csv_files_are_the_steps_of_a_sequence(tmp_path, one_feature):
    values = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    for number, (first, last) in enumerate([(0, 25), (25, 25), (25, 40)]):
        lines = [f"{i},{','.join(map(repr, map(float, values[i])))}" for i in range(first, last)]
        (folder / f"{number}.csv").write_text("\n".join(["id,t0,t1,t2", *lines]) + "\n")
    (folder / "3.csv").write_text("")  # an export of nothing
    summary = fastlstm.score(one_feature, folder, tmp_path / "out", {"input": "t*"}, part_rows=PART)
    assert summary.rows == 40
    assert scored(tmp_path / "out").schema.names == ["id", "output"]
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(one_feature, list(values[:, :, None]))
    before = digests(tmp_path / "out")
    (tmp_path / "out" / "part-00000001.parquet").unlink()
    assert fastlstm.score(one_feature, folder, tmp_path / "out", {"input": "t*"}, part_rows=PART).scored_now == PART
    assert digests(tmp_path / "out") == before


def test_a_row_of_a_csv_file_that_lacks_a_value_is_left_out_with_its_reason(tmp_path, one_feature):
    (tmp_path / "rows.csv").write_text("id,t0,t1\n0,1.5,2\n1,,3\n2,5,-4\n")
    summary = fastlstm.score(one_feature, tmp_path / "rows.csv", tmp_path / "out", {"input": ["t0", "t1"]})
    assert (summary.rows, summary.rejected) == (3, 1)
    assert rejected(tmp_path / "out") == [{"row": 1, "reason": "'t0' to 't1': null", "id": 1}]
    values = [np.float32([[1.5], [2]]), np.float32([[5], [-4]])]
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(one_feature, values)


CSV_TROUBLE = {
    "": "is empty: a CSV file begins with a line of column names",
    "id,t0\n0,a\n": "integers|numbers",
    "id,t0\n0,1\n1\n": "cannot be read: .*Expected 2 columns, got 1",
    "t0,t0\n1,2\n": "The column 't0' is there more than once",
}


@pytest.mark.parametrize("text", CSV_TROUBLE)
def test_csv_files_that_do_not_fit_are_told(text, tmp_path, one_feature):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises((FileFormatError, InputError), match=CSV_TROUBLE[text]):
        fastlstm.score(one_feature, tmp_path / "rows.csv", tmp_path / "out", {"input": "t0"})
    assert not (tmp_path / "out").exists()


def test_arrays_of_a_npz_file_are_columns(tmp_path, model):
    values = np.random.default_rng(0).standard_normal((40, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=values, key=np.arange(40), label=np.array([f"k{i}" for i in range(40)]))
    fastlstm.score(model, tmp_path / "rows.npz", tmp_path / "out", {"input": "x"}, part_rows=PART)
    found = scored(tmp_path / "out")
    assert found.column("output").to_pylist() == expected(model, list(values))
    assert found.column("key").to_pylist() == list(range(40))
    assert found.column("label").to_pylist() == [f"k{i}" for i in range(40)]
    np.savez(tmp_path / "rows.npz", x=values, key=np.arange(41))
    with pytest.raises(InputError, match=re.escape("all arrays should have as many rows; got [40, 41]")):
        fastlstm.score(model, tmp_path / "rows.npz", tmp_path / "refused")
    np.savez(tmp_path / "rows.npz", x=np.float32(3))
    with pytest.raises(FileFormatError, match="an array without axes has no rows"):
        fastlstm.score(model, tmp_path / "rows.npz", tmp_path / "refused")
    np.savez(tmp_path / "rows.npz", x=np.array([None, {}]))
    with pytest.raises(FileFormatError, match="cannot be read"):  # pickled objects are not loaded
        fastlstm.score(model, tmp_path / "rows.npz", tmp_path / "refused")


# --- files with nothing in them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.parquet", "rows.npz"])
def test_a_file_without_bytes_is_named(name, tmp_path, model, rows):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    with pytest.raises(FileFormatError, match=f"{re.escape(name)}' cannot be read"):
        fastlstm.score(model, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_and_paths_with_nothing_to_score_are_told(tmp_path, model):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "_SUCCESS").write_text("")
    with pytest.raises(InputError, match="holds no files to score"):
        fastlstm.score(model, tmp_path / "data", tmp_path / "out")
    with pytest.raises(InputError, match="There is no file or folder"):
        fastlstm.score(model, tmp_path / "nowhere.parquet", tmp_path / "out")
    (tmp_path / "data" / "rows.xlsx").write_text("")
    with pytest.raises(InputError, match=r"score reads \.parquet and \.csv files"):
        fastlstm.score(model, tmp_path / "data", tmp_path / "out")
    with pytest.raises(InputError, match="got int"):
        fastlstm.score(model, 3, tmp_path / "out")


def test_files_that_hold_no_rows_give_the_schema_of_the_model(tmp_path, model, rows):
    pq.write_table(table(rows).slice(0, 0), tmp_path / "rows.parquet")
    assert fastlstm.score(model, tmp_path / "rows.parquet", tmp_path / "out").rows == 0
    assert scored(tmp_path / "out").schema.names == ["id", "output"]


# --- columns that stay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_group", [50, 13])
def test_columns_of_any_type_stay_as_they_are(row_group, tmp_path, model, rows):
    kept = {
        "category": pa.array([f"c{i * 7 % 11}" for i in range(50)]).dictionary_encode(),
        "when": pa.array(range(50), pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal(i) / 4 for i in range(50)], pa.decimal128(20, 2)),
        "tags": pa.array([["a"] * (i % 3) if i % 4 else None for i in range(50)]),
        "place": pa.array([{"x": i, "y": None} for i in range(50)], pa.struct([("x", F32), ("y", F32)])),
        "raw": pa.array([bytes([i]) for i in range(50)]),
        "none": pa.nulls(50),
    }
    whole = table(rows)
    nested = whole["x"].to_pylist()
    nested[20] = None
    whole = whole.set_column(1, "x", pa.array(nested, whole.schema.field("x").type))
    for name, column in kept.items():
        whole = whole.append_column(name, column)
    pq.write_table(whole, tmp_path / "rows.parquet", row_group_size=row_group)
    out = tmp_path / "out"
    fastlstm.score(model, tmp_path / "rows.parquet", out, {"input": "x"}, part_rows=PART, memory=1 << 12)
    left = [i for i in range(50) if i != 20]
    read = pq.read_table(tmp_path / "rows.parquet").take(left)
    for name in kept:
        assert scored(out).column(name).to_pylist() == read.column(name).to_pylist()
    (aside,) = rejected(out)
    assert aside["reason"] == "'x': null in place of a sequence"
    assert {name: aside[name] for name in kept} == {name: kept[name][20].as_py() for name in kept}
    fastlstm.score(model, read, tmp_path / "table", {"input": "x"})
    assert scored(tmp_path / "table").equals(scored(out).combine_chunks())
