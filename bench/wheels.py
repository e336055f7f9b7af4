"""Two wheels against each other in one run, and the first against itself, so that the noise is known.

Each wheel is installed into a folder of its own, the first one twice. A round starts a process for each of the three;
they take turns, a sample of a few milliseconds each, in an order that changes from turn to turn, and while one computes
the others wait for their input. Every turn gives a ratio of the second wheel to the first, and one of the first to
itself. New processes in each round, because where memory happens to lie can make one faster than another by percents.

Rows that begin with "start" are processes from the import to the first result: "cold" with an empty cache folder, so
that it compiles, "warm" with the one that this filled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import GRID, Case
from bench.summary import geometric_mean, time_text

__all__ = ["Row", "Settings", "measure", "render", "slower"]

ROOT = Path(__file__).parents[1]
SIDES = ("before", "after", "again")
"""The two wheels, and the first one once more."""
ORDERS = tuple(tuple(permutations(SIDES))[i] for i in (0, 3, 4, 1, 2, 5))
"""Three orders in a row put each side in each place once: who starts first finds files unread."""
START = Case("sequence", "LSTM", 100, 1, 64, 128)
SAMPLE = 0.01
LEAST_TURNS = 5
"""Fewer have no spread to speak of: such a row is shown, and not judged."""


@dataclass(frozen=True)
class Settings:
    """What is compared, how often, and where compiled code is kept.

    Attributes
    ----------
    cells : str
        A regular expression that the rows' names match.
    threads : sequence of int
    rounds, turns, cold : int
        Rounds of new processes, turns of each cell in a round, rounds in which all is compiled anew.
    cache : path or None
        A folder that keeps compiled code from one comparison to the next; None for one that is thrown away.
    """

    cells: str = ""
    threads: Sequence[int] = (1,)
    rounds: int = 5
    turns: int = 12
    cold: int = 3
    cache: Path | None = None


@dataclass
class Row:
    """The seconds of each side, turn by turn, and whether both wheels give the same bits (None if nobody asked)."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    same_bits: bool | None = None

    def ratio(self, side: str) -> tuple[float, float, float]:
        """Return the median of a side's time over the first wheel's in the same turn, and the quartiles."""
        each = np.array(self.seconds[side]) / np.array(self.seconds["before"])
        low, middle, high = np.percentile(each, (25, 50, 75))
        return float(middle), float(low), float(high)


def measure(before: Path, after: Path, settings: Settings) -> list[Row]:
    """Install both wheels, measure every row and return them; progress goes to stderr."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sides = {
            side: _installed(wheel, scratch / side, settings.cache or scratch)
            for side, wheel in zip(SIDES, (before, after, before), strict=True)
        }
        cells = [(f"{case.name}, {_threads(n)}", case, n) for n in settings.threads for case in GRID]
        cells = [cell for cell in cells if re.search(settings.cells, cell[0])]
        rows = {name: Row(name) for name, *_ in cells}
        told = {name: _written(case, threads, scratch) for name, case, threads in cells}
        for number in range(settings.rounds if cells else 0):
            print(f"round {number + 1} of {settings.rounds}: {len(cells)} cells", file=sys.stderr)
            with _workers(sides) as workers:
                for name, row in rows.items():
                    _turns(workers, told[name], row, settings.turns, number)
        return list(rows.values()) + _starts(sides, settings, scratch)


def render(rows: Sequence[Row]) -> str:
    """Return a line a row: both times, their ratio with quartiles, and that of the first wheel to itself."""
    wide = max(len(row.name) for row in rows)
    lines = [f"{'':{wide}}     before      after  after/before (quartiles)   before/before (quartiles)"]
    for row in rows:
        times = (time_text(1e6 * float(np.median(row.seconds[side]))) for side in ("before", "after"))
        ratios = ("{:.3f} ({:.3f} to {:.3f})".format(*row.ratio(side)) for side in ("after", "again"))
        notes = ["other bits"] * (row.same_bits is False)
        lines.append(
            "  ".join([f"{row.name:{wide}}", *(f"{t:>9}" for t in times), *(f"{r:>24}" for r in ratios), *notes])
        )
    for title, group in _groups(rows).items():
        after, again = _means(group)
        lines.append(f"{title}: geometric mean of {len(group)}: after/before {after:.4f}, before/before {again:.4f}")
    return "\n".join(lines)


def slower(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Return what got slower by more than `tolerance`, and by more than the first wheel differs from itself."""
    rows = [row for row in rows if len(row.seconds["before"]) >= LEAST_TURNS]
    found = []
    for title, group in _groups(rows).items():
        after, again = _means(group)
        found += [f"the geometric mean of the {title}"] if after > max(1.0, again) * (1 + tolerance) else []
    for row in rows:
        if row.ratio("after")[1] > max(1 + tolerance, row.ratio("again")[2]):
            found.append(row.name)
    return found


def _means(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the geometric means of after/before and of before/before."""
    after, again = (geometric_mean(row.ratio(side)[0] for row in rows) for side in ("after", "again"))
    return after or 1.0, again or 1.0


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return cells and starts apart: a mean over both would say nothing."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault("starts" if row.name.startswith("start") else "cells", []).append(row)
    return groups


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


# ---------------------------------------------------------------- processes


def _installed(wheel: Path, folder: Path, caches: Path) -> dict[str, str]:
    """Install a wheel into the folder and return the environment of its processes."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    if subprocess.run([*command, "--disable-pip-version-check", str(wheel)]).returncode:
        raise SystemExit(f"pip could not install {wheel}; what it said is above.")
    content = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    # One cache for equal wheels, so that the first is not compiled twice.
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "FASTLSTM_CACHE_DIR": str((caches / f"cache-{content}").resolve()),
    }


def _command(environment: Mapping[str, str]) -> dict[str, Any]:
    # Started in the wheel's folder: there Python looks first.
    folder = environment["PYTHONPATH"].split(os.pathsep)[0]
    return {"env": environment, "cwd": folder, "text": True, "stdout": subprocess.PIPE}


@contextmanager
def _workers(sides: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "bench.wheel_worker"]
    workers = {s: subprocess.Popen(command, stdin=subprocess.PIPE, **_command(env)) for s, env in sides.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def _ask(side: str, worker: subprocess.Popen[str], **told: Any) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps(told) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise SystemExit(f"The process of the wheel '{side}' ended; what it said is above.")
    found: dict[str, Any] = json.loads(answer)
    return found


def _turns(
    workers: Mapping[str, subprocess.Popen[str]], told: dict[str, Any], row: Row, turns: int, number: int
) -> None:
    """Add a round's turns to the row; all sides make as many calls, and each follows each of the others equally."""
    opened = {side: _ask(side, worker, do="open", sample=SAMPLE, **told) for side, worker in workers.items()}
    row.same_bits = opened["before"]["bits"] == opened["after"]["bits"]
    calls = opened["before"]["calls"]
    for turn in range(turns):
        for side in ORDERS[(turn + number) % len(ORDERS)]:
            row.seconds[side].append(_ask(side, workers[side], do="time", calls=calls)["seconds"])


def _starts(sides: Mapping[str, dict[str, str]], settings: Settings, scratch: Path) -> list[Row]:
    """Return the rows of new processes: with an empty cache folder each, and with what that one holds then."""
    rows = [Row(f"start, {kind}: {START.name}, 1 thread") for kind in ("cold", "warm")]
    wanted = [row for row in rows if re.search(settings.cells, row.name)]
    if not wanted or settings.cold < 1:
        return []
    told = json.dumps(_written(START, 1, scratch))
    for number in range(settings.cold):
        print(f"start {number + 1} of {settings.cold}", file=sys.stderr)
        caches = {side: str(scratch / f"cold-{side}-{number}") for side in SIDES}
        for row in rows:
            for side in ORDERS[number % len(ORDERS)]:
                command = [sys.executable, "-m", "bench.wheel_worker", told]
                environment = sides[side] | {"FASTLSTM_CACHE_DIR": caches[side]}
                done = subprocess.run(command, **_command(environment))
                if done.returncode:
                    raise SystemExit(f"The process of the wheel '{side}' failed; what it said is above.")
                row.seconds[side].append(json.loads(done.stdout)["seconds"])
    return wanted


def _written(case: Case, threads: int, scratch: Path) -> dict[str, Any]:
    """Write a case's model and input; return what a worker is told of them."""
    from bench.onnx_models import recurrent_model

    stem = scratch / re.sub(r"\W+", "_", case.name)
    model, options = stem.with_suffix(".onnx"), {}
    if case.projection:
        from safetensors.numpy import save_file

        model, options = stem.with_suffix(".safetensors"), {"batch_first": False}
        save_file(case.state_dict(), str(model))
    else:
        model.write_bytes(recurrent_model(case).SerializeToString())
    np.save(stem.with_suffix(".npy"), case.x())
    kind = case.group if case.group in ("step", "states") else "call"
    files = {"model": str(model), "x": str(stem.with_suffix(".npy"))}
    return files | {"kind": kind, "threads": threads, "options": options}
