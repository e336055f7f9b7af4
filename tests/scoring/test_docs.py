"""The examples of docs/scoring.md run as they stand there, but for the names of the model's file and input."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_sets import classifier, expected, sequences, table

DOCS = Path(__file__).parents[2] / "docs" / "scoring.md"


def example(tool: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (code,) = [code for code in blocks if tool in code]
    assert len(code.splitlines()) <= 12
    return code.replace("model.onnx", "model.fastlstm").replace('{"x":', '{"input":')


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Rows in two files, in the working folder, beside the model."""
    rows = sequences(40)
    classifier().save(tmp_path / "model.fastlstm")
    (tmp_path / "rows").mkdir()
    whole = table(rows).rename_columns(["id", "readings"])
    for number in range(2):
        pq.write_table(whole.slice(20 * number, 20), tmp_path / "rows" / f"{number}.parquet")
    monkeypatch.chdir(tmp_path)
    return rows


def check(rows, column: str = "output") -> None:
    found = pq.read_table("scores").sort_by("id")
    assert found.column(column).to_pylist() == expected(classifier(), rows)
    assert found.column("fastlstm_error").null_count == len(rows)


def test_dask(rows):
    exec(example("dask"), {})
    check(rows)


@pytest.mark.spark
def test_spark(rows, monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    exec(example("pyspark"), {})
    check(rows, "score")
