"""Tables, JSON and progress on the terminal."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Progress", "print_json", "table"]


class Progress:
    """A line on stderr, only where a person looks at it and only when the work takes more than a second.

    A long call into compiled code shows as time that passes; work in parts shows how far it is.
    """

    def __init__(self, what: str, total: int) -> None:
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
            text = f"\r{self._done:,} of {self._total:,} {self._what}, {seconds} s"
            print(text, end="", file=sys.stderr, flush=True)
        if seconds:
            print(file=sys.stderr)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    number = [bool(rows) and isinstance(rows[0].get(c), (int, float)) for c in columns]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, number, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(columns)), line(["-" * w for w in widths]), *map(line, cells)])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=2))
