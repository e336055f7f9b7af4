"""Batches of many sizes share a few programs, and a row has the same bits in each."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm
from fastlstm.runtime import segment

SIZES = (1, 2, 15, 16, 17, 23, 24, 31, 33, 40)


def _model(**options):
    rng = np.random.default_rng(0)
    weights = {
        name: rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        for name, shape in {
            "lstm.weight_ih_l0": (32, 3),
            "lstm.weight_hh_l0": (32, 8),
            "lstm.bias_ih_l0": (32,),
            "lstm.bias_hh_l0": (32,),
            "head.weight": (2, 8),
            "head.bias": (2,),
        }.items()
    }
    return fastlstm.from_state_dict(weights, batch_first=True, **options)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("lengths", "layers"), [(True, "lstm | hidden | linear"), (False, "lstm | linear")])
def test_rows_have_the_same_bits_in_a_program_with_room_for_more(lengths, layers, precision):
    model = _model(layers=layers, lengths=lengths, precision=precision, threads=2)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((max(SIZES), 9, 3)).astype(np.float32)
    steps = rng.integers(1, 10, max(SIZES))

    def run(first, count):
        given = {"input": x[first : first + count]}
        return model.run({**given, "lengths": steps[first : first + count]} if lengths else given)["output"]

    alone = [run(row, 1)[0] for row in range(max(SIZES))]
    for size in (*SIZES, *reversed(SIZES)):  # a program that was full runs fewer rows, and the other way round
        assert np.array_equal(run(0, size), np.stack(alone[:size]))


def test_few_programs_are_kept():
    model = _model(layers="lstm | last | linear", lengths=False)
    for size in (*range(1, 129), *range(1, 129)):
        model.run({"input": np.zeros((size, 10, 3), np.float32)})
    (segment,) = model.plan.parts
    kept = [*segment._programs.values(), *segment._shared.values()]
    between = 3 * 8  # rooms with numbers of rows that are less; for their own number others are kept
    assert sum(map(len, kept)) <= 15 + between + 1 + between


@pytest.mark.parametrize("layers", ["lstm | linear", "lstm | last | linear"])
def test_shared_programs_are_called_without_a_detour(layers, monkeypatch):
    monkeypatch.setattr(segment, "MOST_SIZES", 0)
    model = _model(layers=layers, lengths=False)
    x = np.random.default_rng(1).standard_normal((max(SIZES), 9, 3)).astype(np.float32)
    alone = np.stack([model(x[row : row + 1])[0] for row in range(max(SIZES))])
    for size in SIZES:
        model(x[:size])
    executor = model._executor
    for size in (*SIZES, *reversed(SIZES)):  # the rows of a program change from call to call
        for steps in (9, 5):
            known = executor.enter(x[:size, :steps])
            if executor._entries[size][0].program.batch > size:
                assert executor.quick(x[:size, :steps]) is None  # it might have been set to another number since
            if known is not None and steps == 9:
                assert np.array_equal(known, alone[:size])
            assert np.array_equal(model(x[:size, :steps]), model(x[:size, :steps].copy()))
    shared = [size for size in SIZES if executor._entries[size][0].program.batch > size]
    assert shared == [17, 23, 31, 33]
    for size in shared:
        assert executor.enter(x[:size]) is not None


def test_calls_that_meet_have_entries_of_their_own(monkeypatch):
    monkeypatch.setattr(segment, "MOST_SIZES", 0)
    model = _model(layers="lstm | last | linear", lengths=False)
    executor = model._executor
    for size in (16, 17):  # a program of its own, and one with room for more
        x = np.random.default_rng(size).standard_normal((size, 9, 3)).astype(np.float32)
        want = [model(x) for _ in range(3)][-1]
        busy = executor._entries[size][0].program.busy
        del busy.free
        assert executor.enter(x) is None
        assert np.array_equal(model(x), want)
        assert np.array_equal(executor.enter(x), want) or np.array_equal(executor.quick(x), want)
        busy.free = None
        assert len(executor._entries[size]) == 2
