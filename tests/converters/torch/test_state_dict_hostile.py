"""Weight files are not trusted: damage is one clear error, and nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.pickles import parse
from fastlstm.converters.torch.state_dict import load
from fastlstm.errors import FastLSTMError, FileFormatError, UnsupportedError


@pytest.fixture(params=[".pt", ".safetensors"])
def good(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"good{request.param}"
    weights = nn.LSTM(3, 8).state_dict()
    if path.suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    return path


def test_a_file_cut_at_any_place_is_damaged(good: Path) -> None:
    data = good.read_bytes()
    for part in range(10):
        good.write_bytes(data[: len(data) * part // 10])
        with pytest.raises(FileFormatError):
            load(good)


@pytest.mark.parametrize("shape", [[1] * 1000, [0, 1 << 62]])
def test_a_shape_that_no_array_has_is_damage(tmp_path: Path, shape: list[int]) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0 if 0 in shape else 4]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(entry["data_offsets"][1]))
    with pytest.raises(FileFormatError, match="the shape of the tensor 'a' cannot be"):
        load(tmp_path / "m.safetensors")


def test_random_bytes_are_refused_or_change_only_numbers(good: Path) -> None:
    data, rng = good.read_bytes(), random.Random(5)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 4, 16])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        good.write_bytes(broken)
        try:
            load(good)
        except FastLSTMError:
            continue


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


@pytest.fixture
def pt(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(nn.LSTM(3, 8).state_dict(), path)
    return path


class Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, getattr, pickle.loads])
def test_a_pickle_that_calls_a_function_is_refused_by_its_name(
    pt: Path, tmp_path: Path, protocol: int, function: Callable[..., Any]
) -> None:
    marker = tmp_path / "executed"
    evil = pickle.dumps({"weight": Call(function, f"touch {marker}")}, protocol)
    rewrite(pt, lambda name, data: evil if name.endswith("data.pkl") else data)
    with pytest.raises(UnsupportedError, match=rf"\.{function.__name__}'|operation"):
        load(pt)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.LSTM(3, 4), tmp_path / "module.pt")
    with pytest.raises(UnsupportedError, match=r"torch\.nn\.modules\.rnn\.LSTM.*state_dict\(\)"):
        load(tmp_path / "module.pt")


def test_a_bomb_is_refused_before_it_takes_memory(pt: Path) -> None:
    rewrite(pt, lambda name, data: bytes(1 << 30) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="zip bomb"):
        load(pt)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_members_are_looked_through_once(pt: Path) -> None:
    archive = Archive(pt)  # readers ask for the root at every member: of 200,000 that would take minutes
    assert archive.root
    assert archive.root is archive.root


def test_compressed_members_are_read(pt: Path) -> None:
    want = load(pt)
    rewrite(pt, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert str(load(pt)) == str(want)


def test_a_storage_of_another_size_is_refused(pt: Path) -> None:
    rewrite(pt, lambda name, data: data + b"0000" if name.endswith("data/1") else data)
    with pytest.raises(FileFormatError, match="storage 'data/1' should have 1024 bytes; found 1028 bytes"):
        load(pt)


def test_a_storage_key_is_no_path(pt: Path) -> None:
    key = b"X\x01\x00\x00\x001"
    path = b"../../../../etc/passwd"
    other = b"X" + len(path).to_bytes(4, "little") + path
    rewrite(pt, lambda name, data: data.replace(key, other) if name.endswith("data.pkl") else data)
    with pytest.raises(FileFormatError, match=r"etc/passwd.*no such member"):
        load(pt)


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], numel: int = 4) -> bytes:
    """A pickle of one tensor over a storage of `numel` floats."""
    ops = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    ops += b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    ops += b"K" + bytes([numel]) + b"tQK\x00"
    for numbers in (shape, strides):
        ops += b"(" + b"".join(b"\x8a\x06" + n.to_bytes(6, "little", signed=True) for n in numbers) + b"t"
    return ops + b"\x89}tR."


def test_a_tensor_that_leaves_its_storage_is_refused() -> None:
    assert parse(tensor((2, 2), (2, 1)), "x").shape == (2, 2)
    for shape, strides in [((2, 3), (2, 1)), ((5,), (1,)), ((1 << 40,), (0,)), ((2,), (-1,)), ((2, 2), (1,))]:
        with pytest.raises(FileFormatError, match="damaged pickle"):
            parse(tensor(shape, strides), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x02.", b"\x80\x02}", b"\x80\x02Q.", b"\x80\x02t.", b"\x80\x02\x86.",
        b"\x80\x02(K\x01R.", b"\x80\x02h\x05.", b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02}(K\x01u.",
        b"\x80\x02]K\x01s.", b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02}" + b"(" * 100_000 + b"t" * 100_000 + b"K\x01s.",
    ],
    ids=lambda data: data[:12].hex(),
)  # fmt: skip
def test_a_malformed_pickle_is_a_damaged_file(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        parse(data, "x")


def test_deep_nesting_is_parsed_without_recursion(pt: Path) -> None:
    deep = b"(" * 100_000 + b"t" * 100_000 + b"."
    rewrite(pt, lambda name, data: deep if name.endswith("data.pkl") else data)
    with pytest.raises(UnsupportedError, match="holds a tuple"):
        load(pt)


def old(path: Path, content: object) -> Path:
    """Write a file as PyTorch before 1.6 did."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_files_of_before_pytorch_1_6_that_are_cut_or_garbled_are_one_error(tmp_path: Path) -> None:
    whole = old(tmp_path / "old.pt", nn.LSTM(3, 4).state_dict()).read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(2, len(whole), 60):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(FileFormatError, match=r"cut\.pt"):
            load(tmp_path / "cut.pt")
    for _ in range(300):
        garbled = bytearray(whole)
        for place in rng.integers(2, 700, 3):
            garbled[place] = rng.integers(256)
        (tmp_path / "garbled.pt").write_bytes(garbled)
        with contextlib.suppress(FastLSTMError):
            load(tmp_path / "garbled.pt")


def test_old_files_execute_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple:
            return Path.touch, (marker,)

    with pytest.raises(UnsupportedError, match="nothing is ever executed"):
        load(old(tmp_path / "attack.pt", {"lstm.weight_ih_l0": Attack()}))
    assert not marker.exists()


def test_files_of_other_kinds_say_what_they_are_not(tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=2))
    with pytest.raises(FileFormatError, match=r"in its|torch.save did not write"):
        load(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UnsupportedError, match="holds a list"):
        load(tmp_path / "list.pt")
    torch.save({"weight": torch.ones(3), "lr": 0.1}, tmp_path / "mixed.pt")
    with pytest.raises(UnsupportedError, match="'lr' is a float"):
        load(tmp_path / "mixed.pt")
    for missing in ("missing.pt", "missing.safetensors"):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / missing)


def test_weights_packed_by_quantisation_are_refused_by_what_they_are(tmp_path: Path) -> None:
    layer = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    torch.save({"fc.weight": layer}, tmp_path / "quantised.pt")
    with pytest.raises(UnsupportedError, match="before quantize_dynamic"):
        load(tmp_path / "quantised.pt")
