"""How the entry handles time steps and rows: sorting by length, pointing slots at memory, masks."""

from __future__ import annotations

from fastlstm.kernels.frame import word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import COUNTS, SKIP, SKIP_FIRST
from fastlstm.kernels.simd import call_c, load_i8, load_i32, load_i64, store_i64
from fastlstm.program import layout

__all__ = ["is_staged", "mask_codes", "point", "row_at", "sort_rows"]


@inlined
def row_at(context, row):
    """Return which of the caller's rows is the program's row `row`."""
    if word(context, layout.ENTRY_SORTED) == 0:
        return row
    return word(word(context, layout.ENTRY_ORDER), row)


@inlined
def length_of(value, row):
    """Length of one of the caller's rows."""
    array = word(value, layout.VALUE_ARRAY)
    at = load_i64(array + layout.ARRAY_DATA) + row * word(value, layout.VALUE_ROW)
    if word(value, layout.VALUE_ITEM) == 8:
        return load_i64(at)
    return load_i32(at)


@inlined
def sort_rows(context, value):
    """Sort rows by length, longest first, and count those active at each step.

    The sort is stable. Returns whether all lengths are between 0 and the number of time steps.
    """
    steps, rows = word(context, layout.ENTRY_TIME), word(context, layout.ENTRY_ROWS)
    active, upto = word(context, layout.ENTRY_ACTIVE), word(context, layout.ENTRY_NEXT)
    order = word(context, layout.ENTRY_ORDER)
    for t in range(steps + 1):
        store_i64(upto + 8 * t, 0)
    for row in range(rows):
        length = length_of(value, row)
        if length < 0 or length > steps:
            return False
        store_i64(upto + 8 * length, word(upto, length) + 1)
    longer = 0
    for i in range(steps + 1):
        t = steps - i
        count = word(upto, t)
        store_i64(active + 8 * t, longer)
        store_i64(upto + 8 * t, longer)  # where the next row of this length goes
        longer += count
    moved = 0
    for row in range(rows):
        length = length_of(value, row)
        place = word(upto, length)
        store_i64(upto + 8 * length, place + 1)
        store_i64(order + 8 * place, row)
        if place != row:
            moved = 1
    store_i64(context + 8 * layout.ENTRY_SORTED, moved)
    return True


@inlined
def is_staged(context, value):
    """Whether the program reads or writes a value in memory of its own, not in the caller's array."""
    moved = word(context, layout.ENTRY_SORTED) != 0 and word(value, layout.VALUE_ROW_AXIS) >= 0
    narrow = word(value, layout.VALUE_TABLE) != 0 and word(value, layout.VALUE_ITEM) == 4
    return word(value, layout.VALUE_STAGE) != 0 and (moved or narrow)


@inlined
def point(context, value, is_input, plain):
    """Point a value's slot at its memory."""
    slot = word(value, layout.VALUE_SLOT)
    if slot == 0:
        return
    base = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA)
    time, row = word(value, layout.VALUE_TIME), word(value, layout.VALUE_ROW)
    if not plain and is_staged(context, value):
        if is_input:
            stage(context, value)
        base = word(value, layout.VALUE_STAGE)
        row = word(value, layout.VALUE_ROW_BYTES)
        time = row * word(context, layout.ENTRY_ROWS) if word(value, layout.VALUE_TIME_AXIS) >= 0 else 0
    store_i64(slot + 8 * layout.SLOT_BASE, base)
    store_i64(slot + 8 * layout.SLOT_TIME, time)
    store_i64(slot + 8 * layout.SLOT_ROW, row)
    store_i64(slot + 8 * layout.SLOT_BLOCK, 0)


@inlined
def stage(context, value):
    """Copy an input to the program's own memory, with its rows in the program's order."""
    data = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA)
    size, rows = word(value, layout.VALUE_ROW_BYTES), word(context, layout.ENTRY_ROWS)
    narrow = word(value, layout.VALUE_TABLE) != 0 and word(value, layout.VALUE_ITEM) == 4
    target = word(value, layout.VALUE_STAGE)
    steps = word(context, layout.ENTRY_TIME) if word(value, layout.VALUE_TIME_AXIS) >= 0 else 1
    for t in range(steps):
        for row in range(rows):
            source = data + t * word(value, layout.VALUE_TIME) + row_at(context, row) * word(value, layout.VALUE_ROW)
            if narrow:
                store_i64(target, load_i32(source))
            else:
                call_c(word(context, layout.ENTRY_MOVE), target, source, size, 0)
            target += size


@inlined
def mask_codes(context, mask, value):
    """Write the codes of `fastlstm.kernels.recurrent` for a mask, and point its slot at them.

    Steps past a row's end do not count: a backward direction would see them first.
    """
    steps, rows = word(context, layout.ENTRY_TIME), word(context, layout.ENTRY_ROWS)
    codes, slot = word(mask, layout.MASK_CODES), word(mask, layout.MASK_SLOT)
    data, ragged = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA), word(context, layout.ENTRY_LENGTHS)
    for row in range(rows):
        skip = SKIP_FIRST
        source = data + row_at(context, row) * word(value, layout.VALUE_ROW)
        for i in range(steps):
            t = steps - 1 - i if word(mask, layout.MASK_BACKWARDS) != 0 else i
            inside = ragged < 0 or row < word(word(context, layout.ENTRY_ACTIVE), t)
            code = skip
            if inside and load_i8(source + t * word(value, layout.VALUE_TIME)) != 0:
                code, skip = COUNTS, SKIP
            store_i64(codes + 8 * (t * rows + row), code)
    store_i64(slot + 8 * layout.SLOT_BASE, codes)
    store_i64(slot + 8 * layout.SLOT_TIME, 8 * rows)
    store_i64(slot + 8 * layout.SLOT_ROW, 8)
    store_i64(slot + 8 * layout.SLOT_BLOCK, 0)
