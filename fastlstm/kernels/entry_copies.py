"""The entry's copies between the caller's arrays and the program's own memory."""

from __future__ import annotations

from fastlstm.kernels.entry_rows import is_staged, row_at
from fastlstm.kernels.frame import word
from fastlstm.kernels.memory import clear
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_c, load_i64
from fastlstm.program import layout

__all__ = ["copies", "unstage"]


@inlined
def copies(context, first, last, before):
    """Do some of the copies: into the program's memory before a run, out of it afterwards."""
    move = word(context, layout.ENTRY_MOVE)
    for number in range(first, last):
        copy = context + 8 * (word(context, layout.ENTRY_COPY) + layout.COPY_WORDS * number)
        memory, size, value = (
            word(copy, layout.COPY_MEMORY),
            word(copy, layout.COPY_BYTES),
            word(copy, layout.COPY_VALUE),
        )
        outside, between = word(copy, layout.COPY_SOURCE), size
        if value >= 0:
            array = word(context + 8 * (layout.ENTRY_FIRST + layout.VALUE_WORDS * value), layout.VALUE_ARRAY)
            outside = load_i64(array + layout.ARRAY_DATA)
            if word(copy, layout.COPY_WHOLE) == 0:
                strides = load_i64(array + layout.ARRAY_STRIDES)
                outside += word(copy, layout.COPY_PART) * load_i64(strides)
                between = load_i64(strides + 8)
        for row in range(word(copy, layout.COPY_ROWS)):
            there = outside + row_at(context, row) * between
            if before:
                if size != 0:
                    call_c(move, memory, there, size, 0)
                clear(memory + size, word(copy, layout.COPY_CLEARED))
            else:
                call_c(move, there, memory, size, 0)
            memory += word(copy, layout.COPY_STRIDE)


@inlined
def unstage(context, value):
    """Copy an output whose rows were written in another order to its array."""
    if word(value, layout.VALUE_SLOT) == 0 or not is_staged(context, value):
        return
    data = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA)
    size, rows, source = (
        word(value, layout.VALUE_ROW_BYTES),
        word(context, layout.ENTRY_ROWS),
        word(value, layout.VALUE_STAGE),
    )
    steps = word(context, layout.ENTRY_TIME) if word(value, layout.VALUE_TIME_AXIS) >= 0 else 1
    for t in range(steps):
        for row in range(rows):
            target = data + t * word(value, layout.VALUE_TIME) + row_at(context, row) * word(value, layout.VALUE_ROW)
            call_c(word(context, layout.ENTRY_MOVE), target, source, size, 0)
            source += size
