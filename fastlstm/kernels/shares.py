"""How workers divide the work: phase by phase, in shares, and nobody waits for who has not come.

A phase is work that needs the one before it complete: a time step of a layer, a projection. It is divided into the same
number of shares for each worker: several where the work is worth it, because processors are not equally fast while
another program runs on one of them. Who comes to a phase claims its own shares one by one, whose weights its cache
holds, then those of others that nobody has claimed yet: their worker may be slower, or asleep. A phase is over when all
its shares are done. Who comes late finds it so, and goes on to the next. Only a share that is being worked on is
waited for: a bounded time by looking, then asleep.

Phases are numbered. Of each worker two words say how far its shares are: the phase with how many are taken, by the
worker from one end and by others from the other, and the phase with how many are done. A line of the cache takes up to
a quarter of a microsecond from one processor to another, so a worker counts what it does of its own and announces it
once, when nothing of its own is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import I64, call_c, load_i64, pointer, primitive, store_i64
from fastlstm.program import layout
from fastlstm.program.layout import (
    EACH,
    JOB,
    JOB_CONDITION_2,
    JOB_MUTEX,
    JOB_WAITERS,
    JOB_WORKERS,
    OWN_DONE,
    PHASE,
    WORKER,
    WORKER_DONE,
    WORKER_TAKEN,
    WORKERS,
)

__all__ = ["following"]

PATIENCE = 60  # looks before shares of a worker are taken that has not come yet, about a microsecond
SPINS = 3000  # looks before a waiting thread sleeps: some 30 to 80 microseconds
LAST_FUNCTION = 8 * (layout.JOB_SYSTEM + len(layout.SYSTEM_FUNCTIONS) - 1)  # which looks for processors
BY_WORKER, BY_OTHERS = 1 << 8, 1  # what a share adds to the counts behind a phase in `WORKER_TAKEN`


@intrinsic
def add_atomic(typingctx: Any, address: Any, value: Any) -> Any:
    """add_atomic(address, n) adds to the word there and returns what it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def swap(typingctx: Any, address: Any, value: Any) -> Any:
    """swap(address, n) writes the word and returns what it was, in one order for all threads."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def claim(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """claim(address, old, new) writes `new` if the word is `old`, and returns whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(builder, args[0], I64)
        result = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def load_atomic(typingctx: Any, address: Any) -> Any:
    """load_atomic(address) -> the word there, in one order for all threads with swap and add_atomic."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "seq_cst", 8)

    return types.int64(types.int64), codegen


pause = primitive("fl_pause", 0)
"""pause() tells the processor that this is a waiting loop."""


def _system(name: str) -> Any:
    """Return a helper ``call(job, a, b, c)`` of a function of the system's that takes words and returns an int."""
    at = 8 * (layout.JOB_SYSTEM + layout.SYSTEM_FUNCTIONS.index(name))

    @inlined
    def call(job, a, b, c):
        return call_c(load_i64(job + at), a, b, c, 0) & 0xFFFFFFFF  # the upper half of the register may hold anything

    return call


_lock = _system("pthread_mutex_lock")
_unlock = _system("pthread_mutex_unlock")
_broadcast = _system("pthread_cond_broadcast")
_wait = _system("pthread_cond_wait")
_getcpu = _system("sched_getcpu")
get_affinity = _system("sched_getaffinity")
set_affinity = _system("sched_setaffinity")


@inlined
def lock(job):
    """Enter what one thread at a time is in."""
    _lock(job, job + 8 * JOB_MUTEX, 0, 0)


@inlined
def unlock(job):
    """Leave it."""
    _unlock(job, job + 8 * JOB_MUTEX, 0, 0)


@inlined
def wake_all(job, condition):
    """Wake all threads that sleep on a condition variable, a word of the job."""
    _broadcast(job, job + 8 * condition, 0, 0)


@inlined
def sleep_on(job, condition):
    """Leave, sleep until woken, and enter again."""
    _wait(job, job + 8 * condition, job + 8 * JOB_MUTEX, 0)


@inlined
def knows_processors(job):
    """Whether the system tells on which processor a thread runs, and lets that be chosen."""
    return load_i64(job + LAST_FUNCTION) != 0


@inlined
def processor(job):
    """The number of the processor that this thread runs on."""
    return _getcpu(job, 0, 0, 0)


@inlined
def place(job, worker):
    """Address of a worker's words."""
    return job + 8 * (JOB_WORKERS + layout.WORKER_WORDS * worker)


@inlined
def publish(job, address, value):
    """Write a word that others wait for, and wake those that sleep."""
    swap(address, value)
    wake_waiters(job)


@inlined
def wake_waiters(job):
    """Wake those that sleep until a word has changed."""
    if load_atomic(job + 8 * JOB_WAITERS) != 0:
        lock(job)
        wake_all(job, JOB_CONDITION_2)
        unlock(job)


@inlined
def wait_for(job, address, value):
    """Return when the word is at least `value`."""
    looks = 0
    while load_atomic(address) < value:
        looks += 1
        if looks < SPINS:
            pause()
        else:
            lock(job)
            add_atomic(job + 8 * JOB_WAITERS, 1)
            while load_atomic(address) < value:
                sleep_on(job, JOB_CONDITION_2)
            add_atomic(job + 8 * JOB_WAITERS, -1)
            unlock(job)


@inlined
def _take(words, phase, each, one):
    """Take a share of a worker's: return how many had been taken from that end before, or -1 if none is left."""
    while True:
        before = load_atomic(words + 8 * WORKER_TAKEN)
        if before >> 16 > phase:
            return -1
        counts = before & 0xFFFF if before >> 16 == phase else 0
        if (counts >> 8) + (counts & 0xFF) >= each:
            return -1
        if claim(words + 8 * WORKER_TAKEN, before, (phase << 16 | counts) + one):
            return counts >> 8 if one == BY_WORKER else counts & 0xFF


@inlined
def _done(job, words, phase, count):
    """Announce that so many more shares of a worker's are done."""
    while True:
        before = load_atomic(words + 8 * WORKER_DONE)
        counted = before if before >> 8 == phase else phase << 8
        if claim(words + 8 * WORKER_DONE, before, counted + count):
            break
    wake_waiters(job)


@inlined
def _await(words, phase):
    """Give a worker that has not come a moment, if it came the last time."""
    for _ in range(PATIENCE):
        taken = load_atomic(words + 8 * WORKER_TAKEN)
        if taken >> 16 >= phase or taken & 0xFF00 == 0:
            return
        pause()


def following() -> Callable[[int, int, int], Any]:
    """Return the next share to work on, or -1 when the phase is over.

    Arguments: the frame, and the share that was worked on, -1 to begin a phase. A worker takes its own shares from the
    first on, and in every second phase from the last, whose weights its cache still holds; those of others from their
    other end. All workers agree on the direction, because it is that of the phase's number.
    """

    def kernel(frame: int, mine: int, unused: int) -> Any:
        job, worker, workers = load_i64(frame + 8 * JOB), load_i64(frame + 8 * WORKER), load_i64(frame + 8 * WORKERS)
        each, phase = load_i64(frame + 8 * EACH), load_i64(frame + 8 * PHASE)
        own, words = worker * each, place(job, worker)
        if mine < 0:
            phase += 1
            store_i64(frame + 8 * PHASE, phase)
        elif own <= mine and mine < own + each:
            store_i64(frame + 8 * OWN_DONE, load_i64(frame + 8 * OWN_DONE) + 1)
        else:
            _done(job, place(job, mine // each), phase, 1)
        backwards = phase & 1 != 0
        taken = _take(words, phase, each, BY_WORKER)
        if taken >= 0:
            return own + (each - 1 - taken if backwards else taken)
        done = load_i64(frame + 8 * OWN_DONE)
        if done > 0:
            store_i64(frame + 8 * OWN_DONE, 0)
            _done(job, words, phase, done)
        for further in range(worker + 1, worker + workers):
            other = further if further < workers else further - workers
            words = place(job, other)
            _await(words, phase)
            taken = _take(words, phase, each, BY_OTHERS)
            if taken >= 0:
                return other * each + (taken if backwards else each - 1 - taken)
        for other in range(workers):
            wait_for(job, place(job, other) + 8 * WORKER_DONE, phase << 8 | each)
        return -1

    return kernel
