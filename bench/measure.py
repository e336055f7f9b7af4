"""Timing several engines against one another, so that none gains from its place in the order.

A round times every engine once, and each round starts with the next engine (A B C, B C A, ...). Before an
engine's turn the process comes to rest, so that no other engine's spinning threads are on the cores, and the
engine is called a few times unmeasured, so that its own caches and threads are warm. A sample is a batch of
calls timed as one; short calls are also timed one by one, for the distribution of the latency.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

__all__ = ["Budget", "Samples", "measure", "ratios", "rest"]

Call = Callable[[], Any]


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
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latencies: list[int] = field(default_factory=list)

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
                rest()
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


def rest(longest: float = 0.25) -> None:
    """Wait until the process uses no CPU, at most `longest` seconds.

    onnxruntime's threads spin for up to 80 ms after a call, OpenMP's for about 10 ms.
    """
    for _ in range(int(longest / 0.002)):
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < 0.0004:
            return


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
