"""Files that hold weights and nothing else: ``.pt`` and ``.pth`` state dicts, ``.safetensors``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from fastlstm.converters.torch.legacy import TorchArchive, open_archive
from fastlstm.converters.torch.pickles import Foreign, StoredTensor, parse, widen_bfloat16
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["read_pt", "read_safetensors", "read_tensors"]

_PICKLE_BYTES = 64 << 20
_SHARING = 16  # tensors may share a storage (tied weights, flattened layers), within reason
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "<i1", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")


def read_pt(path: Path, order_known: bool = False) -> dict[str, Array]:
    """Return the tensors of a ``.pt`` or ``.pth`` file that holds a state dict, in their order.

    A checkpoint that keeps the state dict under ``state_dict``, ``model_state_dict``, ``model`` or the like
    beside an epoch or an optimiser's state is understood; nested dicts get dotted names. The weights of a
    TorchScript archive are read if `order_known` says that the caller knows what runs in which order: the
    archive's code says it, and is not read.

    Raises
    ------
    FileFormatError
        If the file is damaged, truncated, or not one of torch.save.
    UnsupportedError
        If it holds anything but tensors in dicts: the global that it asks for is named.
    """
    archive = open_archive(path)
    member = f"{archive.root}data.pkl"
    if member not in archive:
        raise FileFormatError(f"'{path}' is a zip archive without data.pkl, so torch.save did not write it.")
    if archive.root + "byteorder" in archive and archive.read(archive.root + "byteorder", 16) != b"little":
        raise UnsupportedError(f"'{path}' was written on a big-endian machine; save it on a little-endian one.")
    pickled, scripted = archive.read(member, _PICKLE_BYTES), f"{archive.root}constants.pkl" in archive
    if scripted and not order_known:
        raise UnsupportedError(
            f"'{path}' is a TorchScript archive, whose code is not read. Save the model with torch.export.save as "
            '.pt2 or export it to ONNX; or say what runs in which order, as in layers="lstm | last | linear".'
        )
    found = parse(pickled, str(path), allow=_is_scripted if scripted else None)
    content = _weights_of(_attributes(found, path, 0) if isinstance(found, Foreign) else found, path)
    return read_tensors(archive, content)


def read_tensors(archive: TorchArchive, tensors: Mapping[str, StoredTensor]) -> dict[str, Array]:
    """Return tensors of a torch archive, each storage checked against the archive's directory and read once.

    Raises
    ------
    FileFormatError
        If a storage is missing or of another size, or the tensors together are far larger than the file.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    allowed = max(_SHARING * archive.bytes, 1 << 20)
    if total > allowed:
        raise FileFormatError(f"'{archive.path}' describes tensors of {total} bytes, far more than the file holds.")
    storages: dict[str, bytes] = {}
    for tensor in tensors.values():
        member = archive.root + tensor.key
        expected = tensor.numel * tensor.itemsize
        if member not in archive or archive.size(member) != expected:
            found = f"{archive.size(member)} bytes" if member in archive else "no such member"
            raise FileFormatError(
                f"'{archive.path}': the storage '{tensor.key}' should have {expected} bytes; found {found}."
            )
        if tensor.key not in storages:
            storages[tensor.key] = archive.read(member)
    return {name: tensor.view(storages[tensor.key]) for name, tensor in tensors.items()}


def read_safetensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a ``.safetensors`` file, in the order of the file (which is not the model's).

    Raises
    ------
    FileFormatError
        If the file is damaged or truncated.
    UnsupportedError
        If a tensor has a dtype that is not read.
    """
    data = path.read_bytes()
    try:
        entries = _deserialize(data)
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"'{path}' is not a readable safetensors file: {error}.") from None
    arrays: dict[str, Array] = {}
    for name, entry in entries:
        dtype = _SAFETENSORS.get(entry["dtype"])
        if dtype is None:
            raise UnsupportedError(
                f"'{path}': the tensor '{name}' has the dtype {entry['dtype']}; supported: {', '.join(_SAFETENSORS)}."
            )
        raw = bytes(entry["data"])
        flat = widen_bfloat16(raw) if dtype == "bfloat16" else np.frombuffer(raw, dtype)
        try:
            arrays[name] = flat.reshape(entry["shape"])
        except ValueError as error:
            raise FileFormatError(f"'{path}': the shape of the tensor '{name}' cannot be: {error}.") from None
    return arrays


def _is_scripted(name: str) -> bool:
    return name.startswith("__torch__.")


def _attributes(module: Foreign, path: Path, depth: int) -> dict[str, Any]:
    """Return the tensors and submodules of a scripted module; flags and sizes are settings of its code."""
    if depth > 100:
        raise FileFormatError(f"'{path}' nests its modules in a way that no model does.")
    kept: dict[str, Any] = {}
    for name, value in module.attributes.items():
        if isinstance(value, Foreign):
            kept[name] = _attributes(value, path, depth + 1)
        elif isinstance(value, StoredTensor):
            kept[name] = value
        elif name != "_flat_weights" and isinstance(value, list) and any(isinstance(v, StoredTensor) for v in value):
            raise UnsupportedError(f"'{path}': the list of tensors '{name}' of a scripted module is not supported.")
    return kept


def _weights_of(content: Any, path: Path) -> dict[str, StoredTensor]:
    if isinstance(content, StoredTensor):
        raise UnsupportedError(f"'{path}' holds a single tensor; save model.state_dict() with torch.save.")
    if not isinstance(content, Mapping):
        raise UnsupportedError(f"'{path}' holds a {type(content).__name__}; save model.state_dict() with torch.save.")
    if not all(isinstance(value, StoredTensor) for value in content.values()):
        inner = [key for key in _CHECKPOINT_KEYS if isinstance(content.get(key), Mapping)]
        if len(inner) == 1:
            content = content[inner[0]]
    return dict(_flatten(content, path, "", set()))


def _flatten(content: Mapping[Any, Any], path: Path, prefix: str, seen: set[int]) -> Iterator[tuple[str, StoredTensor]]:
    if id(content) in seen or len(seen) > 100:
        raise FileFormatError(f"'{path}' nests its dicts in a way that no state dict does.")
    seen.add(id(content))
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, StoredTensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _flatten(value, path, f"{name}.", seen)
        else:
            raise UnsupportedError(
                f"'{path}': the entry '{name}' is a {type(value).__name__}, not a tensor. Save the weights "
                "alone: torch.save(model.state_dict(), path)."
            )
