"""States that a model takes and gives are those of its streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from streamed_models import STEPS, exported, frames, loaded
from torch import nn

import fastlstm
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations


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
