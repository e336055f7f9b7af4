"""What stands in an HDF5 file: texts and numbers of attributes, arrays of datasets.

Only what Keras (by way of h5py) writes is decoded: integers and IEEE floats, texts of fixed and of any length,
arrays in one piece or in chunks with the filters that are part of HDF5 itself.
"""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import numpy as np

from fastlstm.converters.keras.hdf5 import NOWHERE, Dataset, Hdf5, Raw
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["read_array", "read_shape", "read_value"]

_LARGEST_ATTRIBUTE = 64 << 20
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
_MOST_CHUNKS = 1 << 20
_FLOATS = {(2, 5, 10): "f2", (4, 8, 23): "f4", (8, 11, 52): "f8"}  # bytes, exponent bits, mantissa bits
_NUMBER, _FLOAT, _TEXT, _SEQUENCE = 0, 1, 3, 9


def read_shape(file: Hdf5, at: int, where: str) -> tuple[int, ...] | None:
    """Return the shape in a dataspace message (section IV.A.2.b), None if there is no data at all."""
    version, rank = file.uint(at, 1), file.uint(at + 1, 1)
    if version not in (1, 2) or rank > 32:
        raise file.damaged(f"{where} has no shape that can be read")
    if version == 2 and file.uint(at + 3, 1) == 2:
        return None
    first = at + (8 if version == 1 else 4)
    return tuple(file.uint(first + 8 * axis, 8) for axis in range(rank))


def _number_type(file: Hdf5, at: int, where: str) -> np.dtype[Any]:
    """Return the dtype in a datatype message (section IV.A.2.d)."""
    head, bits, size = file.uint(at, 1), file.uint(at + 1, 3), file.uint(at + 4, 4)
    order = ">" if bits & 1 else "<"
    if head & 15 == _NUMBER and size in (1, 2, 4, 8) and file.uint(at + 10, 2) == 8 * size:
        return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    if head & 15 == _FLOAT and not bits & 64:
        name = _FLOATS.get((size, file.uint(at + 13, 1), file.uint(at + 15, 1)))
        if name is not None:
            return np.dtype(order + name)
    raise UnsupportedError(f"{file.where}: {where} holds another type of data than numbers.")


def read_value(file: Hdf5, raw: Raw, name: str) -> Any:
    """Return an attribute: a text, a list of texts, or an array of numbers.

    Raises
    ------
    FileFormatError
        If it is damaged, or larger than anything that Keras writes.
    UnsupportedError
        If it is of another type.
    """
    where = f"the attribute '{name}'"
    shape = read_shape(file, raw.dataspace, where)
    if shape is None:
        return None
    count, size = math.prod(shape), file.uint(raw.datatype + 4, 4)
    if count * size > _LARGEST_ATTRIBUTE:
        raise FileFormatError(f"{file.where}: {where} is too large to be what Keras writes.")
    if count * size > raw.size:
        raise file.damaged(f"{where} is larger than its place")
    kind, bits = file.uint(raw.datatype, 1) & 15, file.uint(raw.datatype + 1, 3)
    if kind == _TEXT:
        texts = [_fixed_text(file.take(raw.data + size * i, size)) for i in range(count)]
    elif kind == _SEQUENCE and bits & 15 == 1 and size == 16:
        texts = [_heap_text(file, raw.data + 16 * i, where) for i in range(count)]
    else:
        dtype = _number_type(file, raw.datatype, where)
        return np.frombuffer(file.take(raw.data, count * size), dtype).reshape(shape)
    return texts if shape else texts[0]


def _fixed_text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", errors="replace")


def _heap_text(file: Hdf5, at: int, where: str) -> str:
    """Return a text that the global heap keeps (section III.E): its length, the heap's address, its number."""
    length, heap, number = file.uint(at, 4), file.uint(at + 4, 8), file.uint(at + 12, 4)
    if length == 0:
        return ""
    if file.take(heap, 4) != b"GCOL":
        raise file.damaged(f"{where} is not in a heap of texts")
    position, end = heap + 16, heap + file.uint(heap + 8, 8)
    while position + 16 <= end:
        index, size = file.uint(position, 2), file.uint(position + 8, 8)
        if index == number:
            if length > size or size > end - position - 16:
                raise file.damaged(f"{where} is longer than its place in a heap of texts")
            if length > _LARGEST_ATTRIBUTE:
                raise FileFormatError(f"{file.where}: {where} is too large to be what Keras writes.")
            return file.take(position + 16, length).decode("utf-8", errors="replace")
        if index == 0:  # what is left of the heap
            break
        position += 16 + -(-size // 8) * 8
    raise file.damaged(f"{where} is missing in its heap of texts")


def read_array(file: Hdf5, dataset: Dataset, budget: int) -> Array:
    """Return the numbers of a dataset; floats come as they are stored.

    Parameters
    ----------
    budget : int
        The most bytes that the array may have.

    Raises
    ------
    FileFormatError
        If it is damaged, empty, in another file, or larger than `budget`.
    UnsupportedError
        If it holds no numbers, or is stored in a way that Keras does not use.
    """
    where = f"the dataset '{dataset.path}'"
    dtype, shape = _number_type(file, dataset.raw.datatype, where), read_shape(file, dataset.raw.dataspace, where)
    if shape is None:
        raise FileFormatError(f"{file.where}: {where} is empty.")
    size = math.prod(shape) * dtype.itemsize
    if size > budget:
        raise FileFormatError(
            f"{file.where}: {where} would take the weights past 16 times the file's size: it is not read."
        )
    at = dataset.raw.data  # section IV.A.2.i: the layout message
    version, kind = file.uint(at, 1), file.uint(at + 1, 1)
    if version not in (3, 4) or kind > 3 or (kind == 2 and version == 4):
        raise UnsupportedError(f"{file.where}: {where} has a layout that Keras does not write ({version}, {kind}).")
    if kind == 3:
        raise FileFormatError(
            f"{file.where}: {where} is put together from other places; only data of the file itself is read."
        )
    if size == 0:
        return np.zeros(shape, dtype)
    if kind == 2:
        return _chunks(file, dataset, shape, dtype, where)
    place, room = (at + 4, file.uint(at + 2, 2)) if kind == 0 else (file.uint(at + 2, 8), file.uint(at + 10, 8))
    if dataset.filters or place == NOWHERE or room < size:
        raise file.damaged(f"{where} was not written whole")
    if place + size > len(file.data):
        raise file.damaged(f"{where} ends behind the file")
    return np.frombuffer(file.data, dtype, math.prod(shape), place).reshape(shape).copy()


def _chunks(file: Hdf5, dataset: Dataset, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Array:
    """Return an array that is stored in chunks, each of which went through the filters."""
    at = dataset.raw.data
    rank = file.uint(at + 2, 1) - 1
    chunk = tuple(file.uint(at + 11 + 4 * axis, 4) for axis in range(rank))
    if rank != len(shape) or 0 in chunk or file.uint(at + 11 + 4 * rank, 4) != dtype.itemsize:
        raise file.damaged(f"{where} has chunks of another shape than its own")
    filters = _filters(file, dataset.filters, where) if dataset.filters else []
    expected = math.prod(-(-size // c) for size, c in zip(shape, chunk, strict=True))
    bytes_each = math.prod(chunk) * dtype.itemsize
    if expected > _MOST_CHUNKS or bytes_each > max(4 * math.prod(shape) * dtype.itemsize, 1 << 20):
        raise file.damaged(f"{where} has chunks that do not fit its shape")
    values: Array = np.zeros(shape, dtype)
    found = set()
    for place, size, skipped, offsets in _leaves(file, file.uint(at + 3, 8), rank, where):
        if skipped or offsets in found or any(o % c or o >= s for o, c, s in zip(offsets, chunk, shape, strict=True)):
            raise file.damaged(f"{where} has a chunk that is not one of its own")
        found.add(offsets)
        data = file.take(place, size)
        for kind in reversed(filters):
            data = _undone(data, kind, bytes_each, dtype.itemsize)
        if len(data) != bytes_each:
            raise file.damaged(f"{where} has a chunk of another size than its others")
        whole = np.frombuffer(data, dtype).reshape(chunk)
        target = tuple(slice(o, min(o + c, s)) for o, c, s in zip(offsets, chunk, shape, strict=True))
        values[target] = whole[tuple(slice(0, t.stop - t.start) for t in target)]
    if len(found) != expected:
        raise file.damaged(f"{where} has {len(found)} of its {expected} chunks")
    return values


def _leaves(file: Hdf5, root: int, rank: int, where: str) -> Any:
    """Yield place, size, skipped filters and offsets of every chunk (section III.A.1: a tree of chunks)."""
    nodes, seen = [root], set()
    for node in nodes:  # grows while it is walked
        if node in seen or len(nodes) > _MOST_CHUNKS or file.take(node, 5) != b"TREE\x01":
            raise file.damaged(f"{where} has no list of chunks that can be read")
        seen.add(node)
        level, entry = file.uint(node + 5, 1), 16 + 8 * (rank + 1)
        for i in range(file.uint(node + 6, 2)):
            key = node + 24 + i * entry
            child = file.uint(key + entry - 8, 8)
            if level:
                nodes.append(child)
                continue
            offsets = tuple(file.uint(key + 8 + 8 * axis, 8) for axis in range(rank))
            yield child, file.uint(key, 4), file.uint(key + 4, 4), offsets


def _filters(file: Hdf5, at: int, where: str) -> list[int]:
    """Return the numbers of the filters, in the order of writing (section IV.A.2.l)."""
    version, count = file.uint(at, 1), file.uint(at + 1, 1)
    place, found = at + (8 if version == 1 else 2), []
    for _ in itertools.repeat(None, count):
        number = file.uint(place, 2)
        if number not in (_DEFLATE, _SHUFFLE, _CHECKSUM):
            raise UnsupportedError(f"{file.where}: {where} uses the HDF5 filter {number}, which is not read.")
        found.append(number)
        if version == 1:
            name, values = file.uint(place + 2, 2), file.uint(place + 6, 2)
            place += 8 + -(-name // 8) * 8 + 4 * (values + values % 2)
        else:
            place += 6 + 4 * file.uint(place + 4, 2)
    return found


def _undone(data: bytes, kind: int, size: int, width: int) -> bytes:
    """Return a chunk as it was before a filter, never more than `size` bytes and a checksum."""
    if kind == _CHECKSUM:
        return data[:-4]
    if kind == _DEFLATE:
        try:
            return zlib.decompressobj().decompress(data, size + 4)
        except zlib.error as error:
            raise FileFormatError(f"A chunk of weights cannot be unpacked: {error}.") from None
    whole = len(data) // width * width
    return np.frombuffer(data[:whole], np.uint8).reshape(width, -1).T.tobytes() + data[whole:]
