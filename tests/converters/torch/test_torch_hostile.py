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

from fastlstm import reference
from fastlstm.converters import load_graph
from fastlstm.errors import FileFormatError, UnsupportedError


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
