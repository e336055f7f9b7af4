"""State dicts become graphs that give PyTorch's own numbers, and everything assumed is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastlstm
from fastlstm.converters.torch.state_dict import from_state_dict, load
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.operators import reference

T, B = 7, 3


def close(got: np.ndarray, want: torch.Tensor) -> None:
    """The project's tolerance: both sides round in float32, in different orders."""
    expected = want.detach().numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def run(graph: Graph, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    return reference.run(graph, {name: value.numpy() for name, value in inputs.items()})


LONE = [
    lambda: nn.LSTM(4, 6, 2, batch_first=True),
    lambda: nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True),
    lambda: nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, proj_size=3),
    lambda: nn.LSTM(4, 6, batch_first=True, bias=False),
    lambda: nn.GRU(4, 6, 2, batch_first=True, bidirectional=True),
    lambda: nn.GRU(4, 6, batch_first=True, bias=False),
    lambda: nn.RNN(4, 6, 2, batch_first=True, bidirectional=True),
]


@pytest.mark.parametrize("make", LONE)
def test_a_lone_recurrent_module_gives_output_and_final_states(make: Callable[[], nn.Module]) -> None:
    module, x = make(), torch.randn(B, T, 4)
    output, states = module(x)
    states = states if isinstance(states, tuple) else (states,)
    graph = from_state_dict(module.state_dict(), batch_first=True)
    got = run(graph, input=x)
    assert [spec.name for spec in graph.outputs] == ["output", "h_n", "c_n"][: 1 + len(states)]
    for value, want in zip(got.values(), (output, *states), strict=True):
        close(value, want)


def test_time_first_needs_no_transposition() -> None:
    module, x = nn.LSTM(4, 6), torch.randn(T, B, 4)
    graph = from_state_dict(module.state_dict(), batch_first=False)
    assert "Transpose" not in {node.op for node in graph.nodes}
    assert graph.inputs[0].shape == ("time", "batch", 4)
    close(run(graph, input=x)["output"], module(x)[0])


def test_relu_of_an_rnn_is_said_by_its_word_and_tanh_is_assumed_aloud() -> None:
    module, x = nn.RNN(4, 6, nonlinearity="relu", batch_first=True), torch.randn(B, T, 4)
    close(run(from_state_dict(module.state_dict(), layers="rnn_relu"), input=x)["output"], module(x)[0])
    assert any("tanh was assumed" in note for note in from_state_dict(module.state_dict()).notes)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(12)
        self.hidden = nn.Linear(12, 5)
        self.fc = nn.Linear(5, 2)

    def forward(self, ids: torch.Tensor, how: str = "every") -> torch.Tensor:
        y, (h, _) = self.lstm(self.embedding(ids))
        picked = {"every": y, "last": y[:, -1], "hidden": torch.cat([h[-2], h[-1]], 1), "mean": y.mean(1)}[how]
        return torch.sigmoid(self.fc(torch.relu(self.hidden(self.norm(picked)))))


SPEC = "embedding | lstm | {} | layernorm | linear=hidden | relu | linear=fc | sigmoid"


@pytest.mark.parametrize("how", ["every", "last", "hidden", "mean"])
def test_the_spec_says_what_the_file_does_not(how: str) -> None:
    model, ids = Tagger(), torch.randint(11, (B, T))
    graph = from_state_dict(model.state_dict(), layers=SPEC.format(how), batch_first=True)
    close(run(graph, input=ids)["output"], model(ids, how))
    assert graph.inputs[0].dtype == "int64"
    assert graph.notes == ("The epsilon of 'norm' was assumed to be 1e-05; 'layernorm(1e-6)' says another.",)


def test_without_a_spec_the_whole_assumption_is_written_as_one() -> None:
    graph = from_state_dict(Tagger().state_dict())
    spec = "embedding=embedding | lstm=lstm | layernorm=norm | linear=hidden | linear=fc"
    assert f'layers="{spec}"' in graph.notes[0]
    assert graph.outputs[0].shape == ("batch", "time", 2)


def test_lengths_stand_for_packed_sequences() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True, bidirectional=True)
            self.fc = nn.Linear(12, 2)

    model, x, lengths = Packed(), torch.randn(B, T, 4), torch.tensor([3, 7, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, h = model.rnn(packed)
    y = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]
    weights = model.state_dict()
    got = run(from_state_dict(weights, layers="gru | linear", lengths=True), input=x, lengths=lengths)
    close(got["output"], model.fc(y))
    got = run(from_state_dict(weights, layers="gru | hidden | linear", lengths=True), input=x, lengths=lengths)
    close(got["output"], model.fc(torch.cat([h[0], h[1]], 1)))
    got = run(from_state_dict(weights, layers="gru | last | linear", lengths=True), input=x, lengths=lengths)
    close(got["output"], model.fc(y[torch.arange(B), lengths - 1]))


@pytest.mark.parametrize("affine", [True, False])
def test_cells_batchnorm_prelu_and_residual(affine: bool) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(4, 5)
            self.bn = nn.BatchNorm1d(5, affine=affine)
            self.slope = nn.PReLU(5)
            self.fc = nn.Linear(5, 5)

    model, x = Cells().eval(), torch.randn(B, T, 4)
    model.bn.running_mean.uniform_(-1, 1)
    model.bn.running_var.uniform_(0.5, 2)
    nn.init.uniform_(model.slope.weight)
    spec = "lstm=cell | batchnorm | prelu | linear | leaky_relu(0.3)"
    plain = from_state_dict(model.state_dict(), layers=spec)
    assert any("is a cell" in note for note in plain.notes)
    first = model.cell(x[:, 0])[0]
    z = model.bn(first)
    want = torch.nn.functional.leaky_relu(model.fc(torch.prelu(z, model.slope.weight)), 0.3)
    close(run(plain, input=x)["output"][:, 0], want)
    residual = from_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(("bn", "slope"))},
        layers="lstm | linear | residual",
    )
    close(run(residual, input=x)["output"][:, 0], model.fc(first) + first)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_give_the_same_graph_as_memory(tmp_path: Path, suffix: str) -> None:
    model, path = Tagger(), tmp_path / f"tagger{suffix}"
    spec = SPEC.format("last")
    if suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    graph, want = load(path, layers=spec), from_state_dict(model.state_dict(), layers=spec, name="tagger")
    # A .safetensors header keeps no order, so neither do the constants read from one.
    assert sorted(str(graph).splitlines()) == sorted(str(want).splitlines())
    for name, array in want.constants.items():
        np.testing.assert_array_equal(graph.constants[name], array)


def test_safetensors_lose_the_order_so_the_only_fitting_one_is_taken_or_asked_for(tmp_path: Path) -> None:
    save_file(Tagger().state_dict(), tmp_path / "a.safetensors")
    assert "embedding=embedding | lstm=lstm | layernorm=norm" in load(tmp_path / "a.safetensors").notes[0]
    square = {"a." + k: v for k, v in nn.Linear(4, 4).state_dict().items()}
    square |= {"lstm." + k: v for k, v in nn.LSTM(4, 4).state_dict().items()}
    save_file(square, tmp_path / "b.safetensors")
    with pytest.raises(UnsupportedError, match=r"several orders.*layers=\"linear=a \| lstm=lstm\""):
        load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_dtype_is_read_as_the_nearest_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {k: v.to(dtype) for k, v in nn.LSTM(4, 6).state_dict().items()}
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    want = weights["weight_ih_l0"].float().numpy()
    for graph in (load(tmp_path / "a.pt"), load(tmp_path / "a.safetensors"), from_state_dict(weights)):
        assert graph.constants["lstm.l0.w_ih"].dtype == np.float32
        np.testing.assert_array_equal(graph.constants["lstm.l0.w_ih"][0], want)


def test_checkpoints_prefixes_and_views_are_read(tmp_path: Path) -> None:
    model = Tagger()
    optimiser = torch.optim.Adam(model.parameters())
    checkpoint = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimiser.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.ckpt.pt")
    assert len(load(tmp_path / "checkpoint.ckpt.pt").constants) == 13
    wide = torch.randn(40, 24)
    views = {"weight_ih_l0": wide.T[:, 3:7], "weight_hh_l0": wide[4:28, ::4]}
    torch.save(views, tmp_path / "views.pt")
    graph = load(tmp_path / "views.pt")
    np.testing.assert_array_equal(graph.constants["lstm.l0.w_ih"][0], views["weight_ih_l0"].numpy())
    np.testing.assert_array_equal(graph.constants["lstm.l0.w_hh"][0], views["weight_hh_l0"].numpy())
    prefixed = from_state_dict(model.state_dict(), prefix="lstm.")
    assert [spec.name for spec in prefixed.outputs] == ["output", "h_n", "c_n"]


def test_the_exact_tree_of_the_common_model() -> None:
    weights = {f"lstm.{k}": v for k, v in nn.LSTM(3, 4).state_dict().items()}
    weights |= {f"fc.{k}": v for k, v in nn.Linear(4, 1).state_dict().items()}
    graph = from_state_dict(weights, layers="lstm | last | linear")
    assert [(n.op, n.inputs, n.outputs) for n in graph.nodes] == [
        ("Transpose", ("input",), ("input_t",)),
        (
            "LSTM",
            ("input_t", "lstm.l0.w_ih", "lstm.l0.w_hh", "lstm.l0.bias"),
            ("lstm.l0.y", "lstm.l0.h_n", "lstm.l0.c_n"),
        ),
        ("Transpose", ("lstm.l0.y",), ("lstm.l0.y_t",)),
        ("Gather", ("lstm.l0.y_t", "last.index"), ("last",)),
        ("Dense", ("last", "fc.weight", "fc.bias"), ("fc",)),
        ("Identity", ("fc",), ("output",)),
    ]
    bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
    np.testing.assert_array_equal(graph.constants["lstm.l0.bias"][0], bias.numpy())
    np.testing.assert_array_equal(graph.constants["fc.weight"], weights["fc.weight"].numpy().T)


LSTM = {f"lstm.{k}": v for k, v in nn.LSTM(3, 4).state_dict().items()}
HEAD = {f"fc.{k}": v for k, v in nn.Linear(4, 1).state_dict().items()}
REFUSED = [
    (LSTM | HEAD, "lstm", UnsupportedError, r"no step uses the tensors fc\.weight, fc\.bias.*'linear=fc'"),
    (LSTM | HEAD, "gru | linear", UnsupportedError, r"'gru' needs the weights.*lstm: LSTM 3→4"),
    (LSTM | HEAD, "lstm | linear | linear", UnsupportedError, "none is left"),
    (LSTM | HEAD, "linear | lstm", UnsupportedError, "gives 1 features"),
    (LSTM | HEAD, "lstm | last | last | linear", UnsupportedError, "only one step a row"),
    (LSTM | HEAD, "lstm | linear=head", InputError, "'head' fits 0 modules"),
    (LSTM | HEAD, "lstm | lin", InputError, "'lin' is unknown; the words are"),
    (LSTM | HEAD, "lstm | linear | relu(1)", InputError, "at most 0 number"),
    (LSTM | HEAD, "lstm | linear | residual", UnsupportedError, "'residual' adds 4 features to 1"),
    (HEAD, None, UnsupportedError, "no recurrent layer"),
    ({}, None, InputError, "holds no tensors"),
    (LSTM | {"conv.weight": np.ones((2, 3, 4))}, None, UnsupportedError, r"'conv\.weight' \[2, 3, 4\]"),
    (LSTM | {"lstm.extra": np.ones(3)}, None, UnsupportedError, r"'lstm\.extra' is not known"),
    (
        LSTM | {"lstm.weight_ih_l2": np.ones((16, 4))},
        None,
        UnsupportedError,
        "layers or directions are missing",
    ),
    (LSTM | {"lstm.weight_hh_l0": np.ones((16, 5))}, None, UnsupportedError, "4, 3 or 1 times as many rows"),
    (LSTM | {"lstm.bias_ih_l0": np.ones(15)}, None, UnsupportedError, r"shape \[16\].*got \[15\]"),
    (LSTM | {"fc.weight": np.ones((1, 9))}, None, UnsupportedError, "in no order"),
    ({k: v for k, v in LSTM.items() if "hh" not in k}, None, UnsupportedError, "weight_hh is missing"),
    (LSTM | {"fc.weight": np.array([["a"]])}, None, UnsupportedError, "should hold numbers"),
]


@pytest.mark.parametrize(("weights", "layers", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    weights: dict[str, object], layers: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_state_dict(weights, layers=layers)


def test_numbers_that_are_not_finite_are_mentioned() -> None:
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in LSTM.items()}
    assert any("NaN" in note for note in from_state_dict(broken).notes)


def test_layers_that_are_no_text_are_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save(nn.LSTM(2, 3).state_dict(), tmp_path / "m.pt")
    with pytest.raises(InputError, match="layers should be a text of steps"):
        fastlstm.load(tmp_path / "m.pt", layers=["lstm"])


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".tar", ".bin"])
@pytest.mark.parametrize("old", [True, False])
def test_torch_save_of_any_version_and_ending_is_read(tmp_path: Path, suffix: str, old: bool) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, batch_first=True)
    checkpoint = {"epoch": 3, "model_state": lstm.state_dict(), "optimizer": {"step": torch.ones(2)}}
    torch.save(checkpoint, tmp_path / f"model{suffix}", _use_new_zipfile_serialization=not old)
    x = torch.randn(2, 5, 3)
    y = fastlstm.load(tmp_path / f"model{suffix}")(x.numpy())[0]
    np.testing.assert_allclose(y, lstm(x)[0].detach(), atol=1e-6)
