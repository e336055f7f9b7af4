"""`verify`, `bench`, `latency` and `convert` as functions: what the command line does, on objects too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastlstm

SHAPES = {"lstm.weight_ih_l0": (32, 3), "lstm.weight_hh_l0": (32, 8), "head.weight": (2, 8), "head.bias": (2,)}
LAYERS = {"layers": "lstm | linear", "batch_first": True}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(3, 8, batch_first=True, bias=False), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


torch.manual_seed(0)
NET = Net().eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(dict(NET.state_dict()), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_model_is_compared_with_the_module_that_it_came_from(weights: Path) -> None:
    model = fastlstm.load(weights, **LAYERS)
    found = fastlstm.verify(model, against=NET, by_layer=True)
    assert found.holds
    assert "torch" in found.expected_from
    assert "layers agree with float64" in str(found)
    other = Net().eval()
    wrong = fastlstm.verify(model, against=other, inputs={model.inputs[0].name: np.ones((1, 5, 3), np.float32)})
    assert not wrong.holds
    assert "DIFFERS" in repr(wrong)


def test_a_file_is_compared_with_another_and_with_its_samples(weights: Path, tmp_path: Path) -> None:
    stored = tmp_path / "net.fastlstm"
    made = fastlstm.convert(weights, stored, **LAYERS)
    assert (made.how, made.golden_samples, made.verified) == ("consistent with our own reference", 3, False)
    assert made.file_bytes == stored.stat().st_size
    assert fastlstm.verify(stored).what == f"the golden samples of {made.verification.expected_from} on 3 inputs"
    assert fastlstm.verify(fastlstm.load(weights, **LAYERS), against=stored).holds
    with pytest.raises(fastlstm.InputError, match="say with what"):
        fastlstm.verify(fastlstm.load(stored))
    with pytest.raises(fastlstm.InputError, match="a PyTorch module, a Keras model or a function"):
        fastlstm.verify(stored, against=3)


def test_what_differs_is_not_written(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(fastlstm.VerificationError, match=r"differ by more than allowed; .*m\.fastlstm was not") as told:
        fastlstm.convert(weights, tmp_path / "m.fastlstm", atol=0, rtol=0, **LAYERS)
    assert not told.value.found.holds
    assert not (tmp_path / "m.fastlstm").exists()


def test_precision_is_measured_on_data_and_a_metric(weights: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 20, 3)).astype(np.float32)
    name = fastlstm.load(weights, **LAYERS).inputs[0].name

    def largest(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> float:
        assert inputs[name].shape == x.shape
        return max(float(abs(y).max()) for y in outputs.values())

    made = fastlstm.convert(
        weights, tmp_path / "n.fastlstm", precision={"head": "int16"}, data={name: x}, metric=largest, **LAYERS
    )
    assert list(made.metric) == ["float32", "int16", "int8"]
    assert made.narrowing.cost.max_abs < 1e-2
    assert "against float32" in str(made)
    assert made.as_data()["precision"]["layers"].keys() == {"head"}
    for words in ({"metric": largest}, {"data": {name: x}}, {"max_error": -1.0, "data": {name: x}}):
        with pytest.raises(fastlstm.InputError):
            fastlstm.convert(weights, tmp_path / "o.fastlstm", **words, **LAYERS)
    assert not (tmp_path / "o.fastlstm").exists()


def test_calls_and_steps_are_timed(weights: Path, tmp_path: Path) -> None:
    model = fastlstm.load(weights, **LAYERS)
    found = fastlstm.bench(model, steps=5, rounds=2, against=NET)
    assert [row["engine"] for row in found.rows()] == ["fastlstm", f"torch {torch.__version__}"]
    assert "5 steps per call, 1 thread," in str(found)
    assert "<table>" in found._repr_html_()
    with pytest.raises(fastlstm.VerificationError, match="times mean nothing"):
        fastlstm.bench(model, steps=5, rounds=2, against=Net().eval())
    steps = fastlstm.latency(model, block=4, sample_rate=1e-3, seconds=0.01)
    assert (steps.block, steps.deadline, steps.missed) == (4, 4000.0, 0)
    steps.save(tmp_path / "steps.svg")
    assert (tmp_path / "steps.svg").read_text().startswith("<svg")
    assert fastlstm.latency(model, pool=3, seconds=0.01).what == "a step of 3 streams"
    with pytest.raises(fastlstm.InputError, match="goes with neither block nor batch"):
        fastlstm.latency(model, pool=3, block=2)


def test_pytorch_is_timed_on_a_file_that_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(NET, torch.zeros(2, 5, 3)).save(path)
    with pytest.warns(fastlstm.AssumptionWarning):
        alone = fastlstm.bench(path, steps=5, rounds=1)
    assert "trusted=True" in alone.alone
    assert len(alone.rows()) == 1
    with pytest.warns(fastlstm.AssumptionWarning):
        both = fastlstm.bench(path, steps=5, rounds=1, trusted=True)
    assert [row["engine"].split()[0] for row in both.rows()] == ["fastlstm", "torch"]


def test_an_option_that_is_nobodys_is_told(weights: Path) -> None:
    model = fastlstm.load(weights, layers="lstm | linear", batch_first=True)
    with pytest.raises(
        fastlstm.InputError, match=r"no further options for a model that is read already; got seconds\."
    ):
        fastlstm.bench(model, seconds=1)


def test_a_file_that_leaves_something_open_warns_where_it_is_named(weights: Path) -> None:
    with pytest.warns(fastlstm.AssumptionWarning) as caught:
        fastlstm.bench(weights, steps=2, rounds=1, layers="lstm | linear")
    assert {warning.filename for warning in caught} == {__file__}
