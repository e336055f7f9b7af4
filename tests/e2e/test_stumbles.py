"""What made people stumble, each once: the sentence that they get now, or that it works."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.cli import main
from fastlstm.graph import Graph, Node, TensorSpec

os.environ.setdefault("KERAS_BACKEND", "torch")


def test_objects_and_dicts_are_refused_in_a_sentence() -> None:
    with pytest.raises(fastlstm.InputError, match=r"got dict\. Objects are for from_torch"):
        fastlstm.load({"lstm.weight_ih_l0": 1})
    with pytest.raises(fastlstm.InputError, match="weight_ih: expected an array of numbers; got dict"):
        fastlstm.LSTM({"weight": 1}, np.zeros((8, 2)))
    with pytest.raises(fastlstm.InputError, match="requires a gradient"):
        fastlstm.LSTM(nn.Parameter(torch.ones(8, 3)), torch.ones(8, 2))


def test_layers_from_tensors_give_tensors() -> None:
    theirs = nn.LSTM(3, 2)
    bias = (theirs.bias_ih_l0 + theirs.bias_hh_l0).detach()
    ours = fastlstm.LSTM(theirs.weight_ih_l0.detach(), theirs.weight_hh_l0.detach(), bias)
    x = torch.randn(5, 1, 3)
    output, (h_n, _) = ours(x)
    expected, (h, _) = theirs(x)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(h_n, h.detach())


def test_a_size_that_the_export_fixed_is_told_with_what_to_do() -> None:
    spec = TensorSpec("x", (4, 20, 8))
    model = fastlstm.Model(Graph((spec,), (TensorSpec("y", (4, 20, 8)),), (Node("Relu", ("x",), ("y",)),), {}))
    with pytest.raises(fastlstm.InputError, match=r"expected 20 where \[4, 40, 8\] has 40\. .* axis 1 open"):
        model(np.zeros((4, 40, 8), np.float32))


class Unnamed(nn.Module):
    """One step whose states have names that say nothing, and go through more than a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 8)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        after = self.cell(x, torch.tanh(memory))
        return after.sum(1, keepdim=True), after * 0.5


def test_a_column_is_a_chunk_of_one_feature() -> None:
    import pandas as pd

    rng = np.random.default_rng(0)
    shapes = {"lstm.weight_ih_l0": (16, 1), "lstm.weight_hh_l0": (16, 4)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = fastlstm.from_state_dict(tensors, layers="lstm", batch_first=True)
    column = pd.Series(rng.standard_normal(7).astype(np.float32))
    wanted = model.stream().push(column.to_numpy()[:, None])
    np.testing.assert_array_equal(model.stream().push(column), wanted)
    stream, rows = model.stream(), model.stream(batch=2)
    np.testing.assert_array_equal([stream.step(number) for number in column], wanted)
    np.testing.assert_array_equal(rows.step(column[[0, 0]]), wanted[[0, 0]])
    with pytest.raises(fastlstm.InputError, match=r"shape \[2, 1\]; got \[3\]"):
        rows.step(column[:3])


def test_a_single_step_names_the_likely_pairs_of_states() -> None:
    model = fastlstm.from_torch(Unnamed(), (torch.zeros(2, 3), torch.zeros(2, 8)))
    with pytest.raises(fastlstm.UnsupportedError, match=r"state=\{'memory': 'output_1'\}"):
        model.stream()
    stream = model.stream(state={"memory": "output_1"})
    assert stream.step(np.zeros(3, np.float32)).shape == (1,)


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.logcumsumexp(x, 1), torch.not_equal(x, 0).float()


def test_running_sums_of_exponentials_are_read(tmp_path: Path) -> None:
    x = torch.randn(2, 7, 3) * 100
    torch.jit.script(Sums()).save(tmp_path / "sums.pt")
    for model in (fastlstm.from_torch(Sums(), [x]), fastlstm.load(tmp_path / "sums.pt", shapes="x: float32[b, t, 3]")):
        for got, expected in zip(model(x.numpy()), Sums()(x), strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)


def test_a_custom_activation_may_be_named_as_a_known_one(tmp_path: Path) -> None:
    import keras

    @keras.saving.register_keras_serializable(package="mine")
    def snake(x: object) -> object:
        return keras.ops.silu(x)

    layers = [keras.layers.LSTM(4, return_sequences=True), keras.layers.Dense(3, activation=snake)]
    model = keras.Sequential([keras.Input((None, 2)), *layers])
    path = tmp_path / "own.keras"
    model.save(path)
    with pytest.raises(fastlstm.UnsupportedError, match=r"custom_objects=\{'mine>snake': 'silu'\}.* model\.export"):
        fastlstm.load(path)
    x = np.random.default_rng(0).standard_normal((1, 5, 2)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(x))
    named = {"custom_objects": {"mine>snake": "silu"}}
    for ours in (fastlstm.load(path, **named), fastlstm.from_keras(model, **named)):
        np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(fastlstm.InputError, match=r"no activation 'mine>snail'; of your own it has mine>snake"):
        fastlstm.load(path, custom_objects={"mine>snail": "silu"})
    with pytest.raises(fastlstm.InputError, match="'silou' is not, the nearest that are: silu"):
        fastlstm.load(path, custom_objects={"mine>snake": "silou"})


def test_inspect_says_first_if_and_how_a_model_streams_and_keeps_keras_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    layers = [keras.layers.Masking(name="gaps"), keras.layers.LSTM(4, return_sequences=True, name="memory")]
    keras.Sequential([keras.Input((None, 2), name="x"), *layers]).save(tmp_path / "m.keras")
    assert main(["inspect", str(tmp_path / "m.keras"), "--plan"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=1)[0] == "stream"
    assert "yes, one frame a step, no delay: x: float32[2] ->" in first
    named = [line.split()[0] for line in rest if line.startswith(("gaps.", "memory"))]
    assert any(name.startswith("gaps.") for name in named)
    assert any(name.startswith("memory") for name in named)
