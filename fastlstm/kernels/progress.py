"""Progress of compiling kernels: nothing for a second, then the current kernel and how many are left.

On a terminal it is one line, which is erased at the end. Elsewhere it is logged to "fastlstm" as information.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from fastlstm.kernels import cache

__all__ = ["Progress", "say"]

QUIET_SECONDS = 1.0
CLEAR = "\r\033[K"


class Progress:
    """The kernels that are waited for; a terminal shows one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: set[Hashable] = set()
        self._waited = 0.0  # seconds
        self._shown = False

    @contextmanager
    def of(self, kernels: Collection[Any]) -> Iterator[None]:
        """Count kernels that will be waited for."""
        with self._lock:
            self._left.update(kernels)
        try:
            yield
        finally:
            with self._lock:
                self._left.difference_update(kernels)

    @contextmanager
    def at(self, kernel: Any) -> Iterator[None]:
        """Report, if it is time, that this kernel is waited for."""
        started = time.monotonic()
        with self._lock:
            if self._waited >= QUIET_SECONDS:
                self._show(kernel.name, len(self._left - {kernel}))
        try:
            yield
        finally:
            with self._lock:
                self._left.discard(kernel)
                self._waited += time.monotonic() - started
                if self._shown and not self._left:
                    self._shown = False
                    print(end=CLEAR, file=sys.stderr, flush=True)  # noqa: T201

    def _show(self, name: str, left: int) -> None:
        folder = cache.cache_folder()
        kept = f"once: they are kept in {folder}" if folder else "for this process"
        text = f"compiling kernels {kept}; {name}, {left} left"
        if os.environ.get("FASTLSTM_QUIET"):
            return
        if sys.stderr is None or not sys.stderr.isatty():
            logging.getLogger("fastlstm").info("%s", text)
            return
        self._shown = True
        print(end=f"{CLEAR}fastlstm: {text}", file=sys.stderr, flush=True)  # noqa: T201


def say(text: str) -> None:
    """Write a sentence to stderr, unless ``FASTLSTM_QUIET`` is set."""
    if not os.environ.get("FASTLSTM_QUIET"):
        print(f"fastlstm: {text}", file=sys.stderr, flush=True)  # noqa: T201
