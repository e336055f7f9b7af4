"""A program as one instruction of another: a segment's on a tape (see `fastlstm.tapes.tape`), a loop's body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm.kernels.frame import arg, first_share, next_share, word
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import ACTIVE, PHASE, TOTAL, WORKER, WORKERS
from fastlstm.simd import call_kernel, load_i64, store_i64

__all__ = ["Compiled", "by_workers", "nested"]

Compiled = Callable[[int, int, int], int]


def by_workers(run: Any) -> Compiled:
    """Return the kernel that calls ``run(args, frame)``, by all workers if it is made for so many, else by the first.

    Its argument 3 are the workers, 4 is the frame for one worker alone; the frame of each worker follows.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        if word(frame, WORKERS) > 1 and arg(args, 3) == word(frame, WORKERS):
            inner = load_i64(args + 8 * (5 + word(frame, WORKER)))
            store_i64(inner + 8 * PHASE, word(frame, PHASE))
            run(args, inner)
            store_i64(frame + 8 * PHASE, word(inner, PHASE))
        else:
            part = first_share(frame)
            while part >= 0:
                if part == 0:
                    run(args, arg(args, 4))
                part = next_share(frame, part)
        return 0

    return kernel


def nested() -> Compiled:
    """Run a program over its time steps. Arguments: driver, program, time steps, then those of `by_workers`."""

    @inlined
    def run(args, frame):
        store_i64(frame + 8 * TOTAL, arg(args, 2))
        store_i64(frame + 8 * ACTIVE, 0)
        call_kernel(arg(args, 0), arg(args, 1), frame)

    return by_workers(run)
