"""``python -m bench.compare A.json B.json``: what changed from one result to another."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.peers import OURS
from bench.summary import best_ratio, geometric_mean, median_us, time_text


def main(argv: list[str] | None = None) -> int:
    """Print our time and best ratio in both results for every cell they share; fail if any got slower."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before", type=Path, help="a result that python -m bench wrote (--json)")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--tolerance", type=float, default=0.05, help="growth that is noise (default: 0.05)")
    options = parser.parse_args(argv)
    try:
        before, after = (_cells(json.loads(path.read_text())) for path in (options.before, options.after))
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"expected two results that python -m bench wrote: {error!r}")
    growths, slower = [], 0
    for key in [key for key in before if key in after]:
        old, new = median_us(before[key], OURS), median_us(after[key], OURS)
        if old is None or new is None:
            continue
        growths.append(new / old)
        worse = new / old > 1 + options.tolerance
        slower += worse
        ratio = f"best peer {best_ratio(before[key]) or 0:.2f} -> {best_ratio(after[key]) or 0:.2f}"
        times = f"{time_text(old):>9} -> {time_text(new):>9}  {new / old:5.2f}x"
        print(f"{key:60} {times}  {ratio}{'  slower' if worse else ''}")
    if not growths:
        print("The two results share no measured cell.", file=sys.stderr)
        return 2
    print(f"{len(growths)} cells, geometric mean {geometric_mean(growths):.3f}x, {slower} slower")
    return 1 if slower else 0


def _cells(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{run['threads']} thr  {cell['name']}": cell for run in data["runs"] for cell in run["cells"] + run["sweeps"]
    }


if __name__ == "__main__":
    sys.exit(main())
