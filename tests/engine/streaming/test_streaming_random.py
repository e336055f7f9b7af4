"""Random stacks of layers: a stream has the bits of the whole run, or the model is refused; nothing in between."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlstm
from fastlstm.errors import UnsupportedError

WIDTH, STEPS = 6, 30

Function = Callable[[torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, Function] = {
    "gelu": F.gelu,
    "clamped": lambda x: torch.clamp(x, -0.5, 0.7).abs(),
    "gate": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "norm": lambda x: x / torch.sqrt(x.transpose(1, 2).square().sum(1)[..., None] + 1e-3),
    "softmax": lambda x: F.softmax(x.transpose(1, 2), 1).transpose(1, 2),
    "turned": lambda x: torch.cat([x[..., 1:], x[..., :1]], -1),
    "heads": lambda x: x.unflatten(-1, (2, 3)).softmax(-1).flatten(2),
    "later": lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1],
    "difference": lambda x: F.pad(x[:, 1:] - x[:, :-1], (0, 0, 1, 0)),
    "sooner": lambda x: F.pad(x, (0, 0, 0, 1))[:, 1:],
    "pairs": lambda x: x.reshape(x.shape[0], -1, 2 * WIDTH).tanh().reshape(x.shape[0], -1, WIDTH),
    # This does not stream.
    "mean": lambda x: x - x.mean(1, keepdim=True),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
    "dense": lambda: nn.Linear(WIDTH, WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "conv": lambda: nn.Conv1d(WIDTH, WIDTH, random.choice([1, 2, 5]), dilation=2, groups=random.choice([1, 2, 6])),
    "same conv": lambda: nn.Conv1d(WIDTH, WIDTH, random.choice([3, 5]), padding="same"),
    "padded conv": lambda: nn.Conv1d(WIDTH, WIDTH, 3, dilation=3, padding=6, groups=random.choice([1, 3])),
}


class Stack(nn.Module):
    """Some layers and functions, some of them with a residual."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names, self.residual = names, [random.random() < 0.4 for _ in names]
        self.layers = nn.ModuleList([LAYERS[name]() if name in LAYERS else nn.Identity() for name in names])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, layer, residual in zip(self.names, self.layers, self.residual, strict=True):
            y = self.run(name, layer, x)
            x = y + x if residual else y
        return x

    def run(self, name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if name in FUNCTIONS:
            return FUNCTIONS[name](x)
        if isinstance(layer, nn.RNNBase):
            return layer(x)[0]
        if isinstance(layer, nn.Conv1d):
            span = (layer.kernel_size[0] - 1) * layer.dilation[0]
            x = x.transpose(1, 2)
            if layer.padding == "same":
                return layer(x).transpose(1, 2)
            y = layer(x)[..., :-span] if layer.padding[0] else layer(F.pad(x, (span, 0)))
            return y.transpose(1, 2)
        if isinstance(layer, nn.BatchNorm1d):
            return layer(x.transpose(1, 2)).transpose(1, 2)
        return layer(x)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_stack_streams_with_the_same_bits_or_is_refused(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    # The first ten have layers that stream only.
    pool = [*LAYERS, *FUNCTIONS] if seed >= 10 else [*LAYERS, *list(FUNCTIONS)[:-1]]
    stack = Stack(["lstm", *random.choices(pool, k=random.randint(3, 6))]).eval()
    rows = random.choice([1, 2])
    x, file = torch.randn(rows, STEPS, WIDTH), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {name: {0: "batch", 1: "time"} for name in "xy"}
        torch.onnx.export(stack, (x,), file, input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False)
    model = fastlstm.from_onnx(onnx.load_model_from_string(file.getvalue()))
    whole, frames = model(x.numpy()), x.numpy()
    np.testing.assert_allclose(whole, stack(x).detach().numpy(), rtol=1e-3, atol=1e-4, err_msg=str(stack.names))
    try:
        stream = model.stream(batch=rows)
    except UnsupportedError:
        assert seed >= 10, stack.names
        return
    at, parts = 0, []
    while at < STEPS:
        n = min(random.randint(0, 6) * stream.hop, STEPS - at)
        parts.append(stream.push(frames[:, at : at + n]))
        at += n
    tail = stream.finish()
    got = [np.concatenate(parts, 1)[:, stream.delay :], tail if rows > 1 else tail[None]]
    np.testing.assert_array_equal(np.concatenate(got, 1), whole, err_msg=str(stack.names))
