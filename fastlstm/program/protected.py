"""Memory between protected pages: what reads or writes past an array stops the process at that instruction.

In check mode (``FASTLSTM_CHECK=1``) everything that kernels use lies in such memory, and `fastlstm.runtime.bounds`
compares what instructions say with it. Both cost time and memory; neither is meant for anything but looking for bugs.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import numpy.typing as npt

from fastlstm.errors import UnsupportedError
from fastlstm.program.layout import LINE
from fastlstm.typing import Array

__all__ = ["CHECKING", "protected_zeros"]

CHECKING = os.environ.get("FASTLSTM_CHECK", "0") not in ("", "0")
"""Whether this process is in check mode."""


def protected_zeros(count: int, dtype: npt.DTypeLike) -> Array:
    """Return zeros that begin on a cache line and end right before a protected page, but for the rest of their line."""
    kind, page = np.dtype(dtype), mmap.PAGESIZE
    size = -(-count * kind.itemsize // LINE) * LINE
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    start = int(whole.__array_interface__["data"][0])
    for address in (start, start + page + inside):
        _protect(address, page)
    return np.frombuffer(memory, kind, count, page + inside - size)


def _protect(address: int, size: int) -> None:
    if os.name != "posix":
        raise UnsupportedError("FASTLSTM_CHECK protects pages by mprotect, which this system does not have. Unset it.")
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if function(address, size, 0):
        raise MemoryError(f"no page could be protected: {os.strerror(ctypes.get_errno())}")
