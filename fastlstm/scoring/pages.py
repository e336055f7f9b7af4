"""Lists of numbers from a Parquet file's pages, without pyarrow's reader, which looks at each number several times.

A column of lists is stored as its numbers, one after another, and two levels for each of them: the repetition level
says at which depth a list goes on, the definition level what is null. Where nothing is null or empty, all definition
levels are equal, the numbers are the array, and lists begin where repetition levels are below their depth. Decoding
just that takes 4 microseconds in place of pyarrow's 8 for 100 steps of 8 numbers.

Everything else is left to pyarrow, damaged files too, which it describes better: `Unusual` says so.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from fastlstm.scoring.arrow import arrow_numbers
from fastlstm.typing import Array

__all__ = ["Lists", "Unusual"]

_NUMBERS = {pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.int32(): "INT32", pa.int64(): "INT64"}
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD")
_HEADER = 1 << 8  # bytes that are read for a page's header; longer ones, with long statistics, are read again
_LONGEST_HEADER = 1 << 16
_RUN = 64  # levels in a run, at least and on average: finding runs in Python takes longer than pyarrow otherwise
_DICTIONARIES = 3  # pages of indices into a dictionary, which are unpacked slowly: writers give up useless ones early
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3  # kinds of pages
_FIELDS = {_DATA: (5, ("size", 1, 2)), _DICTIONARY: (7, ("size", 1)), _DATA_2: (8, ("size", 1, 4, 5, 6))}
_PLAIN, _INDICES = (0,), (2, 8)  # encodings of numbers


class Unusual(Exception):  # noqa: N818 - no error: pyarrow reads it
    """What these functions leave to pyarrow."""


@dataclass(frozen=True)
class _Page:
    """Numbers of a column, the repetition level of each, and where rows begin."""

    values: Array
    levels: Array
    starts: Array

    @classmethod
    def of(cls, values: Array, levels: Array) -> _Page:
        return cls(values, levels, np.flatnonzero(levels == 0))


class Lists:
    """A column of lists in one row group.

    Parameters
    ----------
    file : binary file
    metadata : pyarrow.parquet.FileMetaData
    group : int
        Number of the row group.
    field : pyarrow.Field
        The column in the file's Arrow schema.

    Raises
    ------
    Unusual
        If it is not one of lists, or lists of lists, of numbers, stored in one of the usual ways.
    """

    def __init__(self, file: Any, metadata: Any, group: int, field: Any) -> None:
        self._file, self._type = file, field.type
        leaf = _leaf(field.type)
        row_group = metadata.row_group(group)
        numbers = range(metadata.num_columns)
        found = [i for i in numbers if metadata.schema.column(i).path.split(".")[0] == field.name]
        if len(found) != 1:
            raise Unusual
        column, chunk = metadata.schema.column(found[0]), row_group.column(found[0])
        self._defined, self._depth = column.max_definition_level, column.max_repetition_level
        self._codec, self._dtype = chunk.compression, np.dtype(leaf.to_pandas_dtype())
        if chunk.physical_type != _NUMBERS[leaf] or self._codec not in _CODECS or sys.byteorder != "little":
            raise Unusual
        self._at = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            self._at = min(self._at, chunk.dictionary_page_offset)
        self._end, self._left = self._at + chunk.total_compressed_size, chunk.num_values
        self._dictionary: Array | None = None
        self._by_index = 0
        self._rest = _Page.of(np.empty(0, self._dtype), np.empty(0, np.uint8))

    def take(self, rows: int) -> Any:
        """Return the next `rows` rows as an Arrow array.

        Raises
        ------
        Unusual
            If pyarrow has to read them; what was taken before is right.
        """
        pages, found = [self._rest], len(self._rest.starts)
        while found <= rows and self._left:  # a row ends where the next one begins
            pages.append(self._page())
            found += len(pages[-1].starts)
        firsts = np.cumsum([0, *(len(page.levels) for page in pages)])
        levels = np.concatenate([page.levels for page in pages])
        values = np.concatenate([page.values for page in pages], out=_memory(len(levels), self._dtype))
        starts = np.concatenate([page.starts + first for page, first in zip(pages, firsts, strict=False)])
        if len(starts) < rows or (len(levels) and levels[0]):
            raise Unusual
        end = int(starts[rows]) if len(starts) > rows else len(levels)
        self._rest = _Page(values[end:], levels[end:], starts[rows:] - end)
        return self._lists(values[:end], levels[:end], starts[:rows])

    def _lists(self, values: Array, levels: Array, starts: Array) -> Any:
        if self._depth == 1:
            return _array(self._type, np.append(starts, len(values)), arrow_numbers(values))
        inner = self._type.value_type
        if kinds.is_fixed_size_list(inner):
            size = inner.list_size
            first = levels[::size]  # of each inner list, if all are of that size
            if len(values) % size or np.count_nonzero(levels < 2) != len(first) or first.max(initial=0) > 1:
                raise Unusual
            within = pa.FixedSizeListArray.from_arrays(arrow_numbers(values), type=inner)
        else:
            at = np.flatnonzero(levels < 2)
            first = levels[at]
            within = _array(inner, np.append(at, len(values)), arrow_numbers(values))
        return _array(self._type, np.append(np.flatnonzero(first == 0), len(first)), within)

    # ------------------------------------------------------------------ pages

    def _page(self) -> _Page:
        """Read the next page of numbers."""
        while True:
            kind, header, body = self._next()
            if kind in (_DATA, _DATA_2):
                break
            if kind == _DICTIONARY and header.get(2, 0) in (0, 2):
                self._dictionary = self._plain(self._decompressed(body, header["size"]), header[1])
        count = header[1]
        if not 0 < count <= self._left:
            raise Unusual
        if kind == _DATA:
            body = self._decompressed(body, header["size"])
            levels, body = self._prefixed(body, self._depth, count)
            defined, body = self._prefixed(body, self._defined, count)
            encoding = header[2]
        else:
            encoding, split = header[4], header[6] + header[5]  # bytes of repetition and of definition levels
            levels = _unpacked(body[: header[6]], self._depth.bit_length(), count)
            defined = _unpacked(body[header[6] : split], self._defined.bit_length(), count)
            body = self._decompressed(body[split:], header["size"] - split) if header.get(7, True) else body[split:]
        if (defined != self._defined).any() or levels.max() > self._depth:
            raise Unusual
        self._left -= count
        return _Page.of(self._numbers(body, count, encoding), levels)

    def _numbers(self, body: Array, count: int, encoding: int) -> Array:
        if encoding in _PLAIN:
            return self._plain(body, count)
        self._by_index += 1
        if encoding not in _INDICES or self._dictionary is None or self._by_index > _DICTIONARIES or not body.size:
            raise Unusual
        indices = _unpacked(body[1:], int(body[0]), count)
        if indices.max() >= len(self._dictionary):
            raise Unusual
        numbers: Array = self._dictionary[indices]
        return numbers

    def _next(self) -> tuple[int, dict[Any, Any], Array]:
        """Return a page's kind, the header of that kind by the numbers of its fields, and its bytes."""
        for size in (_HEADER, _LONGEST_HEADER):
            self._file.seek(self._at)
            head = self._file.read(min(size, self._end - self._at))
            with suppress(IndexError):  # it goes on
                fields, at = _struct(head, 0)
                break
        else:
            raise Unusual
        kind, stored = cast(int, fields.get(1)), cast(int, fields.get(3))  # checked below
        place, needed = _FIELDS.get(kind, (0, ())) if isinstance(kind, int) else (0, ())
        header = fields.get(place)
        if not isinstance(header, dict):
            raise Unusual
        header["size"] = fields.get(2)
        if not all(type(n) is int and 0 <= n < 1 << 31 for n in (stored, *(header.get(name) for name in needed))):
            raise Unusual
        if self._at + at + stored > self._end:
            raise Unusual
        body = _memory(stored, np.dtype(np.uint8))
        self._file.seek(self._at + at)
        if self._file.readinto(body) != stored:
            raise Unusual
        self._at += at + stored
        return kind, header, body

    def _decompressed(self, body: Array, size: int) -> Array:
        if self._codec == "UNCOMPRESSED":
            return body
        try:
            return np.frombuffer(pa.decompress(body, size, self._codec.lower()), np.uint8)
        except (pa.ArrowException, OSError, ValueError):
            raise Unusual from None

    def _prefixed(self, body: Array, highest: int, count: int) -> tuple[Array, Array]:
        """Return the levels at the beginning of a page, behind their size, and what follows them."""
        if not highest:
            return np.zeros(count, np.uint8), body
        size = int.from_bytes(body[:4].tobytes(), "little")
        return _unpacked(body[4 : 4 + size], highest.bit_length(), count), body[4 + size :]

    def _plain(self, body: Array, count: int) -> Array:
        if body.size < count * self._dtype.itemsize or count < 0:
            raise Unusual
        return body[: count * self._dtype.itemsize].view(self._dtype)


def _memory(count: int, dtype: np.dtype[Any]) -> Array:
    """Return an array of pyarrow's memory, which is used again; NumPy's large arrays come from the system, cleared."""
    return np.frombuffer(pa.allocate_buffer(count * dtype.itemsize), dtype)


# --- types ---------------------------------------------------------------------------------------------------


def _is_list(kind: Any) -> bool:
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind))


def _leaf(kind: Any) -> Any:
    """Return the type of a column's numbers."""
    inner = kind.value_type if _is_list(kind) else None
    if inner is not None and (_is_list(inner) or kinds.is_fixed_size_list(inner)):
        inner = inner.value_type
    if inner not in _NUMBERS:
        raise Unusual
    return inner


def _array(kind: Any, offsets: Array, values: Any) -> Any:
    made, width = (pa.LargeListArray, np.int64) if kinds.is_large_list(kind) else (pa.ListArray, np.int32)
    if len(values) > np.iinfo(width).max:
        raise Unusual
    return made.from_arrays(arrow_numbers(offsets.astype(width)), values, type=kind)


# --- encodings -----------------------------------------------------------------------------------------------


def _unpacked(data: Array, width: int, count: int) -> Array:
    """Return integers of so many bits, stored in runs: one of them repeated, or several with their bits packed."""
    parts: list[Array] = []
    found = at = runs = 0
    dtype = np.dtype(np.uint8 if width <= 8 else np.uint32)
    content = data.tobytes()
    try:
        while found < count:
            begin = at
            header, at = _varint(content, at)
            if header & 1:
                size = (header >> 1) * width
                alike = _alike(data, begin, at - begin, size)
                blocks = data[begin : begin + alike * (at - begin + size)].reshape(alike, -1)[:, at - begin :]
                parts.append(_bits(blocks.reshape(-1), width))
                at = begin + alike * (at - begin + size)
            else:
                size = -(-width // 8)
                value = int.from_bytes(content[at : at + size], "little")
                parts.append(np.full(min(header >> 1, count - found), value, dtype))
                at += size
            found, runs = found + len(parts[-1]), runs + 1
            if not len(parts[-1]) or runs > 16 + count // _RUN or at > len(data):
                raise Unusual
    except (IndexError, ValueError, OverflowError):
        raise Unusual from None
    return (np.concatenate(parts) if parts else np.empty(0, dtype))[:count]


def _alike(data: Array, at: int, header: int, size: int) -> int:
    """Return how many runs of packed bits, of one length, follow each other; at least 1."""
    stride = header + size
    whole = (len(data) - at) // stride
    if whole < 1:
        raise Unusual
    heads = data[at : at + whole * stride].reshape(whole, stride)[:, :header]
    others = np.flatnonzero((heads != heads[0]).any(axis=1))
    return int(others[0]) if len(others) else whole


def _bits(packed: Array, width: int) -> Array:
    """Return integers whose bits are packed, the lowest first."""
    if width == 2:
        spread = packed.astype("<u4")  # four to a byte: spread to halves of 16 bits, then to bytes
        for shift, mask in ((12, 0x000F000F), (6, 0x03030303)):
            spread |= spread << np.uint32(shift)
            spread &= np.uint32(mask)
        return spread.view(np.uint8)
    bits = np.unpackbits(packed, bitorder="little")
    if width == 1:
        return bits
    padded = np.zeros((len(bits) // width, 8 if width <= 8 else 32), np.uint8)
    padded[:, :width] = bits.reshape(-1, width)
    return np.packbits(padded, axis=1, bitorder="little").reshape(-1).view(np.uint8 if width <= 8 else "<u4")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer of any length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise Unusual


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a structure in Thrift's compact protocol by their numbers, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while kind := data[at] & 15:
        step = data[at] >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _signed(data, at)
        fields[number], at = _value(kind, data, at, depth)
    return fields, at + 1


def _value(kind: int, data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _signed(data, at)
    if kind == 8:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise IndexError
        return None, at + size
    if kind == 12 and depth < 4:
        return _struct(data, at, depth + 1)
    raise Unusual  # a page's header has nothing else


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
