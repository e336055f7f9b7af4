"""Models and rows that the tests of scoring share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastlstm

FEATURES = 3
KILLS = int(os.environ.get("FASTLSTM_KILLS", "3"))
"""Runs that are killed; the longer test asks for 50 over more rows (FASTLSTM_KILL_ROWS)."""
KILL_ROWS = int(os.environ.get("FASTLSTM_KILL_ROWS", "6000"))


def classifier(units: int = 8, features: int = FEATURES, layers: str = "lstm | last | linear", **options):
    """A small LSTM with a dense layer of two outputs."""
    rng = np.random.default_rng(3)

    def uniform(*shape):
        return rng.uniform(-0.5, 0.5, shape).astype(np.float32)

    weights = {
        "lstm.weight_ih_l0": uniform(4 * units, features),
        "lstm.weight_hh_l0": uniform(4 * units, units),
        "lstm.bias_ih_l0": uniform(4 * units),
        "lstm.bias_hh_l0": uniform(4 * units),
        "head.weight": uniform(2, units),
        "head.bias": uniform(2),
    }
    options = {"batch_first": True, **options}
    return fastlstm.from_state_dict(weights, layers=layers, **options)


def sequences(rows: int, longest: int = 12, features: int = FEATURES, seed: int = 0) -> list[np.ndarray]:
    """Random sequences of 1 to `longest` steps."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, features)).astype(np.float32) for n in rng.integers(1, longest + 1, rows)]


def table(rows: list[np.ndarray]) -> pa.Table:
    """A table with the columns id and x, a list of lists of fixed size."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.zeros((0, FEATURES), np.float32)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.table({"id": np.arange(len(rows)), "x": pa.ListArray.from_arrays(pa.array(offsets), frames)})


def expected(model, rows: list[np.ndarray]) -> list[list[float]]:
    """What the model says of each row alone."""
    return [model(row[None])[0].tolist() for row in rows]


def scored(folder: Path) -> pa.Table:
    """All parts of a run, in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def rejected(folder: Path) -> list[dict]:
    """The rows that a run left out."""
    return [r for path in sorted(folder.glob("_rejected/*.parquet")) for r in pq.read_table(path).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    """The hash of every part, by name; nothing else is in the folder but the manifest."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert files.pop("_manifest.json").stat().st_size
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
