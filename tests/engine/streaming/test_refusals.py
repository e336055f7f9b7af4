"""What cannot stream is refused by the name of what stands in the way; wrong frames are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamed_models import Wrapped, exported, frames, kind, loaded
from torch import nn

import fastlstm
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (lambda y: y, {"bidirectional": True}, "LSTM' runs backwards in time"),
        (lambda y: y.mean(1), {}, "ReduceMean' reduces over time"),
        (lambda y: torch.softmax(y, 1), {}, "Softmax' normalises over time"),
        (lambda y: torch.cumsum(y, 1), {}, "CumSum' adds up all frames so far"),
        (lambda y: y @ y.transpose(1, 2), {}, "MatMul"),
        (lambda y: y[:, :3], {}, "takes a fixed number of time steps"),
        (lambda y: y - y[:, -1:], {}, "combines every time step with the last one|combines each time step|Slice"),
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
    model = loaded(exported(Wrapped(function, **options), {"x": frames()}, "y"))
    for refused in (model.stream, lambda: model.streams(capacity=2)):
        with pytest.raises(UnsupportedError, match=words):
            refused()


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
    with pytest.raises(InputError, match="same number of frames"):
        stream.push({"x": arrays["x"][:, :3], "ids": arrays["ids"][:, :2]})
    with pytest.raises(InputError, match="of 'ids' should have the shape"):
        stream.step({"x": arrays["x"][0, 0], "ids": np.zeros((3, 3), np.int64)})
    with pytest.raises(InputError, match="integers"):
        stream.step({"x": arrays["x"][0, 0], "ids": np.float32(1.5)})
    out = {"p": np.empty((1, 4), np.float32), "q": np.empty((1, 4), np.float32)}
    y = stream.step({"x": arrays["x"][:, 0], "ids": arrays["ids"][:, 0]}, out=out)
    assert y is out
    np.testing.assert_array_equal(out["p"], model.run({n: a[:, :1] for n, a in arrays.items()})["p"][:, 0])


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
