"""Arrays that begin on a cache line.

NumPy's begin on 16 bytes. A vector of 64 bytes that does not begin on a cache line is a load of two, and a store that
spans two is slow to be read back: aligned weights and buffers took a third off a step of 40 hidden units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.protected import CHECKING, LINE, protected_zeros

__all__ = ["aligned", "aligned_zeros", "guarded", "zeros"]


def aligned_zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that begin on a cache line."""
    if CHECKING:
        return protected_zeros(math.prod(shape if isinstance(shape, tuple) else (shape,)), dtype).reshape(shape)
    kind = np.dtype(dtype)
    size = kind.itemsize * math.prod(shape if isinstance(shape, tuple) else (shape,))
    room = np.zeros(size + LINE, np.uint8)
    start = -int(room.__array_interface__["data"][0]) % LINE
    return room[start : start + size].view(kind).reshape(shape)


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a contiguous array as it is if it begins on a cache line, else a copy that does."""
    if not CHECKING and array.flags.c_contiguous and int(array.__array_interface__["data"][0]) % LINE == 0:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def zeros(count: int) -> npt.NDArray[Any]:
    """Return float32 zeros that are nobody's view; between protected pages in check mode."""
    return protected_zeros(count, np.float32) if CHECKING else np.zeros(count, np.float32)


def guarded(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array; in check mode a contiguous copy between protected pages."""
    return aligned(array) if CHECKING else array
