"""PyTorch modules and exported programs become graphs that give PyTorch's own numbers at every length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_models import MODELS, Classifier, check, flat, ints

from fastlstm.converters import load_graph
from fastlstm.converters.torch.export import from_torch, load, supported
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.operators import reference


@pytest.mark.parametrize(("make", "inputs"), MODELS, ids=lambda f: getattr(f, "__name__", ""))
def test_a_module_is_read_with_batch_and_time_open(make: Callable[[], nn.Module], inputs: Callable[..., tuple]) -> None:
    module = make()
    graph = from_torch(module, inputs(3, 5))
    assert module.training, "the module's own mode is left as it is"
    for batch, time in [(3, 5), (2, 11), (1, 4)]:
        check(graph, module, *inputs(batch, time))


@pytest.mark.parametrize(("make", "inputs"), MODELS, ids=lambda f: getattr(f, "__name__", ""))
def test_a_saved_program_is_read_without_torch(
    tmp_path: Path, make: Callable[[], nn.Module], inputs: Callable[..., tuple]
) -> None:
    module, example = make().eval(), inputs(3, 5)
    torch.export.save(torch.export.export(module, example), tmp_path / "model.pt2")
    graph = load(tmp_path / "model.pt2")
    check(graph, module, *example)
    assert str(from_torch(torch.export.load(tmp_path / "model.pt2"))).count("\n") == str(graph).count("\n")
    for batch, time in [(2, 11), (1, 4)]:  # the export fixed both axes, the operations do not ask for it
        check(graph, module, *inputs(batch, time))


@pytest.mark.parametrize(("make", "inputs"), MODELS, ids=lambda f: getattr(f, "__name__", ""))
def test_a_program_with_a_dynamic_batch_has_its_time_open_too(
    tmp_path: Path, make: Callable[[], nn.Module], inputs: Callable[..., tuple]
) -> None:
    module, example = make().eval(), inputs(3, 5)
    axes = tuple(dict.fromkeys(range(e.dim()), torch.export.Dim.AUTO) for e in example)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=axes), tmp_path / "model.pt2")
    graph = load(tmp_path / "model.pt2")
    for batch, time in [(3, 5), (2, 11), (1, 4)]:
        check(graph, module, *inputs(batch, time))


class Words(nn.Module):
    """The letters of each word, words and batch on one axis: zero states of batch times words."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.words = nn.GRU(3, 4, batch_first=True), nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, words, letters, features = x.shape
        _, h = self.letters(x.reshape(-1, letters, features))
        return self.words(h[-1].reshape(batch, words, -1))[0]


def test_axes_made_one_are_open_beside_a_dynamic_batch(tmp_path: Path) -> None:
    module, x = Words().eval(), torch.randn(2, 5, 7, 3)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "m.pt2")
    graph = load(tmp_path / "m.pt2")
    for shape in [(2, 5, 7, 3), (3, 4, 7, 3)]:
        check(graph, module, torch.randn(*shape))


def test_a_pooling_to_a_number_fixes_what_it_pools(tmp_path: Path) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d((2, 5))).eval()
    torch.export.save(torch.export.export(module, (torch.randn(2, 3, 6, 5),)), tmp_path / "m.pt2")
    graph = load(tmp_path / "m.pt2")
    assert graph.inputs[0].shape[2:] == (6, 5), "five may be the size of the axis, or meant as five"
    check(graph, module, torch.randn(3, 3, 6, 5))


def test_an_axis_whose_size_is_calculated_with_stays_as_it_was_exported(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(7 * 4, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y, _ = self.gru(x)
            return y.sum(1) / x.size(1), y[:, x.size(1) // 2]

    torch.export.save(torch.export.export(Mean().eval(), (torch.randn(2, 7, 3),)), tmp_path / "mean.pt2")
    graph = load(tmp_path / "mean.pt2")
    assert [str(spec) for spec in graph.inputs] == ["x: float32[batch, 7, 3]"]


def test_a_matrix_that_asks_for_the_time_fixes_it(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(7 * 4, 2)).eval()
    torch.export.save(torch.export.export(module, (torch.randn(2, 7, 4),)), tmp_path / "flat.pt2")
    graph = load(tmp_path / "flat.pt2")
    assert [str(spec) for spec in graph.inputs] == ["input: float32[batch, 7, 4]"]
    check(graph, module, torch.randn(5, 7, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 6, 2, bidirectional=True, proj_size=2),
        lambda: nn.GRU(4, 6, batch_first=True),
        lambda: nn.RNN(4, 6, nonlinearity="relu"),
    ],
)
def test_a_lone_layer_needs_no_example(make: Callable[[], nn.RNNBase]) -> None:
    module, x = make(), torch.randn(7, 3, 4)
    output, states = module(x)
    got = reference.run(from_torch(module), {"input": x.numpy()})
    assert list(got) == ["output", "h_n", "c_n"][: len(got)]
    for array, tensor in zip(got.values(), flat((output, states)), strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_of_known_first_layer_needs_no_example() -> None:
    module = Classifier()
    graph = from_torch(module)
    check(graph, module, ints(20, 4, 9))
    assert any("followed with an input of the shape [2, 3]" in note for note in graph.notes)


def test_the_exact_tree_of_the_common_model() -> None:
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.lstm(x)[0][:, -1])

    graph = from_torch(Forecast())
    assert [node.op for node in graph.nodes] == ["Transpose", "LSTM", "Transpose", "Gather", "Dense", "Identity"]
    assert graph.nodes[1].inputs[4:] == (), "zero initial states are absent"
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == [
        "x: float32[batch, time, 2]",
        "output: float32[batch, 1]",
    ]


def test_in_place_operations_are_followed_where_nothing_else_sees_them() -> None:
    class Overwrites(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.rnn, self.shared = nn.RNN(3, 4), shared

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.rnn(x)
            last = y.transpose(0, 1)[:, -1]
            last.mul_(2).add_(1)
            return (y if self.shared else last).tanh_()

    module = Overwrites(False)
    check(from_torch(module), module, torch.randn(5, 2, 3))
    with pytest.raises(UnsupportedError, match=r"run_decompositions\(\{\}\)"):
        from_torch(Overwrites(True))


def test_training_mode_and_unknown_operations_are_refused_by_name() -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(-1).values

    with pytest.raises(UnsupportedError, match=r"aten\.sort\.default"):
        from_torch(Sorts(), (torch.randn(3, 4),))
    program = torch.export.export(Classifier().train(), (ints(20, 3, 5),))
    with pytest.raises(UnsupportedError, match=r"training mode; call model\.eval\(\)"):
        from_torch(program)
    assert "aten.lstm.input" in supported()


def test_what_is_no_module_or_does_not_run_is_said() -> None:
    with pytest.raises(InputError, match="got a dict"):
        from_torch({})
    with pytest.raises(InputError, match=r"cannot be called with the inputs given: .*Expected 4"):
        from_torch(nn.LSTM(4, 6), (torch.randn(3, 2, 5),))
    with pytest.raises(InputError, match="Give example_inputs"):
        from_torch(nn.ReLU())


class Keeping(nn.Module):
    """A layer that starts from where its last call ended: the state is kept in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.hidden, self.calls, self.seen = how, None, 0, None
        self.inner = nn.Module()
        self.inner.lstm = nn.LSTM(3, 4, bias=False)
        self.inner.store = {"h": [torch.zeros(1, 2, 4)]}
        self.inner.recent = deque([torch.zeros(1, 2, 4)], maxlen=2)
        self.inner.register_buffer("state", torch.zeros(1, 2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        store, recent = self.inner.store["h"], self.inner.recent
        if self.how == "tuple":
            y, self.hidden = self.inner.lstm(x, self.hidden)
            return y
        before = {"item": store[0], "list": store[-1], "deque": recent[-1]}.get(self.how, self.inner.state)
        y, (h, _) = self.inner.lstm(x, (before, before))
        if self.how == "buffer":
            self.inner.state = h
        elif self.how in ("in place", "data"):
            (self.inner.state if self.how == "in place" else self.inner.state.data).copy_(h)
        elif self.how == "item":
            store[0] = h
        elif self.how in ("list", "deque"):
            (store if self.how == "list" else recent).append(h)
        elif self.how == "count":
            self.calls += 1
            return y * self.calls
        return y


KEEPING = {
    "tuple": "hidden",
    "buffer": "inner.state",
    "in place": "inner.state",
    "data": "inner.state",
    "item": r"inner.store\['h'\]\[0\]",
    "list": r"inner.store\['h'\]\[1\]",
    "deque": r"inner.recent\[1\]",
    "count": "calls",
}


@pytest.mark.parametrize("x", [torch.zeros(5, 2, 3), torch.ones(5, 2, 3)], ids=["zeros", "ones"])
@pytest.mark.parametrize(("how", "name"), KEEPING.items(), ids=list(KEEPING))
def test_a_module_that_keeps_a_state_is_refused_and_left_as_it_was(how: str, name: str, x: torch.Tensor) -> None:
    module = Keeping(how)
    with pytest.raises(UnsupportedError, match=f"Keeping: the model keeps '{name}' for the next call. Give the state"):
        from_torch(module, (x,))
    assert (module.hidden, module.calls, module.training) == (None, 0, True)
    assert module.inner.state.eq(0).all()
    assert len(module.inner.store["h"]) == len(module.inner.recent) == 1
    assert module.inner.store["h"][0].eq(0).all()


class Noting(nn.Module):
    """A layer that stores what it does not read, and a table that it makes once."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.weights, self.table = nn.LSTM(3, 4), None, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.ones(4) * 1.5
        y = self.lstm(x)[0] * self.table
        self.weights = torch.softmax(y, -1)
        return y


def test_what_a_module_stores_without_reading_it_is_said() -> None:
    module, x = Noting(), torch.randn(5, 2, 3)
    graph = from_torch(module, (x,))
    assert (module.weights, module.table) == (None, None)
    assert [note for note in graph.notes if "stores 'weights'" in note]
    check(graph, Noting.eval(module), x)


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_that_changes_a_buffer_is_refused(decomposed: bool) -> None:
    program = torch.export.export(Keeping("in place").eval(), (torch.randn(5, 2, 3),))
    with pytest.raises(UnsupportedError, match=r"keeps 'inner[._]state' for the next call"):
        from_torch(program.run_decompositions({}) if decomposed else program)


def test_half_precision_is_computed_in_float32_and_said() -> None:
    module = nn.LSTM(3, 4).to(torch.bfloat16)
    x = torch.randn(5, 2, 3)
    graph = from_torch(module, (x.to(torch.bfloat16),))
    got = reference.run(graph, {graph.inputs[0].name: x.numpy()})
    want = module.float()(x)[0].detach().numpy()
    np.testing.assert_allclose(next(iter(got.values())), want, rtol=1e-4, atol=1e-5)
    assert any("float32" in note for note in graph.notes)


class SecondNames(nn.Module):
    """Operations by their second names, which PyTorch keeps in an exported program."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, _ = self.lstm(torch.multiply(torch.negative(x), 2.0))
        turned = torch.swapdims(torch.swapaxes(torch.moveaxis(y, 0, 1), 0, 1), 1, 2)
        lengths = torch.norm(turned, 2, dim=1, keepdim=True)
        scaled = torch.divide(torch.subtract(turned, torch.clip(torch.absolute(turned), 0.1, 0.3)), lengths)
        a, b, c, d = torch.unsafe_chunk(torch.concatenate([scaled, torch.true_divide(turned, 3.0)], 1), 4, 1)
        kept = torch.where(torch.less(a, c) & torch.not_equal(a, 0.0), a, torch.where(torch.greater_equal(b, d), b, d))
        return torch.concat([a, c], 1), b + d, kept


def test_second_names_leave_axes_open_as_first_names_do() -> None:
    torch.manual_seed(0)
    module = SecondNames().eval()
    graph = from_torch(torch.export.export(module, (torch.randn(3, 5, 3),)))
    for batch, time in [(3, 5), (2, 11), (1, 4)]:
        check(graph, module, torch.randn(batch, time, 3))


def test_a_layer_called_at_every_step_is_held_once(tmp_path: Path) -> None:
    """Its weights were transposed and stored for each of its calls."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.zeros_like(x[:, 0])
            for t in range(5):
                h = torch.tanh(self.inner(x[:, t] + h))
            return h

    x = torch.randn(2, 5, 3)
    torch.export.save(torch.export.export(Steps(), (x,)), tmp_path / "steps.pt2")
    torch.jit.trace(Steps(), (x,)).save(tmp_path / "steps.pt")
    for name in ("steps.pt2", "steps.pt"):
        graph = load_graph(tmp_path / name)
        products = [node for node in graph.nodes if node.op == "Dense"]
        assert len(products) == 5
        assert len({node.inputs[1:] for node in products}) == 1
