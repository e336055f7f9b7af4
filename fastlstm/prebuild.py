"""Packs of compiled kernels for the wheel: ``python -m fastlstm.prebuild --out FOLDER [LEVEL ...]``.

Any machine makes the packs of all levels; the same sources, Numba and llvmlite make the same bytes. A level is a row of
`fastlstm.target.LEVELS`; those without a fused multiply-add, whose bits differ, have no pack.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastlstm.kernels import cache
from fastlstm.kernels.compiler import Kernel, made_with
from fastlstm.kernels.image import Image
from fastlstm.kernels.packfile import pack_bytes
from fastlstm.kernels.side_by_side import compiled
from fastlstm.machine import cores
from fastlstm.target import LEVELS, Target
from fastlstm.usual import usual_kernels

__all__ = ["PACKED", "packs"]

PACKED = tuple(name for name, level in LEVELS.items() if level.fma)
"""The levels that have packs."""


def packs(names: Sequence[str], workers: int) -> Iterator[tuple[str, bytes]]:
    """Return the content of the packs of some levels, by name."""
    sources = cache.sources()
    wanted = {name: usual_kernels(LEVELS[name]) for name in names}
    made: dict[str, dict[str, tuple[str, Image]]] = {name: {} for name in names}
    jobs: dict[Kernel, list[Target]] = {}
    for name, kernels in wanted.items():
        for kernel in kernels:
            jobs.setdefault(kernel, []).append(LEVELS[name])
    for number, (kernel, images) in enumerate(compiled(jobs, workers), 1):
        print(f"\r{number} of {len(jobs)} kernels: {kernel.name:<30}", end="", file=sys.stderr, flush=True)  # noqa: T201
        for target, image in images.items():
            made[target.name][kernel.key] = (f"{kernel.name}{kernel.constants}", image)
    print(file=sys.stderr)  # noqa: T201
    for name in names:
        yield name, pack_bytes(LEVELS[name], sources, made[name], made_with())


def main(argv: Sequence[str] | None = None) -> int:
    """Write the packs; print their names and sizes."""
    parser = argparse.ArgumentParser("python -m fastlstm.prebuild", description="Compile the kernels of usual models.")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(PACKED)}; none: all of them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the packs are written")
    parser.add_argument("--workers", type=int, default=cores(), help="processes that compile (default: all cores)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.levels if name not in PACKED]
    if unknown:
        parser.error(f"there is no pack for {', '.join(unknown)}; levels are {', '.join(PACKED)}")
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in packs(arguments.levels or PACKED, arguments.workers):
        (arguments.out / f"{name}.pack").write_bytes(content)
        print(f"{name}.pack  {len(content):,} bytes  {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
