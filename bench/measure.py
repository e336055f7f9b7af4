"""Timing several engines against one another, so that none gains from its place in the order.

A round times every engine once, and each round starts with the next engine (A B C, B C A, ...). Before an
engine's turn the process comes to rest, so that no other engine's spinning threads are on the cores, and the
engine is called a few times unmeasured, so that its own caches and threads are warm. A sample is a batch of
calls timed as one; short calls are also timed one by one, for the distribution of the latency.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Budget", "Rest", "Samples", "measure", "other_threads_run", "ratios", "rest", "rest_summary"]

Call = Callable[[], Any]

TASKS = Path("/proc/self/task")
"""Where Linux lists the threads of a process."""


@dataclass(frozen=True)
class Budget:
    """How long a cell may be measured.

    Attributes
    ----------
    seconds : float
        The time after which no new round is begun, once there are `least_rounds`.
    sample : float
        The least length of a sample in seconds.
    least_rounds, most_rounds : int
    """

    seconds: float = 3.0
    sample: float = 0.004
    least_rounds: int = 5
    most_rounds: int = 25


@dataclass
class Samples:
    """What was measured of one engine: nanoseconds per call.

    Attributes
    ----------
    wall, cpu : list of float
        One entry a round: the sample's wall time and the whole process's CPU time, divided by its calls.
    latencies : list of int
        Calls timed one by one.
    rests : list of Rest
        What came before its turns.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latencies: list[int] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return medians, the tail and the distribution, in microseconds, as JSON-able data."""
        each = np.array(self.latencies) / 1e3
        quantiles = {f"p{q:g}_us": float(np.percentile(each, q)) for q in (1, 10, 25, 50, 75, 90, 99, 99.9)}
        return {
            "median_us": float(np.median(self.wall)) / 1e3,
            "cpu_us": float(np.median(self.cpu)) / 1e3,
            "max_us": float(each.max()),
            "calls": len(each),
            "rounds_us": [round(w / 1e3, 4) for w in self.wall],
            **quantiles,
        }


def measure(calls: Mapping[str, Call], budget: Budget) -> dict[str, Samples]:
    """Time `calls` in interleaved rounds and return the samples of each."""
    batches = {name: _batch(call, budget.sample) for name, call in calls.items()}
    samples = {name: Samples() for name in calls}
    names = list(calls)
    end = time.perf_counter() + budget.seconds
    with _no_collection():
        for number in range(budget.most_rounds):
            if number >= budget.least_rounds and time.perf_counter() > end:
                break
            first = number % len(names)
            for name in names[first:] + names[:first]:
                samples[name].rests.append(rest())
                _sample(calls[name], batches[name], budget.sample, samples[name])
    return samples


def ratios(samples: Mapping[str, Samples], ours: str) -> dict[str, float]:
    """Return the median over the rounds of each peer's time over ours, and "best" for the best peer's."""
    peers = {name: np.array(s.wall) for name, s in samples.items() if name != ours}
    own = np.array(samples[ours].wall)
    found = {name: float(np.median(wall / own)) for name, wall in peers.items()}
    if peers:
        found["best"] = float(np.median(np.min(list(peers.values()), axis=0) / own))
    return found


@dataclass(frozen=True)
class Rest:
    """What came before an engine's turn: the seconds waited, and whether every other thread slept in the end."""

    seconds: float
    quiet: bool


def rest(longest: float = 1.0, fixed: float = 0.2) -> Rest:
    """Wait until every other thread of the process sleeps, at most `longest` seconds.

    onnxruntime's threads spin for up to 80 ms of their own time after a call (170 ms where they share a core), OpenMP's
    for about 10 ms. Linux says which threads run. It is asked for each, because a process's CPU time moves by whole
    ticks on some kernels: over a few milliseconds a spinning thread then seems to use none. Elsewhere the wait is
    `fixed` seconds.
    """
    start = time.perf_counter()
    quiet = 0
    while (elapsed := time.perf_counter() - start) < longest:
        running = other_threads_run()
        if running is None:
            time.sleep(fixed)
            return Rest(time.perf_counter() - start, True)
        quiet = 0 if running else quiet + 1
        if quiet == 2:  # threads are looked at one after the other, and one may have woken another meanwhile
            return Rest(elapsed, True)
        time.sleep(0.001)
    return Rest(elapsed, False)


def other_threads_run() -> bool | None:
    """Return whether another thread of this process runs or waits for a core, None where the system does not say."""
    if not TASKS.is_dir():
        return None
    own = str(threading.get_native_id())
    return any(_state(task) == "R" for task in TASKS.iterdir() if task.name != own)


def _state(task: Path) -> str:
    """Return the letter of a thread's state; "X", as for a dead one, if it has ended meanwhile."""
    try:
        text = (task / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return text.rpartition(")")[2].split()[0]  # the name in brackets may hold spaces and brackets itself


def rest_summary(samples: Mapping[str, Samples]) -> dict[str, Any]:
    """Return how long was waited before the turns, and before how many some thread still ran in the end."""
    rests = [each for found in samples.values() for each in found.rests]
    waited = [1e3 * each.seconds for each in rests]
    return {
        "turns": len(rests),
        "median_ms": float(np.median(waited)) if waited else 0.0,
        "longest_ms": max(waited, default=0.0),
        "unquiet": sum(not each.quiet for each in rests),
    }


def _batch(call: Call, least: float) -> int:
    """Return how many calls last `least` seconds; the call is warm afterwards."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        elapsed = time.perf_counter() - start
        if elapsed >= least / 4:
            return max(1, round(calls * least / elapsed))
        calls *= 4


def _sample(call: Call, batch: int, least: float, samples: Samples) -> None:
    # A call that lasts long warms its caches by itself.
    long = samples.wall and samples.wall[-1] > 10 * least * 1e9
    for _ in repeat(None, 0 if long else max(1, batch // 4)):
        call()
    cpu, start = time.process_time_ns(), time.perf_counter_ns()
    for _ in repeat(None, batch):
        call()
    wall = time.perf_counter_ns() - start
    samples.wall.append(wall / batch)
    samples.cpu.append((time.process_time_ns() - cpu) / batch)
    if batch == 1:
        samples.latencies.append(wall)
        return
    clock = time.perf_counter_ns
    for _ in repeat(None, batch):
        start = clock()
        call()
        samples.latencies.append(clock() - start)


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
