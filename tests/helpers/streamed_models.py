"""Models that go on in time, exported from PyTorch, and frames for them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fastlstm

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


class Wrapped(nn.Module):
    """An LSTM and a function of its output."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.lstm, self.function = nn.LSTM(4, 6, batch_first=True, **options), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.lstm(x)[0])


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
