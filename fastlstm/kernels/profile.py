"""Reading a clock between the instructions of a program: see `fastlstm.runtime.clock`."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import arg, word
from fastlstm.kernels.simd import load_i64, primitive, store_i64
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Mark
from fastlstm.program.layout import WORKER

__all__ = ["mark"]

MARK = positions(Mark)

clock = primitive("fl_clock", 0)
"""clock() -> ticks of a counter that runs at one rate; 0 where there is none."""


def mark() -> Callable[[int, int, int], int]:
    """Add the ticks since the previous mark to a word. Arguments: `Mark`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        if word(frame, WORKER) == 0:
            table = arg(args, MARK.table)
            place, now = table + 8 * arg(args, MARK.word), clock()
            store_i64(place, load_i64(place) + now - load_i64(table))
            store_i64(table, now)
        return 0

    return kernel
