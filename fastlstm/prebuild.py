"""Packs of compiled kernels for the wheel: ``python -m fastlstm.prebuild --out FOLDER [LEVEL ...]``.

Any machine makes the packs of all levels; the same sources, Numba and llvmlite make the same bytes. A level is a row of
`fastlstm.target.LEVELS`; those without a fused multiply-add, whose bits differ, have no pack. Kernels that are ready
are kept in a folder, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastlstm.kernels import cache
from fastlstm.kernels.compiler import Kernel, keep_image, kept_image, made_with
from fastlstm.kernels.image import Image
from fastlstm.kernels.packfile import pack_bytes
from fastlstm.kernels.side_by_side import compiled
from fastlstm.lowering.usual import usual_kernels
from fastlstm.target import LEVELS, Target
from fastlstm.target.machine import cores

__all__ = ["PACKED", "packs"]

PACKED = tuple(name for name, level in LEVELS.items() if level.fma)
"""The levels that have packs."""


def packs(names: Sequence[str], workers: int) -> Iterator[tuple[str, bytes]]:
    """Return the content of the packs of some levels, by name; kernels that the cache holds are not compiled."""
    made: dict[str, dict[Kernel, Image | None]] = {}
    jobs: dict[Kernel, list[Target]] = {}
    for name in names:
        made[name] = {kernel: kept_image(kernel, LEVELS[name]) for kernel in usual_kernels(LEVELS[name])}
        for kernel in (kernel for kernel, image in made[name].items() if image is None):
            jobs.setdefault(kernel, []).append(LEVELS[name])
    total, done, started = sum(map(len, jobs.values())), 0, time.monotonic()
    for kernel, images in compiled(jobs, workers):
        for target, image in images.items():
            keep_image(kernel, target, image)
            made[target.name][kernel] = image
        done += len(images)
        _say(done - len(images), done, total, time.monotonic() - started, kernel.name)
    for name in names:
        held = {k.key: (f"{k.name}{k.constants}", image) for k, image in made[name].items() if image is not None}
        yield name, pack_bytes(LEVELS[name], cache.sources(), held, made_with())


def _say(before: int, done: int, total: int, seconds: float, name: str) -> None:
    """Print how far it is: on a terminal one line that changes, elsewhere one for every twentieth part."""
    minutes = seconds / done * (total - done) / 60
    line = f"{done} of {total} compiled, about {minutes:.0f} min left ({name})"
    if sys.stderr.isatty():
        print(f"\r{line:<78}", end="" if done < total else "\n", file=sys.stderr, flush=True)  # noqa: T201
    elif done == total or done * 20 // total > before * 20 // total:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Write the packs; print their names and sizes."""
    parser = argparse.ArgumentParser("python -m fastlstm.prebuild", description="Compile the kernels of usual models.")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(PACKED)}; none: all of them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the packs are written")
    parser.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="where kernels that are ready are kept (default: beside the packs)"
    )
    parser.add_argument("--workers", type=int, default=cores(), help="processes that compile (default: all cores)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.levels if name not in PACKED]
    if unknown:
        parser.error(f"there is no pack for {', '.join(unknown)}; levels are {', '.join(PACKED)}")
    started = time.monotonic()
    by = "-".join(f"{package}-{version}" for package, version in made_with().items())  # others make other code
    os.environ["FASTLSTM_CACHE_DIR"] = str((arguments.kept or arguments.out.with_name("kernels")) / by)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in packs(arguments.levels or PACKED, arguments.workers):
        (arguments.out / f"{name}.pack").write_bytes(content)
        print(f"{name}.pack  {len(content):,} bytes  {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
