"""What a result says, for whoever shows it: the table, the page and the README."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.peers import ENGINES, OURS

Cell = dict[str, Any]

ORDER = [engine.name for engine in ENGINES]


def where(data: dict[str, Any]) -> str:
    """Return the machine and the day of a result."""
    machine = data["machine"]
    return f"{machine['processor']} ({machine['isa']}, {machine['cores']} cores), {data['date'][:10]}"


def engines(run: dict[str, Any]) -> list[str]:
    """Return the names of the engines that took part, ours first."""
    return [name for name in ORDER if name in run["versions"]]


def median_us(cell: Cell, engine: str) -> float | None:
    """Return an engine's median microseconds, None where it was not timed."""
    value = cell["engines"].get(engine, {}).get("median_us")
    return None if value is None else float(value)


def share_of_bound(cell: Cell, engine: str = OURS) -> float | None:
    """Return the least possible time over the engine's time, None where there is none."""
    time = median_us(cell, engine)
    return None if time is None else float(cell["bound_us"]["total"]) / time


def best_ratio(cell: Cell) -> float | None:
    """Return the best peer's time over ours (median of the rounds' ratios), None if either is missing."""
    value = cell["ratios"].get("best")
    return None if value is None else float(value)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of what is not None."""
    logs = [math.log(v) for v in values if v is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def cells_below_goal(run: dict[str, Any]) -> list[Cell]:
    """Return the cells whose best ratio is less than their goal."""
    return [c for c in run["cells"] if (r := best_ratio(c)) is not None and r < c["goal"]]


def rest_text(run: dict[str, Any]) -> str:
    """Return how long was waited for other threads to sleep, over all rows, "" where the result does not say."""
    rows = run["cells"] + run["sweeps"] + run["streams"]
    rests = [row["rest"] for row in rows if row.get("rest", {}).get("turns")]
    if not rests:
        return ""
    medians = sorted(rest["median_ms"] for rest in rests)
    turns, unquiet = (sum(rest[key] for rest in rests) for key in ("turns", "unquiet"))
    text = (
        f"before each turn the other threads were waited for: {medians[len(medians) // 2]:.0f} ms in the median row, "
        f"{max(rest['longest_ms'] for rest in rests):.0f} ms at most, {turns} turns"
    )
    return text + (f"; {unquiet} began while a thread still ran" if unquiet else "; all slept then")


def time_text(us: float) -> str:
    """Return microseconds in three digits with a fitting unit."""
    for limit, factor, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms"), (math.inf, 1e6, "s")):
        if us < limit:
            value = us / factor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("unreachable: the last limit is infinite")
