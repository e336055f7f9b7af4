"""Models that take a chunk and their states a call advance by one chunk a step."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from streamed_models import exported, frames, loaded
from torch import nn

import fastlstm
from fastlstm.errors import InputError


class Chunk(nn.Module):
    """A chunk of samples and a state in, a number and a state out, as voice activity detectors are."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.cell, self.head = nn.Linear(32, 16), nn.LSTMCell(16, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, c = self.cell(torch.relu(self.features(x)), (state[0], state[1]))
        return torch.sigmoid(self.head(h)), torch.stack([h, c])


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
        stream.step(chunks[0, 0, :31])
    stream.reset()
    np.testing.assert_array_equal(stream.step(chunks[0, 0]), expected[0])  # the model's axes of size 1 may be left out
    np.testing.assert_array_equal(stream.push(chunks[1:, 0]), expected[1:])


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


def guarded() -> fastlstm.Model:
    """A chunk of any size and a state in and out; an axis of the convolved chunk is squeezed if its size is one."""
    rng, H = np.random.default_rng(14), 8
    shapes = {"kernel": (H, 1, 64), "W": (1, 3 * H, H), "R": (1, 3 * H, H)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    tensors |= {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    value = helper.make_tensor_value_info
    branches = {
        name: helper.make_graph([helper.make_node(op, inputs, [name])], name, [], [value(name, 1, None)])
        for name, op, inputs in (("then", "Squeeze", ["y", "two"]), ("else", "Identity", ["y"]))
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "kernel"], ["y"], strides=[64]),
        helper.make_node("Shape", ["y"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["last"]),
        helper.make_node("Equal", ["last", "one"], ["is_one"]),
        helper.make_node("If", ["is_one"], ["row"], then_branch=branches["then"], else_branch=branches["else"]),
        helper.make_node("Unsqueeze", ["row", "zero"], ["step"]),
        helper.make_node("GRU", ["step", "W", "R", "", "", "h"], ["", "h_n"], hidden_size=H),
        helper.make_node("Squeeze", ["h_n", "zero"], ["out"]),
    ]
    inputs = [value("x", 1, ["a", "samples"]), value("h", 1, [1, "b", H])]
    outputs = [value("out", 1, ["c", H]), value("h_n", 1, ["d", "e", "f"])]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    )
    return fastlstm.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_a_pool_of_a_chunk_model_with_branches_and_a_chunk_of_any_size_runs_the_batch() -> None:
    model, count = guarded(), 5
    pool = model.streams(count, state={"h": "h_n"})
    numbers = [pool.open() for _ in range(count)]
    ran: list[int] = []
    executor = pool._rows._engine.executor_for("steady")
    run = executor.run
    executor.run = lambda inputs: (ran.append(len(inputs["x"])), run(inputs))[1]
    state = np.zeros((1, count, 8), np.float32)
    for chunk in np.random.default_rng(15).normal(size=(3, count, 64)).astype(np.float32):
        result = model.run({"x": chunk, "h": state})
        np.testing.assert_array_equal(pool.step(numbers, chunk), result["out"])
        state = result["h_n"]
    assert set(ran) == {count}
    np.testing.assert_array_equal(pool.state(3)["h"], state[:, 3:4])


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
