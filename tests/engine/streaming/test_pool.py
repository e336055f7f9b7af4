"""A pool's streams: the same bits as each alone, whatever joins, leaves and goes together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlstm
from fastlstm import InputError
from fastlstm.streaming.flow import ROWS, Carried
from fastlstm.streaming.stores import Store

FEATURES, HIDDEN, WIDTH = 3, 21, 2


def make_model(threads: int = 1) -> fastlstm.Model:
    rng = np.random.default_rng(4)

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-0.4, 0.4, shape).astype(np.float32)

    return fastlstm.from_state_dict(
        {
            "lstm.weight_ih_l0": weight(4 * HIDDEN, FEATURES),
            "lstm.weight_hh_l0": weight(4 * HIDDEN, HIDDEN),
            "lstm.bias_ih_l0": weight(4 * HIDDEN),
            "lstm.bias_hh_l0": weight(4 * HIDDEN),
            "head.weight": weight(WIDTH, HIDDEN),
            "head.bias": weight(WIDTH),
        },
        layers="lstm | linear",
        threads=threads,
    )


MODEL = make_model()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_joins_leaves_and_chunks_have_the_bits_of_single_streams(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    pool = MODEL.streams(capacity=80)
    alone: dict[int, fastlstm.Stream] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["open", "open many", "close", "step", "push", "push"]))
        if action.startswith("open"):
            for _ in range(70 if action == "open many" else 1):
                if len(pool) < pool.capacity:
                    alone[pool.open()] = MODEL.stream()
        chosen = [i for i in alone if rng.random() < 0.7]
        rng.shuffle(chosen)
        if action == "close" and chosen:
            pool.close(chosen[0])
            del alone[chosen[0]]
        elif action == "step":
            frames = rng.normal(size=(len(chosen), FEATURES)).astype(np.float32)
            got = pool.step(chosen, frames)
            for number, frame, y in zip(chosen, frames, got, strict=True):
                np.testing.assert_array_equal(y, alone[number].step(frame))
        elif action == "push":
            chunks = [rng.normal(size=(rng.integers(0, 9), FEATURES)).astype(np.float32) for _ in chosen]
            for number, chunk, y in zip(chosen, chunks, pool.push(chosen, chunks), strict=True):
                np.testing.assert_array_equal(y, alone[number].push(chunk))
    assert len(pool) == len(alone)
    for number, stream in alone.items():
        for name, array in stream.state.items():
            np.testing.assert_array_equal(pool.state(number)[name], array)


def test_a_chunk_longer_than_a_window_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(9)
    chunks = [rng.normal(size=(n, FEATURES)).astype(np.float32) for n in (700, 3, 256, 257)]
    pool = MODEL.streams(capacity=4)
    numbers = [pool.open() for _ in chunks]
    for chunk, y in zip(chunks, pool.push(numbers, chunks), strict=True):
        np.testing.assert_array_equal(y, MODEL.stream().push(chunk))


def test_state_moves_between_streams_and_pools() -> None:
    frames = np.random.default_rng(1).normal(size=(6, FEATURES)).astype(np.float32)
    stream, pool = MODEL.stream(), MODEL.streams(capacity=2)
    stream.push(frames[:3])
    number = pool.open()
    pool.set_state(number, stream.state)
    np.testing.assert_array_equal(pool.step([number], frames[3:4])[0], stream.step(frames[3]))
    stream.reset()
    stream.state = pool.state(number)
    np.testing.assert_array_equal(stream.step(frames[4]), pool.step([number], frames[4:5])[0])
    pool.reset(number)
    np.testing.assert_array_equal(pool.step([number], frames[:1])[0], MODEL.stream().step(frames[0]))


def test_an_id_given_out_again_starts_anew() -> None:
    pool = MODEL.streams(capacity=1)
    frame = np.ones((1, FEATURES), np.float32)
    first = pool.open()
    want = pool.step([first], frame)
    pool.close(first)
    np.testing.assert_array_equal(pool.step([pool.open()], frame), want)


def test_out_is_written_and_nothing_else_is_made() -> None:
    pool = MODEL.streams(capacity=3)
    numbers = [pool.open() for _ in range(3)]
    out = np.zeros((3, WIDTH), np.float32)
    frames = np.ones((3, FEATURES), np.float32)
    assert pool.step(numbers, frames, out=out) is out
    np.testing.assert_array_equal(out[0], MODEL.stream().step(frames[0]))
    with pytest.raises(InputError, match="out should be"):
        pool.step(numbers, frames, out=np.zeros((3, WIDTH + 1), np.float32))


def test_wrong_use_is_told_and_changes_nothing() -> None:
    pool = MODEL.streams(capacity=2)
    a, b = pool.open(), pool.open()
    frame = np.ones((1, FEATURES), np.float32)
    before = pool.state(a)
    with pytest.raises(InputError, match="All 2 streams"):
        pool.open()
    with pytest.raises(InputError, match="more than once"):
        pool.step([a, a], np.repeat(frame, 2, axis=0))
    with pytest.raises(InputError, match=r"shape \[1, 3\]"):
        pool.step([a], frame[:, :2])
    with pytest.raises(InputError, match="a chunk for each"):
        pool.push([a, b], [frame])
    with pytest.raises(InputError, match="state has the arrays"):
        pool.set_state(a, {"other": np.zeros((1, 3))})
    numbers = [a, b]
    pool.step(numbers, np.repeat(frame, 2, axis=0))
    pool.close(b)
    with pytest.raises(InputError, match="no open stream"):
        pool.step(numbers, np.repeat(frame, 2, axis=0))  # the list that was right a call ago
    before = pool.state(a)
    for wrong in (b, 7, -1):
        with pytest.raises(InputError, match="no open stream"):
            pool.step([wrong], frame)
    with pytest.raises(InputError, match="list of stream ids"):
        pool.step(["a"], frame)
    with pytest.raises(InputError, match="capacity"):
        MODEL.streams(capacity=0)
    for name, array in before.items():
        np.testing.assert_array_equal(pool.state(a)[name], array)


def test_a_step_that_was_met_before_runs_without_python_and_refuses_what_python_refuses() -> None:
    pool, alone = MODEL.streams(capacity=12), [MODEL.stream() for _ in range(12)]
    numbers = np.array([pool.open() for _ in range(12)])
    frames = np.random.default_rng(7).normal(size=(12, FEATURES)).astype(np.float32)

    def native(ids: object, some: np.ndarray, *out: np.ndarray) -> np.ndarray | None:
        return pool._entries[0](ids, some, *out)  # type: ignore[misc]

    def expected(ids: np.ndarray, some: np.ndarray) -> list[np.ndarray]:
        return [alone[i].step(frame) for i, frame in zip(ids, some, strict=True)]

    for count in (5, 7, 5):  # the same program runs 5 of its rows, then 7
        chosen, some = numbers[2 : 2 + count], frames[:count]
        assert native(chosen, some) is None
        np.testing.assert_array_equal(pool.step(chosen, some), expected(chosen, some))
        np.testing.assert_array_equal(native(chosen[::-1].copy(), some), expected(chosen[::-1], some))
        out = np.empty((count, WIDTH), np.float32)
        assert native(chosen, some, out) is out
        np.testing.assert_array_equal(out, expected(chosen, some))
    chosen, some, busy = numbers[:5].copy(), frames[:5], pool._busy
    before = pool.state(2)
    for ids in (
        chosen[::-1], chosen.astype(np.int32), chosen.tolist(), np.array([0, 1, 2, 3, 12]), np.array([0, 1, 2, 3, -1]),
        np.array([0, 1, 2, 3, 3]), np.array(1), np.zeros((5, 1), np.int64), np.array([], np.int64), np.arange(99), None,
    ):  # fmt: skip
        assert native(ids, some) is None
    for wrong in (some[:4], some.astype(np.float64), some.tolist(), {}):
        assert native(chosen, wrong) is None
    del busy.free
    assert native(chosen, some) is None
    busy.free = None
    pool.close(4)
    assert native(chosen, some) is None
    for name, array in before.items():
        np.testing.assert_array_equal(pool.state(2)[name], array)
    assert pool.open() == 4
    alone[4].reset()
    np.testing.assert_array_equal(native(chosen, some), expected(chosen, some))
    assert busy.free is None


def test_memory_grows_with_the_states_alone() -> None:
    pool = MODEL.streams(capacity=10_000)
    numbers = [pool.open() for _ in range(10_000)]
    pool.step(numbers, np.zeros((10_000, FEATURES), np.float32))
    states = pool.nbytes
    programs = sum(program.nbytes() for program in pool._rows._programs.values())
    assert states == 10_000 * 2 * HIDDEN * 4
    assert programs < 2 << 20


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((ROWS, 5), "float32"), ((2, ROWS, 3), "float32"), ((2, 5, ROWS, 3), "float64"), ((3, 2, ROWS), "int64"),
        ((ROWS,), "bool"), ((4, 2), "float32"), ((), "float32"), ((2, ROWS, 0), "float32"), ((0, ROWS, 2), "float32"),
    ],
)  # fmt: skip
def test_states_of_any_layout_are_taken_and_put_back(shape: tuple[int | str, ...], dtype: str) -> None:
    rng, capacity = np.random.default_rng(8), 6
    carried = Carried("s", "s", "t", shape, dtype, own=True)
    store, axis = Store(carried, capacity), carried.row_axis
    count = 1 if axis is None else 3

    def drawn() -> np.ndarray:
        return rng.integers(0, 99, [count if size == ROWS else size for size in shape]).astype(dtype)

    kept = {number: store.gathered(np.array([number])) for number in range(capacity)}
    assert not any(np.any(state) for state in kept.values())
    for layout in ("C", "F"):
        numbers, new = rng.permutation(capacity)[:count], np.asarray(drawn(), order=layout)
        store.put(numbers, store.fitting(new, count))
        for row, number in enumerate(numbers):
            kept[number] = new if axis is None else new.take([row], axis)
        target = np.empty_like(new, order=layout)
        store.take(numbers, target if axis is not None else target[None])
        for found in (target, store.gathered(numbers)):
            np.testing.assert_array_equal(found, new)
        for number, state in kept.items():
            np.testing.assert_array_equal(store.gathered(np.array([number])), state)
    with pytest.raises(InputError, match="returned the state 's' with the shape"):
        store.fitting(np.zeros((*[count if size == ROWS else size for size in shape], 7)), count)
