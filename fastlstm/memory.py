"""Arrays that begin on a cache line; what is too large for this machine's memory.

NumPy's begin on 16 bytes. A vector of 64 bytes that does not begin on a cache line is a load of two, and a store that
spans two is slow to be read back: aligned weights and buffers took a third off a step of 40 hidden units.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError

__all__ = ["aligned", "aligned_zeros", "check_memory"]

LINE = 64  # bytes of a cache line


def aligned_zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that begin on a cache line."""
    kind = np.dtype(dtype)
    size = kind.itemsize * math.prod(shape if isinstance(shape, tuple) else (shape,))
    room = np.zeros(size + LINE, np.uint8)
    start = -int(room.__array_interface__["data"][0]) % LINE
    return room[start : start + size].view(kind).reshape(shape)


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a contiguous array as it is if it begins on a cache line, else a copy that does."""
    if array.flags.c_contiguous and int(array.__array_interface__["data"][0]) % LINE == 0:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


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
