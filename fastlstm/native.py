"""A call as a Python built-in: from the interpreter into compiled code without a detour.

`fastlstm.kernels.entry` is a C function of the kind that CPython calls for a built-in. It looks at the array it
is given, and where the array is just what was expected (type, dtype, shape, contiguous) it points the program at
its memory, runs it and returns a new array. Anything else it answers with None, and the caller takes the way
through Python, which converts, or says what does not fit.

Reading NumPy's array objects by offset rests on their layout, which NumPy keeps for C extensions. It is checked
once against arrays made for it; where it differs (or on an interpreter without a global lock) there are no
entries, and every call goes through Python.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.busy import Busy
from fastlstm.kernels.compiler import Kernel, address
from fastlstm.memory import address_of
from fastlstm.target import Target

__all__ = ["entry", "never"]

Array = npt.NDArray[Any]
Call = Callable[..., Any]

NEW_LIKE_ARRAY = 277  # place of PyArray_NewLikeArray in NumPy's table of functions for C extensions
METH_FASTCALL = 0x80
HOLD = 200_000  # multiply-adds below which giving the interpreter lock away would take longer than the work


def never(*_: Any) -> None:
    """Stand for an entry that there is not."""


class _Context(np.ndarray[Any, np.dtype[np.int64]]):
    """The words that the entry reads; it keeps alive what they point to."""

    keeps: tuple[Any, ...] = ()


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Runs(Protocol):
    """What an entry asks of a program that is bound to memory (`fastlstm.segments.program.BoundProgram`)."""

    batch: int
    used: int
    macs: int
    frame: Array
    busy: Busy

    @property
    def target(self) -> Target:
        """What its kernels are made for."""

    def reserve(self, steps: int) -> None:
        """Make room for so many time steps."""

    def call(self, steps: int) -> tuple[int, int, int]:
        """Return the C function that runs it, and its two arguments."""

    def slot_address(self, index: int) -> int:
        """Return the address of a slot's words."""


def entry(
    program: Runs,
    steps: int,
    x: tuple[int, str, Sequence[int]],
    y: tuple[int, str, Sequence[int]],
    clear: Sequence[Array] = (),
) -> Call:
    """Return a built-in ``call(array, out=None)`` that runs `program` over `steps` time steps.

    A call that finds the program in use returns None, unless its third argument is the flag ``program.busy``: who
    took that says so.

    Parameters
    ----------
    program : Runs
        Not in use while the entry is made.
    x, y : slot, axes, shape
        The input and the output: float32, contiguous. The shape may leave out axes of size 1.
    clear : sequence of arrays
        States that start every call at zero (contiguous float32).

    Returns
    -------
    callable
        Returns the output array, or None if the arguments are not just what was expected.
    """
    if not _layout_known():
        return never
    program.reserve(steps)
    prototype = np.empty(tuple(y[2]), np.float32)
    words = np.zeros(layout.ENTRY_CLEAR + 2 * len(clear), np.int64).view(_Context)
    python, new_like = _functions()
    words[layout.ENTRY_NDARRAY] = id(np.ndarray)
    words[layout.ENTRY_DTYPE] = id(prototype.dtype)
    words[layout.ENTRY_NONE] = id(None)
    words[layout.ENTRY_INCREF] = python["Py_IncRef"]
    words[layout.ENTRY_NEW_LIKE] = new_like
    words[layout.ENTRY_PROTOTYPE] = id(prototype)
    if steps * program.macs * program.used > HOLD * program.batch:
        words[layout.ENTRY_SAVE] = python["PyEval_SaveThread"]
        words[layout.ENTRY_RESTORE] = python["PyEval_RestoreThread"]
    words[layout.ENTRY_RUN : layout.ENTRY_RUN + 3] = program.call(steps)
    words[layout.ENTRY_FRAME] = address_of(program.frame)
    words[layout.ENTRY_STEPS] = steps
    words[layout.ENTRY_BUSY] = id(program.busy)
    for at, (slot, axes, shape) in ((layout.ENTRY_X, x), (layout.ENTRY_Y, y)):
        words[at : at + 4] = (program.slot_address(slot), *_strides(axes, shape, program.used, steps), len(shape))
        words[at + 4 : at + 4 + len(shape)] = shape
    words[layout.ENTRY_CLEARS] = len(clear)
    for number, array in enumerate(clear):
        at = layout.ENTRY_CLEAR + 2 * number
        words[at : at + 2] = (address_of(array), array.size)
    method = _MethodDef(b"call", address(Kernel("entry.call"), program.target), METH_FASTCALL, None)
    words.keeps = (method, program, prototype, tuple(clear))
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    call: Call = make(ctypes.addressof(method), words, None)
    return call


def _strides(axes: str, shape: Sequence[int], batch: int, steps: int) -> tuple[int, int]:
    """Return the bytes from one time step and from one batch row to the next, in a contiguous array."""
    sizes = [{"T": steps, "B": batch, "1": 1, "F": shape[-1]}[axis] for axis in axes]
    strides = dict.fromkeys("TB", 0)
    step = 4
    for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
        strides[axis] = step
        step *= size
    return strides["T"], strides["B"]


@cache
def _functions() -> tuple[dict[str, int], int]:
    """Return the addresses of functions of Python's C interface, and of PyArray_NewLikeArray."""
    names = ("Py_IncRef", "PyEval_SaveThread", "PyEval_RestoreThread")
    python = {name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in names}
    multiarray: Any = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = get(multiarray._ARRAY_API, None)
    return python, _word(table + 8 * NEW_LIKE_ARRAY)


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


@cache
def _layout_known() -> bool:
    """Whether array objects and NumPy's function table are as the compiled entry reads them."""
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32 or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    for array in (np.zeros((3, 5), np.float32), np.zeros((2, 4, 6), np.float32)[:, :, ::2]):
        at = id(array)
        dims = _word(at + layout.ARRAY_DIMS)
        as_expected = (
            np.ndarray.__basicsize__ > layout.ARRAY_FLAGS
            and _word(at + layout.OBJECT_TYPE) == id(np.ndarray)
            and _word(at + layout.ARRAY_DATA) == address_of(array)
            and ctypes.c_int32.from_address(at + layout.ARRAY_RANK).value == array.ndim
            and tuple(_word(dims + 8 * i) for i in range(array.ndim)) == array.shape
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
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    like = prototype(_functions()[1])(np.zeros((3, 5), np.float32), 0, None, 0)
    return type(like) is np.ndarray and like.shape == (3, 5) and like.dtype == np.float32
