"""A pool's step as a Python built-in, which checks and moves ids, states and frames in compiled code.

A pool has several seats, one for each thread that may advance its streams at the same time. Each seat has such a
built-in, a flag, a list of rows, and programs with their own buffers; the streams' states belong to the pool.
"""

from __future__ import annotations

import ctypes

import numpy as np

from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.memory import address_of, aligned_zeros
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.native import Call, address_of_c, built_in, context, never, usable, words_of
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["PoolEntry", "Seat"]


class Seat:
    """What one thread at a time needs to advance streams of a pool.

    Parameters
    ----------
    most : int
        Streams that advance in one native call.

    Attributes
    ----------
    busy : Busy
        The flag that tells whether a thread uses it.
    rows : array
        The list of rows that the programs gather and scatter, after their number.
    entry : PoolEntry or None
        The built-in; None for a pool without any.
    """

    def __init__(self, most: int) -> None:
        self.busy = Busy()
        self.rows = aligned_zeros(1 + most, np.int64)
        self.entry: PoolEntry | None = None

    def prepare(self, target: Target, whole: Busy, streams: Array) -> Call:
        """Make the built-in and return it; for the arguments see `PoolEntry`."""
        self.entry = PoolEntry(target, whole, self.busy, streams, self.rows)
        return self.entry.call

    def add(self, entry: Call, frame: Array) -> None:
        """Use an entry for steps of as many streams as `frame` has rows."""
        if self.entry is not None:
            self.entry.add(entry, frame)

    def set_rows(self, numbers: Array) -> None:
        """Set the rows that programs gather and scatter."""
        self.rows[0] = len(numbers)
        self.rows[1 : 1 + len(numbers)] = numbers


class PoolEntry:
    """The built-in ``call(ids, frames, out=None)`` of a pool: returns the result, or None to leave the step to Python.

    Parameters
    ----------
    target : Target
    whole : Busy
        The pool's flag, taken while a call needs all of it.
    busy : Busy
        The flag of the seat. A call that finds either taken returns None.
    streams : array
        The words on the pool's streams.
    rows : array
        The list of rows that the pool's programs gather and scatter.
    """

    def __init__(self, target: Target, whole: Busy, busy: Busy, streams: Array, rows: Array) -> None:
        self.call: Call = never
        self._kept: dict[int, tuple[Call, Array]] = {}  # by the number of streams
        if not usable():
            return
        most, ids = len(rows) - 1, np.dtype(np.int64)
        self._words = context(layout.POOL_ENTRIES + layout.POOL_ENTRY_WORDS * (most + 1))
        for index, number in {
            layout.ENTRY_BUSY: id(busy),
            layout.POOL_IDS: id(ids),
            # In Python 3.10 PyObject_Vectorcall is a macro and not a function.
            layout.POOL_CALL: address_of_c(ctypes.pythonapi.PyObject_VectorcallDict),
            layout.POOL_STREAMS: address_of(streams),
            layout.POOL_LIST: address_of(rows),
            layout.POOL_MOST: most,
            layout.POOL_BUSY: id(whole),
        }.items():
            self._words[index] = number
        self.call = built_in(Kernel("gather.call"), target, self._words, whole, busy, ids, streams, rows)

    def add(self, entry: Call, frame: Array) -> None:
        """Use an entry for steps of as many streams as `frame` has rows."""
        if self.call is not never and entry is not never:
            count = int(frame[layout.ROWS])
            self._kept[count] = entry, frame
            at = layout.POOL_ENTRIES + layout.POOL_ENTRY_WORDS * count
            self._words[at : at + layout.POOL_ENTRY_WORDS] = id(entry), address_of(frame), address_of(words_of(entry))
