"""Keras model files read without Keras: the configuration as data, the weights as arrays.

``.keras``
    A zip of ``config.json``, ``metadata.json`` and ``model.weights.h5``. The weights stand in groups that
    follow the objects: ``layers/lstm/cell/vars/0``.
``.h5``, ``.hdf5``
    One HDF5 file with the configuration in its attribute ``model_config`` and, for each layer of the model,
    its weights under the names that it lists in ``weight_names``.

Nothing is executed and nothing outside the file is opened: soft and external links, virtual datasets and
external storage are refused, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.converters.archive import Archive
from fastlstm.errors import DependencyError, FastLSTMError, FileFormatError, UnsupportedError

__all__ = ["KerasFile", "read_keras_file"]

Array = npt.NDArray[Any]

_CONFIG_BYTES = 64 << 20
_SMALL = 64 << 20
_RATIO = 16
_HEAP = b"GCOL\x01\0\0\0"
_BUILT_IN_FILTERS = frozenset({1, 2, 3})  # deflate, shuffle and fletcher32 are part of HDF5 itself


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
    DependencyError
        If h5py is not installed.
    """
    if not path.is_file():
        raise FileFormatError(f"'{path}' is not a file.")
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return _read_zip(path)
    if start == b"\x89HDF\r\n\x1a\n":
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
    data = io.BytesIO(archive.read("model.weights.h5"))
    with _opened(data, f"model.weights.h5 in '{path}'", len(data.getvalue())) as file:
        groups, names = file.variable_groups()
    return KerasFile(config, major, groups=groups, names=names)


def _read_h5(path: Path) -> KerasFile:
    with _opened(path, f"'{path}'", path.stat().st_size) as file:
        if "model_config" not in file.root.attrs:
            raise FileFormatError(
                f"'{path}' holds weights without a model (no model_config); "
                "write the whole model with model.save(...) instead of save_weights(...)."
            )
        config = _json(file.attribute(file.root, "model_config"), f"model_config in '{path}'")
        weights = file.group(file.root, "model_weights")
        version = file.attribute(file.root if "keras_version" in file.root.attrs else weights, "keras_version")
        if _text(file.attribute(file.root, "backend")) == "theano":
            raise UnsupportedError(
                f"'{path}' was written by Keras on Theano, which turns convolutions round; "
                "load it in Keras on TensorFlow and save it again."
            )
        major = _major(version, path)
        layers = file.layer_weights(weights)
    return KerasFile(config, major, layers=layers)


class _H5:
    """One open HDF5 file with a budget for what is read from it."""

    def __init__(self, root: Any, where: str, size: int, h5py: Any) -> None:
        self.root = root
        self._where = where
        self._h5py = h5py
        self._budget = max(_SMALL, _RATIO * size)

    def attribute(self, holder: Any, key: str) -> Any:
        """Return an attribute's value, None if there is none, after a look at how much it would read."""
        if key not in holder.attrs:
            return None
        stated = holder.attrs.get_id(key)
        if math.prod(stated.shape or (1,)) * stated.dtype.itemsize > _CONFIG_BYTES:
            raise FileFormatError(f"{self._where}: the attribute '{key}' is too large to be what Keras writes.")
        return holder.attrs[key]

    def group(self, parent: Any, name: str) -> Any:
        """Return the group `name`, a path relative to `parent`."""
        found = parent
        for part in name.split("/"):
            found = self._child(found, part)
            if not isinstance(found, self._h5py.Group):
                raise FileFormatError(f"{self._where}: '{name}' should be a group.")
        return found

    def array(self, parent: Any, name: str) -> Array:
        """Return the dataset `name`, a path relative to `parent`, as an array."""
        *folders, last = name.split("/")
        found = self._child(self.group(parent, "/".join(folders)) if folders else parent, last)
        where = f"{self._where}: the dataset '{getattr(found, 'name', name)}'"
        if not isinstance(found, self._h5py.Dataset):
            raise FileFormatError(f"{self._where}: '{name}' should be a dataset.")
        if found.is_virtual or found.external:
            raise FileFormatError(f"{where} lies in another file; only data of the file itself is read.")
        properties = found.id.get_create_plist()
        filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
        if not filters <= _BUILT_IN_FILTERS:
            raise UnsupportedError(f"{where} uses the HDF5 filter(s) {sorted(filters - _BUILT_IN_FILTERS)}.")
        half = _text(found.attrs.get("dtype", "")) == "bfloat16" and found.dtype.itemsize == 2
        if not half and found.dtype.kind not in "fiu":
            raise UnsupportedError(f"{where} holds {found.dtype}; numbers were expected.")
        if found.shape is None:
            raise FileFormatError(f"{where} is empty.")
        size = math.prod(found.shape) * found.dtype.itemsize
        self._budget -= size
        if self._budget < 0:
            raise FileFormatError(
                f"{where} would take the weights past {_RATIO} times the file's size: it is not read."
            )
        values: Array = found[()]
        if half:
            values = (np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.asarray(values).astype(np.float32) if found.dtype.kind == "f" else np.asarray(values)

    def variable_groups(self) -> tuple[dict[str, list[Array]], dict[str, str]]:
        """Return the arrays of every group of variables of the model, and the layers' names."""
        groups: dict[str, list[Array]] = {}
        names: dict[str, str] = {}
        for path in self._datasets():
            folder = path.rpartition("/")[0]
            holder = folder.rpartition("/")[0] if folder != "vars" else ""
            if path.split("/")[0] in _TRAINING_GROUPS or holder.endswith("seed_generator"):
                continue
            if folder.rpartition("/")[2] != "vars":
                raise FileFormatError(f"{self._where}: the dataset '{path}' is not where Keras keeps variables.")
            holder = holder.replace("_layer_checkpoint_dependencies/", "layers/")  # Keras 2.12
            if holder in groups:
                continue
            group = self.group(self.root, folder)
            groups[holder] = [self.array(group, str(i)) for i in range(len(group))]
            if "name" in group.attrs:
                names[holder] = _text(group.attrs["name"])
        return groups, names

    def layer_weights(self, weights: Any) -> dict[str, list[tuple[str, Array]]]:
        """Return the names and arrays of every layer under `weights`."""
        listed = 0
        layers: dict[str, list[tuple[str, Array]]] = {}
        for layer in [*_texts(weights, "layer_names"), "top_level_model_weights"]:
            if layer == "top_level_model_weights" and layer not in weights:
                continue
            group = self.group(weights, layer)
            layers[layer] = [(name, self.array(group, name)) for name in _texts(group, "weight_names")]
            listed += len(layers[layer])
        if layers.pop("top_level_model_weights", None):
            raise UnsupportedError(
                f"{self._where} has weights that belong to the model itself and to none of its layers."
            )
        present = [path for path in self._datasets() if path.startswith("model_weights/")]
        if len(present) != listed:
            raise FileFormatError(
                f"{self._where} holds {len(present)} arrays of weights, but its layers list {listed}."
            )
        return layers

    def _datasets(self) -> list[str]:
        """Return the paths of all datasets, links not followed."""
        found: list[str] = []

        def visit(path: str, item: Any) -> None:
            if isinstance(item, self._h5py.Dataset):
                found.append(path)

        self._refuse_links(self.root)
        self.root.visititems(visit)
        return found

    def _refuse_links(self, root: Any) -> None:
        def visit(path: str, link: Any) -> None:
            if not isinstance(link, self._h5py.HardLink):
                raise FileFormatError(
                    f"{self._where}: '{path}' is a link to '{getattr(link, 'path', '?')}'"
                    f"{' in ' + repr(link.filename) if hasattr(link, 'filename') else ''}; "
                    "only data of the file itself is read."
                )

        root.visititems_links(visit)

    def _child(self, parent: Any, name: str) -> Any:
        link = parent.get(name, getlink=True) if name and name not in (".", "..") else None
        if link is None:
            raise FileFormatError(f"{self._where} lacks '{parent.name.rstrip('/')}/{name}'.")
        if not isinstance(link, self._h5py.HardLink):
            raise FileFormatError(
                f"{self._where}: '{parent.name.rstrip('/')}/{name}' is a link to another place; "
                "only data of the file itself is read."
            )
        return parent[name]


_TRAINING_GROUPS = frozenset({"optimizer", "metrics", "_metrics", "_compile_metrics", "_compile_loss"})


@contextmanager
def _opened(source: Path | io.BytesIO, where: str, size: int) -> Iterator[_H5]:
    """Open an HDF5 file; whatever h5py has to say about a damaged one becomes a FileFormatError."""
    try:
        import h5py
    except ImportError:
        raise DependencyError.missing("h5py", "keras", "Reading a Keras model") from None
    _check_heaps(source, where)
    try:
        with h5py.File(source, "r") as root:
            yield _H5(root, where, size, h5py)
    except FastLSTMError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, SystemError) as error:
        # SystemError: h5py's own lock trips over an exception on its way out of a damaged link.
        raise FileFormatError(f"{where} is not a readable HDF5 file: {error}.") from None


def _check_heaps(source: Path | io.BytesIO, where: str) -> None:
    """Refuse a file whose heaps of text (``GCOL``, section III.E of the HDF5 format) are damaged.

    HDF5 itself walks them without an end if an object in them has an impossible size.
    """
    raw = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    at = raw.find(_HEAP)
    while at >= 0:
        size = int.from_bytes(raw[at + 8 : at + 16], "little")
        position, end = at + 16, min(at + size, len(raw))
        while position + 16 <= end:
            index = int.from_bytes(raw[position : position + 2], "little")
            length = int.from_bytes(raw[position + 8 : position + 16], "little")
            room = end - position
            if not (16 <= length <= room if index == 0 else length <= room - 16):  # index 0: what is left, head and all
                raise FileFormatError(f"{where} is damaged: a heap of text holds an object of {length} bytes.")
            if index == 0:
                break
            position += 16 + -(-length // 8) * 8
        at = raw.find(_HEAP, at + 8)


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


def _texts(group: Any, key: str) -> list[str]:
    """Return a list of names kept in an attribute, which Keras splits into numbered ones if it is long."""
    if key in group.attrs:
        return [_text(name) for name in group.attrs[key]]
    names: list[str] = []
    number = 0
    while f"{key}{number}" in group.attrs:
        names += [_text(name) for name in group.attrs[f"{key}{number}"]]
        number += 1
    return names
