"""Models that look ahead and go on at several rates stream by hops, with a delay, and the bits of the whole run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_stacks import LAYERS, WIDTH, Stack, random_stack

import fastlstm
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph, TensorSpec, default_activations
from fastlstm.streaming.repeating import TOGETHER

HOPS = (1, 2, 6)  # lengths of sequences: shorter than most delays, and longer


def frames(hops: int, hop: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(hops).standard_normal((rows, WIDTH, hops * hop)).astype(np.float32)


def whole_run(model: fastlstm.Model, x: np.ndarray) -> np.ndarray | None:
    """Return the whole run's output, None if the sequence is too short for the model."""
    try:
        return model(x)
    except InputError:
        return None


def streamed(stream: fastlstm.Stream, x: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return the outputs of steps and chunks drawn at random, without the delay, and then the tail."""
    parts, at, hop = [], 0, stream.hop
    while at < x.shape[2]:
        count = min(rng.randint(1, 3), x.shape[2] // hop - at // hop)
        chunk = x[:, :, at : at + count * hop]
        if count == 1 and rng.random() < 0.6:  # a step: frames stand one behind the other on the first axis
            steps = np.moveaxis(chunk, 2, 0)
            y = stream.step(steps if hop > 1 else steps[0])
            parts.append(np.moveaxis(y if y.ndim > 2 else y[None], 0, 2))
        else:
            parts.append(stream.push(chunk))
        at += count * hop
    out, tail = np.concatenate(parts, 2), stream.finish()
    assert len({part.shape[2] // max(1, chunk.shape[2] // hop) for part in parts[-1:]}) == 1
    assert not out[:, :, : stream.delay].any()
    return np.concatenate([out[:, :, stream.delay :], tail if tail.ndim > 2 else tail[None]], 2)


def check(graph: Graph, seed: int) -> None:
    """Hold a stream, a stream of several rows and a pool against whole runs, for sequences of several lengths."""
    model, rng = fastlstm.Model(graph), random.Random(seed)
    refused = ""
    try:
        stream = model.stream()
    except UnsupportedError as error:
        refused = str(error)
    if refused:  # rows that come in odd numbers cannot be folded in pairs, and some stacks have no memory
        assert "nothing to stream" in refused or "fixes the number of time steps" in refused
        return
    expected = {hops: whole_run(model, frames(hops, stream.hop)) for hops in HOPS}
    for hops, want in expected.items():
        stream.reset()
        if want is not None:
            np.testing.assert_array_equal(streamed(stream, frames(hops, stream.hop), rng), want)
    several = frames(HOPS[-1], stream.hop, 2)
    if (want := whole_run(model, several)) is not None:
        np.testing.assert_array_equal(streamed(model.stream(batch=2), several, rng), want)
    check_pool(model, {hops: want for hops, want in expected.items() if want is not None})


def check_pool(model: fastlstm.Model, expected: dict[int, np.ndarray]) -> None:
    """Advance streams of which each began a step later than the one before, then finish all of them."""
    pool = model.streams(len(HOPS) + 1)
    numbers = {hops: pool.open() for hops in expected}
    got: dict[int, list[np.ndarray]] = {hops: [] for hops in expected}
    for start in range(HOPS[-1] + len(HOPS)):
        now = [h for late, h in enumerate(expected) if late <= start < late + h]
        x = [
            frames(h, pool.hop)[0].T[pool.hop * at :][: pool.hop] for h in now for at in [start - [*expected].index(h)]
        ]
        if start % 2 and now:
            y = pool.push([numbers[h] for h in now], x)
        elif now:
            y = pool.step([numbers[h] for h in now], np.stack(x) if pool.hop > 1 else np.concatenate(x))
        for h, rows in zip(now, y if now else (), strict=True):
            got[h].append(rows if rows.ndim > 1 else rows[None])
    for hops, want in expected.items():
        (tail,) = pool.finish([numbers[hops]])
        np.testing.assert_array_equal(np.concatenate([np.concatenate(got[hops])[pool.delay :], tail]), want[0].T)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 20), kinds=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4))
def test_random_stacks_have_the_bits_of_the_whole_run(seed: int, kinds: list[str]) -> None:
    check(random_stack(seed, kinds), seed)


@pytest.mark.parametrize(
    ("seed", "kinds"),
    [
        (25, ["convolution", "slice", "padding", "bent"]),
        (6, ["transposed", "difference", "padding", "convolution", "convolution"]),
        (83, ["difference", "transposed", "pooling", "residual"]),
        (236, ["difference", "recurrent", "transposed"]),
        (9, ["folded", "recurrent", "padding", "pooling"]),
        (5, ["padding", "recurrent", "bent", "stacked", "convolution"]),
    ],
)
def test_stacks_that_were_wrong_once(seed: int, kinds: list[str]) -> None:
    check(random_stack(seed, kinds), seed)


def layers(*parts: Any) -> fastlstm.Model:
    """Return a model of layers given as (operator, attributes); convolutions of `kernel` rows."""
    stack = Stack(1)
    for op, attrs in parts:
        if op == "recurrent":
            stack.recurrent()
            continue
        attrs = dict(attrs)
        kernel = attrs.pop("kernel", 0)
        given = (stack.weight(WIDTH, WIDTH, kernel), stack.weight(WIDTH)) if kernel else ()
        stack.last = stack.add(op, stack.last, *given, **attrs)
    return fastlstm.Model(stack.graph())


RECURRENT = ("recurrent", {})
PACES = {
    "causal": ([("Conv", {"kernel": 3, "pads": [2, 0]})], 1, 0, 1),
    "one ahead": ([("Conv", {"kernel": 3, "pads": [1, 1]}), RECURRENT], 1, 1, 1),
    "twice ahead": (
        [("Conv", {"kernel": 3, "pads": [1, 1]}), RECURRENT, ("Conv", {"kernel": 5, "pads": [2, 2]})],
        1, 3, 1,
    ),
    "no padding": ([("Conv", {"kernel": 4})], 1, 3, 1),
    "every second": ([("Conv", {"kernel": 4, "pads": [2, 0], "strides": [2]}), RECURRENT], 2, 0, 1),
    "every second, one ahead": ([("Conv", {"kernel": 4, "pads": [1, 1], "strides": [2]}), RECURRENT], 2, 1, 1),
    "thirds of halves": (
        [("MaxPool", {"kernel_shape": [2], "strides": [2]}), ("Conv", {"kernel": 3, "strides": [3]}), RECURRENT],
        6, 0, 1,
    ),
    "there and back": (
        [("Conv", {"kernel": 4, "strides": [4]}), RECURRENT, ("ConvTranspose", {"kernel": 4, "strides": [4]})],
        4, 0, 4,
    ),
    "overlap and add": (
        [("Conv", {"kernel": 8, "strides": [4]}), RECURRENT, ("ConvTranspose", {"kernel": 8, "strides": [4]})],
        4, 4, 4,
    ),
    "two of one": ([("ConvTranspose", {"kernel": 2, "strides": [2]}), RECURRENT], 1, 0, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PACES)
def test_hop_and_delay_are_the_smallest(name: str) -> None:
    parts, hop, delay, rows = PACES[name]
    model = layers(*parts)
    stream = model.stream()
    assert (stream.hop, stream.delay) == (hop, delay)
    x = frames(6, hop)
    for at in range(3):
        y = stream.step(x[0].T[at * hop : (at + 1) * hop] if hop > 1 else x[0, :, at])
        assert y.shape == ((rows, WIDTH) if rows > 1 or hop > 1 else (WIDTH,))
    stream.reset()
    np.testing.assert_array_equal(streamed(stream, x, random.Random(1)), model(x))


@pytest.mark.parametrize("name", ["one ahead", "overlap and add", "every second, one ahead"])
def test_an_impulse_is_answered_after_the_delay(name: str) -> None:
    parts, hop, delay, _ = PACES[name]
    model = layers(*(part for part in parts if part is not RECURRENT))
    x = np.zeros((1, WIDTH, 8 * hop), np.float32)
    without = model(x)
    x[:, :, 3 * hop] = 1
    (answered,) = np.nonzero((model(x) != without).any((0, 1)))
    stream = model.stream()
    y = stream.push(x)
    first, last = answered[0], answered[-1]
    assert (y[:, :, delay + first] != without[:, :, first]).any()
    assert np.array_equal(y[:, :, delay : delay + first], without[:, :, :first])
    assert last + delay < y.shape[2]


def test_a_recurrent_layer_makes_no_step_during_the_delay() -> None:
    stream = layers(("Conv", {"kernel": 5, "pads": [2, 2]}), RECURRENT).stream()
    before = {name: array for name, array in stream.state.items() if name.endswith(".h")}
    for _ in range(stream.delay):
        assert not stream.step(np.ones(WIDTH, np.float32)).any()
    assert all(np.array_equal(stream.state[name], array) for name, array in before.items())
    stream.step(np.ones(WIDTH, np.float32))
    assert all(not np.array_equal(stream.state[name], array) for name, array in before.items())


def test_states_and_copies_go_on_from_any_hop() -> None:
    model = layers(("Conv", {"kernel": 5, "pads": [2, 2]}), RECURRENT, ("Conv", {"kernel": 3, "pads": [1, 1]}))
    x = frames(9, 1)
    want, stream, pool = model(x), model.stream(), model.streams(1)
    number, parts = pool.open(), []
    for at in range(9):
        pool.set_state(number, stream.state)
        (other,) = pool.push([number], [x[0].T[at : at + 1]])
        parts.append(stream.step(x[0, :, at]))
        np.testing.assert_array_equal(other[0], parts[-1])
        copied = model.stream()
        copied.state = stream.state
        np.testing.assert_array_equal(copied.clone().finish(), stream.clone().finish())
    got = np.concatenate([np.stack(parts, 1)[:, stream.delay :], stream.finish()], 1)
    np.testing.assert_array_equal(got, want[0])


def test_the_last_time_step_alone_waits_and_comes_at_the_end() -> None:
    stack = Stack(1)
    stack.last = stack.add("Conv", "x", stack.weight(WIDTH, WIDTH, 3), "", pads=[1, 1])
    stack.recurrent()
    stack.last = stack.add("Gather", stack.last, stack.constant(np.array(-1)), axis=2)
    model = fastlstm.Model(
        stack.graph().replace(outputs=(stack.graph().outputs[0].__class__(stack.last, ("b", WIDTH)),))
    )
    stream, x = model.stream(), frames(5, 1)
    for length in (1, 5):
        stream.reset()
        y = [stream.step(x[0, :, at]) for at in range(length)]
        assert not y[0].any()
        np.testing.assert_array_equal(stream.finish(), model(x[:, :, :length]))
    stream.reset()
    many = frames(2 * TOGETHER + 5, 1)  # two loops of hops, and single ones behind them
    assert not stream._run.engine.at_once
    parts = [stream.step(many[0, :, at]) for at in range(many.shape[2])]
    at_once = model.stream()
    np.testing.assert_array_equal(np.squeeze(at_once.push(many)), parts)
    np.testing.assert_array_equal(at_once.finish(), stream.finish())


def test_frames_that_make_no_hops_are_told() -> None:
    model = layers(*PACES["thirds of halves"][0])
    stream, pool = model.stream(), model.streams(1)
    number = pool.open()
    with pytest.raises(InputError, match=r"by hops of 6; got 7"):
        stream.push(frames(7, 1))
    with pytest.raises(InputError, match=r"A hop should have the shape \[6, 4\] or \[6, 1, 4\]; got \[5, 4\]"):
        stream.step(frames(5, 1)[0].T)
    with pytest.raises(InputError, match=r"by hops of 6; got 4"):
        pool.push([number], [frames(4, 1)[0].T])
    with pytest.raises(InputError, match=r"\[1, 6, 4\]; got \[1, 4\]"):
        pool.step([number], frames(1, 1)[0].T)


def test_two_convolutions_of_one_value_have_a_state_each() -> None:
    stack = Stack(2)
    kernels = [stack.weight(WIDTH, WIDTH, 3) for _ in range(2)]
    parts = [stack.add("Conv", "x", kernel, "", pads=[2, 0]) for kernel in kernels]
    stack.last = stack.add("Mul", *parts)
    model = fastlstm.Model(stack.graph())
    x, stream, pool = frames(6, 1), model.stream(), model.streams(1)
    number = pool.open()
    assert len(stream.state) == 2
    got = np.concatenate([pool.push([number], [x[0].T[at : at + 2]])[0] for at in (0, 2, 4)])
    np.testing.assert_array_equal(got, model(x)[0].T)


def test_a_refusal_says_which_input_looks_like_a_state() -> None:
    stack = Stack(4)
    attrs = {
        "hidden_size": WIDTH,
        "directions": ["forward"],
        "activations": default_activations("RNN", 1),
        "clip": None,
    }
    start = stack.add("Mul", "memory", stack.constant(np.float32(0.5)))
    weights = [stack.weight(1, WIDTH, WIDTH) for _ in range(2)]
    rows = stack.add("RNN", "x", *weights, "", "", "", start, outputs=2, **attrs)
    kept = stack.add("Tanh", rows)
    stack.last = stack.add("ReduceSum", rows, stack.ints(2))
    x, memory = (TensorSpec(name, (1, 1, WIDTH)) for name in ("x", "memory"))
    outputs = (TensorSpec(stack.last, (1, 1, 1)), TensorSpec(kept, (1, 1, WIDTH)))
    model = fastlstm.Model(stack.graph().replace(inputs=(x, memory), outputs=outputs))
    with pytest.raises(UnsupportedError, match=rf"state={{'memory': '{kept}'}}"):
        model.stream()
    frame = np.ones((1, 1, WIDTH), np.float32)
    want = model.run({"x": frame, "memory": np.zeros_like(frame)})[stack.last]
    np.testing.assert_array_equal(model.stream(state={"memory": kept}).step(frame[0, 0]), want[0, 0])
