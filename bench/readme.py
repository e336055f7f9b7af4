"""``python -m bench.readme [RESULT.json]``: the README's table, generated from a stored result."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.peers import OURS
from bench.summary import best_ratio, geometric_mean, median_us, time_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GROUPS = ("step", "states", "sequence", "long", "batch", "stack", "ragged")


def main(argv: list[str] | None = None) -> int:
    """Put the table between the marks in the README; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", default=ROOT / "bench" / "results" / "reference.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(argv)
    text = options.readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        print(f"{options.readme} should hold one {BEGIN} and, after it, one {END}.", file=sys.stderr)
        return 1
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    options.readme.write_text(f"{before}{BEGIN}\n{render(json.loads(options.result.read_text()))}\n{END}{after}")
    return 0


def render(data: dict[str, Any]) -> str:
    """Return the Markdown table of the main cells: a row a cell, three columns a thread count."""
    machine, runs = data["machine"], data["runs"]
    versions = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    counts = [f"{run['threads']} thread" + "s" * (run["threads"] > 1) for run in runs]
    rows = [["float32", *(t for count in counts for t in (count, "best peer", "ratio"))]]
    rows += [["---", *["---:", "---:", "---:"] * len(runs)]]
    by_name = [{cell["name"]: cell for cell in run["cells"]} for run in runs]
    for name, cell in by_name[0].items():
        if cell["case"]["group"] in GROUPS:
            rows.append([name, *(t for cells in by_name for t in _columns(cells.get(name)))])
    means = [geometric_mean(map(best_ratio, run["cells"])) for run in runs]
    where = f"{machine['processor']} ({machine['isa']}, {machine['cores']} cores), {data['date'][:10]}"
    total = f"geometric mean of all {len(by_name[0])} cells"
    rows.append([total, *(t for mean in means for t in ("", "", f"**{mean:.2f}**" if mean else "–"))])
    return "\n".join(
        [
            f"{where}: {versions}.",
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
