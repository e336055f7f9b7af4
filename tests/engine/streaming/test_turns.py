"""Several threads at one pool: calls take turns, steps that wait go through as one batch, and each gets its own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import InputError
from fastlstm.streaming import turns
from fastlstm.streaming.turns import Turn

FEATURES, HIDDEN = 3, 256  # a step of eight rows is long enough to release the interpreter lock


def make_model() -> fastlstm.Model:
    rng = np.random.default_rng(4)
    sizes = {
        "lstm.weight_ih_l0": (4 * HIDDEN, FEATURES),
        "lstm.weight_hh_l0": (4 * HIDDEN, HIDDEN),
        "lstm.bias_ih_l0": (4 * HIDDEN,),
        "lstm.bias_hh_l0": (4 * HIDDEN,),
    }
    weights = {name: rng.uniform(-0.1, 0.1, size).astype(np.float32) for name, size in sizes.items()}
    return fastlstm.from_state_dict(weights, layers="lstm")


MODEL = make_model()
FRAMES = np.random.default_rng(1).normal(size=(8, FEATURES)).astype(np.float32)


@contextlib.contextmanager
def busy(pool: fastlstm.StreamPool) -> Iterator[None]:
    """A call of another thread is under way."""
    begun, end = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(pool._turns.run, Turn(lambda: (begun.set(), end.wait())), pool._step_together)
        begun.wait()
        try:
            yield
        finally:
            end.set()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def waited(pool: fastlstm.StreamPool, *calls: Callable[[], Any]) -> list[Any]:
    """Return what calls give, or their errors, that all wait for one call and come in this order."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
        with busy(pool):
            results = []
            for number, call in enumerate(calls, 1):
                results.append(threads.submit(call))
                until(lambda expected=number: len(pool._waiting) == expected)
        return [future.exception() or future.result() for future in results]


def alone(number: int) -> np.ndarray:
    return MODEL.stream().step(FRAMES[number])


def test_steps_that_wait_go_through_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MODEL.streams(8)
    ids = [pool.open() for _ in range(8)]
    rows: list[int] = []
    quick = pool._rows.quick
    monkeypatch.setattr(pool._rows, "quick", lambda n, *rest: rows.append(len(n)) or quick(n, *rest))
    results = waited(
        pool,
        lambda: pool.step(ids[:3], FRAMES[:3]),
        lambda: pool.state(ids[7]),
        lambda: pool.step(np.array(ids[3:5]), FRAMES[3:5]),
        lambda: pool.step(ids[5:6], FRAMES[5:6]),
    )
    assert rows == [6]
    got = np.concatenate([results[0], results[2], results[3]])
    np.testing.assert_array_equal(got, [alone(number) for number in range(6)])


def test_only_the_call_that_is_wrong_is_refused() -> None:
    pool = MODEL.streams(8)
    ids = [pool.open() for _ in range(4)]
    wrong_id, wrong_frames, *right = waited(
        pool,
        lambda: pool.step([7], FRAMES[:1]),
        lambda: pool.step(ids[:1], FRAMES[:1, :2]),
        lambda: pool.step(ids[:2], FRAMES[:2]),
        lambda: pool.step(ids[2:], FRAMES[2:4]),
    )
    assert "no open stream 7" in str(wrong_id)
    assert "shape [1, 3]" in str(wrong_frames)
    np.testing.assert_array_equal(np.concatenate(right), [alone(number) for number in range(4)])


def test_of_two_steps_of_one_stream_that_wait_the_second_is_refused() -> None:
    pool = MODEL.streams(2)
    number = pool.open()
    first, second = waited(pool, *[lambda: pool.step([number], FRAMES[:1])] * 2)
    np.testing.assert_array_equal(first[0], alone(0))
    assert "in use" in str(second)
    np.testing.assert_array_equal(pool.step([number], FRAMES[1:2])[0], MODEL.stream().push(FRAMES[:2])[1])


def test_a_call_within_a_call_is_refused_and_changes_nothing() -> None:
    pool = MODEL.streams(2)
    number = pool.open()
    pool.step([number], FRAMES[:1])
    before = pool.state(number)
    calls = [
        lambda: pool.step([number], FRAMES[:1]),
        lambda: pool.push([number], [FRAMES]),
        lambda: pool.finish([number]),
        pool.open,
        pool.clone,
        lambda: pool.close(number),
        lambda: pool.reset(number),
        lambda: pool.state(number),
        lambda: pool.set_state(number, before),
    ]
    refused = []

    class Frames:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            for call in calls:
                with pytest.raises(InputError, match="in use by another call"):
                    call()
                refused.append(call)
            raise InputError("as expected")

    with pytest.raises(InputError, match="as expected"):
        pool.step([number], Frames())
    assert len(refused) >= len(calls)
    assert len(pool) == 1
    for name, array in before.items():
        np.testing.assert_array_equal(pool.state(number)[name], array)


def test_an_interrupted_call_has_not_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MODEL.streams(2)
    number = pool.open()

    def interrupted(turn: Turn) -> None:
        raise KeyboardInterrupt

    with busy(pool), monkeypatch.context() as patch:
        patch.setattr(turns.Turn, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.step([number], FRAMES[:1])
        assert not pool._waiting
    np.testing.assert_array_equal(pool.step([number], FRAMES[:1])[0], alone(0))


def test_threads_with_streams_of_their_own_get_the_bits_of_single_streams() -> None:
    pool = MODEL.streams(16)
    ids = [pool.open() for _ in range(16)]
    steps = 60
    frames = np.random.default_rng(2).normal(size=(steps, 16, FEATURES)).astype(np.float32)

    def work(rows: slice) -> np.ndarray:
        mine = ids[rows]
        return np.stack([pool.step(mine, np.ascontiguousarray(frames[step, rows])) for step in range(steps)])

    parts = [slice(0, 8), slice(8, 12), slice(12, 16)]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        got = np.concatenate(list(threads.map(work, parts)), axis=1)
    np.testing.assert_array_equal(got, np.stack([MODEL.stream().push(frames[:, row]) for row in range(16)], axis=1))


def test_a_pool_that_nobody_knows_is_gone_at_once() -> None:
    pool = MODEL.streams(2)
    pool.step([pool.open()], FRAMES[:1])
    known = weakref.ref(pool)
    gc.disable()
    try:
        del pool
        assert known() is None
    finally:
        gc.enable()
