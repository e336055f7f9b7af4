"""A call of a stream or a pool is right or refused, and a refused one changes nothing; copies go their own way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastlstm import InputError, Model
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.connections import axes_of

FEATURES, WIDTH = 3, 2
HIDDEN = 256  # a step is long enough to release the interpreter lock, so that calls of two threads do meet


def recurrent(hidden: int, tail: tuple[Node, ...] = (), ids: bool = False, outputs: int = 1) -> Model:
    """An LSTM and a dense layer; behind them nodes that read "y" and write "z"."""
    rng = np.random.default_rng(5)

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-0.2, 0.2, shape).astype(np.float32)

    constants = {"w": weight(1, 4 * hidden, FEATURES), "r": weight(1, 4 * hidden, hidden), "d": weight(hidden, WIDTH)}
    attrs = {"hidden_size": hidden, "directions": ["forward"], "activations": default_activations("LSTM", 1)}
    layer = Node("LSTM", ("e" if ids else "x", "w", "r"), ("h",), attrs, "lstm")
    nodes = (layer, Node("MatMul", ("h", "d"), ("y",)), *tail)
    if ids:
        constants["table"] = weight(7, FEATURES)
        nodes = (Node("Gather", ("table", "x"), ("e",), {"axis": 0}), *nodes)
    x = TensorSpec("x", ("time", "batch"), "int64") if ids else TensorSpec("x", ("time", "batch", FEATURES))
    names = ("z",) if tail else ("y",)
    shown = tuple(TensorSpec(name, ("time", "batch", WIDTH)) for name in names)
    if outputs == 2:
        shown = (*shown, TensorSpec("h", ("time", "batch", hidden)))
    return Model(Graph((x,), shown, nodes, constants))


IN_NUMPY = (Node("Mod", ("y", "y"), ("m",), {"fmod": 1}), Node("Add", ("m", "y"), ("z",)))
"""Nodes without a kernel: such a model runs part by part."""
MODELS: dict[str, Callable[[], Model]] = {
    "one native call": lambda: recurrent(HIDDEN),
    "part by part": lambda: recurrent(HIDDEN, IN_NUMPY),
    "ids": lambda: recurrent(HIDDEN, ids=True),
    "two outputs": lambda: recurrent(HIDDEN, outputs=2),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


def frames(model: Model, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(6)
    if model.inputs[0].dtype == "int64":
        return rng.integers(0, 7, shape)
    return rng.normal(size=(*shape, FEATURES)).astype(np.float32)


def named(result: Any) -> dict[str, np.ndarray]:
    return result if isinstance(result, dict) else {"": result}


def same(a: Any, b: Any) -> bool:
    a, b = named(a), named(b)
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in b) and a.keys() == b.keys()


@contextlib.contextmanager
def in_use(busy: Busy) -> Iterator[None]:
    """What belongs to the flag is in use, as while a call of another thread runs."""
    del busy.free
    try:
        yield
    finally:
        busy.free = None


# ---------------------------------------------------------------- calls that meet


def test_every_call_of_a_stream_that_is_in_use_is_refused(model: Model) -> None:
    x, stream = frames(model, 8), model.stream()
    for _ in range(2):  # the second time there are entries for these shapes
        stream.step(x[0])
        stream.push(x)
    before = stream.state
    with in_use(stream._busy):
        for call in (
            lambda: stream.step(x[0]),
            lambda: stream.push(x),
            lambda: stream.push(x[:3]),
            stream.reset,
            stream.warmup,
            stream.clone,
            lambda: stream.state,
            lambda: setattr(stream, "state", before),
            lambda: pickle.dumps(stream),
        ):
            with pytest.raises(InputError, match="in use by another call"):
                call()
    assert same(stream.state, before)
    stream.step(x[0])


def test_a_call_that_meets_a_long_one_is_refused_and_the_long_one_is_right() -> None:
    model = MODELS["one native call"]()
    x = frames(model, 3000)
    want, stream = model.stream().push(x), model.stream()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(2):  # by way of Python, then through the entry
            stream.reset()
            going = pool.submit(stream.push, x)
            refused = 0
            while not going.done():
                if not hasattr(stream._busy, "free"):
                    with pytest.raises(InputError, match="in use"):
                        stream.reset() if refused % 2 else stream.push(x[:2])
                    refused += 1
                    break
            assert same(going.result(), want)
            assert refused


def test_a_program_runs_once_at_a_time() -> None:
    model = MODELS["one native call"]()
    segment = model.stream()._run.engine.segment
    program, memory = segment.bound(1), np.zeros((1, 1, HIDDEN), np.float32)
    for slot, axes, _ in (*segment.inputs.values(), *segment.outputs.values()):
        program.bind(slot, memory, *axes_of(axes))
    with in_use(program.busy), pytest.raises(InputError, match="program is in use"):
        program.run(1)
    assert program.run(1) == 0


def race(call: Callable[[int], Any], calls: int, threads: int = 2) -> list[Any]:
    """Return what the calls of some threads gave that were not refused."""
    start, results = threading.Barrier(threads), []

    def attempt(number: int) -> None:
        try:
            results.append(call(number))
        except InputError as error:
            if "in use" not in str(error):
                raise

    def work() -> None:
        start.wait()
        for number in range(calls):
            attempt(number)

    workers = [concurrent.futures.ThreadPoolExecutor(1) for _ in range(threads)]
    for future in [worker.submit(work) for worker in workers]:
        future.result()
    for worker in workers:
        worker.shutdown()
    return results


def test_threads_that_share_a_stream_get_right_answers_or_none(model: Model) -> None:
    x, stream, alone = frames(model, 1), model.stream(), model.stream()
    alone_x = x[0]
    results = race(lambda _: stream.step(alone_x), 150)
    want = [alone.step(alone_x) for _ in results]
    first = next(iter(named(want[0])))
    # Each step went on from where another one ended: the outputs are those of one stream, in some order.
    got, expected = ({named(y)[first].tobytes() for y in some} for some in (results, want))
    assert got == expected
    assert same(stream.state, alone.state)


def test_threads_that_push_chunks_of_growing_lengths_get_right_answers_or_none(model: Model) -> None:
    frame, pool = frames(model, 1), model.streams(2)
    number = pool.open()
    # All frames are alike, so that it does not matter which chunk came first.
    results = race(lambda i: pool.push([number], [np.repeat(frame, 1 + 9 * i, axis=0)])[0], 30)
    first = next(iter(named(results[0])))
    rows = [row.tobytes() for y in results for row in named(y)[first]]
    alone = model.stream()
    want = alone.push(np.repeat(frame, len(rows), axis=0))
    assert set(rows) == {row.tobytes() for row in named(want)[first]}
    assert same(pool.state(number), alone.state)


def test_threads_that_share_a_pool_get_right_answers_or_none(model: Model) -> None:
    x, pool = frames(model, 5), model.streams(5)
    numbers = [pool.open() for _ in range(5)]
    alone = [model.stream() for _ in numbers]
    results = race(lambda _: pool.step(numbers, x), 100)
    for number, stream in zip(numbers, alone, strict=True):
        for _ in results:
            stream.step(x[number])
        assert same(pool.state(number), stream.state)


# ---------------------------------------------------------------- refused calls change nothing


def wrong_outs(good: np.ndarray) -> dict[str, Any]:
    fixed = np.zeros_like(good)
    fixed.flags.writeable = False
    one = np.zeros(1, good.dtype)
    return {
        "another width": np.zeros((*good.shape[:-1], good.shape[-1] + 1), good.dtype),
        "another dtype": good.astype(np.float64),
        "another rank": good[None],
        "read-only": fixed,
        "no array": good.tolist(),
        "one element for all": np.lib.stride_tricks.as_strided(one, good.shape, (0,) * good.ndim, writeable=True),
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_an_out_that_does_not_fit_leaves_the_state_of_a_stream(model: Model, batch: int) -> None:
    stream = model.stream(batch)
    x = frames(model, 5, batch) if batch > 1 else frames(model, 5)
    calls = [(stream.step, x[0]), (stream.push, x), (stream.push, x)]
    for call, given in calls:
        good = named(call(given))
        before = stream.state
        last = list(good)[-1]
        for why, wrong in wrong_outs(good[last]).items():
            out = {**{n: np.zeros_like(a) for n, a in good.items()}, last: wrong} if len(good) > 1 else wrong
            with pytest.raises(InputError, match=r"out|Elements of"):
                call(given, out=out)
            assert same(stream.state, before), why


def test_an_out_that_does_not_fit_leaves_the_states_of_a_pool(model: Model) -> None:
    pool, x = model.streams(70), frames(model, 70)
    numbers = [pool.open() for _ in range(70)]
    for count in (1, 5, 70):
        good = named(pool.step(numbers[:count], x[:count]))
        before = [pool.state(number) for number in numbers]
        last = list(good)[-1]
        for why, wrong in wrong_outs(good[last]).items():
            if why == "one element for all" and good[last].size == 1:
                continue
            out = {**{n: np.zeros_like(a) for n, a in good.items()}, last: wrong} if len(good) > 1 else wrong
            with pytest.raises(InputError, match=r"out|Elements of"):
                pool.step(numbers[:count], x[:count], out=out)
            assert all(same(pool.state(n), b) for n, b in zip(numbers, before, strict=True)), why


def test_two_outputs_in_one_memory_are_refused() -> None:
    model = recurrent(WIDTH, outputs=2)  # both outputs have one width
    stream, x = model.stream(), frames(model, 4)
    one, before = np.zeros((4, WIDTH), np.float32), stream.state
    with pytest.raises(InputError, match=r"out\['y'\] and out\['h'\] share memory"):
        stream.push(x, out={"y": one, "h": one})
    with pytest.raises(InputError, match="out should be a dict"):
        stream.push(x, out=one)
    with pytest.raises(InputError, match="out should hold arrays for y, h; got y"):
        stream.push(x, out={"y": one})
    assert same(stream.state, before)
    beside = np.zeros((4, 2 * WIDTH), np.float32)  # side by side in one array, they share none
    out = {"y": beside[:, :WIDTH], "h": beside[:, WIDTH:]}
    assert same(stream.push(x, out=out), model.stream().push(x))


def test_an_id_outside_its_table_leaves_the_states() -> None:
    model = MODELS["ids"]()
    stream, pool = model.stream(), model.streams(70)
    numbers = [pool.open() for _ in range(70)]
    stream.push(np.arange(5))
    pool.step(numbers, np.arange(70) % 7)
    before, kept = stream.state, [pool.state(number) for number in numbers]
    late = np.arange(70) % 7
    late[-1] = 99  # in the second group of rows that run together
    chunks = [np.arange(3)] * 69 + [np.array([1] * 300 + [99])]  # in the second window
    for call in (
        lambda: stream.step(np.int64(7)),
        lambda: stream.push(np.array([1, 2, 99])),
        lambda: pool.step(numbers, late),
        lambda: pool.push(numbers, chunks),
    ):
        with pytest.raises(InputError, match="outside its embedding table"):
            call()
    assert same(stream.state, before)
    assert all(same(pool.state(n), b) for n, b in zip(numbers, kept, strict=True))


@pytest.mark.parametrize("count", [2**62, 10**12])
def test_more_streams_than_memory_holds_are_told_before_any_is_taken(model: Model, count: int) -> None:
    with pytest.raises(InputError, match=r"A pool of \d+ streams would take at least .* GiB"):
        model.streams(count)
    with pytest.raises(InputError, match=r"A stream of \d+ rows would take at least .* GiB"):
        model.stream(batch=count)


# ---------------------------------------------------------------- copies


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": through_pickle}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_copy_of_a_stream_goes_on_by_itself_with_the_same_bits(model: Model, how: str, batch: int) -> None:
    x = frames(model, 9, batch) if batch > 1 else frames(model, 9)
    whole, stream = model.stream(batch), model.stream(batch)
    want = [whole.step(frame) for frame in x]
    for frame in x[:4]:
        stream.step(frame)
    other = COPIES[how](stream)
    held = stream.state
    assert all(same(other.step(frame), y) for frame, y in zip(x[4:], want[4:], strict=True))
    assert same(stream.state, held)
    assert all(same(stream.step(frame), y) for frame, y in zip(x[4:], want[4:], strict=True))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_pool_goes_on_by_itself_with_the_same_bits(model: Model, how: str) -> None:
    pool, x = model.streams(6), frames(model, 6)
    numbers = [pool.open() for _ in range(5)]
    pool.step(numbers, x[:5])
    pool.close(1)
    left = [0, 2, 3, 4]
    other = COPIES[how](pool)
    before = [pool.state(n) for n in left]
    y = other.step(left, x[:4])
    assert all(same(pool.state(n), b) for n, b in zip(left, before, strict=True))
    assert same(pool.step(left, x[:4]), y)
    assert len(other) == len(pool) == 4
    assert other.open() == pool.open() == 1
    with pytest.raises(InputError, match="no open stream 5"):
        other.step([5], x[:1])


def test_a_clone_shares_the_model_of_its_stream() -> None:
    model = MODELS["one native call"]()
    stream = model.stream()
    for other in (stream.clone(), copy.deepcopy(stream)):
        assert other._model is model
        assert other._run.engine is stream._run.engine
        for state in stream._run.engine.segment.states:
            assert not np.shares_memory(*(s._run.program.rows(state.slot) for s in (other, stream)))


def test_a_stream_and_a_pool_work_in_another_process_at_their_first_use() -> None:
    model = MODELS["one native call"]()
    stream, pool, x = model.stream(), model.streams(2), frames(model, 2)
    stream.step(x[0])
    pool.step([pool.open()], x[:1])
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        there = workers.submit(stream.step, x[1]), workers.submit(pool.step, [0], x[1:])
        assert same(there[0].result(120), stream.step(x[1]))
        assert same(there[1].result(120), pool.step([0], x[1:]))


def test_a_model_that_looks_at_no_later_frame_has_a_hop_of_1_and_no_delay(model: Model) -> None:
    stream, pool, x = model.stream(), model.streams(2), frames(model, 5)
    ids = [pool.open(), pool.open()]
    assert (stream.hop, stream.delay) == (pool.hop, pool.delay) == (1, 0)
    y = stream.push(x)
    pool.push(ids, [x, x[:2]])
    for tail in (stream.finish(), *pool.finish(ids)):
        assert same(tail, {name: array[:0] for name, array in named(y).items()})
    several = model.stream(batch=3)
    y = several.push(frames(model, 5, 3))
    assert same(several.finish(), {name: array[:0] for name, array in named(y).items()})


@pytest.mark.parametrize("how", ["reset", "state"])
def test_a_stream_that_has_finished_takes_frames_after_a_reset_or_a_state(model: Model, how: str) -> None:
    stream, x = model.stream(), frames(model, 5)
    start, first, chunk = stream.state, stream.step(x[0]), stream.push(x)
    stream.finish()
    for wrong in (lambda: stream.step(x[0]), lambda: stream.push(x), stream.finish, stream.clone().finish):
        with pytest.raises(InputError, match="has finished"):
            wrong()
    if how == "reset":
        stream.reset()
    else:
        stream.state = start
    assert same(stream.step(x[0]), first)
    assert same(stream.push(x), chunk)


@pytest.mark.parametrize("how", ["reset", "state", "open"])
def test_a_pooled_stream_that_has_finished_takes_frames_after_a_reset_or_a_state(model: Model, how: str) -> None:
    pool, x = model.streams(2), frames(model, 2)
    ids = [pool.open(), pool.open()]
    start, first = pool.state(ids[0]), pool.step(ids, x)
    pool.finish(ids[:1])
    for wrong in (pool, copy.copy(pool)):
        with pytest.raises(InputError, match=f"Stream {ids[0]} has finished"):
            wrong.step(ids, x)
        with pytest.raises(InputError, match=f"Stream {ids[0]} has finished"):
            wrong.finish(ids)
    pool.step(ids[1:], x[1:])  # the other one goes on
    if how == "reset":
        pool.reset(ids[0])
    elif how == "state":
        pool.set_state(ids[0], start)
    else:
        pool.close(ids[0])
        assert pool.open() == ids[0]
    assert same(pool.step(ids[:1], x[:1]), {name: array[:1] for name, array in named(first).items()})
