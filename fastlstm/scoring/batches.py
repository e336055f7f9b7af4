"""The rows of a batch side by side in memory: copied once, out of the pieces that were read, right before they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from fastlstm.scoring.columns import Column

__all__ = ["Rows", "windows"]

Array = npt.NDArray[Any]


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
        size, self._row = self.dtype.itemsize, self._values[0].shape[1:]
        filled = [values for values in self._values if values.size] or self._values[:1]
        lowest = min(filled, key=lambda values: values.ctypes.data)
        firsts = [(values.ctypes.data - lowest.ctypes.data) // size for values in self._values]
        ends = [first + values.size for first, values in zip(firsts, self._values, strict=True) if values.size]
        self._memory = as_strided(lowest.reshape(-1), (max(ends, default=0),), (size,), writeable=False)
        self._step = math.prod(self._row)
        pairs = zip(firsts, pieces, strict=True)
        self._starts = np.concatenate([first + piece.offsets[:-1] * self._step for first, piece in pairs])

    def batch(self, rows: Array) -> Array:
        """Return some rows side by side: [rows, *dims]; with time [rows, steps, *dims], zero behind a row's end."""
        if not self.has_time:
            return self._copied(rows, 1)[:, 0]
        lengths = self.lengths[rows]
        least, most = int(lengths.min()), int(lengths.max())
        if least == most > 0:
            return self._copied(rows, most)
        out = np.zeros((len(rows), max(1, most), *self._row), self.dtype)
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(rows)]):
            if length := int(lengths[first]):
                out[first:last, :length] = self._copied(rows[first:last], length)
        return out

    def _copied(self, rows: Array, length: int) -> Array:
        """Copy rows of one length."""
        # No call of `windows`: where a batch has run, what it does in Python is not in the caches any more.
        size, taken = self.dtype.itemsize, length * self._step
        shape = (len(self._memory) - taken + 1, length, *self._row)
        steps = tuple(size * math.prod(self._row[axis:]) for axis in range(len(self._row) + 1))
        view: Array = np.ndarray(shape, self.dtype, self._memory, 0, (size, *steps))
        copied: Array = view[self._starts[rows]]
        return copied


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
