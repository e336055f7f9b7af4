"""A loop: the program of its body, run round by round as one instruction of another program (see `fastlstm.tapes`).

How many rounds there are is known when a tape is recorded. A body that decides by itself whether another round
follows is held against that number: `verify` notes where it would have decided otherwise, and the results are thrown
away. So nothing here runs longer than it was recorded for, and all workers make the same rounds.
"""

from __future__ import annotations

from fastlstm.kernels.arrays import copied_line
from fastlstm.kernels.frame import arg, bound, first_share, next_share
from fastlstm.kernels.nested import Compiled, by_workers
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.whole import load
from fastlstm.layout import ACTIVE, TOTAL
from fastlstm.simd import call_kernel, load_i64, store_i64

__all__ = ["advance", "move", "repeat", "verify"]


def repeat() -> Compiled:
    """Run a body's program once for every round.

    Arguments: driver, program, rounds, then those of `fastlstm.kernels.nested.by_workers`.
    """

    @inlined
    def run(args, frame):
        store_i64(frame + 8 * TOTAL, 1)
        store_i64(frame + 8 * ACTIVE, 0)
        for _round in range(arg(args, 2)):
            call_kernel(arg(args, 0), arg(args, 1), frame)

    return by_workers(run)


def advance() -> Compiled:
    """Write the number of the round. Arguments: its address, 1 to go on from the last, 0 to begin before the first."""

    def kernel(args: int, frame: int, unused: int) -> int:
        part = first_share(frame)
        while part >= 0:
            if part == 0:
                store_i64(arg(args, 0), load_i64(arg(args, 0)) + 1 if arg(args, 1) == 1 else -1)
            part = next_share(frame, part)
        return 0

    return kernel


def verify() -> Compiled:
    """Note where a body decides about another round as nobody expected.

    Arguments: the decision, the round's number, rounds, 1 if there may be no more of them, where to write a 1.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        part = first_share(frame)
        while part >= 0:
            if part == 0:
                going, last = load(arg(args, 0), 0) != 0, load_i64(arg(args, 1)) + 1 == arg(args, 2)
                if going == last and not (last and arg(args, 3) == 1):
                    store_i64(arg(args, 4), 1)
            part = next_share(frame, part)
        return 0

    return kernel


def move(lanes: int) -> Compiled:
    """Out = x, either of which may lie elsewhere in every round.

    Arguments: the round's number, x, bytes that it moves on in a round, out, bytes that it moves on, five sizes,
    strides of x, strides of out; as `arrays.copy`.
    """
    line = copied_line(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        at, count = load_i64(arg(args, 0)), arg(args, 9)
        x_step, out_step = arg(args, 14), arg(args, 19)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, arg(args, 5), part), bound(frame, arg(args, 5), part + 1)):
                for j in range(arg(args, 6)):
                    for k in range(arg(args, 7)):
                        for m in range(arg(args, 8)):
                            x = arg(args, 1) + at * arg(args, 2) + i * arg(args, 10) + j * arg(args, 11)
                            x += k * arg(args, 12) + m * arg(args, 13)
                            out = arg(args, 3) + at * arg(args, 4) + i * arg(args, 15) + j * arg(args, 16)
                            out += k * arg(args, 17) + m * arg(args, 18)
                            line(x, x_step, out, out_step, count)
            part = next_share(frame, part)
        return 0

    return kernel
