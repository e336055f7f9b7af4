"""JSON and progress on the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import Any

__all__ = ["Progress", "print_json", "show"]


class Progress:
    """A line on stderr, only where a person looks at it and only when the work takes more than a second.

    A long call into compiled code shows as time that passes; work in a known number of parts shows how far it is.
    """

    def __init__(self, what: str, total: int = 0) -> None:
        self._what, self._total, self._done = what, total, 0
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, done: int) -> None:
        """Say how much is done."""
        self._done = min(done, self._total)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        seconds = 0
        while not self._finished.wait(1.0):
            seconds += 1
            how_far = f"{self._done:,} of {self._total:,} " if self._total else ""
            text = f"\r{how_far}{self._what}, {seconds} s"
            print(text, end="", file=sys.stderr, flush=True)
        if seconds:
            print(file=sys.stderr)


def show(found: Any, arguments: argparse.Namespace) -> None:
    """Draw what was measured if ``--plot`` names a file, and print it, as JSON with ``--json``."""
    if arguments.plot:
        found.save(arguments.plot)
    if arguments.json:
        print_json(found.as_data())
    else:
        print(found)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=2))
