"""``python -m fastlstm.conformance.ulp``: sigmoid and tanh against double precision, over all 2^32 floats.

An error is counted in ulp of the exact result (units in the last place of its float32 neighbour); below the
smallest normal number the kernels return zero, and the error is counted in units of that number's last place.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fastlstm.program import layout
from fastlstm.program.program import Instruction, Program, Slot, Stage
from fastlstm.runtime.program import BoundProgram
from fastlstm.target import machine
from fastlstm.typing import Array

__all__ = ["largest_error", "main"]

BLOCK = 1 << 16
PART = 256  # blocks that a process takes at a time: about a second


class Mapped:
    """A unary kernel applied to arrays of `BLOCK` floats."""

    def __init__(self, name: str) -> None:
        lanes = machine.detect().lanes
        slots = (Slot("x", "external", BLOCK), Slot("y", "external", BLOCK))
        step = Instruction("elementwise.unary", (lanes, name, None, None), (0, 1, BLOCK // lanes))
        program = Program(machine.detect(), slots, (Stage(layout.ONCE, (step,)),))
        self._program = BoundProgram(program, batch=1)

    def __call__(self, x: Array) -> Array:
        """Return f(x) for a float32 array of `BLOCK` elements."""
        y = np.empty_like(x)
        self._program.bind(0, x, None, None)
        self._program.bind(1, y, None, None)
        self._program.run(1)
        return y


def exact(name: str, x: Array) -> Array:
    """Return the function in double precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        if name == "Tanh":
            return np.asarray(np.tanh(wide))
        e = np.exp(-np.abs(wide))
        return np.asarray(np.where(wide >= 0, 1.0, e) / (1.0 + e))


def largest_error(name: str, run: Mapped, x: Array) -> tuple[float, float]:
    """Return the largest error in ulp over `x`, and the input where it is; NaN must give NaN.

    Raises
    ------
    ArithmeticError
        If a NaN is lost or made, or tanh passes 1.
    """
    got, want = run(x), exact(name, x)
    if not np.array_equal(np.isnan(got), np.isnan(x)):
        raise ArithmeticError(f"{name} lost or made a NaN")
    if np.nanmax(np.abs(got), initial=0.0) > 1.0:
        raise ArithmeticError(f"{name} passes 1")
    smallest = np.finfo(np.float32).tiny
    unit = np.spacing(np.maximum(np.abs(want), smallest).astype(np.float32)).astype(np.float64)
    error = np.abs(got.astype(np.float64) - want) / unit
    # A denormal argument or result counts as zero: that is flush-to-zero, not an error of the function.
    error[(np.abs(want) < smallest) & (got == 0)] = 0.0
    error[np.isnan(error)] = 0.0
    at = int(np.argmax(error))
    return float(error[at]), float(x[at])


def sweep(task: tuple[str, range]) -> tuple[float, float]:
    """Return the largest error of a function over blocks of neighbouring floats, and where it is."""
    name, blocks = task
    run, worst = Mapped(name), (0.0, 0.0)
    for block in blocks:
        bits = np.arange(BLOCK, dtype=np.uint32) + np.uint32(block * BLOCK)
        worst = max(worst, largest_error(name, run, bits.view(np.float32)))
    return worst


def main(argv: list[str] | None = None) -> int:
    """Try all floats (or every STRIDE-th block of them) and print the largest errors."""
    parser = argparse.ArgumentParser("python -m fastlstm.conformance.ulp", description=__doc__)
    parser.add_argument(
        "--stride", type=int, default=1, help="try every STRIDE-th block of 65,536 floats (%(default)s)"
    )
    parser.add_argument("--bound", type=float, default=2.0, help="largest error allowed, in ulp (%(default)s)")
    parser.add_argument("--processes", type=int, default=machine.cores(), help="default: one a core")
    arguments = parser.parse_args(argv)
    holds, blocks = True, range(0, 1 << 16, arguments.stride)
    parts = [blocks[start : start + PART] for start in range(0, len(blocks), PART)]
    # Started anew, not forked: compiled code and its memory are each process's own.
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        for name in ("Sigmoid", "Tanh"):
            Mapped(name)  # compiled once, here, and found in the cache by the others
            worst = (0.0, 0.0)
            for done, found in enumerate(pool.map(sweep, ((name, part) for part in parts)), start=1):
                worst = max(worst, found)
                print(f"\r{name}: {100 * done // len(parts)} %", end="", file=sys.stderr, flush=True)
            print(f"\r{name}: largest error {worst[0]:.3f} ulp, at {worst[1]!r}, of {len(blocks) * BLOCK:,} floats")
            holds &= worst[0] <= arguments.bound
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
