"""Running a whole program in one call from Python: every stage, block by block, instruction by instruction."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import word
from fastlstm.kernels.simd import (
    call_kernel,
    get_float_mode,
    load_i64,
    set_float_mode,
    store_i64,
    with_flush_to_zero,
)
from fastlstm.program import layout
from fastlstm.program.layout import EACH, RUNS, SHARES, START, STEPS, TOTAL, WORKERS

__all__ = ["drive"]


def drive() -> Callable[[int, int, int], int]:
    """Return the kernel that runs the program at `program` in `frame`, with denormals flushed to zero.

    Each instruction is divided into as many shares as its work is worth, the same number for every worker.
    """
    REVERSE, ONCE = layout.REVERSE, layout.ONCE

    def kernel(program: int, frame: int, unused: int) -> int:
        mode = get_float_mode()
        set_float_mode(with_flush_to_zero(mode))
        total, workers = word(frame, TOTAL), word(frame, WORKERS)
        store_i64(frame + 8 * RUNS, word(frame, RUNS) + 1)
        at = program + 8
        for _ in range(load_i64(program)):
            kind, block, count = load_i64(at), load_i64(at + 8), load_i64(at + 16)
            first = at + 24
            done = 0
            todo = 1 if kind == ONCE else total
            while done < todo:
                steps = min(block, todo - done)
                store_i64(frame + 8 * START, todo - done - steps if kind == REVERSE else done)
                store_i64(frame + 8 * STEPS, steps)
                at = first
                for _i in range(count):
                    if workers > 1:
                        each = max(1, min(layout.MOST_SHARES, load_i64(at + 8) // workers))
                        store_i64(frame + 8 * EACH, each)
                        store_i64(frame + 8 * SHARES, workers * each)
                    call_kernel(load_i64(at), at + 24, frame)
                    at += 24 + 8 * load_i64(at + 16)
                done += steps
            if todo == 0:
                at = first
                for _i in range(count):
                    at += 24 + 8 * load_i64(at + 16)
        set_float_mode(mode)
        return 0

    return kernel
