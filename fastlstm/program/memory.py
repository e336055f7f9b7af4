"""Arrays that begin on a cache line; what is too large for this machine's memory.

NumPy's begin on 16 bytes. A vector of 64 bytes that does not begin on a cache line is a load of two, and a store that
spans two is slow to be read back: aligned weights and buffers took a third off a step of 40 hidden units.
"""

from __future__ import annotations

import math
import os
from functools import cache

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError
from fastlstm.program.layout import LINE
from fastlstm.program.protected import CHECKING, protected_zeros
from fastlstm.typing import Array

__all__ = ["address_of", "aligned", "aligned_zeros", "check_memory", "guarded", "memory_of"]


def aligned_zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return zeros that begin on a cache line."""
    kind = np.dtype(dtype)
    count = math.prod(shape if isinstance(shape, tuple) else (shape,))
    if CHECKING:
        flat = protected_zeros(count, kind)
        return flat if flat.shape in (shape, (shape,)) else flat.reshape(shape)
    room = np.zeros(kind.itemsize * max(count, 1) + LINE, np.uint8)
    start = -int(room.__array_interface__["data"][0]) % LINE
    # By way of a buffer: views of the array lie at offsets from the cache line, not from where `room` begins.
    flat = np.frombuffer(room.data[start : start + kind.itemsize * max(count, 1)], kind)
    return flat if flat.shape in (shape, (shape,)) else flat[:count].reshape(shape)


def address_of(array: Array | None) -> int:
    """Return the address of an array's first element."""
    return 0 if array is None else int(array.__array_interface__["data"][0])


def memory_of(array: Array) -> Array:
    """Return the array that an array is a view of, itself if it is none."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def aligned(array: Array) -> Array:
    """Return a contiguous array as it is if it begins on a cache line, else a copy that does."""
    if not CHECKING and array.flags.c_contiguous and int(array.__array_interface__["data"][0]) % LINE == 0:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def guarded(array: Array) -> Array:
    """Return the array; in check mode a contiguous copy between protected pages."""
    return aligned(array) if CHECKING else array


def check_memory(what: str, nbytes: int) -> None:
    """InputError if `what` takes more bytes than this machine has: asking for them could end other processes."""
    if nbytes > _installed():
        have = f"this machine has {_installed() / 2**30:.3g}"
        raise InputError(f"{what} would take at least {nbytes / 2**30:.3g} GiB of memory; {have}. Ask for fewer.")


@cache
def _installed() -> int:
    """Return the bytes of memory that are installed, as far as the system tells; else what can be addressed."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 47
