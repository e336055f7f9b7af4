"""A segment's program as one instruction of another program (see `fastlstm.tapes.tape`)."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import arg, first_share, next_share, word
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import ACTIVE, PHASE, TOTAL, WORKER, WORKERS
from fastlstm.simd import call_kernel, load_i64, store_i64

__all__ = ["nested"]


@inlined
def run(args, frame):
    """Run the program in one of its frames."""
    store_i64(frame + 8 * TOTAL, arg(args, 2))
    store_i64(frame + 8 * ACTIVE, 0)
    call_kernel(arg(args, 0), arg(args, 1), frame)


def nested() -> Callable[[int, int, int], int]:
    """Run a program over its time steps, by all workers if it is made for so many, else by the first.

    Arguments: driver, program, time steps, workers, frame for one worker alone, frame of each worker.
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
