"""Rows side by side in memory: each where its batch has it, whatever piece it was in and the memory held before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from data_sets import sequences

from fastlstm.scoring.batches import Rows, Spare, gather
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
    groups = [draw[:9], draw[9:10], draw[10:]]
    spare = Spare()
    spare.give(np.full(100_000, 255, np.uint8))  # NaN
    batches, _ = gather({"x": rows}, groups, rows.lengths, spare)
    for group, batch in zip(groups, batches, strict=True):
        assert batch.rows is group
        assert batch.lengths.tolist() == [len(ROWS[row]) for row in group]
        expected = np.zeros((len(group), batch.lengths.max(), 3), np.float32)
        for place, row in enumerate(group):
            expected[place, : len(ROWS[row])] = ROWS[row]
        assert np.array_equal(batch.arrays["x"], expected)
        assert batch.arrays["x"].ctypes.data % 16 == 0
        assert [half.arrays["x"].tolist() for half in batch.halves()] == [
            expected[: len(group) // 2].tolist(),
            expected[len(group) // 2 :].tolist(),
        ]


def test_values_without_time_come_in_rows():
    pieces = [pa.array([[float(i), 1.0] for i in range(n)], pa.list_(pa.float32(), 2)) for n in (3, 2)]
    columns, _ = read_column(pieces, Wanted("x", (2,), "float32", False))
    batches, _ = gather({"x": Rows(columns, False)}, [np.array([4, 0, 2])], None, Spare())
    assert batches[0].arrays["x"].tolist() == [[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]]
    assert batches[0].lengths is None


def test_memory_that_was_given_back_is_used_again_and_does_not_pile_up():
    spare = Spare()
    first, second = spare.take(1000), spare.take(5000)
    assert not np.shares_memory(first, second)
    spare.give(first)
    spare.give(second)
    assert spare.take(900) is first
    assert spare.take(900) is second
    spare.give(first)
    third = spare.take(6000)
    assert third is not first
    spare.give(third)
    assert spare.take(10) is third  # the small one was let go of
