"""A program as one instruction of another: a segment on a tape (`fastlstm.lowering.tapes.tape`), the body of a loop."""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.frame import arg, first_share, next_share, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_kernel, store_i64
from fastlstm.program.arguments import positions, size_of
from fastlstm.program.arguments.arrays import Bound
from fastlstm.program.layout import ACTIVE, PHASE, TOTAL, WORKER, WORKERS

__all__ = ["BOUND", "by_workers", "nested"]

BOUND = positions(Bound)
FRAMES = size_of(Bound)  # the word after them: the frame of worker 0


def by_workers(run: Any) -> Compiled:
    """Return the kernel that calls ``run(args, frame)``: in all workers if it was bound for as many, else in one.

    Its arguments are `Bound`, followed by the workers' frames.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        if word(frame, WORKERS) > 1 and arg(args, BOUND.workers) == word(frame, WORKERS):
            inner = arg(args, FRAMES + word(frame, WORKER))
            store_i64(inner + 8 * PHASE, word(frame, PHASE))
            run(args, inner)
            store_i64(frame + 8 * PHASE, word(inner, PHASE))
        else:
            part = first_share(frame)
            while part >= 0:
                if part == 0:
                    run(args, arg(args, BOUND.alone))
                part = next_share(frame, part)
        return 0

    return kernel


def nested() -> Compiled:
    """Return the kernel that runs a program over its time steps. Arguments: `Run`, as `Bound` words."""

    @inlined
    def run(args, frame):
        store_i64(frame + 8 * TOTAL, arg(args, BOUND.times))
        store_i64(frame + 8 * ACTIVE, 0)
        call_kernel(arg(args, BOUND.drive), arg(args, BOUND.program), frame)

    return by_workers(run)
