"""Where a pool keeps the states of streams that run part by part: one array per state, in the model's own layout.

Rows are gathered in that layout, and scattered as single elements of a row's size: NumPy moves 64 rows of 16 floats in
a microsecond each way, against 4 to 7 float by float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from fastlstm.errors import InputError, counted
from fastlstm.program.memory import aligned_zeros
from fastlstm.streaming.flow import Carried
from fastlstm.typing import Array

__all__ = ["Store"]

FEW_PIECES = 8  # a row in up to this many pieces is put back piece by piece


class Store:
    """One state of all streams.

    Attributes
    ----------
    start : array
        The initial state of one stream, as the model takes it.
    """

    def __init__(self, carried: Carried, capacity: int) -> None:
        self._name, self.start = carried.name, carried.start(1)
        self._lone = carried.row_axis is None  # the model takes the state of one stream at a time
        self._axis = axis = carried.row_axis or 0
        shape = list(self.start[None].shape if self._lone else self.start.shape)
        shape[axis] = capacity
        self._array = aligned_zeros(tuple(shape), self.start.dtype)
        self._places = math.prod(shape[:axis])
        self._cell = np.dtype(f"V{max(1, math.prod(shape[axis + 1 :]) * self.start.itemsize)}")
        self._cells = self._as_cells(self._array)
        self._pieces = list(self._cells) if self._places <= FEW_PIECES else []

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return self._array.nbytes

    def gathered(self, numbers: Array) -> Array:
        """Return a copy of the states of some streams as the model takes them (of one stream if it takes only one)."""
        rows = self.rows(numbers)
        return rows[0] if self._lone else rows

    def take(self, numbers: Array, target: Array) -> None:
        """Copy the states of some streams into an array, as the model takes them."""
        self._array.take(numbers, self._axis, target, "clip")

    def fitting(self, states: Array, count: int) -> Array:
        """Return states that the model returned for `count` streams as `put` takes them."""
        shape = list(self._array.shape)
        shape[self._axis] = count
        given = states[None] if self._lone else states
        if given.shape != (*shape,):
            if any(n not in (1, m) for n, m in zip_longest(given.shape[::-1], shape[::-1], fillvalue=1)):
                raise InputError(
                    f"A step of {counted(count, 'stream')} returned the state '{self._name}' with the shape "
                    f"{list(states.shape)}; expected {shape[self._lone :]}. Where it is not known which axis of the "
                    "frames holds the batch rows, each stream's frame has all axes that the model's input has."
                )
            given = np.broadcast_to(given, shape)
        return np.ascontiguousarray(given, self.start.dtype)

    def rows(self, numbers: Array) -> Array:
        """Return a copy of the states of some streams, for `put`."""
        return self._array.take(numbers, self._axis)

    def put(self, numbers: Array, rows: Array) -> None:
        """Set the states of some streams."""
        self.put_cells(numbers, self._as_cells(rows))

    def cells(self, rows: Array) -> Array | None:
        """Return the memory of an array as `put_cells` takes it, None if its layout differs from the states'."""
        shape = (
            *self._array.shape[: self._axis],
            *rows.shape[self._axis : self._axis + 1],
            *self._array.shape[self._axis + 1 :],
        )
        alike = rows.shape == shape and rows.dtype == self.start.dtype and rows.flags.c_contiguous
        return self._as_cells(rows) if alike else None

    def moves(self, rows: Array) -> bool:
        """Whether rows in an array may be copied back and forth as float32 elements."""
        return self._cell.itemsize % 4 == 0 and rows.size > 0 and self.cells(rows) is not None

    def pieces_of(self, rows: Array) -> Iterator[tuple[Array, Array]]:
        """Yield, piece by piece, the cells of all streams and those in an array for which `moves` holds."""
        yield from zip(self._cells, self._as_cells(rows), strict=True)

    def put_cells(self, numbers: Array, new: Array) -> None:
        """Set the states of some streams by cells."""
        if self._places == 1:
            self._pieces[0][numbers] = new[0]
        elif self._pieces:
            for piece, part in zip(self._pieces, new, strict=True):
                piece[numbers] = part
        else:
            self._cells[:, numbers] = new

    def _as_cells(self, array: Array) -> Array:
        """Return a contiguous array as [pieces, streams], whose elements hold the bytes of a stream's piece."""
        if not array.size:
            return np.empty((self._places, array.shape[self._axis]), self._cell)
        return array.reshape(-1).view(self._cell).reshape(self._places, -1)
