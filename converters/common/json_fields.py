"""JSON read without trust: each field is asked for by kind, and another kind is an error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["Fields", "numbers", "parsed", "read_json"]

_T = TypeVar("_T")

_LARGEST = 1 << 31
_BYTES = 32 << 20  # as Python objects a JSON text takes up to twenty times its size


def read_json(path: Path) -> Fields:
    """Return the object that a JSON file holds.

    Raises
    ------
    OSError
        If there is no such file.
    FileFormatError
        If it is larger than 32 MiB, no JSON, nested too deeply, or no object at its top.
    """
    if path.stat().st_size > _BYTES:
        raise FileFormatError(f"'{path}' is larger than {_BYTES >> 20} MiB, too large for a model in JSON.")
    return parsed(path.read_bytes(), f"'{path}'", constants=False)


def parsed(data: bytes, where: str, constants: bool = True) -> Fields:
    """Return the object that JSON text holds.

    Parameters
    ----------
    data : bytes
    where : str
        Names it in errors.
    constants : bool
        Whether NaN and infinities may stand among its numbers.

    Raises
    ------
    FileFormatError
        If it is no JSON, nested too deeply, or no object at its top.
    """
    try:
        content = json.loads(data, parse_constant=None if constants else _no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} is not a readable JSON file: {error}.") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{where} holds a {type(content).__name__} at its top; expected an object.")
    return Fields(content, where)


_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


class Fields:
    """The fields of one JSON object; `where` names it in errors."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    @property
    def keys(self) -> list[str]:
        """The names of the fields."""
        return list(self._fields)

    def _get(self, key: str) -> Any:
        if key not in self:
            raise FileFormatError(f"{self.where} lacks '{key}'.")
        return self._fields[key]

    def _kind(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:
        value = self._get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FileFormatError(f"{self.where}: '{key}' should be {name}; got {_brief(value)}.")
        return value

    def text(self, key: str, default: str | None = "") -> str:
        """Return a string; `default` if it is absent or null, an error if that is None."""
        return default if default is not None and key not in self else str(self._kind(key, str, "a string"))

    def flag(self, key: str) -> bool:
        """Return true or false."""
        return bool(self._kind(key, bool, "true or false"))

    def integer(self, key: str) -> int:
        """Return an integer of 64 bits."""
        value = int(self._kind(key, int, "an integer"))
        if not -(1 << 63) <= value < 1 << 63:
            raise FileFormatError(f"{self.where}: '{key}' has more than 64 bits.")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number; `default` if it is absent or null."""
        value = self._fields.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e30:
            raise FileFormatError(f"{self.where}: '{key}' should be a number; got {_brief(value)}.")
        return float(value)

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a size: an integer of at least `least`, or the last one of a list of them."""
        value = self._get(key) if default is None else self._fields.get(key, default)
        while isinstance(value, list) and value:
            value = value[-1]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _LARGEST:
            raise FileFormatError(
                f"{self.where}: '{key}' should be an integer from {least} to {_LARGEST - 1}; got {_brief(value)}."
            )
        return value

    def real(self, key: str) -> float:
        """Return a number, NaN and infinities among them, which some writers put in quotes, as JSON has none."""
        named = self._get(key)
        if isinstance(named, str) and named in _NOT_FINITE:
            return _NOT_FINITE[named]
        value = self._kind(key, (int, float), "a number")
        return value if isinstance(value, float) else float(self.integer(key))

    def each(self, key: str, read: Callable[[Fields, str], _T]) -> Sequence[_T]:
        """Return the items of a list, each read as a field of its own."""
        items = Fields({str(position): item for position, item in enumerate(self.list(key))}, f"{self.where}, {key}")
        return [read(items, position) for position in items.keys]

    def object(self, key: str) -> Fields:
        """Return an object's fields."""
        return Fields(self._kind(key, dict, "an object"), f"{self.where}, {key}")

    def list(self, key: str) -> list[Any]:
        """Return a list."""
        return list(self._kind(key, list, "a list"))

    def objects(self, key: str) -> Iterator[Fields]:
        """Yield the objects in a list."""
        for position, item in enumerate(self.list(key)):
            if not isinstance(item, dict):
                raise FileFormatError(f"{self.where}: '{key}' should be a list of objects; it holds {_brief(item)}.")
            yield Fields(item, f"{self.where}, {key} {position}")

    def only_key(self) -> str:
        """Return the name of the only field: which of several kinds the object is."""
        if len(self._fields) != 1:
            raise FileFormatError(f"{self.where} should have one field; got {', '.join(self._fields)[:80] or 'none'}.")
        return next(iter(self._fields))

    def array(self, key: str, shape: Sequence[int | None] | None = None) -> Array:
        """Return nested lists of numbers as float32; None in `shape` leaves a dimension open."""
        return numbers(self._get(key), f"{self.where}: '{key}'", shape)

    def only(self, *known: str) -> None:
        """Refuse any field that is not among the `known` ones.

        Raises
        ------
        UnsupportedError
            Naming the first unknown field.
        """
        for key in self._fields:
            if key not in known:
                raise UnsupportedError(
                    f"{self.where}: the field '{key}' is not understood; supported: {', '.join(known)}."
                )


def numbers(value: Any, where: str, shape: Sequence[int | None] | None = None) -> Array:
    """Return nested lists of numbers as a float32 array of the given shape.

    Raises
    ------
    FileFormatError
        If it is ragged, of another shape, or holds anything but finite numbers.
    """
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise FileFormatError(f"{where} should be nested lists of numbers, all of one length a level.") from None
    if array.dtype.kind not in "if" or array.ndim == 0:
        raise FileFormatError(f"{where} should hold numbers in lists; got {_brief(value)}.")
    if shape is not None and (
        array.ndim != len(shape) or any(w not in (None, g) for g, w in zip(array.shape, shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise FileFormatError(f"{where} should have the shape [{wanted}]; got {list(array.shape)}.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FileFormatError(f"{where} holds a number too large for float32.")
    return array


def _brief(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else f"{str(value)[:40]!r}"
