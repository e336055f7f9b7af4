"""PyTorch modules and exported programs become graphs that give PyTorch's own numbers at every length."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastlstm import reference
from fastlstm.converters.torch_ import from_torch, load, supported
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph


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
