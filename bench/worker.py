"""The process that measures one thread count: ``python -m bench.worker OPTIONS RESULT``.

A process of its own, because the engines' thread pools and some of their settings last as long as it does.
OPTIONS is JSON (see `bench.__main__`), RESULT the JSON file to write.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import manners, start, streaming
from bench.cases import GRID, QUICK, SWEEPS, Case
from bench.grid import measure_cell
from bench.measure import Budget
from bench.peers import ENGINES, Engine
from bench.roofline import bound, measure_roofline

Result = dict[str, Any]


def main(options: Result, path: Path) -> None:
    """Measure what `options` ask for and write the result to `path`."""
    threads = options["threads"]
    engines = [e for e in ENGINES if e.name in options["engines"] and e.available()]
    roofline = measure_roofline(threads)
    result: Result = {
        "threads": threads,
        "versions": {engine.name: engine.version() for engine in engines},
        "settings": {engine.name: engine.settings(threads) for engine in engines},
        "cells": _cells(options, engines, threads, "grid", QUICK if options["quick"] else GRID),
        "sweeps": _cells(options, engines, threads, "sweeps", SWEEPS),
        "streams": _section(options, threads, "stream", streaming.rows(threads)),
        "manners": _section(options, threads, "manners", manners.rows(threads, engines)),
        "starts": _section(options, threads, "start", start.rows(threads)),
    }
    again = measure_roofline(threads)
    result["roofline"] = _upper(roofline, again)
    for cell in result["cells"] + result["sweeps"]:
        cell["bound_us"] = bound(_case(cell), threads, result["roofline"])
    path.write_text(json.dumps(result))


def _cells(options: Result, engines: list[Engine], threads: int, section: str, cases: Iterable[Case]) -> list[Result]:
    budget = Budget(seconds=options["seconds"])
    rows = [(c.name, lambda c=c: measure_cell(c, threads, engines, budget)) for c in cases]
    return _section(options, threads, section, rows)


def _section(options: Result, threads: int, section: str, rows: list[tuple[str, Callable[[], Result]]]) -> list[Result]:
    """Measure the rows of a section whose names match, telling stderr where we are."""
    if section not in options["sections"]:
        return []
    chosen = [(name, row) for name, row in rows if re.search(options["cells"], name)]
    found = []
    for number, (name, row) in enumerate(chosen, 1):
        label = f"[{threads} thread{'s' * (threads > 1)}] {section} {number}/{len(chosen)}  {name}"
        print(label, file=sys.stderr, end="", flush=True)
        start = time.perf_counter()
        found.append(row())
        print(f"  ({time.perf_counter() - start:.0f} s)", file=sys.stderr)
    return found


def _case(cell: Result) -> Case:
    fields = dict(cell["case"])
    return Case(**{**fields, "lengths": tuple(fields["lengths"])})


def _upper(first: Result, second: Result) -> Result:
    """Return the better of two measurements: the limit is what the machine can do, not what it did once."""
    levels = [max(pair, key=lambda v: v["gbps"]) for pair in zip(first["levels"], second["levels"], strict=True)]
    rates = {name: max(first[name], second[name]) for name in first if name != "levels"}
    return {**rates, "levels": levels}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
