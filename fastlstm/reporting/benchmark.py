"""Timing: how long calls take, in one process, beside one another, and how that is spread.

`time_calls` times one callable; `compare` several, interleaved and in turns, so that drift of the machine
meets all alike; `histogram` and `plot_histogram` draw a distribution. Times include reading the clock
twice, about 0.05 µs a call; where that matters, `calls` times groups of calls.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import DependencyError, InputError
from fastlstm.reporting.picture import histogram_svg
from fastlstm.reporting.tables import time_text

__all__ = ["Contest", "Timing", "compare", "histogram", "histogram_picture", "plot_histogram", "settings", "time_calls"]

Seconds = npt.NDArray[np.float64]
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """How long each call of one callable took.

    Attributes
    ----------
    name : str
    seconds : float64 array [calls]
        Wall time of each call, in the order they were made.
    cpu_seconds : float
        CPU time of the whole process per call: more than the wall time where several threads work or spin.
    steps : int
        Time steps that one call covers.
    """

    name: str
    seconds: Seconds
    cpu_seconds: float
    steps: int = 1

    def quantile(self, q: float) -> float:
        """Return the wall time in seconds that a share `q` of the calls stayed within."""
        return float(np.quantile(self.seconds, q))

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return self.quantile(0.5)

    @property
    def p99(self) -> float:
        """Seconds that 99 of 100 calls stayed within."""
        return self.quantile(0.99)

    @property
    def p999(self) -> float:
        """Seconds that 999 of 1000 calls stayed within."""
        return self.quantile(0.999)

    @property
    def max(self) -> float:
        """Seconds of the slowest call."""
        return float(self.seconds.max())

    @property
    def per_step(self) -> float:
        """Median seconds of one time step."""
        return self.median / self.steps

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data, times in seconds."""
        return {
            "name": self.name,
            "calls": len(self.seconds),
            "steps_per_call": self.steps,
            "median": self.median,
            "p99": self.p99,
            "p99.9": self.p999,
            "max": self.max,
            "per_step": self.per_step,
            "steps_per_second": self.steps / self.median,
            "cpu_per_call": self.cpu_seconds,
        }


@dataclass(frozen=True)
class Contest:
    """Several callables timed in turns.

    Attributes
    ----------
    timings : mapping of str to Timing
    rounds : mapping of str to float64 array [rounds]
        Median seconds of each round.
    """

    timings: Mapping[str, Timing]
    rounds: Mapping[str, Seconds]

    def ratio(self, name: str, to: str) -> float:
        """Return how many times the time of `to` goes into that of `name`: median of the rounds' ratios."""
        return float(np.median(self.rounds[name] / self.rounds[to]))

    def as_data(self, to: str) -> dict[str, Any]:
        """Return the figures as plain data, with every callable's ratio to `to` in each round."""
        return {
            name: {
                **timing.as_data(),
                "ratio": self.ratio(name, to),
                "ratio_per_round": (self.rounds[name] / self.rounds[to]).tolist(),
            }
            for name, timing in self.timings.items()
        }


@dataclass
class _Record:
    """The samples of one callable so far."""

    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    calls: int = 0


def time_calls(
    function: Call,
    *,
    name: str = "",
    steps: int = 1,
    seconds: float = 1.0,
    min_samples: int = 20,
    max_samples: int = 1_000_000,
    warmup: int = 3,
    calls: int = 1,
) -> Timing:
    """Return how long `function` takes.

    Parameters
    ----------
    function : callable
        Takes no arguments.
    name : str
    steps : int
        Time steps that one call covers.
    seconds : float
        Go on until this much time has passed, but at least `min_samples`, at most `max_samples`.
    warmup : int
        Calls made first and not counted.
    calls : int
        Calls timed together as one sample; their mean is the sample.
    """
    for _ in range(warmup):
        function()
    record = _Record()
    _sample(function, record, seconds, min_samples, max_samples, calls)
    return _timing(name, record, steps)


def compare(
    runnables: Mapping[str, Call],
    *,
    steps: int = 1,
    rounds: int = 9,
    round_seconds: float = 0.1,
    warmup: int = 3,
) -> Contest:
    """Time several callables in turns: A B C, B C A, C A B, and so on.

    Everyone runs once in every round, each time after another one, so that nobody always finds the caches
    as it left them, or always as the same neighbour left them. Calls under 20 µs are timed in groups, so
    that reading the clock costs under 1 %.

    Parameters
    ----------
    runnables : mapping of str to callable
    steps : int
        Time steps that one call covers.
    rounds : int
    round_seconds : float
        Time for each callable in each round.
    warmup : int
        Calls of each made first and not counted.
    """
    groups: dict[str, int] = {}
    for name, function in runnables.items():
        for _ in range(max(warmup, 1)):
            begin = time.perf_counter()
            function()
            last = time.perf_counter() - begin
        groups[name] = max(1, math.ceil(20e-6 / max(last, 1e-7)))
    records = {name: _Record() for name in runnables}
    medians: dict[str, list[float]] = {name: [] for name in runnables}
    order = list(runnables)
    for turn in range(rounds):
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            runnables[name]()  # brings its own code and weights back
            before = len(records[name].seconds)
            _sample(runnables[name], records[name], round_seconds, 3, 100_000, groups[name])
            medians[name].append(float(np.median(records[name].seconds[before:])))
    return Contest(
        {name: _timing(name, record, steps) for name, record in records.items()},
        {name: np.array(values) for name, values in medians.items()},
    )


def _sample(function: Call, record: _Record, seconds: float, least: int, most: int, calls: int) -> None:
    clock, samples = time.perf_counter, record.seconds
    taken = 0
    cpu = time.process_time()
    end = clock() + seconds
    while taken < most:
        begin = clock()
        for _ in range(calls):
            function()
        now = clock()
        samples.append((now - begin) / calls)
        taken += 1
        if now >= end and taken >= least:
            break
    record.cpu += time.process_time() - cpu
    record.calls += taken * calls


def _timing(name: str, record: _Record, steps: int) -> Timing:
    return Timing(name, np.array(record.seconds), record.cpu / record.calls, steps)


def settings() -> dict[str, Any]:
    """Return what a figure depends on beside the code: processor, affinity, thread variables, versions."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    variables = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("OMP_", "MKL_", "OPENBLAS_", "KMP_", "NUMBA_NUM", "FASTLSTM_"))
    }
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "affinity": affinity,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "variables": variables,
    }


def _bins(timing: Timing, count: int) -> tuple[npt.NDArray[np.int64], Seconds]:
    """Return counts and edges, equally spaced in the logarithm: the tail is what matters."""
    low, high = float(timing.seconds.min()), timing.max
    edges = np.geomspace(max(low, 1e-9), max(high, low * 1.01, 1.1e-9), count + 1)
    counts, _ = np.histogram(np.clip(timing.seconds, edges[0], edges[-1]), edges)
    return counts, edges


def histogram(timing: Timing, bins: int = 16, width: int = 50) -> str:
    """Return the distribution as text: one line a bin, bars in proportion to the logarithm of the count.

    Bins are equally spaced in the logarithm of the time, and a bin with a single call still shows.
    """
    counts, edges = _bins(timing, bins)
    scale = width / math.log1p(int(counts.max()))
    return "\n".join(
        f"{time_text(edges[i]):>10} – {time_text(edges[i + 1]):>10}  {count:8d}  "
        f"{'█' * math.ceil(math.log1p(int(count)) * scale)}".rstrip()
        for i, count in enumerate(counts)
    )


def histogram_picture(timing: Timing, title: str = "", marks: Mapping[str, float] | None = None) -> str:
    """Return the distribution as SVG; `marks` are further times to draw, in seconds, by name: a deadline."""
    lines = {"p50": timing.median, "p99": timing.p99, "p99.9": timing.p999, "max": timing.max, **(marks or {})}
    counts, edges = _bins(timing, 80)
    return histogram_svg(
        [int(n) for n in counts], [float(e) * 1e6 for e in edges], {n: 1e6 * v for n, v in lines.items()}, title
    )


def plot_histogram(
    timing: Timing, path: str | os.PathLike[str], title: str = "", marks: Mapping[str, float] | None = None
) -> None:
    """Draw the distribution into a picture file, whose suffix says the format: .svg, or what matplotlib knows.

    `marks` are further times to draw, in seconds, by name: a deadline.

    Raises
    ------
    DependencyError
        If matplotlib is not installed, for another suffix than .svg.
    InputError
        If matplotlib does not know the suffix.
    """
    if str(path).endswith(".svg"):
        Path(path).write_text(histogram_picture(timing, title, marks), encoding="utf-8")
        return
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError.missing("matplotlib", "cli", "Drawing a histogram") from error
    counts, edges = _bins(timing, 80)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, edges * 1e6, fill=True)
    lines = {"p50": timing.median, "p99": timing.p99, "p99.9": timing.p999, **(marks or {})}
    for label, value in lines.items():
        axes.axvline(value * 1e6, linewidth=0.8, linestyle="--", color="black")
        axes.text(value * 1e6, 0.97, f" {label}", transform=axes.get_xaxis_transform(), va="top")
    axes.set(xscale="log", yscale="log", ylim=(0.5, None), xlabel="µs per call", ylabel="calls", title=title)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(f"The picture {path} cannot be drawn: {error}.") from error
