"""The entry from Python: a C function of the kind ``PyObject *(PyObject *self, PyObject *const *args, n)``.

`fastlstm.native` makes it a built-in whose `self` is an array of words that say what to expect and what to run.
It holds the interpreter lock but while a long program runs, and it raises nothing: whatever is not as expected
is answered with None, before anything is written.

While a program runs, its flag is empty: the entry takes the reference out of the flag's slot and puts it back. It
holds the interpreter lock at both moments, so no other call comes in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm import layout
from fastlstm.kernels.frame import word
from fastlstm.kernels.memory import clear
from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import call_c, load_i32, load_i64, store_i64

__all__ = ["call"]

CONTIGUOUS_ALIGNED, WRITEABLE = 0x101, 0x400  # NumPy's flags


@inlined
def fits(context, array, expected, flags):
    """Whether the object is a plain float32 array of the expected shape with these flags."""
    if load_i64(array + layout.OBJECT_TYPE) != word(context, layout.ENTRY_NDARRAY):
        return False
    if load_i64(array + layout.ARRAY_DTYPE) != word(context, layout.ENTRY_DTYPE):
        return False
    if load_i32(array + layout.ARRAY_FLAGS) & flags != flags:
        return False
    rank = word(context, expected + 3)
    if load_i32(array + layout.ARRAY_RANK) != rank:
        return False
    dims = load_i64(array + layout.ARRAY_DIMS)
    for i in range(rank):  # noqa: SIM110
        if load_i64(dims + 8 * i) != word(context, expected + 4 + i):
            return False
    return True


@inlined
def size_of(context, expected):
    """Bytes of an array of the expected shape."""
    size = 4
    for i in range(word(context, expected + 3)):
        size *= word(context, expected + 4 + i)
    return size


@inlined
def apart(context, x, y):
    """Whether no row of the input is overwritten by another row's output: each is read just before its own is written.

    They share no memory, or all of it, laid out alike.
    """
    x_at, y_at = load_i64(x + layout.ARRAY_DATA), load_i64(y + layout.ARRAY_DATA)
    alike = True
    for i in range(1, 3):
        alike = alike and word(context, layout.ENTRY_X + i) == word(context, layout.ENTRY_Y + i)
    disjoint = x_at + size_of(context, layout.ENTRY_X) <= y_at or y_at + size_of(context, layout.ENTRY_Y) <= x_at
    return disjoint or (alike and x_at == y_at)


@inlined
def bind(context, expected, array):
    """Point the slot at the array's memory."""
    slot = word(context, expected)
    store_i64(slot + 8 * layout.SLOT_BASE, load_i64(array + layout.ARRAY_DATA))
    store_i64(slot + 8 * layout.SLOT_TIME, word(context, expected + 1))
    store_i64(slot + 8 * layout.SLOT_ROW, word(context, expected + 2))
    store_i64(slot + 8 * layout.SLOT_BLOCK, 0)


@inlined
def new_reference(context, what):
    """Return the object, counted once more."""
    call_c(word(context, layout.ENTRY_INCREF), what, 0, 0, 0)
    return what


def call() -> Callable[[int, int, int], int]:
    """Run the program on the array in args[0]; write to args[1] if it is given, else to a new array.

    Who uses the program already shows its flag as args[2].
    """

    def kernel(self: int, args: int, count: int) -> Any:
        context = load_i64(self + layout.ARRAY_DATA)
        none, busy = word(context, layout.ENTRY_NONE), word(context, layout.ENTRY_BUSY)
        free = load_i64(busy + layout.OBJECT_SLOT)
        if count < 1 or count > 3:
            return new_reference(context, none)
        if free == 0 and (count < 3 or load_i64(args + 16) != busy):
            return new_reference(context, none)
        x = load_i64(args)
        if not fits(context, x, layout.ENTRY_X, CONTIGUOUS_ALIGNED):
            return new_reference(context, none)
        if count > 1:
            y = load_i64(args + 8)
            if not fits(context, y, layout.ENTRY_Y, CONTIGUOUS_ALIGNED | WRITEABLE) or not apart(context, x, y):
                return new_reference(context, none)
            new_reference(context, y)
        else:
            y = call_c(word(context, layout.ENTRY_NEW_LIKE), word(context, layout.ENTRY_PROTOTYPE), 0, 0, 0)
            if y == 0:
                return 0
        store_i64(busy + layout.OBJECT_SLOT, 0)
        bind(context, layout.ENTRY_X, x)
        bind(context, layout.ENTRY_Y, y)
        frame = word(context, layout.ENTRY_FRAME)
        store_i64(frame + 8 * layout.TOTAL, word(context, layout.ENTRY_STEPS))
        store_i64(frame + 8 * layout.ACTIVE, 0)
        store_i64(frame + 8 * layout.STATUS, 0)
        for i in range(word(context, layout.ENTRY_CLEARS)):
            clear(word(context, layout.ENTRY_CLEAR + 2 * i), word(context, layout.ENTRY_CLEAR + 2 * i + 1))
        save = word(context, layout.ENTRY_SAVE)
        thread = call_c(save, 0, 0, 0, 0) if save != 0 else 0
        run = layout.ENTRY_RUN
        call_c(word(context, run), word(context, run + 1), word(context, run + 2), 0, 0)
        if save != 0:
            call_c(word(context, layout.ENTRY_RESTORE), thread, 0, 0, 0)
        store_i64(busy + layout.OBJECT_SLOT, free)
        return y

    return kernel
