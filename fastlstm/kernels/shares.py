"""How workers divide the work: phase by phase, in shares, without waiting for a worker that has not arrived.

A phase is work that needs the previous phase complete: a time step of a layer, a projection. Every worker has the same
number of shares of it: several if there is enough work, because a core is slower while another program runs on it. A
worker that arrives at a phase claims its own shares one by one, whose weights its cache holds, and then steals
unclaimed shares of others, who may be slower or asleep. A phase is over when all its shares are done; a worker that
arrives later goes straight on to the next. Workers wait only for shares in progress: they spin for a bounded time, then
sleep.

Phases are numbered. Each worker has two words that tell the progress of its shares. One holds the phase and how many
are taken, by the worker from one end and by others from the other end; the other holds the phase and how many are done.
A cache line takes up to a quarter of a microsecond to get from one core to another, so a worker counts its own finished
shares locally and publishes the count once, when it has none left.
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

PATIENCE = 60  # spins before stealing from a worker that has not arrived, about a microsecond
SPINS = 3000  # spins before a waiting thread sleeps: some 30 to 80 microseconds
LAST_FUNCTION = 8 * (layout.JOB_SYSTEM + len(layout.SYSTEM_FUNCTIONS) - 1)  # it sets a thread's affinity
BY_WORKER, BY_OTHERS = 1 << 8, 1  # what a taken share adds to the counts below the phase in `WORKER_TAKEN`


@intrinsic
def add_atomic(typingctx: Any, address: Any, value: Any) -> Any:
    """add_atomic(address, n) adds to the word there and returns what it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def swap(typingctx: Any, address: Any, value: Any) -> Any:
    """swap(address, n) writes the word and returns what it was, sequentially consistent."""

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
    """load_atomic(address) -> the word there, sequentially consistent with swap and add_atomic."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "seq_cst", 8)

    return types.int64(types.int64), codegen


pause = primitive("fl_pause", 0)
"""pause() tells the processor that this is a waiting loop."""


def _system(name: str) -> Any:
    """Return a helper ``call(job, a, b, c)`` for a system function that takes words and returns an int."""
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
    """Lock the job's mutex."""
    _lock(job, job + 8 * JOB_MUTEX, 0, 0)


@inlined
def unlock(job):
    """Unlock the job's mutex."""
    _unlock(job, job + 8 * JOB_MUTEX, 0, 0)


@inlined
def wake_all(job, condition):
    """Wake all threads that sleep on a condition variable, a word of the job."""
    _broadcast(job, job + 8 * condition, 0, 0)


@inlined
def sleep_on(job, condition):
    """Unlock, sleep until woken, and lock again."""
    _wait(job, job + 8 * condition, job + 8 * JOB_MUTEX, 0)


@inlined
def knows_processors(job):
    """Whether the system reports the processor that a thread runs on, and lets us choose it."""
    return load_i64(job + LAST_FUNCTION) != 0


@inlined
def processor(job):
    """Number of the processor that this thread runs on."""
    return _getcpu(job, 0, 0, 0)


@inlined
def place(job, worker):
    """Address of a worker's words."""
    return job + 8 * (JOB_WORKERS + layout.WORKER_WORDS * worker)


@inlined
def publish(job, address, value):
    """Write a word that others wait for, and wake the sleeping ones."""
    swap(address, value)
    wake_waiters(job)


@inlined
def wake_waiters(job):
    """Wake the threads that sleep until a word changes."""
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
    """Take one of a worker's shares: return how many had been taken from that end before, or -1 if none is left."""
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
    """Publish that `count` more of a worker's shares are done."""
    while True:
        before = load_atomic(words + 8 * WORKER_DONE)
        counted = before if before >> 8 == phase else phase << 8
        if claim(words + 8 * WORKER_DONE, before, counted + count):
            break
    wake_waiters(job)


@inlined
def _await(words, phase):
    """Give a worker that has not arrived a moment, if it took any of its shares in the last phase."""
    for _ in range(PATIENCE):
        taken = load_atomic(words + 8 * WORKER_TAKEN)
        if taken >> 16 >= phase or taken & 0xFF00 == 0:
            return
        pause()


def following() -> Callable[[int, int, int], Any]:
    """Return the kernel that returns the next share to work on, or -1 when the phase is over.

    Arguments: the frame, and the share just done, -1 to begin a phase. A worker takes its own shares from the first
    on, or, in every second phase, from the last, whose weights its cache still holds; others' shares it takes from the
    other end. All workers agree on the direction, because the phase's number decides it.
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
