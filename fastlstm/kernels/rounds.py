"""A loop as one instruction: the program of its body, run once per iteration (see `fastlstm.lowering.tapes`).

The number of iterations is known when a tape is recorded. If the body itself decides whether another iteration follows,
`verify` checks its decisions against that number and sets a flag if they differ; then the results are discarded. So no
loop runs longer than recorded, and all workers run the same iterations.
"""

from __future__ import annotations

from fastlstm.kernels.arrays import copied_line, offset
from fastlstm.kernels.frame import arg, bound, first_share, next_share
from fastlstm.kernels.integers import load
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.nested import BOUND, by_workers
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_kernel, load_i64, store_i64
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Advance, MoveSlice, Verify
from fastlstm.program.layout import ACTIVE, KINDS, TOTAL

__all__ = ["advance", "move", "repeat", "verify"]

ADVANCE, VERIFY, MOVE, BOOL = positions(Advance), positions(Verify), positions(MoveSlice), KINDS["bool"]


def repeat() -> Compiled:
    """Return the kernel that runs a body's program once per iteration. Arguments: `Run`, as `Bound` words."""

    @inlined
    def run(args, frame):
        store_i64(frame + 8 * TOTAL, 1)
        store_i64(frame + 8 * ACTIVE, 0)
        for _round in range(arg(args, BOUND.times)):
            call_kernel(arg(args, BOUND.drive), arg(args, BOUND.program), frame)

    return by_workers(run)


def advance() -> Compiled:
    """Return the kernel that writes the number of the iteration. Arguments: `Advance`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        part = first_share(frame)
        while part >= 0:
            if part == 0:
                number = arg(args, ADVANCE.number)
                store_i64(number, load_i64(number) + 1 if arg(args, ADVANCE.further) == 1 else -1)
            part = next_share(frame, part)
        return 0

    return kernel


def verify() -> Compiled:
    """Return the kernel that sets a flag if a body's decision differs from the recording. Arguments: `Verify`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        part = first_share(frame)
        while part >= 0:
            if part == 0:
                going = load(arg(args, VERIFY.decision), BOOL) != 0
                last = load_i64(arg(args, VERIFY.number)) + 1 == arg(args, VERIFY.rounds)
                if going == last and not (last and arg(args, VERIFY.last) == 1):
                    store_i64(arg(args, VERIFY.flag), 1)
            part = next_share(frame, part)
        return 0

    return kernel


def move(lanes: int) -> Compiled:
    """Out = x, either of which may be a slice that moves with the iterations. Arguments: `MoveSlice`."""
    line = copied_line(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        at, outer, count = load_i64(arg(args, MOVE.number)), arg(args, MOVE.sizes.i), arg(args, MOVE.sizes.e)
        x_step, out_step = arg(args, MOVE.x_steps.e), arg(args, MOVE.out_steps.e)
        source = arg(args, MOVE.x) + at * arg(args, MOVE.x_round)
        target = arg(args, MOVE.out) + at * arg(args, MOVE.out_round)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, outer, part), bound(frame, outer, part + 1)):
                for j in range(arg(args, MOVE.sizes.j)):
                    for k in range(arg(args, MOVE.sizes.k)):
                        for m in range(arg(args, MOVE.sizes.m)):
                            x = source + offset(args, MOVE.x_steps, i, j, k, m)
                            out = target + offset(args, MOVE.out_steps, i, j, k, m)
                            line(x, x_step, out, out_step, count)
            part = next_share(frame, part)
        return 0

    return kernel
