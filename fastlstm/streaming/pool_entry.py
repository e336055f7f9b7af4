"""A pool's step as a Python built-in, which checks and moves ids, states and frames in compiled code."""

from __future__ import annotations

import ctypes

import numpy as np

from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.memory import address_of
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.native import Call, address_of_c, built_in, context, never, usable
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["PoolEntry"]


class PoolEntry:
    """The built-in ``call(ids, frames, out=None)`` of a pool: returns the result, or None to leave the step to Python.

    Parameters
    ----------
    target : Target
    busy : Busy
        The pool's flag: a call that finds it taken returns None.
    streams : array
        Words for `gather.check`: the capacity, the address of the streams' marks, a counter.
    rows : array
        The list of rows that the pool's programs gather and scatter.
    """

    def __init__(self, target: Target, busy: Busy, streams: Array, rows: Array) -> None:
        self.call: Call = never
        self._kept: dict[int, tuple[Call, Array]] = {}  # by the number of streams
        if not usable():
            return
        most, ids = len(rows) - 1, np.dtype(np.int64)
        self._words = context(layout.POOL_ENTRIES + 2 * (most + 1))
        for index, number in {
            layout.ENTRY_BUSY: id(busy),
            layout.POOL_IDS: id(ids),
            # In Python 3.10 PyObject_Vectorcall is a macro and not a function.
            layout.POOL_CALL: address_of_c(ctypes.pythonapi.PyObject_VectorcallDict),
            layout.POOL_STREAMS: address_of(streams),
            layout.POOL_LIST: address_of(rows),
            layout.POOL_MOST: most,
        }.items():
            self._words[index] = number
        self.call = built_in(Kernel("gather.call"), target, self._words, busy, ids, streams, rows)

    def add(self, entry: Call, frame: Array) -> None:
        """Use an entry for steps of as many streams as `frame` has rows."""
        if self.call is not never and entry is not never:
            count = int(frame[layout.ROWS])
            self._kept[count] = entry, frame
            at = layout.POOL_ENTRIES + 2 * count
            self._words[at : at + 2] = id(entry), address_of(frame)
