"""States of many streams: out of the pool's rows into a program's, and back; and whether ids may be used.

`gather` and `scatter` are the first and the last instruction of a pool's program, so that one native call does
all of a step. `check` is called by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.arguments import positions, size_of
from fastlstm.arguments.rows import Pooled, PooledState
from fastlstm.kernels.frame import arg, bound, first_share, next_share, origin, row_stride
from fastlstm.kernels.memory import copy
from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import load_i64, store_i64, vload, vstore

__all__ = ["check", "gather", "scatter"]

POOLED, STATE, STATE_BYTES = positions(Pooled), positions(PooledState), 8 * size_of(PooledState)

Compiled = Callable[[int, int, int], int]


def gather(lanes: int) -> Compiled:
    """Copy the rows of the list from the pool into the first rows of the program's states. Arguments: `Pooled`."""
    return _move(False, lanes)


def scatter(lanes: int) -> Compiled:
    """Copy the first rows of the program's states back. Arguments: `Pooled`."""
    return _move(True, lanes)


def _move(back: bool, lanes: int) -> Compiled:
    four, width = 4 * lanes, 4 * lanes

    @inlined
    def carry(target, source, floats):
        # Four vectors at a time: of plain loops LLVM makes calls of memcpy, which take longer for rows this short.
        done = 0
        while done + four <= floats:
            a, b = vload(lanes, source), vload(lanes, source + width)
            c, d = vload(lanes, source + 2 * width), vload(lanes, source + 3 * width)
            vstore(target, a)
            vstore(target + width, b)
            vstore(target + 2 * width, c)
            vstore(target + 3 * width, d)
            source += 4 * width
            target += 4 * width
            done += four
        copy(target, source, floats - done)

    @inlined
    def move(place, row, floats):
        if back:
            carry(place, row, floats)
        else:
            carry(row, place, floats)

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = arg(args, POOLED.rows)
        count = load_i64(rows)
        share = first_share(frame)
        while share >= 0:
            first, last = bound(frame, count, share), bound(frame, count, share + 1)
            for number in range(arg(args, POOLED.states)):
                state = arg(args, POOLED.table) + STATE_BYTES * number
                slot, pool = load_i64(state + 8 * STATE.slot), load_i64(state + 8 * STATE.pool)
                size, floats = load_i64(state + 8 * STATE.row_bytes), load_i64(state + 8 * STATE.floats)
                start, stride = origin(frame, slot), row_stride(frame, slot)
                for i in range(first, last):
                    move(pool + load_i64(rows + 8 + 8 * i) * size, start + i * stride, floats)
            share = next_share(frame, share)
        return 0

    return kernel


def check() -> Compiled:
    """Look at ids before anything is done with them.

    Called with the address of three words (how many streams there may be, the address of a word for each, and a
    number that no call had before), the address of the ids and how many there are. A stream's word is -1 while it
    is closed. Returns 0, or -1 - i if id i is not open, or 1 + i if it is there twice.
    """

    def kernel(words: int, ids: int, count: int) -> int:
        capacity, marks, number = load_i64(words), load_i64(words + 8), load_i64(words + 16)
        for i in range(count):
            stream = load_i64(ids + 8 * i)
            if stream < 0 or stream >= capacity:
                return -1 - i
            mark = load_i64(marks + 8 * stream)
            if mark < 0:
                return -1 - i
            if mark == number:
                return 1 + i
            store_i64(marks + 8 * stream, number)
        return 0

    return kernel
