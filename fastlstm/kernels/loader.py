"""Machine code in executable memory, which is never writable and executable at the same time.

This is tested on Linux. What other systems require (Apple's processors, Windows) is implemented, but has not been run
there yet.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["map_file", "place"]

MAP_JIT = 0x800  # macOS
COMMIT_RESERVE, READ_WRITE, EXECUTE_READ = 0x3000, 0x04, 0x20  # Windows

_kept: list[Any] = []  # code is never unmapped: a program's table may hold its address


def place(code: bytes) -> int:
    """Return the address of an executable copy of `code`, which begins on a page.

    Raises
    ------
    OSError
        If the system forbids that.
    """
    if os.name == "nt":
        return _place_windows(code)
    jit = sys.platform == "darwin"
    size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
    access = mmap.PROT_READ | mmap.PROT_WRITE | (mmap.PROT_EXEC if jit else 0)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_JIT if jit else 0), prot=access)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    system = _system()
    if jit:  # whether pages are writable or executable is set for each thread
        system.pthread_jit_write_protect_np(0)
        ctypes.memmove(start, code, len(code))
        system.pthread_jit_write_protect_np(1)
        system.sys_icache_invalidate(ctypes.c_void_p(start), ctypes.c_size_t(len(code)))
    else:
        memory[: len(code)] = code
        # The Linux kernel synchronises the caches when a page becomes executable.
        if system.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC):
            number = ctypes.get_errno()
            raise OSError(number, f"memory for compiled code cannot be made executable: {os.strerror(number)}")
    _kept.append(memory)
    return start


def map_file(path: Path) -> tuple[int, memoryview]:
    """Return the address at which a file is mapped, ready to run and shared by all processes.

    Raises
    ------
    OSError
        If the file cannot be read, or the system forbids running code from its location.
    """
    if sys.platform != "linux":
        content = path.read_bytes()
        return place(content), memoryview(content)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    _kept.append(memory)
    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0]), memoryview(memory)


def _place_windows(code: bytes) -> int:
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    size = ctypes.c_size_t(len(code))
    start = kernel.VirtualAlloc(None, size, COMMIT_RESERVE, READ_WRITE)
    if not start:
        raise OSError("Windows gave no memory for compiled code")
    ctypes.memmove(start, code, len(code))
    old = ctypes.c_ulong()
    if not kernel.VirtualProtect(ctypes.c_void_p(start), size, EXECUTE_READ, ctypes.byref(old)):
        raise OSError("Windows does not make memory for compiled code executable")
    kernel.FlushInstructionCache(ctypes.c_void_p(-1), ctypes.c_void_p(start), size)
    return int(start)


@cache
def _system() -> Any:
    return ctypes.CDLL(None, use_errno=True)
