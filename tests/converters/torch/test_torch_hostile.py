"""Damaged and hostile .pt2 files and TorchScript archives: one clear error each, nothing executed."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastlstm.converters import load_graph
from fastlstm.converters.torch import export
from fastlstm.converters.torch.aten import shapes
from fastlstm.converters.torch.script import builtins
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators import reference


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


@pytest.fixture(scope="module")
def program() -> bytes:
    stored = io.BytesIO()
    torch.export.save(torch.export.export(Forecast().eval(), (torch.randn(2, 5, 3),)), stored)
    return stored.getvalue()


def refuse(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises((FileFormatError, UnsupportedError)) as caught:
        load_graph(path)
    return str(caught.value)


def rewritten(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """Return the archive with members changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return out.getvalue()


def with_json(data: bytes, ending: str, change: Callable[[Any], None]) -> bytes:
    def member(name: str, content: bytes) -> bytes:
        if not name.endswith(ending):
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return rewritten(data, member)


def test_a_truncated_program_is_told(tmp_path: Path, program: bytes) -> None:
    for tenth in range(10):
        assert refuse(tmp_path / "m.pt2", program[: len(program) * tenth // 10])


def test_random_bytes_are_told(tmp_path: Path, program: bytes) -> None:
    generator = random.Random(0)
    assert refuse(tmp_path / "m.pt2", generator.randbytes(5000))

    def garbage(name: str, content: bytes) -> bytes:
        return generator.randbytes(len(content)) if name.endswith("model.json") else content

    assert refuse(tmp_path / "m.pt2", rewritten(program, garbage))


@pytest.mark.parametrize("size", [1 << 40, -1, "many", None, float("inf")])
def test_a_tensor_of_a_senseless_shape_is_told_before_memory_is_taken(
    tmp_path: Path, program: bytes, size: object
) -> None:
    def change(config: Any) -> None:
        for entry in config["config"].values():
            entry["tensor_meta"]["sizes"][0] = {"as_int": size}

    assert refuse(tmp_path / "m.pt2", with_json(program, "model_weights_config.json", change))


def test_a_tensor_as_a_pickle_is_refused_and_not_loaded(tmp_path: Path, program: bytes) -> None:
    def change(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    assert "pickle" in refuse(tmp_path / "m.pt2", with_json(program, "model_weights_config.json", change))


def test_missing_parts_of_a_program_are_told(tmp_path: Path, program: bytes) -> None:
    for key in ("graph_module", "schema_version"):
        assert refuse(tmp_path / "m.pt2", with_json(program, "models/model.json", lambda model, k=key: model.pop(k)))

    def unknown_input(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][-1]["inputs"][0]["arg"] = {"as_tensor": {"name": "nowhere"}}

    assert refuse(tmp_path / "m.pt2", with_json(program, "models/model.json", unknown_input))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/models/model.json", b" " * (200 << 20))
    assert "zip bomb" in refuse(tmp_path / "m.pt2", bomb.getvalue())


def test_a_scripted_archive_is_read_by_its_weights_where_layers_are_given(tmp_path: Path) -> None:
    module = Forecast().eval()
    path = tmp_path / "m.pt"
    for scripted in (torch.jit.trace(module, torch.randn(2, 5, 3)), torch.jit.script(module)):
        scripted.save(path)
        x = np.random.default_rng(0).standard_normal((3, 7, 3)).astype(np.float32)
        got = reference.run(load_graph(path, layers="lstm | last | linear"), {"input": x})["output"]
        # both round in float32, in different orders
        np.testing.assert_allclose(got, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_scripted_archive_whose_pickle_calls_a_function_is_refused(tmp_path: Path) -> None:
    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("executed",)

    torch.jit.script(Forecast()).save(tmp_path / "m.pt")

    def evil(name: str, content: bytes) -> bytes:
        return pickle.dumps(Calls(), 2) if name.endswith("/data.pkl") else content

    (tmp_path / "evil.pt").write_bytes(rewritten((tmp_path / "m.pt").read_bytes(), evil))
    with pytest.raises(UnsupportedError, match="print"):
        load_graph(tmp_path / "evil.pt", layers="lstm | linear")


def slip(*_: Any) -> Any:
    raise TypeError("a mistake of ours")


@pytest.mark.parametrize("table", [export._HANDLERS, shapes.RULES], ids=["handler", "shape rule"])
def test_a_mistake_of_ours_is_not_called_damage_of_a_program(
    tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    (tmp_path / "m.pt2").write_bytes(program)
    for name in ("aten.linear.default", "linear"):
        if name in table:
            monkeypatch.setitem(table, name, slip)
    with pytest.raises(TypeError, match="a mistake of ours"):
        load_graph(tmp_path / "m.pt2")


@pytest.mark.parametrize(("table", "name"), [(shapes.RULES, "linear"), (builtins.BUILTINS, "size")])
def test_a_mistake_of_ours_is_not_called_damage_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], name: str
) -> None:
    torch.jit.script(Forecast()).save(tmp_path / "m.pt")
    monkeypatch.setitem(table, name, slip)
    with pytest.raises(TypeError, match="a mistake of ours"):
        load_graph(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("argument", "content"),
    [
        ("dim", {"as_int": 9}),
        ("dim", {"as_string": "last"}),
        ("dim", {"as_int": 1 << 70}),
        ("index", {"as_none": True}),
        ("index", {"as_ints": [1, 2]}),
        ("weight", {"as_int": 3}),
        ("hx", {"as_tensors": []}),
        ("params", {"as_tensors": [{"name": "x"}]}),
        ("num_layers", {"as_float": 1.5}),
        ("batch_first", {"as_int": 1}),
        ("has_biases", {"as_bool": "yes"}),
        ("self", {"as_none": True}),
    ],
)
def test_an_argument_of_another_kind_is_told(
    tmp_path: Path, program: bytes, argument: str, content: dict[str, Any]
) -> None:
    changed = []

    def change(model: Any) -> None:
        nodes = model["graph_module"]["graph"]["nodes"]
        found = [item for node in nodes for item in node["inputs"] if item["name"] == argument]
        found[-1]["arg"] = content
        changed.append(found[-1])

    assert refuse(tmp_path / "m.pt2", with_json(program, "models/model.json", change))
    assert changed


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("torch.floordiv(1, 0)", "zero"),
        ("torch.sqrt(-1)", "domain"),
        ("torch.len(3)", "length of a int"),
        ("torch.lt([1], 2)", "lt"),
        ("torch.add(9223372036854775807, 1)", "64 bits"),
        ("torch.slice([1, 2], 0, 2, 0)", "slice"),
        ("torch.append(x, 1)", "append"),
        ("torch.size(3)", "tensor is expected"),
        ("torch.neg(1, 2)", "2 numbers"),
        ("torch.numel()", "numel"),
        ("[1, 2][5]", "no item 5"),
        ("{[1]: 2}", "keys"),
        ("torch.tensor([[1], [1, 2]])", "tensor of such lists"),
    ],
)
def test_code_that_cannot_run_is_told(tmp_path: Path, code: str, told: str) -> None:
    torch.jit.script(Forecast()).save(tmp_path / "m.pt")

    def line(name: str, content: bytes) -> bytes:
        start = b"    x: Tensor) -> Tensor:\n"
        return content.replace(start, start + f"    y = {code}\n".encode()) if name.endswith(".py") else content

    assert told in refuse(tmp_path / "m.pt", rewritten((tmp_path / "m.pt").read_bytes(), line))
