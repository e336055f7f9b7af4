"""Progress of a run: rows, rows per second, and the remaining time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

__all__ = ["Progress"]


@dataclass
class Progress:
    """Counters of a run, which its threads add to.

    Attributes
    ----------
    total : int or None
        Rows of the input; None as long as only reading to the end would tell.
    before : int
        Rows of parts that earlier runs wrote.
    scored, rejected : int
        Rows of this run.
    """

    total: int | None = None
    before: int = 0
    scored: int = 0
    rejected: int = 0
    what: str = "rows"
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, scored: int, rejected: int = 0) -> None:
        """Count the rows of a finished piece of work."""
        with self._lock:
            self.scored += scored
            self.rejected += rejected

    @property
    def seconds(self) -> float:
        """The time since the run began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Rows per second of this run."""
        return (self.scored + self.rejected) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None if there is none."""
        done = self.scored + self.rejected
        if self.total is None or not done:
            return None
        return max(0, self.total - self.before - done) / self.rate

    def __str__(self) -> str:
        done = self.before + self.scored + self.rejected
        text = f"{done:,}" if self.total is None else f"{done:,} of {self.total:,}"
        text = f"{text} {self.what}, {self.rate:,.0f}/s"
        left = self.seconds_left
        text += f", {_clock(left)} left" if left is not None else f", {_clock(self.seconds)}"
        return text + (f", {self.rejected:,} rejected" if self.rejected else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
