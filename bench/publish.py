"""``python -m bench.publish [RESULT.json]``: the tables and pictures of README and site, made from a stored result."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import site
from bench.peers import OURS
from bench.summary import best_ratio, geometric_mean, median_us, time_text, where

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "bench" / "results" / "reference.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
SHOWN = (
    "step LSTM T=1 B=1 1->20", "step LSTM T=1 B=1 32->64", "step LSTM T=1 B=1 64->256", "states LSTM T=1 B=1 32->64",
    "sequence LSTM T=100 B=1 64->128", "sequence LSTM T=100 B=1 256->256", "sequence LSTM T=100 B=1 1024->1024",
    "long LSTM T=2048 B=1 1->40", "batch LSTM T=100 B=32 256->256", "stack LSTM T=100 B=1 256->256 bidirectional",
    "ragged LSTM T=100 B=32 256->256 ragged",
)  # fmt: skip
"""The cells of README's table; the site has all."""


def main(argv: list[str] | None = None) -> int:
    """Put the table into the README, and page and pictures into the site; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", default=REFERENCE)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(argv)
    return publish(json.loads(options.result.read_text()), options.readme, options.docs)


def publish(data: dict[str, Any], readme: Path, docs: Path) -> int:
    """Write what a result says; return the exit status."""
    if not put_between(readme, BEGIN, END, render(data)):
        return 1
    for old in docs.glob("pictures/bench-*.svg"):
        old.unlink()
    for name, content in site.files(data).items():
        (docs / name).write_text(content)
    return 0


def put_between(readme: Path, begin: str, end: str, content: str) -> bool:
    """Put text between two marks of a file; say so and return False where it has not one of each."""
    text = readme.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        print(f"{readme} should hold one {begin} and, after it, one {end}.", file=sys.stderr)
        return False
    before, rest = text.split(begin)
    readme.write_text(f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}")
    return True


def render(data: dict[str, Any]) -> str:
    """Return the Markdown table of some cells: a row a cell, three columns a thread count."""
    runs = data["runs"]
    versions = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    counts = [f"{run['threads']} thread" + "s" * (run["threads"] > 1) for run in runs]
    rows = [["float32", *(t for count in counts for t in (count, "best peer", "ratio"))]]
    rows += [["---", *["---:", "---:", "---:"] * len(runs)]]
    by_name = [{cell["name"]: cell for cell in run["cells"]} for run in runs]
    for name in by_name[0]:
        if name in SHOWN:
            rows.append([name, *(t for cells in by_name for t in _columns(cells.get(name)))])
    means = [geometric_mean(map(best_ratio, run["cells"])) for run in runs]
    total = f"geometric mean of all {len(by_name[0])} cells"
    rows.append([total, *(t for mean in means for t in ("", "", f"**{mean:.2f}**" if mean else "–"))])
    return "\n".join(
        [
            f"{where(data)}: {versions}.",
            "Median time of a call; all engines in one process, in turns.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _columns(cell: dict[str, Any] | None) -> list[str]:
    """Return our time, the best peer with its time, and the ratio."""
    ours, ratio = (median_us(cell, OURS), best_ratio(cell)) if cell else (None, None)
    if cell is None or ours is None or ratio is None:
        return ["–", "–", "–"]
    times = {name: median_us(cell, name) for name in cell["engines"] if name != OURS}
    time, name = min((time, name) for name, time in times.items() if time is not None)
    return [time_text(ours), f"{time_text(time)} {name}", f"**{ratio:.2f}**"]


if __name__ == "__main__":
    sys.exit(main())
