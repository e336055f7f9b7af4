"""Workers that run one program together: how a job is handed out, and how workers wait for the next one.

The leader is the calling thread; the others run `follow` for their whole life. Jobs are numbered in ascending order; a
worker that waits for the next one spins for a while, then sleeps on a condition variable. The leader does not wait for
the workers: it begins, and any worker that joins takes shares of what is left (`fastlstm.kernels.shares`). If the team
is busy with another caller's job, the leader runs its own alone: the results are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm.kernels.frame import word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.shares import (
    add_atomic,
    claim,
    get_affinity,
    knows_processors,
    load_atomic,
    lock,
    pause,
    place,
    processor,
    publish,
    set_affinity,
    sleep_on,
    swap,
    unlock,
    wait_for,
    wake_all,
)
from fastlstm.kernels.simd import call_kernel, load_i64, store_i64
from fastlstm.program import layout

__all__ = ["dismiss", "follow", "lead"]

Compiled = Callable[[int, int, int], int]

SPINS = 3000  # spins before a worker sleeps: some 30 to 80 microseconds
RARELY = 16

MASK_BYTES = 128


@inlined
def announce(job, workers):
    """Publish the next job, and wake sleeping workers."""
    swap(job + 8 * layout.JOB_NUMBER, word(job, layout.JOB_NUMBER) + 1)
    if load_atomic(job + 8 * layout.JOB_SLEEPERS) != 0:
        lock(job)
        helpful = True
        if knows_processors(job) and workers > 1:
            here, helpful = processor(job), False
            for worker in range(1, workers):
                if word(place(job, worker), layout.WORKER_ASLEEP) != 0:
                    helpful = keep_off(job, place(job, worker), here) or helpful
        if helpful:
            wake_all(job, layout.JOB_CONDITION)
        unlock(job)


@inlined
def keep_off(job, words, here):
    """Keep a sleeping worker off the processor `here`, the leader's, where the system might put it when it wakes.

    There it would compete with the leader until the scheduler notices, which takes milliseconds. Return whether the
    worker has any other processor; if it has none, it stays asleep (woken, it made calls take 1.5 times as long).
    """
    mask, at = words + 8 * layout.WORKER_MASK, words + 8 * layout.WORKER_MASK + here // 64 * 8
    thread = word(words, layout.WORKER_THREAD)
    if thread == 0 or here >= 8 * MASK_BYTES or get_affinity(job, thread, MASK_BYTES, mask) != 0:
        return True
    allowed = load_i64(at)
    store_i64(at, allowed & ~(1 << (here & 63)))
    if load_i64(at) == allowed:
        return True
    # Refused if no other processor is allowed.
    if set_affinity(job, thread, MASK_BYTES, mask) != 0:
        return False
    store_i64(words + 8 * layout.WORKER_KEPT_OFF, here + 1)
    return True


@inlined
def roam(job, words):
    """Allow a worker that has woken to use the processor again that it was kept off."""
    mask, here = words + 8 * layout.WORKER_MASK, word(words, layout.WORKER_KEPT_OFF) - 1
    if here < 0:
        return
    store_i64(words + 8 * layout.WORKER_KEPT_OFF, 0)
    if get_affinity(job, 0, MASK_BYTES, mask) == 0:
        at = mask + here // 64 * 8
        store_i64(at, load_i64(at) | 1 << (here & 63))
        set_affinity(job, 0, MASK_BYTES, mask)


@inlined
def sleep(job, worker, seen):
    """Return when the job's number is no longer `seen`."""
    words = place(job, worker)
    lock(job)
    add_atomic(job + 8 * layout.JOB_SLEEPERS, 1)
    store_i64(words + 8 * layout.WORKER_ASLEEP, 1)
    while load_atomic(job + 8 * layout.JOB_NUMBER) == seen:
        sleep_on(job, layout.JOB_CONDITION)
    store_i64(words + 8 * layout.WORKER_ASLEEP, 0)
    add_atomic(job + 8 * layout.JOB_SLEEPERS, -1)
    unlock(job)
    if knows_processors(job):
        roam(job, words)


def lead() -> Compiled:
    """Return the kernel that runs a program with its team, or alone if there is none or it is busy.

    Arguments: address of the run's words, and whether the job is light: done before sleeping workers would be awake.
    They are woken for one light job in `RARELY`, so that they stay awake where jobs follow each other closely. The
    frame for a run without a team holds the number of time steps and the active rows, and receives the status.
    """

    def kernel(run: int, light: int, unused: int) -> Any:
        job, program, drive = (
            word(run, layout.RUN_JOB),
            word(run, layout.RUN_PROGRAM),
            word(run, layout.RUN_DRIVE),
        )
        alone, workers = word(run, layout.RUN_ALONE), word(run, layout.RUN_WORKERS)
        if light != 0 and load_atomic(job + 8 * layout.JOB_SLEEPERS) != 0:
            store_i64(job + 8 * layout.JOB_LIGHT, word(job, layout.JOB_LIGHT) + 1)
            if word(job, layout.JOB_LIGHT) % RARELY != 0:
                return call_kernel(drive, program, alone)
        if load_atomic(job + 8 * layout.JOB_ALIVE) == 0 or swap(job + 8 * layout.JOB_BUSY, 1) != 0:
            return call_kernel(drive, program, alone)
        frames = run + 8 * layout.RUN_FRAMES
        number, phase = word(job, layout.JOB_NUMBER) + 1, word(job, layout.JOB_PHASE)
        for i in range(workers):
            frame = load_i64(frames + 8 * i)
            store_i64(frame + 8 * layout.TOTAL, word(alone, layout.TOTAL))
            store_i64(frame + 8 * layout.ACTIVE, word(alone, layout.ACTIVE))
            store_i64(frame + 8 * layout.STATUS, 0)
            store_i64(frame + 8 * layout.PHASE, phase)
        store_i64(job + 8 * layout.JOB_PROGRAM, program)
        store_i64(job + 8 * layout.JOB_DRIVE, drive)
        store_i64(job + 8 * layout.JOB_FRAMES, frames)
        for i in range(1, workers):
            swap(place(job, i) + 8 * layout.WORKER_GATE, number)
        announce(job, workers)
        call_kernel(drive, program, load_i64(frames))
        for i in range(1, workers):
            # A worker that has not joined by now no longer needs to; one that has still reads the program.
            if not claim(place(job, i) + 8 * layout.WORKER_GATE, number, 0):
                wait_for(job, place(job, i) + 8 * layout.WORKER_LEFT, number)
        store_i64(job + 8 * layout.JOB_PHASE, word(load_i64(frames), layout.PHASE))
        for i in range(workers):
            if word(load_i64(frames + 8 * i), layout.STATUS) != 0:
                store_i64(alone + 8 * layout.STATUS, 1)
        swap(job + 8 * layout.JOB_BUSY, 0)
        return 0

    return kernel


def follow() -> Compiled:
    """Return the kernel that runs a worker's part of every job until the team is dismissed.

    Arguments: the job's address, the worker's number.
    """

    def kernel(job: int, worker: int, unused: int) -> int:
        seen = 0
        while True:
            looks = 0
            while load_atomic(job + 8 * layout.JOB_NUMBER) == seen:
                looks += 1
                if looks < SPINS:
                    pause()
                else:
                    sleep(job, worker, seen)
            seen = load_atomic(job + 8 * layout.JOB_NUMBER)
            if word(job, layout.JOB_ALIVE) == 0:
                return 0
            if claim(place(job, worker) + 8 * layout.WORKER_GATE, seen, -seen):
                frame = load_i64(word(job, layout.JOB_FRAMES) + 8 * worker)
                call_kernel(word(job, layout.JOB_DRIVE), word(job, layout.JOB_PROGRAM), frame)
                publish(job, place(job, worker) + 8 * layout.WORKER_LEFT, seen)

    return kernel


def dismiss() -> Compiled:
    """Return the kernel that makes the workers' threads end. Arguments: the job's address."""

    def kernel(job: int, unused: int, unused_2: int) -> int:
        swap(job + 8 * layout.JOB_ALIVE, 0)
        announce(job, 1)
        return 0

    return kernel
