"""``python -m bench``: fastlstm beside its peers on this machine."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import page, publish, table
from bench.peers import ENGINES
from fastlstm.reporting import benchmark
from fastlstm.target.machine import cores, detect, processor_name

RESULTS = Path(__file__).parent / "results"
SECTIONS = ("grid", "sweeps", "stream", "manners", "start")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON and the page; return the exit status."""
    options = _parser().parse_args(argv)
    data = run(options)
    print(table.render(data))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(data, indent=1) + "\n")
    options.html.parent.mkdir(parents=True, exist_ok=True)
    options.html.write_text(page.render(data))
    if options.publish:
        publish.REFERENCE.write_text(json.dumps(data, separators=(",", ":")) + "\n")  # half the bytes, and one line
        return publish.main([])
    print(f"wrote {options.json} and {options.html}", file=sys.stderr)
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure in one process for each thread count, one after the other, and return everything as data."""
    runs = [_run_worker(options, threads) for threads in options.threads]
    return {
        "format": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_data(),
        "options": {"quick": options.quick, "cells": options.cells, "seconds": options.seconds},
        "runs": runs,
    }


def machine_data() -> dict[str, Any]:
    """Return what the numbers depend on: processor, caches, and the system's settings."""
    machine = detect()
    return {
        "processor": processor_name() or machine.cpu,
        "target": machine.cpu,
        "isa": machine.isa,
        "cores": cores(),
        "cache_bytes": {"L1": machine.l1_bytes, "L2": machine.l2_bytes, "L3": machine.l3_bytes},
        **benchmark.settings(),
    }


def _run_worker(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    wanted = {
        "threads": threads,
        "quick": options.quick,
        "cells": options.cells,
        "seconds": options.seconds,
        "engines": options.engines,
        "sections": [s for s in options.sections if not (options.quick and s == "sweeps")],
    }
    # XLA's CPU client reads NPROC, OpenBLAS (in the oracle) its own variable, both when they start.
    environment = os.environ | {"NPROC": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "bench.worker", json.dumps(wanted), str(result)]
        if subprocess.run(command, env=environment).returncode:
            raise SystemExit(f"The process that measures {threads} thread(s) failed; what it said is above.")
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def _parser() -> argparse.ArgumentParser:
    names = [engine.name for engine in ENGINES]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cells of each kind: about two minutes")
    parser.add_argument("--threads", type=list_of(count), default=[1, 2], help="thread counts (default: 1,2)")
    parser.add_argument("--cells", type=pattern, default="", metavar="PATTERN", help="only rows whose name matches")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each cell (default: 3)")
    parser.add_argument("--engines", type=list_of(_one_of(names)), default=names, help=f"of {','.join(names)}")
    parser.add_argument(
        "--sections", type=list_of(_one_of(SECTIONS)), default=SECTIONS, help=f"of {','.join(SECTIONS)}"
    )
    parser.add_argument(
        "--publish", action="store_true", help="also make it the reference: results/reference.json, README, site"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "latest.local.json", metavar="FILE")
    parser.add_argument("--html", type=Path, default=RESULTS / "latest.local.html", metavar="FILE")
    return parser


def list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return what reads a list with commas between its parts."""

    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return read


def count(text: str) -> int:
    """Read a positive integer."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected positive integers, as in 1,2; got '{text}'")
    return int(text)


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(names)}")
        return text

    return read


def pattern(text: str) -> str:
    """Read a regular expression, which stays text."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no regular expression: {error}") from None
    return text


if __name__ == "__main__":
    sys.exit(main())
