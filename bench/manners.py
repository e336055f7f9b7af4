"""How an engine behaves towards its neighbours: among busy processes, and after its work is done."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.cases import Case
from bench.measure import Budget, measure
from bench.peers import Call, Engine

CASE = Case("sequence", "LSTM", 100, 1, 256, 256)
BUSY_PROCESSES = 3


def rows(threads: int, engines: list[Engine]) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the rows of this section: their names and what measures them."""
    name = f"{BUSY_PROCESSES} busy processes beside, and idle after, {CASE.name}"
    return [(name, lambda: _manners(name, threads, engines))]


def _manners(name: str, threads: int, engines: list[Engine]) -> dict[str, Any]:
    calls = {engine.name: engine.prepare(CASE, threads) for engine in engines}
    alone = measure(calls, Budget())
    with _busy_processes():
        crowded = measure(calls, Budget(seconds=6.0))
    found: dict[str, dict[str, float]] = {}
    for engine_name, call in calls.items():
        quiet, loud = alone[engine_name].summary(), crowded[engine_name].summary()
        found[engine_name] = {
            "alone_us": quiet["median_us"],
            "crowded_us": loud["median_us"],
            "growth": loud["median_us"] / quiet["median_us"],
            "idle_cpu": _idle_cpu(call),
        }
    return {"name": name, "threads": threads, "engines": found}


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
