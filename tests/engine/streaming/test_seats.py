"""Several threads step streams of one pool at the same time, each from a seat of its own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from streamed_models import TemporalConvolutions, exported, frames, loaded

import fastlstm
from fastlstm.program import layout
from fastlstm.streaming import graph_rows
from fastlstm.streaming import pool as pools

FEATURES, STREAMS, STEPS = 4, 8, 40


def layers() -> fastlstm.Model:
    rng = np.random.default_rng(4)
    sizes = {"weight_ih_l0": (3 * 256, FEATURES), "weight_hh_l0": (3 * 256, 256)}
    weights = {f"gru.{name}": rng.uniform(-0.1, 0.1, size).astype(np.float32) for name, size in sizes.items()}
    return fastlstm.from_state_dict(weights, layers="gru", batch_first=True)


def taped() -> fastlstm.Model:
    return loaded(exported(TemporalConvolutions(), {"x": frames(2)}, "y"))


@pytest.fixture(params=[layers, taped], ids=["layers", "tape"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> fastlstm.Model:
    monkeypatch.setattr(pools, "cores", lambda: 2)
    made: fastlstm.Model = request.param()
    return made


@contextlib.contextmanager
def taken(pool: fastlstm.StreamPool, seat: int, *running: int) -> Iterator[None]:
    """A step of another thread is under way, of the streams `running`."""
    busy = pool._rows.seats[seat].busy
    before = pool._marks[list(running)]
    pool._marks[list(running)] = layout.RUNNING
    del busy.free
    try:
        yield
    finally:
        pool._marks[list(running)] = before
        busy.free = None
        pool._turns.help(pool._step_together)


def waits(pool: fastlstm.StreamPool, call: Callable[[], Any], seat: int, *running: int) -> Any:
    """Return what a call gives that has to wait for a step of another thread."""
    waited, result = tried(pool, call, seat, *running)
    assert waited
    return result


def tried(pool: fastlstm.StreamPool, call: Callable[[], Any], seat: int, *running: int) -> tuple[bool, Any]:
    """Return whether a call waits for a step of another thread, and what it gives."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with taken(pool, seat, *running):
            future = threads.submit(call)
            while not pool._waiting and not future.done():
                time.sleep(0.001)
            waited = not future.done()
        return waited, future.result()


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def test_a_step_does_not_wait_for_one_of_other_streams(model: fastlstm.Model) -> None:
    pool, alone = model.streams(STREAMS), model.stream()
    ids = np.array([pool.open() for _ in range(2)])
    x = rows(20)

    def step(t: int) -> np.ndarray:
        y: np.ndarray = pool.step(ids[:1], x[t : t + 1])
        return y

    want = [alone.step(frame) for frame in x]
    got = [step(t)[0] for t in range(4)]
    waited = []
    for t in range(4, 8):  # the second seat gets its program
        waits_still, y = tried(pool, lambda t=t: step(t), 0, ids[1])
        waited.append(waits_still)
        got.append(y[0])
    assert waited[0]
    assert not waited[-1]
    with taken(pool, 0, ids[1]):
        got += [step(t)[0] for t in range(8, 12)]
    got += [step(t)[0] for t in range(12, 16)]
    with taken(pool, 1, ids[1]):
        got += [step(t)[0] for t in range(16, 20)]
    np.testing.assert_array_equal(got, want)


def test_a_step_of_a_stream_that_is_under_way_waits(model: fastlstm.Model) -> None:
    pool, alone = model.streams(STREAMS), model.stream()
    number = pool.open()
    x = rows(9)
    for seat in (0, 1):
        for t in range(3):
            np.testing.assert_array_equal(pool.step([number], x[t : t + 1])[0], alone.step(x[t]))
        y = waits(pool, lambda: pool.step([number], x[3:4]), seat, number)
        np.testing.assert_array_equal(y[0], alone.step(x[3]))


@pytest.mark.parametrize("seat", [0, 1])
def test_a_call_that_needs_the_whole_pool_waits_for_every_seat(seat: int, model: fastlstm.Model) -> None:
    pool = model.streams(STREAMS)
    number = pool.open()
    pool.step([number], rows(1))
    before = pool.state(number)
    for name, array in waits(pool, lambda: pool.state(number), seat).items():
        np.testing.assert_array_equal(array, before[name])
    assert waits(pool, pool.open, seat) != number
    waits(pool, lambda: pool.close(number), seat)
    assert len(pool) == 1


def test_a_step_that_comes_while_another_call_waits_goes_behind_it(model: fastlstm.Model) -> None:
    pool = model.streams(STREAMS)
    ids = [pool.open() for _ in range(2)]
    for _ in range(3):
        pool.step(ids[:1], rows(1))
    order: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        with taken(pool, 1, ids[1]):
            threads.submit(lambda: (pool.reset(ids[0]), order.append("reset")))
            while len(pool._waiting) < 1:
                time.sleep(0.001)
            step = threads.submit(lambda: pool.step(ids[:1], rows(1)))
            while len(pool._waiting) < 2:
                time.sleep(0.001)
            assert not order
        np.testing.assert_array_equal(step.result()[0], model.stream().step(rows(1)[0]))


def test_threads_at_once_have_the_bits_of_single_streams(model: fastlstm.Model) -> None:
    pool = model.streams(2 * STREAMS)
    ids = [pool.open() for _ in range(2 * STREAMS)]
    x = np.random.default_rng(2).normal(size=(STEPS, 2 * STREAMS, FEATURES)).astype(np.float32)

    def work(part: slice) -> np.ndarray:
        mine = ids[part]
        got = [pool.step(mine, np.ascontiguousarray(frames[part])) for frames in x]
        spare = pool.open() if part.start else None  # calls that need the whole pool come between
        if spare is not None:
            pool.close(spare)
        return np.stack(got)

    pool.close(ids.pop())
    parts = [slice(0, 8), slice(8, 12), slice(12, 15)]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        got = np.concatenate(list(threads.map(work, parts)), axis=1)
    want = np.stack([model.stream().push(np.ascontiguousarray(x[:, row])) for row in range(15)], axis=1)
    np.testing.assert_array_equal(got, want)
    assert not pool._words[layout.STREAMS_RUNNING]
    assert (pool._marks[ids] >= 0).all()


def test_threads_that_step_the_same_streams_wait_for_each_other(model: fastlstm.Model) -> None:
    pool = model.streams(STREAMS)
    ids = [pool.open() for _ in range(STREAMS)]
    x = np.repeat(rows(1), STREAMS, axis=0)

    def work() -> list[bytes]:
        return [pool.step(ids, x).tobytes() for _ in range(STEPS)]

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(work) for _ in range(2)]
        got = [y for call in calls for y in call.result()]
    want = model.stream().push(np.repeat(rows(1), 2 * STEPS, axis=0))
    assert sorted(got) == sorted(np.repeat(y[None], STREAMS, axis=0).tobytes() for y in want)


def test_a_number_of_streams_that_comes_often_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_rows, "OFTEN", 3)
    monkeypatch.setattr(graph_rows, "MOST_WHOLE", 1)
    model = taped()
    pool = model.streams(16)
    ids = np.array([pool.open() for _ in range(13)])
    alone = [model.stream() for _ in ids]
    whole = []
    for count in [13] * 6 + [11] * 6 + [13]:
        x = rows(count, len(whole))
        got = pool.step(ids[:count], x)
        np.testing.assert_array_equal(got, [s.step(frame) for s, frame in zip(alone[:count], x, strict=True)])
        native = pool._entries[0](ids[:count], x)
        whole.append(native is not None)
        if native is not None:
            np.testing.assert_array_equal(native, [s.step(frame) for s, frame in zip(alone, x, strict=False)])
    assert whole[3:6] == [False, True, True] or all(whole[4:6])
    assert not any(whole[6:12])
    assert whole[12]
