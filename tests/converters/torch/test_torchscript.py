"""TorchScript archives become graphs that give PyTorch's own numbers, without torch and without running their code."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_models import MODELS, check, ints

from fastlstm.converters import load_graph
from fastlstm.converters.torch.aten.schemas import SCHEMAS
from fastlstm.converters.torch.export import load as load_pt2
from fastlstm.errors import FileFormatError, InputError, UnsupportedError
from fastlstm.model import Model
from fastlstm.operators import reference

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
FORMS = ["script", "trace", "frozen"]


def save(module: nn.Module, path: Path, form: str = "script", example: tuple[object, ...] = ()) -> Path:
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "trace":
            with torch.no_grad():
                torch.jit.trace(module, example, check_trace=False).save(path)
        else:
            scripted = torch.jit.script(module)
            (torch.jit.freeze(scripted) if form == "frozen" else scripted).save(path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("make", "inputs"), MODELS, ids=lambda f: getattr(f, "__name__", ""))
def test_an_archive_is_read_with_batch_and_time_open(
    tmp_path: Path, make: Callable[[], nn.Module], inputs: Callable[..., tuple], form: str
) -> None:
    module = make().eval()
    said = {"shapes": "mask: int64[batch, time]"} if make.__name__ == "Attention" and form != "trace" else {}
    graph = load_graph(save(module, tmp_path / "m.pt", form, inputs(3, 5)), **said)
    for batch, time in [(3, 5), (2, 11), (1, 4)]:
        check(graph, module, *inputs(batch, time))
    expected = "was traced with" if form == "trace" else "does not say the shapes"
    assert any(expected in note for note in graph.notes)


class WithoutGradients(nn.Module):
    """A model that says of itself that it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y, _ = self.lstm(x)
            with torch.no_grad():
                y = y * 2
        return y + 1


def test_no_grad_has_no_effect(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = WithoutGradients().eval()
    graph = load_graph(save(module, tmp_path / "m.pt", "script", (torch.randn(3, 5, 3),)))
    check(graph, module, torch.randn(2, 7, 3))


class Packed(nn.Module):
    """Rows of different lengths, in any order or the longest first, put back together or not."""

    def __init__(self, kind: type[nn.RNNBase], in_order: bool, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.rnn, self.fc = kind(4, 6, 2, bidirectional=True, batch_first=True), nn.Linear(12, 3)
        self.in_order = in_order

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.in_order)
        y, h = self.rnn(packed)
        if self.whole:
            padded, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.size(1))
        else:
            padded, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return self.fc(padded), h


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("in_order", "whole"), [(True, False), (False, False), (False, True)])
def test_packed_sequences_become_lengths(tmp_path: Path, form: str, in_order: bool, whole: bool) -> None:
    def inputs(batch: int, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, 7, 4), torch.tensor(sorted(lengths, reverse=True) if in_order else lengths)

    module = Packed(nn.GRU, in_order, whole)
    graph = load_graph(save(module, tmp_path / "m.pt", form, inputs(3, 2, 7, 5)))
    assert [str(spec) for spec in graph.inputs] == ["x: float32[batch, time, 4]", "lengths: int64[batch]"]
    assert not {"ArgMax", "TopK", "GatherElements"} & {node.op for node in graph.nodes}, "nothing is sorted"
    for example in (inputs(3, 2, 7, 5), inputs(2, 1, 4), inputs(1, 6)):
        check(graph, module, *example)


class SortsItself(nn.Module):
    """Rows sorted by the model before they are packed, as was done before `enforce_sorted`, and sorted back."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.rnn, self.fc = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.way == "argsort":
            order = torch.argsort(lengths, dim=0, descending=True)
            back, lengths = torch.argsort(order), lengths.index_select(0, order)
        else:
            lengths, order = lengths.sort(0, descending=True)
            back = order.sort(0)[1]
        packed = nn.utils.rnn.pack_padded_sequence(x[order], lengths, batch_first=True)
        y, (h, _) = self.rnn(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        last = self.fc(torch.tanh(torch.cat([h[-2], h[-1]], 1)))
        return self.fc(y)[back], last if self.way == "not back" else last[back]


@pytest.mark.parametrize("way", ["sort", "argsort"])
def test_a_model_may_sort_its_rows_itself(tmp_path: Path, way: str) -> None:
    def inputs(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(len(lengths), 7, 4), torch.tensor(lengths)

    module = SortsItself(way)
    graph = load_graph(save(module, tmp_path / "m.pt", "trace", inputs(2, 7, 5)))
    assert not {"TopK", "GatherElements"} & {node.op for node in graph.nodes}, "nothing is sorted"
    for example in (inputs(2, 7, 5), inputs(1, 4), inputs(3, 3, 6, 3)):
        check(graph, module, *example)


def test_rows_that_are_not_sorted_back_are_refused(tmp_path: Path) -> None:
    path = save(SortsItself("not back"), tmp_path / "m.pt", "trace", (torch.randn(2, 7, 4), torch.tensor([3, 7])))
    with pytest.raises(UnsupportedError, match=r"sorted by length; .* sort it back"):
        load_graph(path)


class States(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6)

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return self.lstm(x, state)


def test_an_optional_state_is_left_out_or_asked_for(tmp_path: Path) -> None:
    module, x = States(), torch.randn(5, 2, 4)
    path = save(module, tmp_path / "m.pt")
    graph = load_graph(path)
    assert any("optional input 'state' was left out" in note for note in graph.notes)
    check(graph, module, x)
    states = torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    asked = load_graph(path, shapes="state_0: float32[1, batch, 6], state_1: float32[1, batch, 6]")
    got = reference.run(asked, {"x": x.numpy(), "state_0": states[0].numpy(), "state_1": states[1].numpy()})
    np.testing.assert_allclose(next(iter(got.values())), module(x, states)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


class PaddedAlike(nn.Module):
    """As many rows behind a convolution as in front, of even and of odd kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(4, 6, 4, padding="same"), nn.Conv2d(1, 2, (3, 5), padding="same")
        self.gru = nn.GRU(12, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.one(x.transpose(1, 2)).transpose(1, 2)[:, None])
        return self.gru(y.permute(0, 2, 1, 3).flatten(2))[0]


@pytest.mark.parametrize("form", FORMS)
def test_convolutions_that_keep_the_size(tmp_path: Path, form: str) -> None:
    module, x = PaddedAlike().eval(), torch.randn(2, 9, 4)
    graph = load_graph(save(module, tmp_path / "m.pt", form, (x,)))
    check(graph, module, x)


class Instances(nn.Module):
    """Instance normalisation with its own statistics, plain and scaled, and with those of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.scaled = nn.InstanceNorm1d(4), nn.InstanceNorm2d(1, affine=True, eps=1e-3)
        self.trained = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        for norm in (self.scaled, self.trained):
            nn.init.constant_(norm.weight, 1.5)
            nn.init.constant_(norm.bias, -0.5)
        nn.init.constant_(self.trained.running_mean, 0.3)
        nn.init.constant_(self.trained.running_var, 2.0)
        self.conv, self.gru = nn.Conv1d(3, 4, 3, padding=1), nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.transpose(1, 2))
        y = self.scaled((self.plain(y) * self.trained(y)).unsqueeze(1))[:, 0]
        return self.gru(y.transpose(1, 2))[0]


@pytest.mark.parametrize("form", [*FORMS, "export"])
def test_instance_normalisation(tmp_path: Path, form: str) -> None:
    module, x = Instances().eval(), torch.randn(2, 9, 3)
    if form == "export":
        torch.export.save(torch.export.export(module, (x,)), tmp_path / "m.pt2")
        graph = load_pt2(tmp_path / "m.pt2")
    else:
        graph = load_graph(save(module, tmp_path / "m.pt", form, (x,)))
    check(graph, module, x)
    check(graph, module, torch.randn(3, 6, 3))


class Mixed(nn.Module):
    """What else models do: bags, weight normalisation, tied weights, joined frames, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6, mode="mean")
        self.a, self.b = nn.LSTM(6, 8, batch_first=True), nn.GRU(16, 6, batch_first=True)
        self.conv = nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1)

    def forward(self, grams: torch.Tensor) -> dict[str, torch.Tensor]:
        batch, time, n = grams.shape
        y, _ = self.a(self.bag(grams.view(batch * time, n)).view(batch, time, 6))
        y, _ = self.b(y.reshape(batch, time // 2, 16))
        scores = torch.matmul(y, self.bag.weight.t())
        return {"scores": scores.log_softmax(-1), "wave": torch.log1p(self.conv(y.transpose(1, 2)).square())}


@pytest.mark.parametrize("form", FORMS)
def test_further_operations(tmp_path: Path, form: str) -> None:
    module = Mixed().eval()
    if form == "trace":
        module = torch.jit.trace(module, ints(20, 3, 4, 5), strict=False)
        module.save(tmp_path / "m.pt")
    graph = load_graph(tmp_path / "m.pt" if form == "trace" else save(module, tmp_path / "m.pt", form))
    for batch, time in [(3, 4), (1, 6)]:
        check(graph, module, ints(20, batch, time, 5))


@pytest.mark.parametrize("weights", [False, True])
def test_attention_that_tracing_fuses(tmp_path: Path, weights: bool) -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=weights)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.gru(x)
            return self.layer(y) + self.attention(y, y, y)[0]

    module = Tail().eval()
    for form in ("trace", "script"):
        graph = load_graph(save(module, tmp_path / "m.pt", form, (torch.randn(2, 5, 4),)))
        for shape in [(2, 5, 4), (3, 7, 4)]:
            check(graph, module, torch.randn(shape))


class Masked(nn.Module):
    """Attention that sees the past alone, and pooling that leaves out some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        y, _ = self.gru(x)
        future = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        y = self.attention(y, y, y, attn_mask=future)[0] + self.attention(y, y, y, key_padding_mask=padding)[0]
        weights = torch.softmax(y.sum(-1).masked_fill(padding, float("-inf")), 1)
        return (y * weights.unsqueeze(-1)).sum(1)


def test_attention_with_masks(tmp_path: Path) -> None:
    module = Masked().eval()
    inputs = torch.randn(2, 5, 4), torch.tensor([[0] * 5, [0] * 3 + [1] * 2]).bool()
    check(load_graph(save(module, tmp_path / "m.pt", "trace", inputs)), module, *inputs)
    torch.export.save(torch.export.export(module, inputs), tmp_path / "m.pt2")  # which holds -inf, in quotes
    check(load_graph(tmp_path / "m.pt2"), module, *inputs)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), 4)
        for t in range(5):
            h = self.cell(x[:, t], h)
        return h


def test_a_loop_of_known_length_is_unrolled(tmp_path: Path) -> None:
    module = Loop().eval()
    check(load_graph(save(module, tmp_path / "m.pt")), module, torch.randn(2, 5, 3))
    graph = load_graph(save(module, tmp_path / "m.pt", "trace", (torch.randn(2, 5, 3),)))
    assert [str(spec) for spec in graph.inputs] == ["x: float32[batch, 5, 3]"], "a trace says nothing of other lengths"


class DependsOnNumbers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        return x


class DependsOnSize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 100:
            x = x[:100]
        return torch.relu(x)


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = torch.zeros(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = self.h + x
        return self.h


class Appends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = [torch.zeros(1, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.seen[-1] + x)
        return self.seen[-1]


class Sorts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x)[0]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (DependsOnNumbers(), "depends on the numbers in a tensor"),
        (DependsOnSize(), r"it depends on the size of x_0 .*shapes="),
        (Keeps(), "keeps 'h' for the next call"),
        (Appends(), "keeps 'seen' for the next call"),
        (Sorts(), "sorting is supported where sequences are packed"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_place(tmp_path: Path, module: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        load_graph(save(module, tmp_path / "m.pt"))
    assert re.search(r"line \d+ of __torch__", str(caught.value))


def test_shapes_that_are_given_are_taken(tmp_path: Path) -> None:
    path, module = save(DependsOnSize(), tmp_path / "m.pt"), DependsOnSize()
    graph = load_graph(path, shapes="x: float32[150, features]")
    check(graph, module, torch.randn(150, 3))
    with pytest.raises(InputError, match="there is no y; the inputs are x"):
        load_graph(path, shapes="y: float32[3]")
    with pytest.raises(InputError, match="is not of the form"):
        load_graph(path, shapes="x float32")
    with pytest.raises(InputError, match="prefix is for state dicts"):
        load_graph(path, prefix="model.")


def test_the_table_of_arguments_is_that_of_aten() -> None:
    for name, overloads in SCHEMAS.items():
        known = {s.overload_name or "default": s for s in torch._C._jit_get_schemas_for_operator(f"aten::{name}")}
        for overload, arguments in overloads:
            names = [argument.name for argument in known[overload].arguments]
            assert [n for n in names if n in {a for _, a in arguments}] == [a for _, a in arguments], name


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(MODELS[0][0](), tmp_path_factory.mktemp("script") / "m.pt").read_bytes()


def with_code(data: bytes, body: str) -> bytes:
    """Return the archive with another body of its module's forward."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/code/__torch__/torch_models.py"):
                lines = [f"    {line}" for line in body.splitlines()]
                head = [
                    "class Classifier(Module):",
                    "  def forward(self: __torch__.Classifier,",
                    "    x: Tensor) -> Tensor:",
                ]
                content = "\n".join([*head, *lines, ""]).encode()
            target.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        "return __import__('os').system('true')",
        "return x.__class__.__base__",
        "return ().__class__",
        "import os\nreturn x",
        "return [y for y in x]",
        "return torch.save(x, '/tmp/written')",
        "return ops.aten.system(x)",
        "return getattr(self, '__class__')",
        "return (self).forward(x, )",
        "return x + x",
        "return " + "-" * 100_000 + "1",
        "return " + "(" * 10_000 + "x" + ")" * 10_000,
        "return x" + "[0]" * 100_000,
        "return " + "torch.relu(" * 500 + "x" + ")" * 500,
        "return x" + ".a" * 100_000,
        "return not " * 1000 + "x",
        "while True:\n  pass\nreturn x",
        "for i in range(1000000000):\n  pass\nreturn x",
        "for i in range(1000000000):\n  y = torch.relu(x)\nreturn x",
        "return torch.zeros([1000000, 1000000, 1000000])",
        "return torch.add(torch.zeros([1000000, 1000000]), torch.zeros([1000000, 1000000]))",
        "return torch.mul([x], 1000000000)",
        "a = [x]\nfor i in range(40):\n  a = torch.add(a, a)\nreturn torch.cat(a)",
        "a = 'x'\nfor i in range(60):\n  a = torch.add(a, a)\nreturn x",
        "return torch.pow(10, 10000000000)",
        "a = 3\nfor i in range(100):\n  a = torch.mul(a, a)\nreturn x",
        "return CONSTANTS.c999999",
        "return",
        "",
        "return torch.linear(x, x",
    ],
    ids=lambda body: re.sub(r"\W+", " ", body)[:30],
)
def test_hostile_code_is_refused_and_not_executed(tmp_path: Path, archive: bytes, body: str) -> None:
    (tmp_path / "m.pt").write_bytes(with_code(archive, body))
    with pytest.raises((FileFormatError, UnsupportedError)):
        load_graph(tmp_path / "m.pt")


def test_damaged_archives_are_told(tmp_path: Path, archive: bytes) -> None:
    path = tmp_path / "m.pt"
    for tenth in range(10):
        path.write_bytes(archive[: len(archive) * tenth // 10])
        with pytest.raises(FileFormatError):
            load_graph(path)
    generator = np.random.default_rng(0)
    for _ in range(20):  # what still can be read may be read
        damaged = bytearray(archive)
        for position in generator.integers(0, len(damaged), 30):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(FileFormatError, UnsupportedError):
            load_graph(path)


class CellLoop(nn.Module):
    """Cells over all frames of an input, states in a tuple, outputs in a list, what does not change around them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 6), nn.GRUCell(6, 5), nn.RNNCell(5, 3, nonlinearity="relu")
        self.fc, self.kind = nn.Linear(5, 2), kind

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = (x.new_zeros(x.size(0), 6), torch.ones(x.size(0), 6))
        g, r = torch.zeros(x.size(0), 5), torch.zeros(x.size(0), 3)
        scale = torch.sigmoid(x).mean(1)
        outputs: list[torch.Tensor] = []
        for frame in x.unbind(1):
            state = self.lstm(frame * scale, state)
            g = self.gru(state[0], g)
            r = self.rnn(g, r)
            y = torch.relu_(self.fc(g))
            if self.kind == "cat":
                outputs += [y.unsqueeze(1)]
            else:
                outputs.append(y)
        joined = torch.cat(outputs, 1) if self.kind == "cat" else torch.stack(outputs, 0)
        return joined, torch.cat([state[1], r], 1)


@pytest.mark.parametrize("form", ["script", "frozen"])
@pytest.mark.parametrize("kind", ["cat", "stack"])
def test_a_loop_over_the_frames_becomes_a_loop(tmp_path: Path, form: str, kind: str) -> None:
    module = CellLoop(kind)
    graph = load_graph(save(module, tmp_path / ("m.jit" if form == "frozen" else "m.torchscript"), form))
    assert str(graph.inputs[0]) == "x: float32[batch, time, 4]"
    assert [node.op for node in graph.nodes].count("Loop") == 1
    for batch, time in [(3, 5), (2, 9), (1, 1)]:
        check(graph, module, torch.randn(batch, time, 4))


class Decoder(nn.Module):
    """A layer of its own for each step, fed with what it gave and attending to all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(4, 6, batch_first=True), nn.LSTM(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory, h = self.encoder(x)
        c, outputs = torch.zeros_like(h), torch.jit.annotate(list[torch.Tensor], [])
        for t in range(x.shape[1]):
            weights = torch.softmax(torch.bmm(memory, h[0].unsqueeze(2)), 1)
            frame = torch.cat([x[:, t], (weights * memory).sum(1)], -1)
            y, (h, c) = self.decoder(frame.unsqueeze(0), (h, c))
            outputs.append(y[0])
        return torch.stack(outputs, 1)


def test_a_loop_may_hold_layers_and_read_what_is_around_it(tmp_path: Path) -> None:
    module = Decoder()
    graph = load_graph(save(module, tmp_path / "m.pt"))
    for batch, time in [(3, 5), (1, 7)]:
        x = torch.randn(batch, time, 4)
        check(graph, module, x)
        got = Model(graph).run({"x": x.numpy()})["output"]
        np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class CountingLoop(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, n, previous = x[:, 0], 0, torch.zeros(1)
        pair = (x[:, 0], 1)
        for t in range(x.size(1)):
            if self.kind == "counts":
                n += 2
            elif self.kind == "branches" and t > 2:
                y = y + x[:, t]
            elif self.kind == "grows":
                y = torch.cat([y, x[:, t]], 1)
            elif self.kind == "writes":
                x[:, t].mul_(2)
            elif self.kind == "pairs":
                pair = (pair[0] + x[:, t], pair[1] + 1)
        return y * n + previous + pair[0] * pair[1]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("counts", "'n' changes in every round"),
        ("branches", "depends on the size of round"),
        ("grows", "no shapes of its inputs"),
        ("pairs", "something else of 'pair"),
        ("writes", "writes into a tensor that is seen under another name"),
    ],
)
def test_what_a_loop_may_not_do_is_refused(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        load_graph(save(CountingLoop(kind), tmp_path / "m.pt"))
