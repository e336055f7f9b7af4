"""Every kind of model that goes on in time streams, with the bits of the whole run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from streamed_models import KINDS, STEPS, Arrays, Wrapped, as_dict, cut, exported, frames, kind, loaded

import fastlstm
from fastlstm.converters.common.builder import Direction, GraphBuilder


@pytest.mark.parametrize("name", KINDS)
def test_random_chunks_and_steps_have_the_bits_of_the_whole(name: str) -> None:
    content, model, arrays = kind(name)
    whole = model.run(arrays)
    peer = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for value, theirs in zip(whole.values(), peer.run(None, arrays), strict=True):
        np.testing.assert_allclose(value, theirs, rtol=1e-4, atol=1e-5)
    rng, stream = np.random.default_rng(1), model.stream()
    for _ in range(2):  # the second time after a reset
        parts, at = [], 0
        while at < STEPS:
            n = min(int(rng.integers(0, 7)), STEPS - at)
            if rng.random() < 0.4:
                one = {k: a[:, at] if k != "speaker" else a for k, a in arrays.items()}
                y = as_dict(stream.step(one if len(one) > 1 else one["x"]))
                parts.append({k: v[:, None] for k, v in y.items()})
                n = 1
            else:
                parts.append(as_dict(stream.push(cut(arrays, at, at + n))))
            at += n
        for expected, key in zip(whole.values(), parts[0], strict=True):
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts], 1), expected)
        stream.reset()


@pytest.mark.parametrize("name", KINDS)
def test_pools_have_the_bits_of_single_streams(name: str) -> None:
    _, model, arrays = kind(name)
    rng = np.random.default_rng(2)
    pool = model.streams(capacity=9)
    opened = [pool.open() for _ in range(5)]
    alone = [model.stream() for _ in opened]

    def some(count: int) -> Arrays:
        return {
            n: np.take(a[0], rng.integers(0, STEPS, count), 0) if n != "speaker" else a[0] for n, a in arrays.items()
        }

    for _ in range(4):
        chosen = [i for i in range(5) if rng.random() < 0.8] or [0]
        rng.shuffle(chosen)
        one = {n: np.stack([some(1)[n][0] if n != "speaker" else a[0] for _ in chosen]) for n, a in arrays.items()}
        y = as_dict(pool.step([opened[i] for i in chosen], one if len(one) > 1 else one["x"]))
        for row, i in enumerate(chosen):
            mine = {n: a[row] for n, a in one.items()}
            expected = as_dict(alone[i].step(mine if len(mine) > 1 else mine["x"]))
            for (key, value), got in zip(expected.items(), y.values(), strict=True):
                np.testing.assert_array_equal(got[row], value, err_msg=key)
        chunks = [some(int(rng.integers(0, 4))) for _ in chosen]
        pushed = pool.push([opened[i] for i in chosen], [c if len(c) > 1 else c["x"] for c in chunks])
        for i, chunk, got in zip(chosen, chunks, pushed, strict=True):
            expected = as_dict(alone[i].push(chunk if len(chunk) > 1 else chunk["x"]))
            for (key, value), result in zip(expected.items(), as_dict(got).values(), strict=True):
                np.testing.assert_array_equal(result, value, err_msg=key)
    number = pool.open()
    pool.set_state(number, alone[0].state)
    for key, value in pool.state(opened[0]).items():
        np.testing.assert_array_equal(pool.state(number)[key], value)


@pytest.mark.parametrize("name", ["causal convolutions", "two inputs, two outputs", "all native"])
def test_a_batch_of_streams_is_the_whole_batch(name: str) -> None:
    _, model, arrays = kind(name, rows=3)
    stream = model.stream(batch=3)
    parts = [as_dict(stream.push(cut(arrays, a, b))) for a, b in ((0, 1), (1, 17), (17, STEPS))]
    for expected, key in zip(model.run(arrays).values(), parts[0], strict=True):
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts], 1), expected)


@pytest.mark.parametrize("name", KINDS)
def test_states_of_streams_are_the_rows_of_a_batch_and_of_a_pool(name: str) -> None:
    _, model, arrays = kind(name, rows=3)
    alone, together = [model.stream() for _ in range(3)], model.stream(batch=3)
    pool = model.streams(capacity=3)
    rows = [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(3)]
    for stream, row in zip(alone, rows, strict=True):
        stream.push(cut(row, 0, 10))
        pool.set_state(pool.open(), stream.state)
    states = [stream.state for stream in alone]
    together.state = {key: np.concatenate([state[key] for state in states]) for key in states[0]}
    expected = as_dict(together.push(cut(arrays, 10, 20)))
    for i, stream in enumerate(alone):
        for state in (states[i], pool.state(i)):
            stream.state = state
            for got, value in zip(as_dict(stream.push(cut(rows[i], 10, 20))).values(), expected.values(), strict=True):
                np.testing.assert_array_equal(got[0], value[i])
        for key, value in together.state.items():
            assert value.shape[0] == 3
            np.testing.assert_array_equal(stream.state[key][0], value[i])


def convolved_over_features(y: torch.Tensor) -> torch.Tensor:
    """Each row by itself, rows of batch and time being the batch of the convolution, as in BeatNet."""
    rows = y.reshape(-1, 6).unsqueeze(0).transpose(0, 1)
    pooled = torch.max_pool1d(torch.conv1d(rows, torch.linspace(-1, 1, 6).reshape(2, 1, 3)).relu(), 2)
    return pooled.reshape(y.shape[0], y.shape[1], -1)


@pytest.mark.parametrize(
    "function",
    [
        convolved_over_features,
        lambda y: y[..., -1],
        lambda y: y[..., -1:],
        lambda y: y.reshape(-1, 6).tanh().reshape(y.shape[0], -1, 6),
        lambda y: torch.cat([y, y[..., :2].mean(-1, keepdim=True).expand(-1, -1, 3)], -1),
        lambda y: y + torch.ones(y.shape[0], y.shape[1], 1),
        lambda y: y.unflatten(-1, (2, 3)).softmax(-1).flatten(2),
        lambda y: torch.softmax(y.transpose(1, 2), 1).transpose(1, 2) / y.transpose(1, 2).square().sum(1)[..., None],
    ],
    ids=[
        "convolved over features",
        "last feature",
        "last feature kept",
        "rows merged",
        "features repeated",
        "ones of its shape",
        "heads",
        "channels first",
    ],
)
def test_what_stays_in_its_time_step_streams(function: Any) -> None:
    torch.manual_seed(12)
    model = loaded(exported(Wrapped(function), {"x": frames()}, "y"))
    x = frames().numpy()
    whole, stream = model(x), model.stream()
    parts = [stream.push(x[:, a:b]) for a, b in ((0, 1), (1, 8), (8, 8), (8, STEPS))]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_siblings_of_what_streams_stream_too() -> None:
    """ArgMin, BitwiseNot and CastLike act on each frame alone, as ArgMax, Not and Cast do."""
    build, rng = GraphBuilder(), np.random.default_rng(0)
    x = build.input("x", ("time", 1, 4))
    weights = Direction(*(rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6, 6))))
    y = build.recurrent("RNN", x, [weights], name="layer")[0]
    least = build.node("BitwiseNot", build.node("ArgMin", y, axis=-1, keepdims=1))
    build.output(
        build.node("CastLike", least, build.constant("like", np.zeros(1, np.float32))), "least", ("time", 1, 1)
    )
    model = fastlstm.Model(build.graph())
    frames = rng.standard_normal((5, 1, 4)).astype(np.float32)
    whole = model.run({"x": frames})["least"]
    stream = model.stream()
    np.testing.assert_array_equal([stream.step(frame[0]) for frame in frames], whole[:, 0])
    assert len(set(whole.ravel())) > 1
