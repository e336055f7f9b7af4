"""The entry from Python: a C function with the signature ``PyObject *(PyObject *self, PyObject *const *args, n)``.

`fastlstm.runtime.native` makes it a built-in whose `self` is an array of words that say what to expect and what to run.
If the arguments are not exactly as expected, it returns None before anything is written; the only error it raises is
MemoryError.

During a call the program's flag is empty: the entry takes the reference out of the flag's slot and puts it back
afterwards. It holds the interpreter lock both times, so no other call can get in between, and the words it writes are
its own. Meanwhile it holds a reference to each array: once the lock is released, another thread may drop them.

Most models take one array and return one, read and written in place. For these there is an entry whose counts are
constants (`plain`), which saves 70 ns of 500.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm.kernels.entry_copies import copies, unstage
from fastlstm.kernels.entry_rows import mask_codes, point, sort_rows
from fastlstm.kernels.frame import word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_c, load_i8, load_i32, load_i64, store_i64
from fastlstm.program import layout

__all__ = ["call"]

CONTIGUOUS_ALIGNED, WRITEABLE = 0x101, 0x400  # NumPy's flags
ALONE, NAMED, ORDERED, UNKNOWN = 0, 1, 2, 3  # how values are passed: a single array, a dict, a tuple
REFUSED, DONE, FAILED = 0, 1, 2
FIRST, VALUE_WORDS = layout.ENTRY_FIRST, layout.VALUE_WORDS


@inlined
def record(context, number):
    """Address of an input's or output's words."""
    return context + 8 * (FIRST + VALUE_WORDS * number)


@inlined
def count_up(context, what):
    """Return the object with a new reference to it."""
    call_c(word(context, layout.ENTRY_INCREF), what, 0, 0, 0)
    return what


@inlined
def form_of(context, given, count):
    """Return how `count` values are passed."""
    kind = load_i64(given + layout.OBJECT_TYPE)
    if kind == word(context, layout.ENTRY_DICT):
        return NAMED if call_c(word(context, layout.ENTRY_DICT_SIZE), given, 0, 0, 0) == count else UNKNOWN
    if kind == word(context, layout.ENTRY_TUPLE):
        return ORDERED if call_c(word(context, layout.ENTRY_TUPLE_SIZE), given, 0, 0, 0) == count else UNKNOWN
    return ALONE if count == 1 else UNKNOWN


@inlined
def fetch(context, given, form, first, count):
    """Record the array objects of values, with a new reference to each; return whether none is missing."""
    for i in range(count):
        value = record(context, first + i)
        if form == NAMED:
            found = call_c(word(context, layout.ENTRY_DICT_GET), given, word(value, layout.VALUE_NAME), 0, 0)
        elif form == ORDERED:
            found = call_c(word(context, layout.ENTRY_TUPLE_GET), given, i, 0, 0)
        else:
            found = given
        if found == 0:
            return False
        store_i64(value + 8 * layout.VALUE_ARRAY, count_up(context, found))
    return True


@inlined
def fits(context, value, flags):
    """Whether the object is a plain array of the expected dtype and sizes, with these NumPy flags."""
    array = word(value, layout.VALUE_ARRAY)
    if load_i64(array + layout.OBJECT_TYPE) != word(context, layout.ENTRY_NDARRAY):
        return False
    if load_i64(array + layout.ARRAY_DTYPE) != word(value, layout.VALUE_DTYPE):
        return False
    if load_i32(array + layout.ARRAY_FLAGS) & flags != flags:
        return False
    rank = word(value, layout.VALUE_RANK)
    if load_i32(array + layout.ARRAY_RANK) != rank:
        return False
    dims, strides = load_i64(array + layout.ARRAY_DIMS), load_i64(array + layout.ARRAY_STRIDES)
    for i in range(rank):
        size, expected = load_i64(dims + 8 * i), word(value, layout.VALUE_DIMS + i)
        if expected < 0:
            if word(context, layout.ENTRY_TIME) == 0:
                store_i64(context + 8 * layout.ENTRY_TIME, size)
            expected = max(1, word(context, layout.ENTRY_TIME))  # zero time steps are left to Python
        if size != expected:
            return False
    if word(value, layout.VALUE_DENSE) != 0 and load_i64(dims + 8 * (rank - 1)) != 1:
        return load_i64(strides + 8 * (rank - 1)) == word(value, layout.VALUE_ITEM)
    return True


@inlined
def note_strides(value):
    """Record the bytes between an array's time steps and between its rows."""
    strides = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_STRIDES)
    time, row = word(value, layout.VALUE_TIME_AXIS), word(value, layout.VALUE_ROW_AXIS)
    store_i64(value + 8 * layout.VALUE_TIME, load_i64(strides + 8 * time) if time >= 0 else 0)
    store_i64(value + 8 * layout.VALUE_ROW, load_i64(strides + 8 * row) if row >= 0 else 0)


@inlined
def equal(value):
    """Whether an input that has to hold certain values holds them."""
    expected, data = word(value, layout.VALUE_EQUAL), load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA)
    if expected != 0:
        for i in range(word(value, layout.VALUE_ROW_BYTES)):
            if load_i8(expected + i) != load_i8(data + i):
                return False
    return True


@inlined
def ids_fit(context, value):
    """Whether all ids are within their table."""
    table = word(value, layout.VALUE_TABLE)
    if table == 0:
        return True
    data = load_i64(word(value, layout.VALUE_ARRAY) + layout.ARRAY_DATA)
    for t in range(word(context, layout.ENTRY_TIME)):
        for row in range(word(context, layout.ENTRY_ROWS)):
            at = data + t * word(value, layout.VALUE_TIME) + row * word(value, layout.VALUE_ROW)
            number = load_i64(at) if word(value, layout.VALUE_ITEM) == 8 else load_i32(at)
            if number < -table or number >= table:
                return False
    return True


@inlined
def inputs_of(context, plain):
    """Number of inputs."""
    return 1 if plain else word(context, layout.ENTRY_INPUTS)


@inlined
def outputs_of(context, plain):
    """Number of outputs."""
    return 1 if plain else word(context, layout.ENTRY_OUTPUTS)


@inlined
def accept(context, given, plain):
    """Take the inputs; return whether they are as expected and their time steps fit into memory."""
    count = inputs_of(context, plain)
    form = form_of(context, given, count)
    if form == UNKNOWN or not fetch(context, given, form, 0, count):
        return False
    for i in range(count):
        value = record(context, i)
        if not fits(context, value, word(value, layout.VALUE_FLAGS)) or not (plain or equal(value)):
            return False
        note_strides(value)
    steps = word(context, layout.ENTRY_TIME)
    if steps == 0 or steps > word(context, layout.ENTRY_ROOM):
        return False
    if steps > word(word(context, layout.ENTRY_FRAME), layout.ROOM):
        return False
    if plain:
        return True
    for i in range(count):
        if not ids_fit(context, record(context, i)):
            return False
    return word(context, layout.ENTRY_LENGTHS) < 0 or sort_rows(
        context, record(context, word(context, layout.ENTRY_LENGTHS))
    )


@inlined
def low_end(value):
    """Address of the array's first byte."""
    array = word(value, layout.VALUE_ARRAY)
    dims, strides = load_i64(array + layout.ARRAY_DIMS), load_i64(array + layout.ARRAY_STRIDES)
    at = load_i64(array + layout.ARRAY_DATA)
    for i in range(word(value, layout.VALUE_RANK)):
        at += min(0, (load_i64(dims + 8 * i) - 1) * load_i64(strides + 8 * i))
    return at


@inlined
def high_end(value):
    """Address just past the array's last byte."""
    array = word(value, layout.VALUE_ARRAY)
    dims, strides = load_i64(array + layout.ARRAY_DIMS), load_i64(array + layout.ARRAY_STRIDES)
    at = load_i64(array + layout.ARRAY_DATA) + word(value, layout.VALUE_ITEM)
    for i in range(word(value, layout.VALUE_RANK)):
        at += max(0, (load_i64(dims + 8 * i) - 1) * load_i64(strides + 8 * i))
    return at


@inlined
def disjoint(a, b):
    """Whether two arrays share no memory."""
    return high_end(a) <= low_end(b) or high_end(b) <= low_end(a)


@inlined
def alike(context, x, y):
    """Whether an output overwrites the input in place, each row being read just before it is written."""
    same = word(x, layout.VALUE_TIME) == word(y, layout.VALUE_TIME)
    same = same and word(x, layout.VALUE_ROW) == word(y, layout.VALUE_ROW)
    return same and word(context, layout.ENTRY_IN_PLACE) != 0 and low_end(x) == low_end(y)


@inlined
def apart(context, number, inputs):
    """Whether a given output shares no memory with earlier outputs, nor with an input read while it is written."""
    y = record(context, number)
    for i in range(number):
        x = record(context, i)
        meanwhile = word(x, layout.VALUE_SLOT) != 0 and word(y, layout.VALUE_SLOT) != 0
        if (i >= inputs or meanwhile) and not disjoint(x, y) and not (i < inputs and alike(context, x, y)):
            return False
    return True


@inlined
def accept_outputs(context, out, form, plain):
    """Take the given output arrays; return whether they are as expected."""
    first, count = inputs_of(context, plain), outputs_of(context, plain)
    if form_of(context, out, count) != form or not fetch(context, out, form, first, count):
        return False
    for number in range(first, first + count):
        value = record(context, number)
        if not fits(context, value, CONTIGUOUS_ALIGNED | WRITEABLE):
            return False
        note_strides(value)
        if not apart(context, number, first):
            return False
    return True


@inlined
def new_outputs(context, plain):
    """Create the output arrays; return whether there was memory for them."""
    first = inputs_of(context, plain)
    for number in range(first, first + outputs_of(context, plain)):
        value = record(context, number)
        rank, sizes = word(value, layout.VALUE_RANK), value + 8 * layout.VALUE_SIZES
        for i in range(rank):
            size = word(value, layout.VALUE_DIMS + i)
            store_i64(sizes + 8 * i, word(context, layout.ENTRY_TIME) if size < 0 else size)
        dtype = count_up(context, word(value, layout.VALUE_DTYPE))
        array = call_c(word(context, layout.ENTRY_EMPTY), rank, sizes, dtype, 0)
        store_i64(value + 8 * layout.VALUE_ARRAY, array)
        if array == 0:
            return False
        note_strides(value)
    return True


@inlined
def joins_team(context):
    """Whether the call is long enough to gain from a team."""
    work = word(context, layout.ENTRY_TIME) * word(context, layout.ENTRY_MACS)
    team = word(context, layout.ENTRY_LEAD) != 0 and word(context, layout.ENTRY_ALONE_NOW) == 0
    return team and work >= word(context, layout.ENTRY_TEAM)


@inlined
def run(context, plain):
    """Run the program; return whether all watched words are 0 afterwards."""
    steps, frame = word(context, layout.ENTRY_TIME), word(context, layout.ENTRY_FRAME)
    ragged = not plain and word(context, layout.ENTRY_LENGTHS) >= 0
    store_i64(frame + 8 * layout.TOTAL, steps)
    store_i64(frame + 8 * layout.ACTIVE, word(context, layout.ENTRY_ACTIVE) if ragged else 0)
    store_i64(frame + 8 * layout.STATUS, 0)
    work = steps * word(context, layout.ENTRY_MACS)
    function, first, second = word(context, layout.ENTRY_ALONE), word(context, layout.ENTRY_PROGRAM), frame
    if joins_team(context):
        function, first = word(context, layout.ENTRY_LEAD), word(context, layout.ENTRY_RUN)
        second = 1 if work < word(context, layout.ENTRY_WAKE) else 0
    gives_way = work > word(context, layout.ENTRY_HOLD)
    thread = call_c(word(context, layout.ENTRY_SAVE), 0, 0, 0, 0) if gives_way else 0
    call_c(function, first, second, 0, 0)
    if gives_way:
        call_c(word(context, layout.ENTRY_RESTORE), thread, 0, 0, 0)
    quiet = True
    for i in range(word(context, layout.ENTRY_WATCHED)):
        at = word(context + 8 * word(context, layout.ENTRY_WATCH), i)
        if load_i64(at) != 0:
            store_i64(at, 0)
            quiet = False
    return quiet


@inlined
def compute(context, plain):
    """Point the program at the values, run it, and copy the outputs that were not written in place."""
    inputs, outputs = inputs_of(context, plain), outputs_of(context, plain)
    for number in range(inputs + outputs):
        point(context, record(context, number), number < inputs, plain)
    masks = 0 if plain else word(context, layout.ENTRY_MASKS)
    for i in range(masks):
        mask = context + 8 * (word(context, layout.ENTRY_MASK) + layout.MASK_WORDS * i)
        mask_codes(context, mask, record(context, word(mask, layout.MASK_VALUE)))
    before, after = word(context, layout.ENTRY_COPIES), word(context, layout.ENTRY_COPIES_AFTER)
    copies(context, 0, before, True)
    if not run(context, plain):
        return False
    if plain:
        return True
    copies(context, before, before + after, False)
    for number in range(inputs, inputs + outputs):
        unstage(context, record(context, number))
    return True


@inlined
def answer(context, form, out, given, plain):
    """Return the caller's result, 0 if there was no memory for it."""
    first, count = inputs_of(context, plain), outputs_of(context, plain)
    if given:
        return count_up(context, out)
    if form == ALONE:
        value = record(context, first)
        array = word(value, layout.VALUE_ARRAY)
        store_i64(value + 8 * layout.VALUE_ARRAY, 0)  # the reference passes to the caller
        return array
    if form == NAMED:
        result = call_c(word(context, layout.ENTRY_DICT_NEW), 0, 0, 0, 0)
    else:
        result = call_c(word(context, layout.ENTRY_TUPLE_NEW), count, 0, 0, 0)
    if result == 0:
        return 0
    for i in range(count):
        value = record(context, first + i)
        array = word(value, layout.VALUE_ARRAY)
        if form == NAMED:
            status = call_c(word(context, layout.ENTRY_DICT_SET), result, word(value, layout.VALUE_NAME), array, 0)
        else:
            status = call_c(word(context, layout.ENTRY_TUPLE_SET), result, i, count_up(context, array), 0)
        if status & 0xFFFFFFFF != 0:
            call_c(word(context, layout.ENTRY_DECREF), result, 0, 0, 0)
            return 0
    return result


@inlined
def answer_form(context, given, plain):
    """Return how outputs are returned: a model's depends on how it was called, a stream's (bare) is always the same."""
    one = outputs_of(context, plain) == 1
    if word(context, layout.ENTRY_BARE) != 0:
        return ALONE if one else NAMED
    if load_i64(given + layout.OBJECT_TYPE) == word(context, layout.ENTRY_DICT):
        return NAMED
    return ALONE if one else ORDERED


def call(plain: bool) -> Callable[[int, int, int], int]:
    """Return the entry: it runs the program on the inputs args[0].

    Outputs are written to args[1] if it is given and not None, else to new arrays. A caller that already holds the
    program's flag passes it as args[2].
    """

    def kernel(self: int, args: int, count: int) -> Any:
        context = load_i64(self + layout.ARRAY_DATA)
        none, busy = word(context, layout.ENTRY_NONE), word(context, layout.ENTRY_BUSY)
        free = load_i64(busy + layout.OBJECT_SLOT)
        if count < 1 or count > 3:
            return count_up(context, none)
        if free == 0 and (count < 3 or load_i64(args + 16) != busy):
            return count_up(context, none)
        store_i64(busy + layout.OBJECT_SLOT, 0)
        values = inputs_of(context, plain) + outputs_of(context, plain)
        for i in range(values):
            store_i64(record(context, i) + 8 * layout.VALUE_ARRAY, 0)
        store_i64(context + 8 * layout.ENTRY_TIME, word(context, layout.ENTRY_STEPS))
        store_i64(context + 8 * layout.ENTRY_SORTED, 0)
        given = load_i64(args)
        out = load_i64(args + 8) if count > 1 else none
        form = answer_form(context, given, plain)
        status = REFUSED
        result = none
        if accept(context, given, plain):
            if joins_team(context) and load_i64(word(context, layout.ENTRY_ALIVE)) == 0:
                status = REFUSED  # the team has to be started again
            elif out != none:
                status = DONE if accept_outputs(context, out, form, plain) else REFUSED
            else:
                status = DONE if new_outputs(context, plain) else FAILED
        if status == DONE:
            if compute(context, plain):
                result = answer(context, form, out, out != none, plain)
            else:
                status = REFUSED
        decref = word(context, layout.ENTRY_DECREF)
        for i in range(values):
            array = word(record(context, i), layout.VALUE_ARRAY)
            if array != 0:
                call_c(decref, array, 0, 0, 0)
        if status == REFUSED:
            count_up(context, none)
        store_i64(busy + layout.OBJECT_SLOT, free)
        return 0 if status == FAILED else result

    return kernel
