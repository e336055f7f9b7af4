"""Modules that PyTorch quantised dynamically: their integers, exactly, and the module left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastlstm
from fastlstm.errors import UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

nn = torch.nn


class Tagger(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 64, batch_first=True, **options)
        self.head = nn.Linear(64 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def quantised(module: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    torch.manual_seed(0)
    kinds = {nn.LSTM, nn.GRU, nn.Linear, nn.LSTMCell}
    return torch.ao.quantization.quantize_dynamic(module.eval(), kinds, dtype=dtype)


def dequantised_run(module: nn.Module, plain: nn.Module, x: torch.Tensor) -> np.ndarray:
    """What the quantised module would give if only its weights were rounded: in float, with those weights."""
    weights = {f"rnn.{k}": v.dequantize() for k, v in module.rnn.get_weight().items()}
    weights |= {f"rnn.{k}": v for k, v in module.rnn.get_bias().items()}
    weights |= {"head.weight": module.head.weight().dequantize(), "head.bias": module.head.bias()}
    plain.load_state_dict(weights)
    with torch.inference_mode():
        return plain.double()(x.double()).numpy()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_quantised_module_keeps_its_8_bit_weights_and_gives_its_numbers(kind: Any, options: dict[str, Any]) -> None:
    plain = Tagger(kind, **options)
    module = quantised(Tagger(kind, **options))
    x = torch.randn(2, 9, 5)
    expected = dequantised_run(module, plain, x)
    model = fastlstm.from_torch(module)
    narrow = [node for node in model.graph.nodes if node.op in ("LSTM", "GRU")]
    assert all(model.graph.constants[node.input(i)].dtype == np.int8 for node in narrow for i in (1, 2))
    assert len(narrow) == options.get("num_layers", 1)
    # Activations of 14 bits: what is left of int8's error once the weights are given.
    np.testing.assert_allclose(model(x.numpy()), expected, atol=1e-3)
    assert isinstance(module.rnn, getattr(torch.ao.nn.quantized.dynamic, kind.__name__))


def test_a_quantised_layer_alone_is_read() -> None:
    module = quantised(nn.Sequential(nn.LSTM(4, 50)))[0]
    model = fastlstm.from_torch(module)
    x = torch.randn(6, 2, 4)
    with torch.inference_mode():
        expected = module(x)[0].numpy()
    # PyTorch's own activations have 8 bits: a unit of the last place of x, 6 / 255, times the weights.
    np.testing.assert_allclose(model.run({model.inputs[0].name: x.numpy()})["output"], expected, atol=3e-2)


def test_half_precision_and_small_layers_become_float32() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
    plain = Tagger(nn.LSTM)
    half = quantised(Tagger(nn.LSTM), torch.float16)
    plain.rnn.load_state_dict({**half.rnn.get_weight(), **half.rnn.get_bias()})
    plain.head.load_state_dict({"weight": half.head.weight(), "bias": half.head.bias()})
    np.testing.assert_allclose(fastlstm.from_torch(half)(x), fastlstm.from_torch(plain)(x), atol=1e-6)
    small = quantised(nn.Sequential(nn.LSTM(4, 8)))[0]
    assert any("0 of them run with 8-bit weights" in note for note in fastlstm.from_torch(small).graph.notes)


def test_other_quantised_layers_are_refused_and_the_module_is_left_alone() -> None:
    bag = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.Linear(4, 4))
    bag[0] = quantised(nn.Sequential(nn.Linear(4, 4)))[0]
    before = list(bag)
    with pytest.raises(UnsupportedError, match="quantised Linear; supported are dynamically quantised LSTM"):
        fastlstm.from_torch(bag, (torch.zeros(1, 4),))
    assert all(a is b for a, b in zip(bag, before, strict=True))


def test_a_saved_quantised_state_dict_says_what_to_do(tmp_path: Path) -> None:
    torch.save(quantised(Tagger(nn.LSTM)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match="give the quantised model itself"):
        fastlstm.load(tmp_path / "m.pt")
