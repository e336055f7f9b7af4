"""How an engine behaves among busy processes, after a pause, and when its work is done.

``python -m bench.manners ENGINE THREADS`` measures one engine in a process of its own, as a user would run it: call
after call, alone on the machine and then beside busy processes. The threads of other engines in the same process,
asleep or spinning, would change who gets a processor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bench.cases import Case
from bench.measure import rest
from bench.peers import ENGINES, Call, Engine

CASE = Case("sequence", "LSTM", 100, 1, 256, 256)
BUSY_PROCESSES = 3
ROUNDS, SECONDS = 3, 2.0


def rows(threads: int, engines: list[Engine]) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the rows of this section: their names and what measures them."""
    name = f"{BUSY_PROCESSES} busy processes beside, a pause before, idle after: {CASE.name}"
    return [(name, lambda: _manners(name, threads, engines))]


def _manners(name: str, threads: int, engines: list[Engine]) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
    for _ in range(ROUNDS):
        for engine in rounds:
            command = [sys.executable, "-m", "bench.manners", engine, str(threads)]
            rounds[engine].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    medians = {
        engine: {key: float(np.median([each[key] for each in found])) for key in found[0]}
        for engine, found in rounds.items()
    }
    return {"name": name, "threads": threads, "engines": medians}


def _measure(call: Call) -> dict[str, float]:
    alone = _times(call)
    with _busy_processes():
        crowded = _times(call)
    medians, means = ((float(f(alone)), float(f(crowded))) for f in (np.median, np.mean))
    return {
        "alone_us": medians[0],
        "crowded_us": medians[1],
        "growth": medians[1] / medians[0],
        "alone_mean_us": means[0],
        "crowded_mean_us": means[1],
        "growth_of_mean": means[1] / means[0],
        "after_pause_us": _after_pause(call),
        "idle_cpu": _idle_cpu(call),
    }


def _times(call: Call) -> np.ndarray:
    """Return the microseconds of each call in `SECONDS`."""
    rest()
    for _ in range(10):
        call()
    times, clock = [], time.perf_counter
    end = clock() + SECONDS
    while (start := clock()) < end:
        call()
        times.append(clock() - start)
    return np.array(times) * 1e6


def _after_pause(call: Call) -> float:
    """Return the median microseconds of a call that comes 100 ms after the one before: threads are asleep."""
    times = []
    for _ in range(15):
        time.sleep(0.1)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def _idle_cpu(call: Call) -> float:
    """Return the share of a core that the process uses from 50 to 550 ms after its last call."""
    for _ in range(20):
        call()
    time.sleep(0.05)
    cpu, start = time.process_time(), time.perf_counter()
    time.sleep(0.5)
    return (time.process_time() - cpu) / (time.perf_counter() - start)


@contextmanager
def _busy_processes() -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    engine = next(engine for engine in ENGINES if engine.name == sys.argv[1])
    print(json.dumps(_measure(engine.prepare(CASE, int(sys.argv[2])))))
