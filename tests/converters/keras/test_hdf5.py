"""HDF5 files written by h5py are read as h5py reads them; damaged ones end in an error, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fastlstm.converters.keras.hdf5 import Dataset, Hdf5
from fastlstm.converters.keras.hdf5_data import read_array, read_value
from fastlstm.errors import FastLSTMError, FileFormatError, UnsupportedError

RNG = np.random.default_rng(3)
PLENTY = 1 << 30


def written(path: Path, arrays: dict[str, tuple[Any, dict[str, Any]]], **options: Any) -> Hdf5:
    with h5py.File(path, "w", **options) as file:
        for name, (array, how) in arrays.items():
            file.create_dataset(name, data=array, **how)
    return Hdf5(path.read_bytes(), "the file")


def check(file: Hdf5, arrays: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    found = {dataset.path: dataset for dataset in file.root.datasets()}
    assert set(found) == set(arrays)
    for name, (array, _) in arrays.items():
        y = read_array(file, found[name], PLENTY)
        assert y.dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(y, array)


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}], ids=str)
def test_arrays_of_every_kind(tmp_path: Path, options: dict[str, Any]) -> None:
    kinds = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">f4", ">i8"]
    # In the newest form at most eight links stand in a group itself.
    arrays: dict[str, Any] = {
        f"{i % 3}/{i}": (RNG.normal(size=(3, 4)).astype(kind), {}) for i, kind in enumerate(kinds)
    }
    arrays |= {"scalar": (np.float32(3.5), {}), "none": (np.zeros((0, 4), "f4"), {}), "a/b/c": (np.ones((7, 5, 3)), {})}
    check(written(tmp_path / "a.h5", arrays, **options), arrays)


def test_chunks_and_the_filters_of_hdf5_itself(tmp_path: Path) -> None:
    wide = RNG.normal(size=(300, 70)).astype("f4")
    ways: list[dict[str, Any]] = [
        {"compression": "gzip", "chunks": (64, 32)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (13, 3)},
        {"chunks": (300, 70)},
    ]
    arrays = {str(i): (wide, how) for i, how in enumerate(ways)} | {"long": (wide.ravel(), {"chunks": (7,)})}
    check(written(tmp_path / "a.h5", arrays), arrays)


def test_groups_of_many(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"layers/lstm_{i}/cell/vars/0": (np.full(3, i), {}) for i in range(700)}
    check(written(tmp_path / "a.h5", arrays), arrays)


def test_attributes(tmp_path: Path) -> None:
    values = {"text": "grün", "bytes": b"plain", "list": ["a", "bcd"], "old": [b"a", b"bcd"], "long": "x" * 300_000,
              "number": 3, "numbers": np.arange(3.0)}  # fmt: skip
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update(values)
        file.attrs["empty"] = h5py.Empty("f4")
    file = Hdf5((tmp_path / "a.h5").read_bytes(), "the file")
    found = {name: read_value(file, raw, name) for name, raw in file.root.attributes.items()}
    np.testing.assert_array_equal(found.pop("numbers"), values.pop("numbers"))
    assert found == {**values, "bytes": "plain", "old": ["a", "bcd"], "empty": None}


@pytest.mark.parametrize("what", ["links", "attributes"])
def test_what_only_the_newest_form_can_hold_is_refused_by_name(tmp_path: Path, what: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        for i in range(40):
            if what == "links":
                file.create_group(f"many/{i}")
            else:
                file.require_group("many").attrs[str(i)] = i
    with pytest.raises(UnsupportedError, match=f"'many' keeps its {what}"):
        Hdf5((tmp_path / "a.h5").read_bytes(), "the file")


def test_filters_from_elsewhere_and_texts_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("packed", data=np.zeros((64, 64)), compression="lzf")
        file["texts"] = ["a", "b"]
    file = Hdf5((tmp_path / "a.h5").read_bytes(), "the file")
    for name, why in (("packed", "filter 32000"), ("texts", "than numbers")):
        with pytest.raises(UnsupportedError, match=why):
            read_array(file, file.root.children[name], PLENTY)


def test_damaged_files_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"a/{i}/vars/0": (RNG.normal(size=(4, 6)).astype("f4"), {}) for i in range(6)}
    arrays["packed"] = (RNG.normal(size=(30, 30)).astype("f4"), {"compression": "gzip", "shuffle": True})
    written(tmp_path / "a.h5", arrays)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs.update({"model_config": "{}" * 500, "names": ["a", "b"]})
    good = np.fromfile(tmp_path / "a.h5", np.uint8)
    tracemalloc.start()
    outcomes = set()
    for seed in range(600):
        rng, data = np.random.default_rng(seed), good.copy()
        spots = rng.integers(0, len(data), rng.integers(1, 60))
        data[spots] = rng.integers(0, 256, len(spots))
        cut = data[: rng.integers(0, len(data))] if seed % 5 == 0 else data
        outcomes.add(outcome(cut.tobytes()))
    assert outcomes == {"read", "refused"}
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()


def outcome(data: bytes) -> str:
    """Read all that a file holds; anything but an error of ours fails the test."""
    try:
        file = Hdf5(data, "the file")
        for name, raw in file.root.attributes.items():
            read_value(file, raw, name)
        for dataset in file.root.datasets():
            read_array(file, dataset, 1 << 20)
    except FastLSTMError:
        return "refused"
    return "read"


def test_groups_in_a_circle(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("a/b")
        file["a/b/again"] = file["a"]  # a hard link back
    with pytest.raises(FileFormatError, match="two parts"):
        Hdf5((tmp_path / "a.h5").read_bytes(), "the file")


def test_a_chunk_does_not_unpack_to_more_than_it_should(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"x": (np.zeros((1000, 1000), "f4"), {"compression": "gzip", "chunks": (1000, 1000)})}
    file = written(tmp_path / "a.h5", arrays)
    data = bytearray(file.data)
    found = file.root.children["x"]
    assert isinstance(found, Dataset)
    for place in (found.raw.dataspace + 8, found.raw.data + 11):  # the shape, and that of a chunk: 10 rows instead
        data[place : place + 2] = (10).to_bytes(2, "little")
    with pytest.raises(FileFormatError, match="another size"):
        read_array(Hdf5(bytes(data), "the file"), found, PLENTY)
