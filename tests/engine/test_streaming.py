"""Every kind of model that goes on in time streams, with the bits of the whole run; the others are refused by name."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import fastlstm
from fastlstm.converters.common.builder import Direction, GraphBuilder
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations

Arrays = dict[str, np.ndarray]
STEPS = 40


class CausalConvolutions(nn.Module):
    """Padded on the left, padded on both sides and cut, in groups, with statistics, before an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3, dilation=2)
        self.grouped = nn.Conv1d(6, 6, 5, groups=3, padding=4)
        self.norm = nn.BatchNorm1d(6)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.lstm, self.head = nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(F.pad(x.transpose(1, 2), (4, 0)))))
        y = self.grouped(y)[:, :, :-4]
        return self.head(self.lstm(y.transpose(1, 2))[0])


class TemporalConvolutions(nn.Module):
    """No recurrent layer at all: dilated convolutions with a residual, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 5, 3, padding=2), nn.Conv1d(5, 5, 3, dilation=3, padding=6)
        self.out = nn.Conv1d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x.transpose(1, 2))[..., :-2])
        return self.out(y + torch.relu(self.b(y)[..., :-6])).transpose(1, 2)


class TwoAxes(nn.Module):
    """Convolutions over time and frequency, causal in time, then a GRU over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, (2, 3), stride=(1, 2)), nn.Conv2d(3, 2, (3, 1), dilation=(2, 1))
        self.gru = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(F.pad(x[:, None], (1, 1, 1, 0))))
        y = self.b(F.pad(y, (0, 0, 4, 0)))
        return self.gru(y.transpose(1, 2).flatten(2))[0]


class Spectra(nn.Module):
    """Wide convolutions over time and frequency, each channel alone, pooling over frequency, layers in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 40, (3, 3), padding=(0, 1)), nn.Conv2d(40, 40, (2, 3), groups=40, padding=(0, 1))
        self.c, self.act = nn.Conv2d(40, 8, 1), nn.PReLU(40)
        self.weight, self.gru = nn.Parameter(torch.randn(4, 4, 3)), nn.GRU(12, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(self.act(self.a(F.pad(x[:, None], (0, 0, 2, 0)))), (1, 2))
        y = F.avg_pool2d(self.c(F.relu6(self.b(F.pad(y, (0, 0, 1, 0))))), (1, 1))
        y = y.transpose(1, 2).reshape(x.shape[0], -1, 4, 4)
        return self.gru(torch.einsum("btgi,gih->btgh", y, self.weight).flatten(2))[0]


class TwoInTwoOut(nn.Module):
    """Features and ids in; a distribution, and what passes through operators that run in NumPy, out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(11, 5), nn.GRU(9, 12, batch_first=True)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.gru(torch.cat([x, self.embed(ids)], -1))
        return F.softmax(self.head(self.norm(y)), -1), self.head(torch.clamp(y, -0.1, 0.1).abs())


class AllNative(nn.Module):
    """Features and ids in, two outputs, every operator with a kernel: one call into compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(11, 5), nn.LSTM(9, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.lstm(torch.cat([x, self.embed(ids)], -1))
        return F.softmax(self.head(y), -1), torch.tanh(y)


class Conditioned(nn.Module):
    """One input goes on in time, the other does not; two layers with a residual and a gate of width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.speaker, self.lstm = nn.Linear(6, 4), nn.LSTM(4, 4, batch_first=True)
        self.rnn = nn.RNN(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        y = self.lstm(x + self.speaker(speaker)[:, None])[0] + x
        return self.rnn(y)[0] * F.gelu(y.mean(-1, keepdim=True))


class LastState(nn.Module):
    """One output for a sequence, from the last layer's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[1][0][-1])


class Caches(nn.Module):
    """A convolution's cache and an LSTM's states as inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(4, 6, 3), nn.LSTM(6, 7, batch_first=True)

    def forward(self, x: torch.Tensor, cache: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        z = torch.cat([cache, x.transpose(1, 2)], 2)
        y, (h, c) = self.lstm(torch.relu(self.conv(z)).transpose(1, 2), (h, c))
        return y, z[:, :, -2:], h, c


class Chunk(nn.Module):
    """A chunk of samples and a state in, a number and a state out, as voice activity detectors are."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.cell, self.head = nn.Linear(32, 16), nn.LSTMCell(16, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, c = self.cell(torch.relu(self.features(x)), (state[0], state[1]))
        return torch.sigmoid(self.head(h)), torch.stack([h, c])


def exported(module: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: str, fixed: str = "") -> bytes:
    """Return the module as ONNX; batch and time are open but for the inputs and outputs in `fixed`."""
    names = [*inputs, *outputs.split()]
    axes = {n: {0: "batch", 1: "time"} for n in names if n not in fixed.split()}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), file, input_names=[*inputs], output_names=outputs.split(),
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
    return file.getvalue()


def loaded(content: bytes, threads: int = 1) -> fastlstm.Model:
    import onnx

    return fastlstm.from_onnx(onnx.load_model_from_string(content), threads=threads)


def frames(rows: int = 1, features: int = 4) -> torch.Tensor:
    return torch.randn(rows, STEPS, features, generator=torch.Generator().manual_seed(5))


def ids(rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 11, (rows, STEPS), generator=torch.Generator().manual_seed(6))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, torch.Tensor]], str, str]] = {
    "causal convolutions": (CausalConvolutions, lambda b: {"x": frames(b)}, "y", ""),
    "temporal convolutions": (TemporalConvolutions, lambda b: {"x": frames(b)}, "y", ""),
    "spectra": (Spectra, lambda b: {"x": frames(b)}, "y", ""),
    "time and frequency": (TwoAxes, lambda b: {"x": frames(b)}, "y", ""),
    "two inputs, two outputs": (TwoInTwoOut, lambda b: {"x": frames(b), "ids": ids(b)}, "p q", ""),
    "all native": (AllNative, lambda b: {"x": frames(b), "ids": ids(b)}, "p q", ""),
    "conditioned": (Conditioned, lambda b: {"x": frames(b), "speaker": frames(b, 6)[:, 0]}, "y", "speaker"),
}


def kind(name: str, rows: int = 1) -> tuple[bytes, fastlstm.Model, Arrays]:
    make, inputs, outputs, fixed = KINDS[name]
    torch.manual_seed(7)
    content = exported(make(), inputs(1), outputs, fixed if rows == 1 else "")
    return content, loaded(content), {n: x.numpy() for n, x in inputs(rows).items()}


def cut(arrays: Arrays, start: int, stop: int) -> Any:
    """Return some frames of every input that goes on in time."""
    named = {n: a[:, start:stop] if n != "speaker" else a for n, a in arrays.items()}
    return named if len(named) > 1 else next(iter(named.values()))


def as_dict(y: Any) -> Arrays:
    return y if isinstance(y, dict) else {"y": y}


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


def test_a_state_at_the_end_gives_one_output_a_frame() -> None:
    torch.manual_seed(8)
    x = frames().numpy()
    model = loaded(exported(LastState(), {"x": frames()}, "y"))
    stream = model.stream()
    stepped = np.stack([stream.step(frame) for frame in x[0]])
    for count in (1, 6, STEPS):
        np.testing.assert_array_equal(stepped[count - 1], model(x[:, :count])[0])
    stream.reset()
    np.testing.assert_array_equal(stream.push(x[0]), stepped)
    pool = model.streams(capacity=2)
    np.testing.assert_array_equal(pool.push([pool.open()], [x[0]])[0], stepped)


def test_caches_that_the_graph_carries_are_the_streams_state() -> None:
    torch.manual_seed(9)
    zeros = {"cache": torch.zeros(1, 4, 2), "h": torch.zeros(1, 1, 7), "c": torch.zeros(1, 1, 7)}
    content = exported(Caches(), {"x": frames(), **zeros}, "y cache_out hn cn", "cache h c cache_out hn cn")
    model, x = loaded(content), frames().numpy()
    whole = model.run({"x": x, **{n: z.numpy() for n, z in zeros.items()}})
    for hand in (None, {"cache": "cache_out", "h": "hn", "c": "cn"}):
        stream = model.stream(state=hand)
        assert set(stream.state) == set(zeros)
        parts = [stream.push(x[:, a:b]) for a, b in ((0, 1), (1, 4), (4, 4), (4, STEPS))]
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole["y"])
        for given, shown in (("cache", "cache_out"), ("h", "hn"), ("c", "cn")):
            np.testing.assert_array_equal(stream.state[given], whole[shown])
    with pytest.raises(InputError, match="no state output 'other'"):
        model.stream(state={"cache": "other"})
    with pytest.raises(InputError, match="no state input 'other'"):
        model.stream(state={"other": "hn"})
    with pytest.raises(InputError, match="differ in shape"):
        model.stream(state={"cache": "hn"})


def test_a_chunk_model_advances_by_one_chunk() -> None:
    torch.manual_seed(10)
    zeros = torch.zeros(2, 1, 16)
    content = exported(Chunk(), {"x": torch.zeros(1, 32), "state": zeros}, "y stateN", "x state y stateN")
    model = loaded(content)
    chunks = np.random.default_rng(3).normal(size=(9, 1, 32)).astype(np.float32)
    state, expected = zeros.numpy(), []
    for chunk in chunks:
        result = model.run({"x": chunk, "state": state})
        expected.append(result["y"])
        state = result["stateN"]
    stream = model.stream()
    np.testing.assert_array_equal([stream.step(chunk) for chunk in chunks], expected)
    stream.reset()
    np.testing.assert_array_equal(stream.push(chunks), expected)
    np.testing.assert_array_equal(stream.state["state"], state)
    pool = model.streams(capacity=3)
    numbers = [pool.open(), pool.open()]
    pool.step(numbers[:1], chunks[:1])
    np.testing.assert_array_equal(pool.push(numbers, [chunks[1:3], chunks[:2]])[1], expected[:2])
    with pytest.raises(InputError, match=r"shape \[1, 32\]"):
        stream.step(chunks[0, 0])


def test_a_chunk_model_with_an_open_batch_takes_rows_and_frames_without() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 5)

        def forward(self, x: torch.Tensor, hidden_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = self.cell(x, hidden_in)
            return h.tanh(), h

    torch.manual_seed(11)
    inputs = {"x": torch.zeros(1, 4), "hidden_in": torch.zeros(1, 5)}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Cell().eval(), tuple(inputs.values()), file, input_names=[*inputs], output_names=["y", "hidden_out"],
            dynamic_axes={name: {0: "batch"} for name in [*inputs, "y", "hidden_out"]}, dynamo=False,
        )  # fmt: skip
    model, x = loaded(file.getvalue()), frames(3).numpy()
    rows, alone = model.stream(batch=3), model.stream()
    for t in range(5):
        together = rows.step(x[:, t])
        np.testing.assert_array_equal(alone.step(x[1, t]), together[1])
    alone.reset()
    alone.warmup(2)
    assert alone.push(alone.blank_chunk(2)).shape == (2, 5)
    alone.reset()
    np.testing.assert_array_equal(alone.push(x[1, :5]), model.stream(batch=3).push(x.swapaxes(0, 1)[:5])[:, 1])


class _Wrapped(nn.Module):
    """An LSTM and a function of its output, to be refused."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.lstm, self.function = nn.LSTM(4, 6, batch_first=True, **options), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.lstm(x)[0])


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (lambda y: y, {"bidirectional": True}, "LSTM' runs backwards in time"),
        (lambda y: y.mean(1), {}, "ReduceMean' reduces over time"),
        (lambda y: torch.softmax(y, 1), {}, "Softmax' normalises over time"),
        (lambda y: torch.cumsum(y, 1), {}, "CumSum' adds up all frames so far"),
        (lambda y: y @ y.transpose(1, 2), {}, "MatMul"),
        (lambda y: y[:, :3], {}, "takes a fixed number of time steps"),
        (lambda y: y - y[:, -1:], {}, "joins every time step with the last one|joins each time step|Slice"),
        (lambda y: y.transpose(0, 1).reshape(-1, 6).reshape(y.shape[0], -1, 6), {}, "Reshape.* mixes time steps"),
    ],
    ids=[
        "backward",
        "mean",
        "softmax",
        "running sum",
        "attention",
        "first three",
        "last",
        "scrambled",
    ],
)
def test_what_cannot_stream_is_refused_by_name(function: Any, options: Any, words: str) -> None:
    model = loaded(exported(_Wrapped(function, **options), {"x": frames()}, "y"))
    for refused in (model.stream, lambda: model.streams(capacity=2)):
        with pytest.raises(UnsupportedError, match=words):
            refused()


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y[..., -1],
        lambda y: y[..., -1:],
        lambda y: y.reshape(-1, 6).tanh().reshape(y.shape[0], -1, 6),
        lambda y: torch.cat([y, y[..., :2].mean(-1, keepdim=True).expand(-1, -1, 3)], -1),
        lambda y: y + torch.ones(y.shape[0], y.shape[1], 1),
        lambda y: y.unflatten(-1, (2, 3)).softmax(-1).flatten(2),
        lambda y: torch.softmax(y.transpose(1, 2), 1).transpose(1, 2) / y.transpose(1, 2).square().sum(1)[..., None],
    ],
    ids=[
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
    model = loaded(exported(_Wrapped(function), {"x": frames()}, "y"))
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


def test_a_model_without_memory_has_nothing_to_stream() -> None:
    model = loaded(exported(nn.Linear(4, 2), {"x": frames()}, "y"))
    with pytest.raises(UnsupportedError, match="nothing to stream"):
        model.stream()


def test_wrong_frames_of_several_inputs_are_told() -> None:
    _, model, arrays = kind("two inputs, two outputs")
    stream = model.stream()
    with pytest.raises(InputError, match="dict of frames for x, ids"):
        stream.step(arrays["x"][:, 0])
    with pytest.raises(InputError, match="frames for x, ids; got x"):
        stream.step({"x": arrays["x"][:, 0]})
    with pytest.raises(InputError, match="as many frames"):
        stream.push({"x": arrays["x"][:, :3], "ids": arrays["ids"][:, :2]})
    with pytest.raises(InputError, match="of 'ids' should have the shape"):
        stream.step({"x": arrays["x"][0, 0], "ids": np.zeros((3, 3), np.int64)})
    with pytest.raises(InputError, match="whole numbers"):
        stream.step({"x": arrays["x"][0, 0], "ids": np.float32(1.5)})
    out = {"p": np.empty((1, 4), np.float32), "q": np.empty((1, 4), np.float32)}
    y = stream.step({"x": arrays["x"][:, 0], "ids": arrays["ids"][:, 0]}, out=out)
    assert y is out
    np.testing.assert_array_equal(out["p"], model.run({n: a[:, :1] for n, a in arrays.items()})["p"][:, 0])


class RatedChunk(nn.Module):
    """A chunk of samples, a state that the model carries, and a sample rate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv1d(1, 8, 16, stride=8), nn.LSTMCell(8, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor, sr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.conv(x[:, None])).mean(-1)
        h, c = self.cell(y, (state[0], state[1]))
        return torch.sigmoid(self.head(h)) * (sr / 16000.0), torch.stack([h, c])


def python_calls(call: Callable[[], Any]) -> int:
    """Return how many functions are called, Python's and C's, once two calls have prepared for its shapes."""
    call(), call()
    events: list[str] = []
    sys.setprofile(lambda frame, event, arg: events.append(event))
    try:
        call()
    finally:
        sys.setprofile(None)
    return sum(event.endswith("call") for event in events)


@pytest.mark.parametrize("names", ["one", "of their own"])
def test_a_pool_of_a_chunk_model_steps_as_the_model_runs_the_batch(names: str) -> None:
    torch.manual_seed(12)
    rows = {"x": 0, "y": 0, "state": 1, "stateN": 1}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            RatedChunk().eval(), (torch.zeros(2, 64), torch.zeros(2, 2, 8), torch.tensor(16000)), file,
            input_names=["x", "state", "sr"], output_names=["y", "stateN"], dynamo=False,
            dynamic_axes={n: {axis: "batch"} if names == "one" else [axis] for n, axis in rows.items()},
        )  # fmt: skip
    model, count = loaded(file.getvalue()), 11
    chunks = np.random.default_rng(13).normal(size=(4, count, 64)).astype(np.float32)
    rates = np.where(np.arange(count) % 3, 16000, 8000)
    pool = model.streams(count)
    numbers = [pool.open() for _ in range(count)]
    ran: list[int] = []
    engine = pool._rows._engine
    executor = engine.executor_for("steady")
    run = executor.run
    executor.run = lambda inputs: (ran.append(len(inputs["x"])), run(inputs))[1]

    # One rate for all: as many rows a call as there are.
    state, want = np.zeros((2, count, 8), np.float32), []
    for chunk in chunks:
        result = model.run({"x": chunk, "state": state, "sr": np.array(16000)})
        want.append(result["y"])
        state = result["stateN"]
        np.testing.assert_array_equal(pool.step(numbers, {"x": chunk, "sr": np.array(16000)}), want[-1])
    assert set(ran) == {8, 3}
    np.testing.assert_array_equal(pool.state(4)["state"], state[:, 4:5])

    # A rate a stream: those of one rate go together.
    for number in numbers:
        pool.reset(number)
    ran.clear()
    alone = [model.stream() for _ in numbers]
    for chunk in chunks[:2]:
        got = pool.step(numbers, {"x": chunk, "sr": rates})
        for i, stream in enumerate(alone):
            np.testing.assert_array_equal(got[i], stream.step({"x": chunk[i], "sr": rates[i]}))
    assert max(ran) > 3

    # As much Python for many streams as for few.
    counts = [
        python_calls(lambda n=n: pool.step(numbers[:n], {"x": chunks[0, :n], "sr": np.array(16000)})) for n in (2, 8)
    ]
    assert counts[0] == counts[1]

    # Chunks of recordings of other lengths, side by side.
    lengths = [4, 0, 2]
    pieces = [{"x": chunks[:n, i], "sr": np.array(16000)} for i, n in enumerate(lengths)]
    for number in numbers:
        pool.reset(number)
    for i, (n, y) in enumerate(zip(lengths, pool.push(numbers[:3], pieces), strict=True)):
        np.testing.assert_array_equal(y, np.reshape([w[i] for w in want[:n]], (n, 1)))


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("time", [1, "time"])
def test_a_state_behind_an_unsqueeze_streams(batch: int | str, time: int | str) -> None:
    rng = np.random.default_rng(14)
    size, width = 8, 5

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-0.4, 0.4, shape).astype(np.float32)

    constants = {
        "w": weight(1, 4 * size, width), "r": weight(1, 4 * size, size), "first": np.array([0]), "two": np.float32([2]),
    }  # fmt: skip
    attrs = {"hidden_size": size, "directions": ["forward"], "activations": default_activations("LSTM", 1)}
    nodes = (
        Node("Mod", ("x", "two"), ("m",), {"fmod": 1}),  # has no kernel: the model runs part by part
        Node("Transpose", ("m",), ("xt",), {"perm": [1, 0, 2]}),
        *(Node("Unsqueeze", (n, "first"), (f"{n}_3",)) for n in ("h", "c")),
        Node("LSTM", ("xt", "w", "r", "", "", "", "h_3", "c_3"), ("y", "hn", "cn"), attrs, "lstm"),
        *(Node("Squeeze", (f"{n}n", "first"), (f"{n}_out",)) for n in ("h", "c")),
    )
    states = [TensorSpec(n, (batch, size)) for n in ("h", "c", "h_out", "c_out")]
    x, y = TensorSpec("x", (batch, time, width)), TensorSpec("y", (time, batch, size))
    model = fastlstm.Model(Graph((x, *states[:2]), (y, *states[2:]), nodes, constants))
    frames = rng.normal(size=(6, 1, width)).astype(np.float32)
    h = c = np.zeros((1, size), np.float32)
    stream, pool = model.stream(), model.streams(2)
    numbers = [pool.open(), pool.open()]
    for frame in frames:
        result = model.run({"x": frame[None], "h": h, "c": c})
        h, c = result["h_out"], result["c_out"]
        np.testing.assert_array_equal(stream.step(frame[0]), result["y"][0, 0])
        np.testing.assert_array_equal(pool.step(numbers, np.repeat(frame, 2, 0)), np.repeat(result["y"][0], 2, 0))
    np.testing.assert_array_equal(stream.state["h"], h)


class TracedLoop(nn.Module):
    """Cells in a loop over time, a layer behind each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            out.append(self.head(h))
        return torch.stack(out, 1), h, c


class TracedFromZero(TracedLoop):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zero = x.new_zeros(x.shape[0], 5)
        return super().forward(x, zero, zero)[0]


@pytest.mark.parametrize("steps", [1, 7])
def test_a_traced_loop_is_refused_with_what_to_do_and_that_works(steps: int, tmp_path: Path) -> None:
    x, zero = torch.randn(1, steps, 3), torch.zeros(1, 5)
    torch.jit.trace(TracedFromZero().eval(), (x,)).save(tmp_path / "zero.pt")
    with pytest.raises(UnsupportedError, match=r"torch.jit.script instead.*model.stream\(state="):
        fastlstm.load(tmp_path / "zero.pt").stream()

    module = TracedLoop().eval()
    torch.jit.trace(module, (x, zero, zero)).save(tmp_path / "states.pt")
    model = fastlstm.load(tmp_path / "states.pt")
    with pytest.raises(UnsupportedError, match="state="):
        model.stream()
    _, h, c = (spec.name for spec in model.outputs)
    stream = model.stream(state={model.inputs[1].name: h, model.inputs[2].name: c})
    once, again = (stream.step(x[0].numpy()) for _ in range(2))
    with torch.no_grad():
        y, *states = module(x, zero, zero)
        np.testing.assert_allclose(once, y[0], atol=1e-6)
        np.testing.assert_allclose(again, module(x, *states)[0][0], atol=1e-6)


def test_constant_states_of_several_rows_stream_for_so_many() -> None:
    rng, H = np.random.default_rng(0), 8
    attrs = {"hidden_size": H, "directions": ["forward"], "activations": default_activations("LSTM", 1)}
    node = Node("LSTM", ("x", "w", "r", "", "", "", "h"), ("y",), {**attrs, "clip": None, "input_forget": 0})
    shapes = {"w": (1, 4 * H, 5), "r": (1, 4 * H, H), "h": (1, 4, H)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = fastlstm.Model(Graph((TensorSpec("x", ("T", 4, 5)),), (TensorSpec("y", ("T", 4, H)),), (node,), constants))
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    stream = model.stream(batch=4)
    steps = np.stack([stream.step(frame) for frame in x])
    np.testing.assert_array_equal(steps, model(x))
    for open_another in (model.stream, lambda: model.streams(3)):
        with pytest.raises(InputError, match=r"initial states for 4 rows.*batch=4"):
            open_another()


def one_step(layout: int, rows: int | str, state_rows: int | str) -> fastlstm.Model:
    """A chunk model from ONNX: one time step of some rows with their states; its output's shape is not declared."""
    rng, H = np.random.default_rng(0), 8
    tensors = {"W": (1, 3 * H, 5), "R": (1, 3 * H, H)}
    initializers = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in tensors.items()
    ]
    initializers += [
        numpy_helper.from_array(np.array(value), name) for name, value in (("last", -1), ("two", [1 + layout]))
    ]
    shapes = {"x": [1, rows, 5], "h": [1, state_rows, H]}
    inputs = [
        helper.make_tensor_value_info(name, 1, [shape[layout], shape[1 - layout], shape[2]])
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "", "", "h"], ["all", "h_n"], hidden_size=H, layout=layout),
        helper.make_node("Squeeze", ["all", "two"], ["flat"]),
        helper.make_node("Gather", ["flat", "last"], ["y"], axis=layout),
    ]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ("y", "h_n")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return fastlstm.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("rows", "state_rows"), [(2, 2), (2, "n"), ("n", 2)])
def test_a_chunk_model_whose_rows_are_fixed_somewhere_steps_by_what_it_calls_a_frame(
    layout: int, rows: int | str, state_rows: int | str
) -> None:
    model = one_step(layout, rows, state_rows)
    stream, again = model.stream(), model.stream()
    stream.warmup(2)
    frame = stream.blank_frame()
    assert sorted(frame.shape) == [1, 2, 5]
    frames = np.random.default_rng(1).standard_normal((3, *frame.shape)).astype(np.float32)
    states, expected = stream.state["h"], []
    for chunk in frames:
        result = model.run({"x": chunk, "h": states})
        states = result["h_n"]
        expected.append(result["y"])
    np.testing.assert_array_equal([stream.step(chunk) for chunk in frames], expected)
    np.testing.assert_array_equal(again.push(frames), expected)
    pool = model.streams(2)
    numbers = [pool.open(), pool.open()]
    for chunk, y in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(pool.step(numbers, np.stack([chunk, chunk])), [y, y])
