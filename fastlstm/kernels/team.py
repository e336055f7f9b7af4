"""Workers that run one program together: how a job is handed out, and how a worker waits for the next.

The leader is the thread that calls; the others run `follow` for their whole life. A job is a number that goes up;
who waits for it looks for a while, then gives the processor away between looks, then sleeps on a condition
variable of the system's. A job that finds the team at work for somebody else is run by its leader alone: the
results are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm import layout
from fastlstm.kernels.barrier import add_atomic, load_atomic, pause, yield_processor
from fastlstm.kernels.frame import word
from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import I32, I64, call_kernel, load_i64, pointer, store_i64

__all__ = ["dismiss", "follow", "lead"]

Compiled = Callable[[int, int, int], int]

SPINS = 1000  # looks before the processor is given away: some 20 to 50 microseconds
LOOKS = 2000  # looks before a worker sleeps: under a millisecond where nobody else wants the processor


@intrinsic
def swap(typingctx: Any, address: Any, value: Any) -> Any:
    """swap(address, n) writes the word and returns what it was, in one order for all threads."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


def _system(name: str, arguments: int) -> Any:
    """Return the intrinsic that calls a POSIX threads function with addresses."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        module = builder.module
        kind = ir.FunctionType(I32, [I64] * arguments)
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return builder.sext(builder.call(function, args), I64)

    if arguments == 1:

        def one(typingctx: Any, a: Any) -> Any:
            return types.int64(types.int64), codegen

        return intrinsic(one)

    def two(typingctx: Any, a: Any, b: Any) -> Any:
        return types.int64(types.int64, types.int64), codegen

    return intrinsic(two)


lock = _system("pthread_mutex_lock", 1)
unlock = _system("pthread_mutex_unlock", 1)
wake_all = _system("pthread_cond_broadcast", 1)
sleep_on = _system("pthread_cond_wait", 2)


@inlined
def announce(job):
    """Make the next job known, and wake who sleeps."""
    swap(job + 8 * layout.JOB_NUMBER, word(job, layout.JOB_NUMBER) + 1)
    if load_atomic(job + 8 * layout.JOB_SLEEPERS) != 0:
        lock(job + 8 * layout.JOB_MUTEX)
        wake_all(job + 8 * layout.JOB_CONDITION)
        unlock(job + 8 * layout.JOB_MUTEX)


@inlined
def sleep(job, seen):
    """Return when the job's number is no longer `seen`."""
    mutex = job + 8 * layout.JOB_MUTEX
    lock(mutex)
    add_atomic(job + 8 * layout.JOB_SLEEPERS, 1)
    while load_atomic(job + 8 * layout.JOB_NUMBER) == seen:
        sleep_on(job + 8 * layout.JOB_CONDITION, mutex)
    add_atomic(job + 8 * layout.JOB_SLEEPERS, -1)
    unlock(mutex)


def lead() -> Compiled:
    """Run a crew's program with its team; alone if the team is not there or has other work.

    Arguments: address of the crew's words. The frame that runs it alone holds the number of time steps and the
    active rows, and gets the status.
    """

    def kernel(crew: int, unused: int, unused_2: int) -> Any:
        job, program, drive = (
            word(crew, layout.CREW_JOB),
            word(crew, layout.CREW_PROGRAM),
            word(crew, layout.CREW_DRIVE),
        )
        alone, workers = word(crew, layout.CREW_ALONE), word(crew, layout.CREW_WORKERS)
        if load_atomic(job + 8 * layout.JOB_ALIVE) == 0 or swap(job + 8 * layout.JOB_BUSY, 1) != 0:
            return call_kernel(drive, program, alone)
        frames = crew + 8 * layout.CREW_FRAMES
        for i in range(workers):
            frame = load_i64(frames + 8 * i)
            store_i64(frame + 8 * layout.TOTAL, word(alone, layout.TOTAL))
            store_i64(frame + 8 * layout.ACTIVE, word(alone, layout.ACTIVE))
            store_i64(frame + 8 * layout.STATUS, 0)
        store_i64(job + 8 * layout.JOB_PROGRAM, program)
        store_i64(job + 8 * layout.JOB_DRIVE, drive)
        store_i64(job + 8 * layout.JOB_FRAMES, frames)
        store_i64(job + 8 * layout.JOB_DONE, 0)
        announce(job)
        call_kernel(drive, program, load_i64(frames))
        looks = 0
        while load_atomic(job + 8 * layout.JOB_DONE) != workers - 1:
            looks += 1
            if looks < SPINS:
                pause()
            else:
                yield_processor()
        for i in range(workers):
            if word(load_i64(frames + 8 * i), layout.STATUS) != 0:
                store_i64(alone + 8 * layout.STATUS, 1)
        swap(job + 8 * layout.JOB_BUSY, 0)
        return 0

    return kernel


def follow() -> Compiled:
    """Run this worker's part of every job until the team is dismissed. Arguments: the job's address, the worker."""

    def kernel(job: int, worker: int, unused: int) -> int:
        seen = 0
        while True:
            looks = 0
            while load_atomic(job + 8 * layout.JOB_NUMBER) == seen:
                looks += 1
                if looks < SPINS:
                    pause()
                elif looks < LOOKS:
                    yield_processor()
                else:
                    sleep(job, seen)
            seen = load_atomic(job + 8 * layout.JOB_NUMBER)
            if word(job, layout.JOB_ALIVE) == 0:
                return 0
            frame = load_i64(word(job, layout.JOB_FRAMES) + 8 * worker)
            call_kernel(word(job, layout.JOB_DRIVE), word(job, layout.JOB_PROGRAM), frame)
            add_atomic(job + 8 * layout.JOB_DONE, 1)

    return kernel


def dismiss() -> Compiled:
    """Let the workers go home. Arguments: the job's address."""

    def kernel(job: int, unused: int, unused_2: int) -> int:
        swap(job + 8 * layout.JOB_ALIVE, 0)
        announce(job)
        return 0

    return kernel
