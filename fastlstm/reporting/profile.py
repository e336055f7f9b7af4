"""What each layer of a model takes: `Model.profile`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fastlstm.errors import InputError
from fastlstm.reporting.picture import shares_svg
from fastlstm.reporting.tables import time_text
from fastlstm.runtime.clock import OUTSIDE, Clock

__all__ = ["Profile", "Row", "measure"]

BAR = 24  # characters
ROUNDS, LEAST = 9, 3  # medians of so many: one pause of the process is in one round


class Row(NamedTuple):
    """What one kernel of one layer takes.

    Attributes
    ----------
    layer : str
        The layer's name in the model; "" for what belongs to none.
    kernel : str
    seconds : float
        Per call, the median of several rounds.
    share : float
        Of the call.
    """

    layer: str
    kernel: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where a call's time goes. Prints as a table; notebooks show a picture.

    Attributes
    ----------
    rows : tuple of Row
        In the order in which the layers run.
    seconds : float
        Per call, the sum of all rows; reading the clock is included.
    calls : int
        How many were measured.
    inputs : str
        Names and shapes of what was measured.
    """

    rows: tuple[Row, ...]
    seconds: float
    calls: int
    inputs: str

    def layers(self) -> dict[str, float]:
        """Return the share of each layer, "" for what belongs to none."""
        found: dict[str, float] = {}
        for row in self.rows:
            found[row.layer] = found.get(row.layer, 0.0) + row.share
        return found

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        rows = [row._asdict() for row in self.rows]
        return {"inputs": self.inputs, "calls": self.calls, "seconds": self.seconds, "rows": rows}

    def svg(self) -> str:
        """Return a picture: the call, its layers, their kernels, each as wide as its share."""
        return shares_svg([(row.layer or "(none)", row.kernel, row.share) for row in self.rows], self._title())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture; `path` ends in ``.svg``.

        Raises
        ------
        InputError
            If it ends otherwise.
        """
        if not os.fspath(path).endswith(".svg"):
            raise InputError(f"'{os.fspath(path)}': expected a file ending in .svg.")
        Path(path).write_text(self.svg(), encoding="utf-8")

    def _title(self) -> str:
        return f"{time_text(self.seconds)} a call, over {self.calls:,} calls; {self.inputs}"

    def __str__(self) -> str:
        wide = [max(len(row[i]) for row in [*self.rows, ("layer", "kernel")]) for i in (0, 1)]  # type: ignore[arg-type]
        lines = [self._title(), f"{'layer':<{wide[0]}}  {'kernel':<{wide[1]}}  {'time':>9}  share"]
        for row in self.rows:
            bar = "█" * round(BAR * row.share)
            time_of = f"{time_text(row.seconds):>9}  {100 * row.share:4.1f} %  {bar}"
            lines.append(f"{row.layer:<{wide[0]}}  {row.kernel:<{wide[1]}}  {time_of}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Profile: {time_text(self.seconds)} a call, {len(self.layers())} layers>"

    def _repr_html_(self) -> str:
        return f"<figure>{self.svg()}<figcaption><pre>{escape(str(self))}</pre></figcaption></figure>"


def measure(
    call: Callable[[], object], clock: Clock, seconds: float, inputs: str, layers: Sequence[str] = ()
) -> Profile:
    """Return the profile of a call whose programs tell `clock`; the call is repeated for so many seconds.

    `layers` are the names of all layers in the order in which they run.
    """
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise InputError(f"seconds should be above zero; got {seconds!r}.")
    for _ in range(3):  # the first compiles or records, the second may make what is kept
        call()
    begin, calls = time.perf_counter(), 0
    rounds: list[dict[tuple[str, str], float]] = []
    while len(rounds) < LEAST or (len(rounds) < ROUNDS and time.perf_counter() - begin < seconds):
        times, count = _round(call, clock, seconds / ROUNDS)
        rounds.append(times)
        calls += count
    keys = dict.fromkeys(key for times in rounds for key in times)
    each = {key: median(times.get(key, 0.0) for times in rounds) for key in keys}
    total = sum(each.values())
    rows = [Row(*key, spent, spent / total) for key, spent in each.items() if spent]
    places = {layer: number for number, layer in enumerate(layers)}
    # What belongs to no layer comes last.
    rows.sort(key=lambda row: (not row.layer, places.get(row.layer, len(places))))
    return Profile(tuple(rows), total, calls, inputs)


def _round(call: Callable[[], object], clock: Clock, seconds: float) -> tuple[dict[tuple[str, str], float], int]:
    """Return the seconds that each kernel takes in a call, and how many calls there were."""
    clock.start()
    begin, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds or not calls:
        call()
        calls += 1
    clock.note(*OUTSIDE)
    ticks = clock.ticks()
    total = sum(ticks.values())
    if not total:
        raise InputError(f"The processor ({clock.target.name}) has no clock that kernels can read.")
    return {key: spent / calls * count / total for key, count in ticks.items()}, calls
