"""``python -m bench.compare A B``: what changed from one version to another.

Two results that ``python -m bench`` wrote are compared cell by cell, though they are of different hours. Two wheels
are installed and measured against each other in one run (see `bench.wheels`), which can tell 1 % from noise:

    pip wheel --no-deps --wheel-dir before .
    python -m bench.compare before/*.whl after/*.whl --cells 'B=1 ' --threads 1,2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import wheels
from bench.__main__ import count, list_of, pattern
from bench.peers import OURS
from bench.summary import best_ratio, geometric_mean, median_us, time_text

WHEELS = wheels.Settings()


def main(argv: list[str] | None = None) -> int:
    """Print what changed; return 1 if anything got slower by more than the tolerance."""
    parser = _parser()
    options = parser.parse_args(argv)
    kinds = {path.suffix == ".whl" for path in (options.before, options.after)}
    if len(kinds) == 2:
        parser.error("expected two wheels or two results; got one of each")
    given = {name: value for name in vars(WHEELS) if (value := getattr(options, name)) is not None}
    if kinds == {True}:
        return _wheels(options, wheels.Settings(**given))
    if given or options.json:
        parser.error(f"only a comparison of wheels takes --{next(iter(given), 'json')}")
    try:
        before, after = (_cells(json.loads(path.read_text())) for path in (options.before, options.after))
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"expected two results that python -m bench wrote: {error!r}")
    return _results(before, after, 0.05 if options.tolerance is None else options.tolerance)


def _wheels(options: argparse.Namespace, settings: wheels.Settings) -> int:
    """Measure two wheels and print what was found."""
    rows = wheels.measure(options.before, options.after, settings)
    if not rows:
        print(f"No row's name matches '{settings.cells}'.", file=sys.stderr)
        return 2
    print(wheels.render(rows))
    if options.json:
        data = [{"name": row.name, "same_bits": row.same_bits, "seconds": row.seconds} for row in rows]
        options.json.write_text(json.dumps({"format": 1, "rows": data}, indent=1) + "\n")
    tolerance = 0.01 if options.tolerance is None else options.tolerance
    found = wheels.slower(rows, tolerance)
    print(f"slower by more than {tolerance:.1%}: {', '.join(found) or 'nothing'}")
    return int(bool(found))


def _results(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], tolerance: float) -> int:
    """Print our time and best ratio in both results for every cell they share."""
    growths, slower = [], 0
    for key in [key for key in before if key in after]:
        old, new = median_us(before[key], OURS), median_us(after[key], OURS)
        if old is None or new is None:
            continue
        growths.append(new / old)
        worse = new / old > 1 + tolerance
        slower += worse
        ratio = f"best peer {best_ratio(before[key]) or 0:.2f} -> {best_ratio(after[key]) or 0:.2f}"
        times = f"{time_text(old):>9} -> {time_text(new):>9}  {new / old:5.2f}x"
        print(f"{key:60} {times}  {ratio}{'  slower' if worse else ''}")
    if not growths:
        print("The two results share no measured cell.", file=sys.stderr)
        return 2
    print(f"{len(growths)} cells, geometric mean {geometric_mean(growths):.3f}x, {slower} slower")
    return 1 if slower else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a wheel, or a result that python -m bench wrote (--json)")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--tolerance", type=float, help="growth that is noise (default: wheels 0.01, results 0.05)")
    of_wheels = parser.add_argument_group("wheels alone")
    of_wheels.add_argument("--cells", type=pattern, metavar="PATTERN", help="only rows whose name matches")
    of_wheels.add_argument("--threads", type=list_of(count), help="thread counts (default: 1)")
    of_wheels.add_argument("--rounds", type=count, help=f"rounds of new processes (default: {WHEELS.rounds})")
    of_wheels.add_argument("--turns", type=count, help=f"turns of a cell in each round (default: {WHEELS.turns})")
    of_wheels.add_argument("--cold", type=int, help=f"starts with an empty cache, 0 for none (default: {WHEELS.cold})")
    of_wheels.add_argument("--cache", type=Path, metavar="FOLDER", help="keep compiled code for the next comparison")
    of_wheels.add_argument("--json", type=Path, metavar="FILE", help="write every turn's times")
    return parser


def _cells(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{run['threads']} thr  {cell['name']}": cell for run in data["runs"] for cell in run["cells"] + run["sweeps"]
    }


if __name__ == "__main__":
    sys.exit(main())
