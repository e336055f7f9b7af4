"""Keras model files read without Keras: the configuration as data, the weights as arrays.

``.keras``
    A zip of ``config.json``, ``metadata.json`` and ``model.weights.h5``. The weights stand in groups that
    follow the objects: ``layers/lstm/cell/vars/0``.
``.h5``, ``.hdf5``
    One HDF5 file with the configuration in its attribute ``model_config`` and, for each layer of the model,
    its weights under the names that it lists in ``weight_names``.

Nothing is executed, nothing outside the file is opened, and sizes are checked before memory is taken (`hdf5`).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.keras.hdf5 import SIGNATURE, Dataset, Group, Hdf5
from fastlstm.converters.keras.hdf5_data import read_array, read_value
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["KerasFile", "read_keras_file"]

_CONFIG_BYTES = 64 << 20
_SMALL = 64 << 20
_RATIO = 16


@dataclass(frozen=True)
class KerasFile:
    """What a Keras file holds.

    Attributes
    ----------
    config : dict
        The model, serialised: ``class_name``, ``config`` and so on.
    major : int
        The major version of the Keras that wrote the file: 2 or 3.
    groups : mapping of str to list of array, or None
        Of a ``.keras`` file: the arrays of every group that has a ``vars``, in their order.
    names : mapping of str to str
        Of a ``.keras`` file of Keras 3: the name of the layer that a group belongs to.
    layers : mapping of str to list of (str, array), or None
        Of an ``.h5`` file: the names and arrays of every layer of the model, in their order.
    """

    config: dict[str, Any]
    major: int
    groups: Mapping[str, list[Array]] | None = None
    names: Mapping[str, str] | None = None
    layers: Mapping[str, list[tuple[str, Array]]] | None = None


def read_keras_file(path: Path) -> KerasFile:
    """Read a ``.keras``, ``.h5`` or ``.hdf5`` file.

    Raises
    ------
    FileFormatError
        If the file is damaged, is no Keras model, or holds weights without the model.
    UnsupportedError
        If a version of Keras before 2 or after 3 wrote it.
    """
    if not path.is_file():
        raise FileFormatError(f"'{path}' is not a file.")
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return _read_zip(path)
    if start == SIGNATURE:
        return _read_h5(path)
    raise FileFormatError(f"'{path}' is neither a .keras archive nor an HDF5 file.")


def _read_zip(path: Path) -> KerasFile:
    archive = Archive(path)
    if "config.json" not in archive:
        raise FileFormatError(f"'{path}' is a zip archive without config.json, so Keras did not write it.")
    config = _json(archive.read("config.json", _CONFIG_BYTES), f"config.json in '{path}'")
    metadata = _json(archive.read("metadata.json", _CONFIG_BYTES), f"metadata.json in '{path}'")
    if "model.weights.h5" not in archive:
        raise FileFormatError(
            f"'{path}' lacks model.weights.h5; save the model with model.save('model.keras') and weights in HDF5."
        )
    major = _major(metadata.get("keras_version"), path)
    weights = _Weights(Hdf5(archive.read("model.weights.h5"), f"model.weights.h5 in '{path}'"))
    groups, names = weights.variable_groups()
    return KerasFile(config, major, groups=groups, names=names)


def _read_h5(path: Path) -> KerasFile:
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _from_h5(_Weights(Hdf5(data, f"'{path}'")), path)


def _from_h5(file: _Weights, path: Path) -> KerasFile:
    config = file.attribute(file.root, "model_config")
    if config is None:
        raise FileFormatError(
            f"'{path}' holds weights without a model (no model_config); "
            "write the whole model with model.save(...) instead of save_weights(...)."
        )
    config = _json(config, f"model_config in '{path}'")
    weights = file.group(file.root, "model_weights")
    version = file.attribute(file.root if "keras_version" in file.root.attributes else weights, "keras_version")
    if file.attribute(file.root, "backend") == "theano":
        raise UnsupportedError(
            f"'{path}' was written by Keras on Theano, which turns convolutions round; "
            "load it in Keras on TensorFlow and save it again."
        )
    return KerasFile(config, _major(version, path), layers=file.layer_weights(weights))


class _Weights:
    """One open HDF5 file with a budget for what is read from it."""

    def __init__(self, file: Hdf5) -> None:
        self._file = file
        self._where = file.where
        self.root = file.root
        self._budget = max(_SMALL, _RATIO * len(file.data))

    def attribute(self, holder: Group | Dataset, key: str) -> Any:
        """Return an attribute's value, None if there is none."""
        raw = holder.attributes.get(key)
        return None if raw is None else read_value(self._file, raw, key)

    def group(self, parent: Group, name: str) -> Group:
        """Return the group `name`, a path relative to `parent`."""
        found = parent.child(name)
        if found is None:
            raise FileFormatError(f"{self._where} lacks '{parent.path}/{name}'.")
        if not isinstance(found, Group):
            raise FileFormatError(f"{self._where}: '{name}' should be a group.")
        return found

    def array(self, parent: Group, name: str) -> Array:
        """Return the dataset `name`, a path relative to `parent`, as an array."""
        found = parent.child(name)
        if found is None:
            raise FileFormatError(f"{self._where} lacks '{parent.path}/{name}'.")
        if not isinstance(found, Dataset):
            raise FileFormatError(f"{self._where}: '{name}' should be a dataset.")
        values = read_array(self._file, found, self._budget)
        self._budget -= values.nbytes
        if values.dtype.itemsize == 2 and self.attribute(found, "dtype") == "bfloat16":
            return (np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if values.dtype.kind == "f" else values

    def variable_groups(self) -> tuple[dict[str, list[Array]], dict[str, str]]:
        """Return the arrays of every group of variables of the model, and the layers' names."""
        groups: dict[str, list[Array]] = {}
        names: dict[str, str] = {}
        for dataset in self.root.datasets():
            stored = dataset.path.rpartition("/")[0]
            folder = stored.replace("\\", "/")  # Keras 2 on Windows joins with its own separator
            holder = folder.rpartition("/")[0] if folder != "vars" else ""
            if folder.split("/")[0] in _TRAINING_GROUPS or holder.endswith("seed_generator"):
                continue
            if folder.rpartition("/")[2] != "vars":
                raise FileFormatError(
                    f"{self._where}: the dataset '{dataset.path}' is not where Keras keeps variables."
                )
            holder = holder.replace("_layer_checkpoint_dependencies/", "layers/")  # Keras 2.12
            if holder in groups:
                continue
            group = self.group(self.root, stored)
            groups[holder] = [self.array(group, str(i)) for i in range(len(group.children))]
            name = self.attribute(group, "name")
            if name is not None:
                names[holder] = str(name)
        return groups, names

    def layer_weights(self, weights: Group) -> dict[str, list[tuple[str, Array]]]:
        """Return the names and arrays of every layer under `weights`."""
        layers: dict[str, list[tuple[str, Array]]] = {}
        for layer in [*self._texts(weights, "layer_names"), "top_level_model_weights"]:
            if layer == "top_level_model_weights" and layer not in weights.children:
                continue
            group = self.group(weights, layer)
            layers[layer] = [(name, self.array(group, name)) for name in self._texts(group, "weight_names")]
        listed = sum(map(len, layers.values()))
        if layers.pop("top_level_model_weights", None):
            raise UnsupportedError(
                f"{self._where} has weights that belong to the model itself and to none of its layers."
            )
        present = sum(1 for _ in weights.datasets())
        if present != listed:
            raise FileFormatError(f"{self._where} holds {present} arrays of weights, but its layers list {listed}.")
        return layers

    def _texts(self, group: Group, key: str) -> list[str]:
        """Return a list of names kept in an attribute, which Keras splits into numbered ones if it is long."""
        keys = [key] if key in group.attributes else []
        if not keys:
            keys = [f"{key}{n}" for n in range(len(group.attributes)) if f"{key}{n}" in group.attributes]
        names: list[str] = []
        for each in keys:
            value = self.attribute(group, each)
            if isinstance(value, np.ndarray) and value.size == 0:  # how an empty list is written
                continue
            if not isinstance(value, list):
                raise FileFormatError(f"{self._where}: the attribute '{each}' should be a list of names.")
            names += value
        return names


_TRAINING_GROUPS = frozenset({"optimizer", "metrics", "_metrics", "_compile_metrics", "_compile_loss"})


def _json(data: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(_text(data))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{where} should be a JSON object; got {type(value).__name__}.")
    return value


def _major(version: Any, path: Path) -> int:
    text = _text(version) if version is not None else ""
    digits = text.split(".")[0]
    if digits not in ("2", "3"):
        raise UnsupportedError(
            f"'{path}' was written by Keras {text or '1 (it names no version)'}; supported are Keras 2 and 3."
        )
    return int(digits)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value if isinstance(value, str) else str(value)
