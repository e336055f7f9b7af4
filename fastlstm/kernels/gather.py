"""The states of many streams, copied from a pool's rows to a program's and back; and the check of stream ids.

`gather` and `scatter` are the first and the last instruction of a pool's program, so that a whole step is one native
call. `check` and `call` are called directly.
"""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.frame import arg, bound, first_share, next_share, origin, row_stride, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.memory import copy
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_c, load_i32, load_i64, store_i64, vload, vstore
from fastlstm.program import layout
from fastlstm.program.arguments import positions, size_of
from fastlstm.program.arguments.rows import Pooled, PooledState

__all__ = ["call", "check", "gather", "scatter"]

CONTIGUOUS_ALIGNED = 0x101  # NumPy's flags
STEPS_ALONE = 32
"""Steps that run without a team after two ran at once: where threads share a pool, each gets one core."""

POOLED, STATE, STATE_BYTES = positions(Pooled), positions(PooledState), 8 * size_of(PooledState)


def gather(lanes: int) -> Compiled:
    """Copy the listed rows of the pool to the first rows of the program's states. Arguments: `Pooled`."""
    return _move(False, lanes)


def scatter(lanes: int) -> Compiled:
    """Copy the first rows of the program's states back. Arguments: `Pooled`."""
    return _move(True, lanes)


def _move(back: bool, lanes: int) -> Compiled:
    four, width = 4 * lanes, 4 * lanes

    @inlined
    def carry(target, source, floats):
        # Four vectors at a time: LLVM turns plain loops into calls of memcpy, which is slower for rows this short.
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


@inlined
def looked_at(words, ids, count):
    """Check ids: return 0, or -1 - i if stream id i is not open, or 1 + i if it is repeated."""
    capacity, marks = word(words, layout.STREAMS_CAPACITY), word(words, layout.STREAMS_MARKS)
    number = word(words, layout.STREAMS_NUMBER) + 1
    store_i64(words + 8 * layout.STREAMS_NUMBER, number)
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


def check() -> Compiled:
    """Return the kernel that checks stream ids before a call uses them; for its result see `looked_at`.

    Arguments: address of the words on the pool's streams, address of the ids, their count.
    """

    def kernel(words: int, ids: int, count: int) -> Any:
        return looked_at(words, ids, count)

    return kernel


@inlined
def are_ids(context, array):
    """Whether the object is a plain array of stream ids."""
    return (
        load_i64(array + layout.OBJECT_TYPE) == word(context, layout.ENTRY_NDARRAY)
        and load_i64(array + layout.ARRAY_DTYPE) == word(context, layout.POOL_IDS)
        and load_i32(array + layout.ARRAY_FLAGS) & CONTIGUOUS_ALIGNED == CONTIGUOUS_ALIGNED
        and load_i32(array + layout.ARRAY_RANK) == 1
    )


@inlined
def begin(words, rows, data, streams, entry_words):
    """Mark these streams as running a step."""
    marks, running = word(words, layout.STREAMS_MARKS), word(words, layout.STREAMS_RUNNING)
    store_i64(rows, streams)
    for i in range(streams):
        stream = load_i64(data + 8 * i)
        store_i64(rows + 8 + 8 * i, stream)
        store_i64(marks + 8 * stream, layout.RUNNING)
    alone = STEPS_ALONE if running > 0 else max(word(words, layout.STREAMS_ALONE) - 1, 0)
    store_i64(words + 8 * layout.STREAMS_ALONE, alone)
    store_i64(words + 8 * layout.STREAMS_RUNNING, running + 1)
    store_i64(entry_words + 8 * layout.ENTRY_ALONE_NOW, 1 if alone > 0 else 0)


@inlined
def end(words, rows, streams):
    """Clear the marks of these streams after the step."""
    marks = word(words, layout.STREAMS_MARKS)
    for i in range(streams):
        store_i64(marks + 8 * load_i64(rows + 8 + 8 * i), 0)
    store_i64(words + 8 * layout.STREAMS_RUNNING, word(words, layout.STREAMS_RUNNING) - 1)


def call() -> Compiled:
    """Return a built-in, like `entry.call`, that advances the streams args[0] by the frames args[1].

    Outputs are written to args[2] if it is given. The built-in checks the ids, writes the list of rows and calls the
    entry of the program for that many rows; it returns None for anything unexpected. During the call it holds its
    seat's flag, taken and released as by an entry, and its streams are marked, so that other threads can advance other
    streams at the same time from seats of their own.
    """

    def kernel(self: int, args: int, count: int) -> Any:
        context = load_i64(self + layout.ARRAY_DATA)
        none, busy = word(context, layout.ENTRY_NONE), word(context, layout.ENTRY_BUSY)
        free, ids = load_i64(busy + layout.OBJECT_SLOT), load_i64(args)
        whole = load_i64(word(context, layout.POOL_BUSY) + layout.OBJECT_SLOT)
        entry = streams = entry_words = 0
        if free != 0 and whole != 0 and are_ids(context, ids):
            streams = load_i64(load_i64(ids + layout.ARRAY_DIMS))
            if streams <= word(context, layout.POOL_MOST):
                at = layout.POOL_ENTRIES + layout.POOL_ENTRY_WORDS * streams
                entry, entry_words = word(context, at), word(context, at + 2)
                # The program may last have run a different number of its rows.
                if entry != 0 and word(word(context, at + 1), layout.ROWS) != streams:
                    entry = 0
        if entry != 0:
            words, rows, data = (
                word(context, layout.POOL_STREAMS),
                word(context, layout.POOL_LIST),
                load_i64(ids + layout.ARRAY_DATA),
            )
            if looked_at(words, data, streams) == 0:
                store_i64(busy + layout.OBJECT_SLOT, 0)
                begin(words, rows, data, streams, entry_words)
                result = call_c(word(context, layout.POOL_CALL), entry, args + 8, count - 1, 0)
                end(words, rows, streams)
                store_i64(busy + layout.OBJECT_SLOT, free)
                return result
        call_c(word(context, layout.ENTRY_INCREF), none, 0, 0, 0)
        return none

    return kernel
