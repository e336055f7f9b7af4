"""Modules of PyTorch as people write them, and how their graphs are compared with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fastlstm.graph import Graph
from fastlstm.operators import reference


def flat(result: object) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(result)


def check(graph: Graph, module: nn.Module, *inputs: torch.Tensor) -> None:
    """The project's tolerance: both sides round in float32, in different orders."""
    with torch.no_grad():
        want = flat(module.eval()(*inputs))
    arrays = {spec.name: x.numpy() for spec, x in zip(graph.inputs, inputs, strict=True)}
    got = reference.run(graph, arrays)
    assert len(got) == len(want)
    for array, tensor in zip(got.values(), want, strict=True):
        assert array.shape == tuple(tensor.shape)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y, (h, _) = self.lstm(self.embedding(ids))
        both = torch.cat([h[-2], h[-1]], 1)
        return torch.softmax(self.fc(self.norm(torch.relu(both + y.mean(1)))), -1)


class ConvFront(nn.Module):
    """A spectrogram [batch, time, bins] through convolution, pooling and batch norm into a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(5, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool1d(2)
        self.gru = nn.GRU(8, 7, batch_first=True)
        self.fc = nn.Linear(7, 4)
        nn.init.uniform_(self.conv[1].running_mean)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.pool(self.conv(x.transpose(1, 2))).permute(0, 2, 1)
        y, h = self.gru(y)
        return torch.log_softmax(self.fc(y), dim=-1), h


class Crnn(nn.Module):
    """An image [batch, 1, height, width] read column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1)
        self.lstm = nn.LSTM(16, 6, bidirectional=True)
        self.fc = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = nn.functional.leaky_relu(self.conv(image), 0.2)
        batch, channels, height, width = y.shape
        y = y.reshape(batch, channels * height, width).permute(2, 0, 1)
        y, _ = self.lstm(y)
        return self.fc(y.view(width * batch, -1)).view(width, batch, -1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, nonlinearity="relu", batch_first=True)
        self.score = nn.Linear(6, 1, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(x)
        scores = self.score(torch.tanh(y)).squeeze(-1).masked_fill(mask == 0, -1e9)
        weights = nn.functional.softmax(scores, dim=1)
        mixed = torch.bmm(weights.unsqueeze(1), y).squeeze(1)
        return mixed + nn.functional.scaled_dot_product_attention(y, y, y).amax(1)


class Stateful(nn.Module):
    """States go in and come out, packed into one tensor; some arithmetic between."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, proj_size=3)
        self.scale = nn.Parameter(torch.rand(3))

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        a, b = torch.chunk(torch.cat([y, y.flip(-1)], -1), 2, dim=-1)
        gate = (a - 0.5).clamp(-1, 1) / (b.abs() + 2) ** 2
        return torch.where(gate > 0, gate, nn.functional.elu(y)) * self.scale, h, c


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 3)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h, c = self.lstm(x, (h, c))
        return self.rnn(self.gru(h)), h, c


class LastValid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y, _ = self.gru(x)
        return y[torch.arange(x.size(0)), lengths - 1]


class SelfAttention(nn.Module):
    """Multi-head attention joins the batch with the heads and takes them apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm = nn.LSTM(4, 8, batch_first=True), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(x)
        return self.norm(y + self.attention(y, y, y, need_weights=False)[0])


class Rescaled(nn.Module):
    """Each series by its own spread, both ways of counting; categories one-hot; two rates; pooled in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow = nn.LSTM(7, 6, batch_first=True), nn.GRU(6, 5, batch_first=True)
        self.mix = nn.Parameter(torch.rand(5))

    def forward(self, x: torch.Tensor, kind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centre, spread = x.mean(1, keepdim=True), torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        scaled = (x - centre) / spread / (1 + x.std(1, keepdim=True))
        y, _ = self.fast(torch.cat([scaled, nn.functional.one_hot(kind, 3).float()], -1))
        z = torch.repeat_interleave(self.slow(y)[0], 2, dim=1)
        z = torch.lerp(z, torch.tanh(z), self.mix)
        wide = nn.functional.adaptive_max_pool1d(z.transpose(1, 2), 1).flatten(1)
        return wide + nn.functional.adaptive_avg_pool2d(z.unsqueeze(1), (1, z.size(2))).flatten(1), z.lerp(z * z, 0.25)


def ints(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, high, shape)


MODELS: list[tuple[Callable[[], nn.Module], Callable[[int, int], tuple[torch.Tensor, ...]]]] = [
    (Classifier, lambda b, t: (ints(20, b, t),)),
    (ConvFront, lambda b, t: (torch.randn(b, 2 * t, 5),)),
    (Crnn, lambda b, t: (torch.randn(b, 1, 8, t),)),
    (Attention, lambda b, t: (torch.randn(b, t, 4), ints(2, b, t))),
    (Stateful, lambda b, t: (torch.randn(b, t, 4), torch.randn(2, b, 3), torch.randn(2, b, 6))),
    (Cells, lambda b, t: (torch.randn(b, 4), torch.randn(b, 5), torch.randn(b, 5))),
    (SelfAttention, lambda b, t: (torch.randn(b, t, 4),)),
    (LastValid, lambda b, t: (torch.randn(b, t, 4), ints(t, b))),
    (Rescaled, lambda b, t: (torch.randn(b, t, 4), ints(3, b, t))),
]
