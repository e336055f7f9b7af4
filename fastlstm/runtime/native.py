"""Calls as Python built-ins: from the interpreter straight into compiled code.

`fastlstm.kernels.entry` is a C function with the signature of a CPython built-in. It checks the arrays it is given (in
a dict, a tuple, or a single one); if each is exactly what was expected (type, dtype, sizes), it points the program at
their memory, runs it and returns new arrays. For anything else it returns None, and the caller falls back to Python
code, which converts the arrays or reports what does not fit. This module builds what such a function needs to know: a
`Wiring`, turned into words.

NumPy's array objects are read by offset. This relies on their layout, which NumPy keeps stable for C extensions. The
layout is checked once, on arrays made for it; if it differs (or the interpreter has no global lock) there are no
entries, and every call goes through Python.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel, listings
from fastlstm.program import layout
from fastlstm.program.memory import address_of
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.team import WORTH_A_TEAM, WORTH_WAKING
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = [
    "Call", "Context", "Copy", "Lengths", "Mask", "Value", "Wiring", "address_of_c", "ahead_of_entries", "built_in",
    "context", "entry", "entry_kernel", "likely_entry", "never", "usable",
]  # fmt: skip

Call = Callable[..., Any]

UNLIMITED = 1 << 62  # time steps
EMPTY = 184  # index of PyArray_Empty in NumPy's C API table
METH_FASTCALL = 0x80
HOLD = 200_000  # multiply-adds below which releasing the interpreter lock would take longer than the work
CONTIGUOUS, ALIGNED = 0x1, 0x100  # NumPy's flags


def never(*_: Any) -> None:
    """Stand in for an entry where there is none."""


class Value(NamedTuple):
    """An array that a call takes or returns.

    Attributes
    ----------
    name : str
    dtype : dtype
    shape : tuple of int or None
        None stands for the time steps.
    slot : int
        Address of the slot that is pointed at it; 0 if it is copied, or read by the entry itself.
    axes : tuple of int or None
        The axes of time steps and of batch rows.
    whole : bool
        Whether it has to be contiguous; if not, only its last axis has to be, where `dense` says so.
    row_bytes : int
        Bytes of one row of one time step in the program's own memory.
    ids : int
        Rows of the table that its ids point into; 0 if it holds no ids.
    stage : array or None
        The program's own memory for it, for calls that sort rows or widen ids.
    equal : array or None
        The values that it has to hold.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    slot: int = 0
    axes: tuple[int | None, int | None] = (None, None)
    whole: bool = False
    dense: bool = False
    row_bytes: int = 0
    ids: int = 0
    stage: Array | None = None
    equal: Array | None = None


class Copy(NamedTuple):
    """Rows copied between an array and the program's own memory.

    Attributes
    ----------
    value : int or array
        Index of the input (before a run) or output (after it), -1 for none; or memory that is copied in every call.
    memory : array
        The program's side; [rows, floats] if only a part of a value is copied.
    part : int or None
        The part ``value[part]``, an array [rows, …], is copied; None copies the whole value.
    nbytes : int
        Bytes per row; the rest of a row of `memory` is set to zero before a run.
    """

    value: int | Array
    memory: Array
    part: int | None = None
    nbytes: int = 0


class Mask(NamedTuple):
    """An input [time, batch] that says which steps count: its index, the slot of its codes, memory for them."""

    value: int
    slot: int
    codes: Array
    backwards: bool


class Lengths(NamedTuple):
    """An input with each row's length: its index, and memory for active rows, sorting, and the rows' order."""

    value: int
    active: Array
    following: Array
    order: Array


class Wiring(NamedTuple):
    """How values connect to a program.

    Attributes
    ----------
    inputs, outputs : sequence of Value
    before, after : sequence of Copy
        Copies of inputs before the run, and of outputs after it.
    steps : int
        The number of time steps if it is fixed, else 0.
    room : int
        The most time steps that staging memory is there for, besides the program's own.
    bare : bool
        Whether a single output is never wrapped in a dict, and several always are. If not, a dict of inputs gives a
        dict of outputs.
    in_place : bool
        Whether an output may take the place of an input.
    watched : sequence of int
        Addresses of words that are 0 after a good run; if one is not, the call returns None.
    """

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    before: Sequence[Copy] = ()
    after: Sequence[Copy] = ()
    masks: Sequence[Mask] = ()
    lengths: Lengths | None = None
    steps: int = 0
    room: int = UNLIMITED
    bare: bool = False
    in_place: bool = False
    watched: Sequence[int] = ()

    @property
    def owns_memory(self) -> bool:
        """Whether it has memory besides the program's own."""
        return self.room < UNLIMITED


def entry_kernel(wiring: Wiring) -> Kernel:
    """Return the kind of entry for a wiring: there is a special one for a single input and output, both in place."""
    plain = len(wiring.inputs) == len(wiring.outputs) == 1 and wiring.lengths is None
    plain = plain and not (wiring.after or wiring.masks)
    for value in (*wiring.inputs, *wiring.outputs):
        plain = plain and value.equal is None and value.stage is None and not value.ids
    return Kernel("entry.call", (plain,))


def likely_entry(inputs: int, outputs: int) -> Kernel:
    """Return the entry that a model with this many inputs and outputs most likely needs."""
    return Kernel("entry.call", (inputs == outputs == 1,))


class Context(np.ndarray[Any, np.dtype[np.int64]]):
    """The words that the entry reads; keeps what they point to alive."""

    keeps: tuple[Any, ...] = ()


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Runs(Protocol):
    """What an entry needs from a program bound to memory (`fastlstm.runtime.bound.Instance`)."""

    batch: int
    used: int
    macs: int
    frame: Array
    busy: Busy

    @property
    def target(self) -> Target:
        """The target that its kernels are compiled for."""

    def functions(self) -> tuple[tuple[int, int], tuple[int, int, int] | None]:
        """Return what runs it alone and with its workers: addresses of a kernel and of the words it reads."""


def entry(program: Runs, wiring: Wiring, busy: Busy | None = None) -> Call:
    """Return a built-in ``call(given, out=None)`` that runs `program`.

    `given` is a dict or tuple of the inputs, or the only input; `out` has the form of the result. If `busy` (the
    program's flag unless another is given) is taken, a call returns None, unless it passes `busy` as its third
    argument to say that it has taken the flag itself.

    Returns
    -------
    callable
        Returns the outputs, or None if the arguments are not exactly as expected.
    """
    values = [*wiring.inputs, *wiring.outputs]
    if not usable() or any(len(value.shape) > layout.MOST_AXES for value in values):
        return never
    watched = [address_of(program.frame) + 8 * layout.STATUS, *wiring.watched]
    records = [_value_words(value) for value in values]
    tail: list[int] = []
    start = layout.ENTRY_FIRST + layout.VALUE_WORDS * len(records)
    places = []
    for some in (
        [
            *[word for copy in wiring.before for word in _copy_words(copy, 0)],
            *[word for copy in wiring.after for word in _copy_words(copy, len(wiring.inputs))],
        ],
        [word for m in wiring.masks for word in (m.value, m.slot, address_of(m.codes), int(m.backwards))],
        watched,
    ):
        places.append(start + len(tail))
        tail += some
    words = context(start + len(tail))
    for number, record in enumerate(records):
        at = layout.ENTRY_FIRST + layout.VALUE_WORDS * number
        words[at : at + len(record)] = record
    words[start:] = tail
    flag = program.busy if busy is None else busy
    for index, number in {**_run_words(program, flag), **_counts(wiring, places, len(watched))}.items():
        words[index] = number
    return built_in(entry_kernel(wiring), program.target, words, program, wiring, flag)


def ahead_of_entries(kernel: Kernel, target: Target) -> None:
    """Have idle cores compile an entry. The first result, computed through Python, does not wait for it."""
    from fastlstm.kernels.compiler import ahead  # not needed if nothing is compiled

    if listings:
        address(kernel, target)
    ahead([kernel], target)


def context(count: int) -> Context:
    """Return an array of that many words for a built-in, beginning with the objects and functions it may need."""
    words = np.zeros(count, np.int64).view(Context)
    for index, number in _objects().items():
        words[index] = number
    return words


def built_in(kernel: Kernel, target: Target, words: Context, *keeps: Any) -> Call:
    """Return a kernel as a Python built-in that reads these words and keeps what they point to. See `usable`."""
    method = _MethodDef(b"call", address(kernel, target), METH_FASTCALL, None)
    words.keeps = (method, *keeps)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    call: Call = make(ctypes.addressof(method), words, None)
    return call


def words_of(call: Call) -> Context:
    """Return the words that a built-in reads."""
    words: Context = getattr(call, "__self__")  # noqa: B009 (a callable in general has none)
    return words


def _value_words(value: Value) -> list[int]:
    """Return the words of an input or output."""
    time, row = (-1 if axis is None else axis for axis in value.axes)
    words = [0] * layout.VALUE_WORDS
    for index, word in {
        layout.VALUE_NAME: id(value.name),
        layout.VALUE_DTYPE: id(value.dtype),
        layout.VALUE_FLAGS: ALIGNED | (CONTIGUOUS if value.whole else 0),
        layout.VALUE_RANK: len(value.shape),
        layout.VALUE_SLOT: value.slot,
        layout.VALUE_TIME_AXIS: time,
        layout.VALUE_ROW_AXIS: row,
        layout.VALUE_ITEM: value.dtype.itemsize,
        layout.VALUE_DENSE: int(value.dense),
        layout.VALUE_TABLE: value.ids,
        layout.VALUE_STAGE: address_of(value.stage),
        layout.VALUE_ROW_BYTES: value.row_bytes if value.equal is None else value.equal.nbytes,
        layout.VALUE_EQUAL: address_of(value.equal),
    }.items():
        words[index] = word
    words[layout.VALUE_DIMS : layout.VALUE_DIMS + len(value.shape)] = [-1 if n is None else n for n in value.shape]
    return words


def _copy_words(copy: Copy, first: int) -> list[int]:
    """Return the words of a copy; its value's index is relative to the record `first`."""
    memory, whole = copy.memory, copy.part is None
    if isinstance(copy.value, int):
        number, source = (first + copy.value if copy.value >= 0 else -1), 0
    else:
        number, source = -1, address_of(copy.value)
    rows, nbytes, stride = (1, memory.nbytes, 0) if whole else (len(memory), copy.nbytes, memory.strides[0])
    cleared = 0 if whole else (memory.shape[1] * memory.itemsize - nbytes) // 4
    return [number, source, copy.part or 0, int(whole), address_of(memory), rows, nbytes, stride, cleared]


def _counts(wiring: Wiring, places: Sequence[int], watched: int) -> dict[int, int]:
    lengths = wiring.lengths
    return {
        layout.ENTRY_STEPS: wiring.steps,
        layout.ENTRY_ROOM: wiring.room,
        layout.ENTRY_INPUTS: len(wiring.inputs),
        layout.ENTRY_OUTPUTS: len(wiring.outputs),
        layout.ENTRY_BARE: int(wiring.bare),
        layout.ENTRY_IN_PLACE: int(wiring.in_place),
        layout.ENTRY_COPIES: len(wiring.before),
        layout.ENTRY_COPIES_AFTER: len(wiring.after),
        layout.ENTRY_COPY: places[0],
        layout.ENTRY_MASKS: len(wiring.masks),
        layout.ENTRY_MASK: places[1],
        layout.ENTRY_WATCHED: watched,
        layout.ENTRY_WATCH: places[2],
        layout.ENTRY_LENGTHS: -1 if lengths is None else lengths.value,
        layout.ENTRY_ACTIVE: 0 if lengths is None else address_of(lengths.active),
        layout.ENTRY_NEXT: 0 if lengths is None else address_of(lengths.following),
        layout.ENTRY_ORDER: 0 if lengths is None else address_of(lengths.order),
    }


def _run_words(program: Runs, busy: Busy) -> dict[int, int]:
    """Return the words that say what to run."""
    alone, team = program.functions()
    lead, words, alive = team or (0, 0, 0)
    return {
        layout.ENTRY_BUSY: id(busy),
        layout.ENTRY_FRAME: address_of(program.frame),
        layout.ENTRY_ALONE: alone[0],
        layout.ENTRY_PROGRAM: alone[1],
        layout.ENTRY_LEAD: lead,
        layout.ENTRY_RUN: words,
        layout.ENTRY_ALIVE: alive,
        layout.ENTRY_MACS: program.macs,
        layout.ENTRY_TEAM: WORTH_A_TEAM,
        layout.ENTRY_WAKE: WORTH_WAKING,
        layout.ENTRY_HOLD: HOLD * program.batch // program.used,
        layout.ENTRY_ROWS: program.used,
    }


@cache
def _objects() -> dict[int, int]:
    """Return the words that hold the addresses of Python's and NumPy's objects and functions."""
    functions = {
        layout.ENTRY_INCREF: "Py_IncRef",
        layout.ENTRY_DECREF: "Py_DecRef",
        layout.ENTRY_SAVE: "PyEval_SaveThread",
        layout.ENTRY_RESTORE: "PyEval_RestoreThread",
        layout.ENTRY_DICT_NEW: "PyDict_New",
        layout.ENTRY_DICT_SIZE: "PyDict_Size",
        layout.ENTRY_DICT_GET: "PyDict_GetItem",
        layout.ENTRY_DICT_SET: "PyDict_SetItem",
        layout.ENTRY_TUPLE_NEW: "PyTuple_New",
        layout.ENTRY_TUPLE_SIZE: "PyTuple_Size",
        layout.ENTRY_TUPLE_GET: "PyTuple_GetItem",
        layout.ENTRY_TUPLE_SET: "PyTuple_SetItem",
    }
    types = {layout.ENTRY_NDARRAY: np.ndarray, layout.ENTRY_DICT: dict, layout.ENTRY_TUPLE: tuple}
    return {
        layout.ENTRY_NONE: id(None),
        **{index: id(kind) for index, kind in types.items()},
        **{index: address_of_c(getattr(ctypes.pythonapi, name)) for index, name in functions.items()},
        layout.ENTRY_EMPTY: _empty(),
        layout.ENTRY_MOVE: address_of_c(ctypes.memmove),
    }


def address_of_c(function: Any) -> int:
    """Return the address of a C function."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _empty() -> int:
    """Return the address of PyArray_Empty."""
    multiarray: Any = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _word(get(multiarray._ARRAY_API, None) + 8 * EMPTY)


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


@cache
def usable() -> bool:
    """Whether array objects and NumPy's function table have the layout that the compiled entry reads."""
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32:
        return False
    if sys.version_info >= (3, 13):
        import sysconfig  # 2 ms

        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return False
    for array in (np.zeros((3, 5), np.float32), np.zeros((2, 4, 6), np.float32)[:, :, ::2]):
        at = id(array)
        dims, strides = _word(at + layout.ARRAY_DIMS), _word(at + layout.ARRAY_STRIDES)
        as_expected = (
            np.ndarray.__basicsize__ > layout.ARRAY_FLAGS
            and _word(at + layout.OBJECT_TYPE) == id(np.ndarray)
            and _word(at + layout.ARRAY_DATA) == address_of(array)
            and ctypes.c_int32.from_address(at + layout.ARRAY_RANK).value == array.ndim
            and tuple(_word(dims + 8 * i) for i in range(array.ndim)) == array.shape
            and tuple(_word(strides + 8 * i) for i in range(array.ndim)) == array.strides
            and _word(at + layout.ARRAY_DTYPE) == id(np.dtype(np.float32))
            and ctypes.c_int32.from_address(at + layout.ARRAY_FLAGS).value == array.flags.num
        )
        if not as_expected:
            return False
    flag = Busy()
    filled = _word(id(flag) + layout.OBJECT_SLOT)
    del flag.free
    if filled != id(None) or _word(id(flag) + layout.OBJECT_SLOT) != 0:
        return False
    dtype, sizes = np.dtype(np.float32), (ctypes.c_int64 * 2)(3, 5)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dtype))  # the function steals a reference
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    made = prototype(_empty())(2, ctypes.addressof(sizes), id(dtype), 0)
    return type(made) is np.ndarray and made.shape == (3, 5) and made.dtype == dtype and made.flags.c_contiguous
