"""The rows of a batch side by side in memory: copied once, out of the pieces that were read."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from fastlstm.scoring.columns import Column

__all__ = ["Batch", "Rows", "Spare", "gather", "windows"]

Array = npt.NDArray[Any]

_ALIGNED = 64  # bytes: every array begins on a cache line


@dataclass(frozen=True)
class Batch:
    """Rows that run together.

    Attributes
    ----------
    rows : array of int
        Their numbers.
    lengths : array of int or None
        The steps of each; None if no input has time.
    arrays : dict of str to array
        Each input's values, [rows, *dims]; with time [rows, steps, *dims], zero where a shorter row has ended.
    """

    rows: Array
    lengths: Array | None
    arrays: dict[str, Array]

    def halves(self) -> Iterator[Batch]:
        """Yield the rows of both halves."""
        half = len(self.rows) // 2
        for part in (slice(half), slice(half, None)):
            lengths = None if self.lengths is None else self.lengths[part]
            yield Batch(self.rows[part], lengths, {name: array[part] for name, array in self.arrays.items()})


class Rows:
    """The rows of an input, in the pieces that were read.

    Parameters
    ----------
    pieces : sequence of Column
        At least one.
    has_time : bool
        Whether a row has any number of steps.

    Attributes
    ----------
    has_time : bool
    lengths : array [rows] of int
        The steps of each; 1 without time.
    dtype : dtype
    """

    def __init__(self, pieces: Sequence[Column], has_time: bool) -> None:
        self._values = [np.require(piece.values, requirements=["C", "A"]) for piece in pieces]
        self.has_time, self.dtype = has_time, self._values[0].dtype
        self.lengths = np.concatenate([piece.lengths for piece in pieces])
        # Pieces are parts of one memory: rows are counted from the piece that lies first, so that those of a batch are
        # taken in one go, whatever piece they are in.
        filled = [values for values in self._values if values.size] or self._values[:1]
        self._lowest = min(filled, key=lambda values: values.ctypes.data)
        size, step = self.dtype.itemsize, math.prod(self._lowest.shape[1:])
        firsts = [(values.ctypes.data - self._lowest.ctypes.data) // size for values in self._values]
        pairs = zip(firsts, pieces, strict=True)
        self._starts = np.concatenate([first + piece.offsets[:-1] * step for first, piece in pairs])

    def shape(self, rows: Array) -> tuple[int, ...]:
        """Return the shape of some rows as one array."""
        steps = (max(1, int(self.lengths[rows].max(initial=1))),) if self.has_time else ()
        return len(rows), *steps, *self._lowest.shape[1:]

    def copy(self, rows: Array, out: Array) -> None:
        """Copy some rows to an array of their `shape`: neighbours of the same length in one go."""
        out = out if self.has_time else out[:, None]
        lengths, starts = self.lengths[rows], self._starts[rows]
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(rows)]):
            length = int(lengths[first])
            if length:
                here = starts[first:last]
                out[first:last, :length] = windows(self._lowest, length, self.dtype.itemsize, int(here.max()) + 1)[here]
            out[first:last, length:] = 0


def windows(values: Array, steps: int, apart: int, count: int) -> Array:
    """Return a view [count, steps, *dims] of memory that begins with [all steps, *dims]: steps from each place on.

    Parameters
    ----------
    values : array [all steps, *dims]
    steps : int
    apart : int
        Bytes from place to place.
    count : int
        The number of places; those that are looked at have to lie in memory that is there.
    """
    strides = (apart, *values.strides)
    return as_strided(values, (count, steps, *values.shape[1:]), strides, writeable=values.flags.writeable)


class Spare:
    """Memory that is used again: the system clears each page that it gives out (3 of 13 us for a row of 3 KB)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Array] = []

    def take(self, size: int) -> Array:
        """Return so many bytes or more, with whatever they held."""
        with self._lock:
            fitting = [array for array in self._free if len(array) >= size]
            found = min(fitting or self._free, key=len, default=None)
            self._free = [array for array in self._free if array is not found]  # too small: let go of
        return found if fitting and found is not None else np.empty(size + size // 8, np.uint8)

    def give(self, array: Array) -> None:
        """Take memory back that nobody reads any more."""
        with self._lock:
            self._free.append(array)


def gather(
    inputs: Mapping[str, Rows], groups: Sequence[Array], lengths: Array | None, spare: Spare
) -> tuple[list[Batch], Array]:
    """Copy the rows of each batch side by side.

    Parameters
    ----------
    inputs : mapping of str to Rows
    groups : sequence of array of int
        The numbers of the rows of each batch.
    lengths : array of int or None
        The steps of each row; None if no input has time.
    spare : Spare

    Returns
    -------
    batches : list of Batch
    memory : array
        What the batches' arrays lie in: to be given back to `spare` when all of them have run.
    """
    shapes = [{name: rows.shape(group) for name, rows in inputs.items()} for group in groups]
    sizes = {name: rows.dtype.itemsize for name, rows in inputs.items()}
    memory = spare.take(sum(_bytes(shape, sizes[name]) for each in shapes for name, shape in each.items()))
    batches, at = [], 0
    for group, each in zip(groups, shapes, strict=True):
        arrays = {}
        for name, shape in each.items():
            arrays[name] = np.ndarray(shape, inputs[name].dtype, memory.data, at)
            inputs[name].copy(group, arrays[name])
            at += _bytes(shape, sizes[name])
        batches.append(Batch(group, None if lengths is None else lengths[group], arrays))
    return batches, memory


def _bytes(shape: tuple[int, ...], size: int) -> int:
    return -(-math.prod(shape) * size // _ALIGNED) * _ALIGNED
