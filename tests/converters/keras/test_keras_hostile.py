"""Damaged and malicious Keras files end in an error of ours, and nothing outside the file is read."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from keras_files import layer, sequential, write_h5, write_keras

from fastlstm.converters import load_graph
from fastlstm.errors import FastLSTMError, FileFormatError, UnsupportedError

MODEL = sequential((None, 3), layer("Dense", "dense", units=4))
KERNEL, BIAS = np.ones((3, 4), "f4"), np.ones(4, "f4")


def good(path: Path) -> Path:
    if path.suffix == ".keras":
        return write_keras(path, MODEL, {"layers/dense": [KERNEL, BIAS]})
    return write_h5(path, MODEL, {"x": {}, "dense": {"dense/kernel:0": KERNEL, "dense/bias:0": BIAS}})


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    data = good(tmp_path / f"good{suffix}").read_bytes()
    load_graph(tmp_path / f"good{suffix}")
    path = tmp_path / f"cut{suffix}"
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(FileFormatError):
            load_graph(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_random_bytes_never_end_in_another_error(tmp_path: Path, suffix: str) -> None:
    data = np.frombuffer(good(tmp_path / f"good{suffix}").read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / f"changed{suffix}"
    for _ in range(60):
        changed = data.copy()
        changed[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
        path.write_bytes(changed.tobytes())
        with contextlib.suppress(FastLSTMError):
            load_graph(path)


def test_links_and_external_storage_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 64)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["bias"] = BIAS
    for name in ("soft", "external", "storage"):
        path = good(tmp_path / f"{name}.h5")
        with h5py.File(path, "r+") as file:
            group = file["model_weights/dense/dense"]
            del group["bias:0"]
            if name == "soft":
                group["bias:0"] = h5py.SoftLink("/model_weights/dense/dense/kernel:0")
            elif name == "external":
                group["bias:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "bias")
            else:
                group.create_dataset("bias:0", (4,), "f4", external=[(str(secret), 0, 16)])
        with pytest.raises(FileFormatError, match="file itself"):
            load_graph(path)


def test_a_dataset_of_a_billion_numbers_is_not_read(tmp_path: Path) -> None:
    path = good(tmp_path / "huge.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights/dense/dense/bias:0"]
        file["model_weights/dense/dense"].create_dataset("bias:0", (1 << 30,), "f4", chunks=(1 << 20,))
    with pytest.raises(FileFormatError, match="not read"):
        load_graph(path)


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        archive.writestr("config.json", b" " * (200 << 20))
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(FileFormatError, match="zip bomb"):
        load_graph(path)


def test_configurations_that_are_not_ones(tmp_path: Path) -> None:
    def circle(name: str, other: str) -> dict[str, object]:
        return {**layer("Dense", name, units=4), "name": name, "inbound_nodes": [[[other, 0, 0, {}]]]}

    functional = {"name": "m", "layers": [circle("a", "b"), circle("b", "a")], "input_layers": [], "output_layers": []}
    nested: dict[str, object] = MODEL
    for _ in range(300):
        nested = {"class_name": "Sequential", "config": {"name": "s", "layers": [nested]}}
    for number, model in enumerate(
        [{}, [], {"class_name": "Sequential"}, {"class_name": 3, "config": {}}, nested,
         {"class_name": "Sequential", "config": {"layers": []}},
         {"class_name": "Sequential", "config": {"layers": [3]}},
         {"class_name": "Functional", "config": functional},
         sequential((None, 3), layer("Dense", "dense", units=-1)),
         sequential((None, 3), layer("Dense", "dense", units=1 << 60)),
         sequential((None, "many"), layer("Dense", "dense", units=4)),
         sequential((None, 1 << 40), layer("Dense", "dense", units=4)),
         sequential((None, 1 << 30), layer("LayerNormalization", "large", axis=[2], scale=False, center=False)),
         sequential((None, 1 << 30), layer("GroupNormalization", "large", groups=1, scale=False, center=False)),
         sequential((2,) * 40, layer("Flatten", "flat")),
         sequential((None, 3), layer("Dense", "d" * 100_000, units=4))]
    ):  # fmt: skip
        path = write_keras(tmp_path / f"{number}.keras", model, {"layers/dense": [KERNEL, BIAS]})
        with pytest.raises(FastLSTMError) as told:
            load_graph(path)
        assert len(str(told.value)) < 1000


def test_a_damaged_heap_of_text_is_told_before_hdf5_walks_it(tmp_path: Path) -> None:
    path = good(tmp_path / "heap.h5")
    data = bytearray(path.read_bytes())
    first = data.index(b"GCOL") + 16
    data[first + 8 : first + 16] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="heap"):
        load_graph(path)


def test_weights_without_a_model_and_saved_models_are_told_what_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "only.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = KERNEL
    with pytest.raises(FileFormatError, match=r"weights without a model .* model\.save"):
        load_graph(tmp_path / "only.weights.h5")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    for path in (tmp_path / "saved", tmp_path / "saved" / "saved_model.pb"):
        with pytest.raises(UnsupportedError, match=r"SavedModel .* tf2onnx"):
            load_graph(path)


def test_code_in_a_model_is_refused_by_name(tmp_path: Path) -> None:
    custom = {"module": "mine", "class_name": "Mine", "registered_name": "mine>Mine", "config": {"name": "own"}}
    for number, (data, name) in enumerate(
        [(layer("Lambda", "twice", function={}), "Lambda"), (custom, "Mine"), (layer("ConvLSTM2D", "c"), "ConvLSTM2D"),
         (layer("RNN", "r", cell={**custom, "config": {"name": "own", "units": 4}}), "Mine")]
    ):  # fmt: skip
        path = write_keras(tmp_path / f"{number}.keras", sequential((None, 3), data), {})
        with pytest.raises(UnsupportedError, match=name):
            load_graph(path)


def test_folders_that_windows_joined_are_the_same_folders(tmp_path: Path) -> None:
    model = sequential((None, 3), layer("Dense", "dense", units=4))
    there = load_graph(write_keras(tmp_path / "there.keras", model, {"layers\\dense": [KERNEL, BIAS]}))
    here = load_graph(write_keras(tmp_path / "here.keras", model, {"layers/dense": [KERNEL, BIAS]}))
    assert there.nodes == here.nodes
