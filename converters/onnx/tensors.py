"""Tensors and types of an ONNX file, read without trust.

Sizes are compared with what the file really holds before memory is taken, and external data is read from
regular files inside the model's own folder only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.graph import TensorSpec
from fastlstm.operators.dtypes import ONNX_TYPES
from fastlstm.typing import Array

__all__ = ["BFLOAT16", "ELEMENT_TYPES", "UNKNOWN_RANK", "TensorReader", "element_type", "tensor_spec"]

BFLOAT16 = 16

ELEMENT_TYPES: Mapping[int, str] = {
    **ONNX_TYPES,
    BFLOAT16: "float32",  # which NumPy lacks, is computed in float32; the graph gets a note
}
"""Numbers of ``TensorProto.DataType`` and the NumPy type each becomes."""

UNKNOWN_RANK: tuple[int | str, ...] = ("...",)
"""The shape of a value whose rank the file does not give."""

_OTHER_TYPES = {8: "string", 14: "complex64", 15: "complex128", 17: "float8", 18: "float8", 19: "float8"}
_OTHER_TYPES |= {20: "float8", 21: "uint4", 22: "int4", 23: "float4", 24: "float8", 25: "uint2", 26: "int2"}

# The typed field that holds a tensor's elements when raw_data does not.
_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}

_EXTERNAL_KEYS = ("location", "offset", "length", "checksum")

# A file may share data between tensors and functions may repeat it, so more than the file's size can be
# asked for honestly; past this a small file is asking for a large amount of memory.
_SHARING = 4
_SMALL = 64 << 20


def element_type(number: int, where: str) -> np.dtype[Any]:
    """Return the NumPy type of an ONNX element type.

    Raises
    ------
    UnsupportedError
        If NumPy has none; `where` begins the message.
    """
    if number not in ELEMENT_TYPES:
        named = _OTHER_TYPES.get(number, f"number {number}")
        supported = ", ".join([*dict.fromkeys(ELEMENT_TYPES.values()), "bfloat16"])
        raise UnsupportedError(f"{where}: the element type {named} is not supported; supported: {supported}.")
    return np.dtype(ELEMENT_TYPES[number])


def tensor_spec(proto: Any, where: str) -> TensorSpec:
    """Return name, shape and dtype of a ``ValueInfoProto``.

    A dimension without size or name becomes ``""`` (the caller invents one), an unknown rank
    `UNKNOWN_RANK`; the dtype is ``"sequence"`` for a sequence and ``""`` where the file does not say it.
    """
    kind = proto.type.WhichOneof("value")
    if kind in ("sequence_type", None):
        return TensorSpec(proto.name, UNKNOWN_RANK, "sequence" if kind else "")
    if kind != "tensor_type":
        raise UnsupportedError(
            f"{where} '{proto.name}' is of the type {kind}; supported: tensors, and sequences inside."
        )
    tensor = proto.type.tensor_type
    dtype = element_type(tensor.elem_type, f"{where} '{proto.name}'").name if tensor.elem_type else ""
    if not tensor.HasField("shape"):
        return TensorSpec(proto.name, UNKNOWN_RANK, dtype)
    # A negative size is how some exporters write an unknown one.
    shape = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param for d in tensor.shape.dim]
    return TensorSpec(proto.name, tuple(shape), dtype)


class TensorReader:
    """Turns ``TensorProto`` into arrays.

    Parameters
    ----------
    size : int
        Bytes of the model itself; together with the external files it bounds what may be asked for.
    folder : Path or None
        Where external data may lie; None refuses it.

    Attributes
    ----------
    available : int
        Bytes of the model and of the external files met so far.
    """

    def __init__(self, size: int, folder: Path | None = None) -> None:
        self.folder = folder
        self.available = size
        self._taken = 0
        self._files: dict[Path, int] = {}

    def read(self, proto: Any, where: str) -> Array:
        """Return the tensor's values (read-only).

        Raises
        ------
        FileFormatError
            If the tensor holds more or less than its shape says, or its external data is not where it may be.
        UnsupportedError
            If the element type is not supported.
        """
        where = f"{where} '{proto.name}'" if proto.name else where
        dtype = element_type(proto.data_type, where)
        dims = tuple(proto.dims)
        if any(d < 0 for d in dims):
            raise FileFormatError(f"{where} has a negative dimension in its shape {list(dims)}.")
        if len(dims) > 32:
            raise UnsupportedError(f"{where} has {len(dims)} dimensions; supported are up to 32.")
        if proto.HasField("segment"):
            raise UnsupportedError(f"{where} is stored in segments; supported are whole tensors.")
        count = math.prod(dims)
        stored = np.dtype("uint16") if proto.data_type == BFLOAT16 else dtype
        if proto.data_location == 1:
            flat = self._external(proto, stored, count, where)
        elif proto.HasField("raw_data"):
            flat = self._raw(proto.raw_data, stored, count, where)
        else:
            flat = self._typed(proto, stored, count, where)
        if proto.data_type == BFLOAT16:
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        array = flat.reshape(dims)
        array.flags.writeable = False
        return array

    def _take(self, size: int, where: str) -> None:
        self._taken += size
        if self._taken > self.available * _SHARING + _SMALL:
            raise FileFormatError(
                f"{where} brings the tensors to {self._taken} bytes, more than {_SHARING} times "
                f"what the model's files hold ({self.available} bytes)."
            )

    def _raw(self, data: bytes, dtype: np.dtype[Any], count: int, where: str) -> Array:
        if len(data) != count * dtype.itemsize:
            raise FileFormatError(
                f"{where} should hold {count} elements of {dtype.name} ({count * dtype.itemsize} bytes); "
                f"it holds {len(data)} bytes."
            )
        self._take(len(data), where)
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)

    def _typed(self, proto: Any, dtype: np.dtype[Any], count: int, where: str) -> Array:
        field = _FIELDS.get(proto.data_type, "int32_data")
        values = getattr(proto, field)
        if len(values) != count:
            raise FileFormatError(f"{where} should hold {count} elements; its {field} holds {len(values)}.")
        self._take(count * dtype.itemsize, where)
        try:
            if proto.data_type == 10:  # float16 is stored as its bit pattern
                return np.array(values, np.uint16).view(np.float16)
            return np.array(values, dtype)
        except OverflowError:
            raise FileFormatError(f"{where} holds a value outside the range of {dtype.name}.") from None

    def _external(self, proto: Any, dtype: np.dtype[Any], count: int, where: str) -> Array:
        entries = {entry.key: entry.value for entry in proto.external_data}
        unknown = sorted(set(entries) - set(_EXTERNAL_KEYS))
        if unknown:
            raise UnsupportedError(
                f"{where}: the key '{unknown[0]}' of external data is not supported; "
                f"supported: {', '.join(_EXTERNAL_KEYS)}."
            )
        path = self._inside(entries.get("location", ""), where)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", count * dtype.itemsize))
        except ValueError:
            raise FileFormatError(f"{where}: offset and length of external data should be numbers.") from None
        if length != count * dtype.itemsize:
            raise FileFormatError(
                f"{where} should hold {count * dtype.itemsize} bytes; its external data gives {length}."
            )
        if offset < 0 or offset + length > self._files[path]:
            raise FileFormatError(
                f"{where} should be the bytes {offset} to {offset + length} of '{path.name}', "
                f"which holds {self._files[path]} bytes."
            )
        self._take(length, where)
        try:
            return np.fromfile(path, dtype.newbyteorder("<"), count, offset=offset).astype(dtype, copy=False)
        except OSError as error:
            raise FileFormatError(f"{where}: '{path.name}' cannot be read: {error.strerror}.") from None

    def _inside(self, location: str, where: str) -> Path:
        """Return the external file's path, known to be a regular file inside the model's folder."""
        if self.folder is None:
            raise UnsupportedError(
                f"{where} is stored outside the model ('{location}'). Load the model from its path, or call "
                "onnx.load_external_data_for_model(model, folder) first."
            )
        try:
            folder = self.folder.resolve()
            relative = Path(location)
            path = (folder / relative).resolve()
            outside = relative.is_absolute() or ".." in relative.parts or not path.is_relative_to(folder)
            if outside or "\\" in location or not location:
                raise FileFormatError(f"{where}: external data should lie in the model's own folder; got '{location}'.")
            if not path.is_file():
                raise FileFormatError(f"{where}: the external data file '{location}' is missing.")
            if path not in self._files:
                self._files[path] = path.stat().st_size
                self.available += self._files[path]
        except (OSError, ValueError, RuntimeError) as error:  # loops of links, names no file can have
            raise FileFormatError(f"{where}: external data '{location!r}' cannot be read: {error}.") from None
        return path
