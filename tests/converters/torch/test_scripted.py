"""Loops of cells stream as scripted, and modules that torch.export does not follow go through TorchScript."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.errors import InputError


class Loop(nn.Module):
    """What researchers write around a cell."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(features, 8), nn.Linear(8, 2)


class HeadOutside(Loop):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = torch.zeros(x.size(0), 8), torch.zeros(x.size(0), 8)
        ys = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(h)
        return self.head(torch.stack(ys, 1))


class HeadInside(Loop):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = torch.zeros(x.size(0), 8), torch.zeros(x.size(0), 8)
        ys = []
        for x_t in x.unbind(1):
            h, c = self.cell(torch.relu(x_t), (h, c))
            ys.append(self.head(h).unsqueeze(1))
        return torch.cat(ys, 1)


class Feedback(Loop):
    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c, y = torch.zeros(x.size(0), 8), torch.ones(x.size(0), 8), torch.zeros(x.size(0), 2)
        ys = []
        for t in range(x.size(1)):
            h, c = self.cell(torch.cat([x[:, t], y], 1), (h, c))
            y = self.head(h)
            ys.append(y)
        return torch.stack(ys, 1)


@pytest.mark.parametrize("kind", [HeadOutside, HeadInside, Feedback])
def test_scripted_loops_of_cells_stream(kind: type[Loop], tmp_path: Path) -> None:
    module, x = kind().eval(), torch.randn(1, 9, 3)
    torch.jit.script(module).save(tmp_path / "loop.pt")
    model = fastlstm.load(tmp_path / "loop.pt")
    whole = model(x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(whole, module(x).numpy(), rtol=1e-4, atol=1e-5)
    stream = model.stream()
    np.testing.assert_array_equal(np.stack([stream.step(frame) for frame in x[0].numpy()]), whole[0])
    if kind is HeadOutside:
        assert [node.op for node in model.plan.graph.nodes if node.op in ("LSTM", "Loop")] == ["LSTM"]
    again = fastlstm.from_torch(torch.jit.script(module), [torch.randn(2, 9, 3)])
    np.testing.assert_array_equal(again(x.numpy()), whole)


class Packed(nn.Module):
    """A ragged batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]


class PackedByName(Packed):
    """The same as torch.jit.script does not take it."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, **_: object) -> torch.Tensor:
        return Packed.forward(self, x, lengths)


@pytest.mark.parametrize("kind", [Packed, PackedByName], ids=["script", "trace"])
def test_packed_sequences_inside_a_module_go_through(kind: type[Packed]) -> None:
    module = kind().eval()
    model = fastlstm.from_torch(module, (torch.randn(3, 9, 3), torch.tensor([9, 4, 7])))
    x, lengths = torch.randn(2, 5, 3), torch.tensor([2, 5])
    with torch.no_grad():
        expected = module(x, lengths).numpy()
    np.testing.assert_allclose(model(x.numpy(), lengths.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert ("traced with" in "".join(model.notes)) == (kind is PackedByName)


class Choosing(nn.Module):
    """A choice by the numbers in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        y = self.lstm(x)[0]
        return y * 2 if float(y.sum()) > 0 else y


def test_what_numbers_decide_is_not_traced_as_they_decided_it() -> None:
    with pytest.raises(InputError, match=r"torch\.export cannot follow the module"):
        fastlstm.from_torch(Choosing(), [torch.randn(2, 5, 3)])
