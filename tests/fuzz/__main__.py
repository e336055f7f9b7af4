"""``python -m fuzz``: mutated model files of every format, in child processes with bounded memory and time."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import child, mutate, seeds

LOAD_SECONDS, RUN_SECONDS = 10.0, 60.0  # a run may compile kernels of new sizes
PATIENCE = 30  # times as long for a child that waits and does not compute
MOST_KEPT = 3000  # bytes of a file in the corpus
PER_CHILD = 2000  # seeds; a new process then has its memory anew


@dataclass
class Report:
    """What came of the seeds tried so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    sentences: dict[str, int] = field(default_factory=dict)
    """The first seed of each sentence that refused a file, apart from names and numbers."""

    def take(self, seed: int, kind: str, text: str) -> None:
        """Count a seed, and print it if something is wrong."""
        self.kinds[kind] += 1
        if kind == "refused":
            self.sentences.setdefault(re.sub(r"'[^']*'|\[[^]]*\]|[\w./]*\d[\w./]*", "", text)[:90], seed)
        if kind not in ("model", "refused"):
            where = f"{kind}: {text.split(': ')[0]}"
            self.places[where] += 1
            if self.places[where] <= 5:
                print(f"seed {seed}: {kind}: {text}", flush=True)

    @property
    def failures(self) -> int:
        """How many seeds ended in anything but a model or a refusal."""
        return sum(n for kind, n in self.kinds.items() if kind not in ("model", "refused"))


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has had, inf where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_child(folder: Path, first: int, count: int, report: Report) -> int:
    """Run seeds in one child until it is through or has to be stopped; return how many are done."""
    command = [sys.executable, "-m", "fuzz.child", str(folder), str(first), str(count), "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    done, doing, limit, rest, since = 0, "start", 60.0, b"", 0.0
    while True:
        # A child that got no processor (it was stopped, or others were busy) is waited for longer.
        for _ in range(PATIENCE):
            ready = selector.select(timeout=limit)
            if ready or not processor_seconds(process.pid) - since <= limit / 2:
                break
        chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            word, _, text = line.decode(errors="replace").partition(" ")
            if word == "done":
                seed, kind, what = (*text.split(" ", 2), "")[:3]
                report.take(int(seed), kind, what)
                done += 1
            doing, limit = word, RUN_SECONDS if word == "run" else LOAD_SECONDS
        since = processor_seconds(process.pid)
    if process.poll() is None and not ready:
        process.kill()
        process.wait()
        report.take(first + done, "hang", f"{doing} took more than {limit:.0f} s")
        return done + 1
    code = process.wait()
    if done < count:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        report.take(first + done, "crash", f"{name} during {doing}")
        return done + 1
    return done


def grow(report: Report, files: Sequence[Path], count: int) -> None:
    """Add files to the corpus that were refused by sentences which no file in it is refused by."""
    known = set()
    with tempfile.TemporaryDirectory() as name:
        for path in seeds.CORPUS.iterdir() if count else ():
            held = Report()
            held.take(0, *child.judged(path.read_bytes(), path.name, Path(name)))
            known.update(held.sentences)
    for sentence, seed in report.sentences.items():
        file, content = mutate.draw(seed, files)
        if count and sentence not in known and len(content) <= MOST_KEPT and mutate.is_changeable(file, content):
            (seeds.CORPUS / f"{hashlib.sha256(content).hexdigest()[:10]}{Path(file).suffix}").write_bytes(content)
            count -= 1


def main() -> int:
    """Run the fuzzer; return 1 if it found anything."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--count", type=int, help="stop after so many files (default 2000 if no minutes are given)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first file; each has the number of the one before + 1"
    )
    parser.add_argument("--grow", type=int, default=0, help="put so many files into the corpus")
    parser.add_argument("--keep", type=Path, help="write the file of --seed into this folder and stop")
    given = parser.parse_args()
    count = given.count or (2000 if given.minutes is None else 1 << 60)
    end = time.monotonic() + 60 * given.minutes if given.minutes is not None else float("inf")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        (folder / "good").mkdir()
        seeds.write_all(folder / "good")
        if given.keep is not None:
            file, content = mutate.draw(given.seed, sorted((folder / "good").iterdir()))
            (given.keep / f"{given.seed}-{file}").write_bytes(content)
            print(f"{given.keep / f'{given.seed}-{file}'}: {len(content)} bytes")
            return 0
        report, at, last = Report(), given.seed, time.monotonic()
        while at < given.seed + count and time.monotonic() < end:
            at += run_child(folder, at, min(PER_CHILD, given.seed + count - at), report)
            if time.monotonic() - last > 60:
                last = time.monotonic()
                print(f"... seed {at}: {dict(report.kinds)}", flush=True)
        grow(report, sorted((folder / "good").iterdir()), given.grow)
    print(f"{at - given.seed:,} files from seed {given.seed} on: {dict(report.kinds)}")
    for place, times in report.places.most_common():
        print(f"  {times:6} {place}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
