"""Forks and locks: a forked child has none of its parent's other threads, so what they hold is held for ever.

A fork waits for imports of this package that another thread has begun: a module that is half imported has a lock too,
which Python does not renew. `fastlstm` imports this module before anything larger.

Code under `undisturbed` is never cut in two by a fork: the fork waits for its end. So it does for LLVM's and Numba's
own locks, which other users of those libraries take too. They are waited for, not renewed in the child, because the
child needs what they guard to be whole. A fork that meets a kernel being compiled takes up to some seconds longer.
"""

from __future__ import annotations

import contextlib
import importlib
import logging  # noqa: F401 (else Numba's import could register its fork hooks between the two calls of ours)
import os
import sys
import threading
from typing import Any

__all__ = ["undisturbed"]

undisturbed = threading.RLock()
"""Held while Numba or LLVM is imported or at work: an import that is half done would block a child as a lock does."""

_taken: list[Any] = []  # by the fork that goes on; guarded by `undisturbed`


def _half_imported(*packages: str) -> list[str]:
    """Return the modules of these packages that are being imported."""
    return [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and getattr(getattr(module, "__spec__", None), "_initializing", False)
    ]


def _wait_for(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):  # who imports it is told
            importlib.import_module(name)  # waits for another thread; what this thread imports itself is not waited for


def _take_all() -> None:
    """Wait for every lock, in the order in which compiling takes them."""
    waited: list[str] = []
    undisturbed.acquire()
    # What is left after waiting is imported by this very thread.
    while (ours := _half_imported("fastlstm")) and ours != waited:
        undisturbed.release()  # the import may need it
        _wait_for(ours)
        waited = ours
        undisturbed.acquire()
    _wait_for(_half_imported("llvmlite", "numba"))
    for module, path in (("numba.core.compiler_lock", "global_compiler_lock"), ("llvmlite.binding.ffi", "lib._lock")):
        lock: Any = sys.modules.get(module)
        for name in path.split("."):
            lock = getattr(lock, name, None)
        if lock is not None:
            lock.__enter__()
            _taken.append(lock)


def _release_all() -> None:
    while _taken:
        _taken.pop().__exit__(None, None, None)
    undisturbed.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
