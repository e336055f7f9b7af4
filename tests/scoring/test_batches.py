"""Rows side by side in memory: each where its batch has it, whatever piece it was in and the memory held before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from data_sets import sequences

from fastlstm.scoring.batches import Rows
from fastlstm.scoring.columns import Wanted, read_column

ROWS = sequences(40, longest=6)


def read(order) -> Rows:
    """The rows in pieces of unequal size, one of them empty, which lie in memory in any order."""
    pieces = [[], ROWS[:7], [], ROWS[7:8], ROWS[8:31], ROWS[31:]]
    arrays = {}
    for i in order:
        arrays[i] = pa.array([row.tolist() for row in pieces[i]], pa.list_(pa.list_(pa.float32())))
    columns, wrong = read_column([arrays[i] for i in range(len(pieces))], Wanted("x", (3,), "float32", True))
    assert not wrong
    return Rows(columns, True)


@pytest.mark.parametrize("order", [range(6), range(5, -1, -1)])
def test_rows_are_where_their_batch_has_them_and_zero_behind_their_end(order):
    rows = read(order)
    assert rows.lengths.tolist() == [len(row) for row in ROWS]
    draw = np.random.default_rng(1).permutation(40)
    alike = np.flatnonzero(rows.lengths == 4)
    assert len(alike) > 1
    for group in (draw[:9], draw[9:10], draw[10:], alike):
        expected = np.zeros((len(group), max(1, rows.lengths[group].max()), 3), np.float32)
        for place, row in enumerate(group):
            expected[place, : len(ROWS[row])] = ROWS[row]
        assert np.array_equal(rows.batch(group), expected)


def test_values_without_time_come_in_rows():
    pieces = [pa.array([[float(i), 1.0] for i in range(n)], pa.list_(pa.float32(), 2)) for n in (3, 2)]
    columns, _ = read_column(pieces, Wanted("x", (2,), "float32", False))
    assert Rows(columns, False).batch(np.array([4, 0, 2])).tolist() == [[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]]
