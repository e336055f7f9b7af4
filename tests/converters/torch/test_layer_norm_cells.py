"""PyTorch's custom LSTM with layer normalisation, scripted or alone: read as a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.graph import RecurrentInputs
from fastlstm.passes import optimise

HIDDEN, FEATURES = 12, 5


class Cell(nn.Module):
    """As in PyTorch's custom-LSTM examples."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.w_ih = nn.Parameter(torch.randn(4 * HIDDEN, FEATURES) / 2)
        self.w_hh = nn.Parameter(torch.randn(4 * HIDDEN, HIDDEN) / 3)
        self.norm_i = nn.LayerNorm(4 * HIDDEN)
        self.norm_h = nn.LayerNorm(4 * HIDDEN)
        self.norm_c = nn.LayerNorm(HIDDEN, eps=epsilon)
        for norm in (self.norm_i, self.norm_h, self.norm_c):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.norm_i(torch.mm(x, self.w_ih.t())) + self.norm_h(torch.mm(h, self.w_hh.t()))
        i, f, g, o = gates.chunk(4, 1)
        c = self.norm_c(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c


class Reordered(Cell):
    """The same with the gates in another order."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        o, g, f, i = (self.norm_h(torch.mm(h, self.w_hh.t())) + self.norm_i(torch.mm(x, self.w_ih.t()))).chunk(4, 1)
        c = self.norm_c(torch.tanh(g) * torch.sigmoid(i) + c * torch.sigmoid(f))
        return torch.tanh(c) * torch.sigmoid(o), c


class Layer(nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(1), 12), torch.zeros(x.size(1), 12)
        outputs: list[Tensor] = []
        for frame in x.unbind(0):
            h, c = self.cell(frame, h, c)
            outputs.append(h)
        return torch.stack(outputs)


def scripted(kind: type[Cell] = Cell, epsilon: float = 1e-5) -> torch.jit.ScriptModule:
    torch.manual_seed(16)
    return torch.jit.script(Layer(kind(epsilon)).eval())


def is_normalised(model: fastlstm.Model) -> bool:
    layers = [node for node in optimise(model.graph).nodes if node.op == "LSTM"]
    return len(layers) == 1 and RecurrentInputs.of(layers[0]).norm != ""


@pytest.mark.parametrize("kind", [Cell, Reordered])
def test_a_scripted_layer_is_one_layer_and_streams(kind: type[Cell], tmp_path: Path) -> None:
    module, x = scripted(kind), torch.randn(9, 3, FEATURES)
    module.save(tmp_path / "m.pt")
    model = fastlstm.load(tmp_path / "m.pt")
    assert is_normalised(model)
    with torch.no_grad():
        expected = module(x).numpy()
    got = model(x.numpy())
    # Each of nine rounds normalises sums in float32 that torch adds in another order.
    np.testing.assert_allclose(got, expected, atol=2e-5)
    stream = model.stream()
    assert np.array_equal([stream.step(frame) for frame in x.numpy()[:, 1]], got[:, 1])


def test_normalisations_of_different_epsilon_stay_a_loop_with_the_same_results(tmp_path: Path) -> None:
    module, x = scripted(epsilon=1e-3), torch.randn(4, 2, FEATURES)
    module.save(tmp_path / "m.pt")
    model = fastlstm.load(tmp_path / "m.pt")
    assert not is_normalised(model)
    with torch.no_grad():
        np.testing.assert_allclose(model(x.numpy()), module(x).numpy(), atol=2e-5)


def test_a_cell_alone_is_a_layer_over_one_step() -> None:
    torch.manual_seed(3)
    cell = Cell().eval()
    model = fastlstm.from_torch(cell, (torch.zeros(2, FEATURES), torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)))
    given = torch.randn(3, FEATURES), torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    with torch.no_grad():
        for got, expected in zip(model(*given), cell(*given), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-5)
    assert is_normalised(model)
