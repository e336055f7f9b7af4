"""How workers divide the work: phase by phase, a share for each, and nobody waits for who has not come.

A phase is work that needs the one before it complete: a time step of a layer, a projection. It is divided into the same
number of shares for each worker: several where the work is worth it, because processors are not equally fast while
another program runs on one of them. Who comes to a phase claims its own shares one by one, whose weights its cache
holds, then those of others that nobody has claimed yet: their worker may be slower, or asleep. A phase is over when all
its shares are done. Who comes late finds it so, and goes on to the next. Only a share that is being worked on is
waited for: a bounded time by looking, then asleep.

Phases are numbered. A share's claim and its completion are numbers of phases, on a cache line of the share. A phase of
fewer shares leaves the numbers of the others as they were.
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
    BACKWARDS,
    JOB,
    JOB_CONDITION_2,
    JOB_MUTEX,
    JOB_WAITERS,
    JOB_WORKERS,
    PHASE,
    SHARE_AT,
    SHARES,
    WORKER,
    WORKERS,
)

__all__ = ["following"]

PATIENCE = 60  # looks before another worker's first share is taken, about a microsecond
SPINS = 3000  # looks before a waiting thread sleeps: some 30 to 80 microseconds
LAST_FUNCTION = 8 * (layout.JOB_SYSTEM + len(layout.SYSTEM_FUNCTIONS) - 1)  # which looks for processors
CLAIMED, DONE, PRESENT = layout.SHARE_CLAIMED, layout.SHARE_DONE, layout.SHARE_PRESENT
LINE = 8 * layout.SHARE_WORDS  # bytes of a share's words


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
        result = builder.cmpxchg(place, args[1], args[2], "acq_rel", "acquire")
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
def _claimed(words, phase):
    """Claim a share for this worker; return whether nobody had."""
    before = load_atomic(words + 8 * CLAIMED)
    return before < phase and claim(words + 8 * CLAIMED, before, phase)


@inlined
def _patient(words, phase):
    """Whether a share's own worker claims it, given a moment if it was there the last time."""
    looks = PATIENCE if load_i64(words + 8 * PRESENT) == 0 else 0
    while load_atomic(words + 8 * CLAIMED) < phase:
        if looks >= PATIENCE:
            return False
        looks += 1
        pause()
    return True


def following() -> Callable[[int, int, int], Any]:
    """Return the next share to work on, or -1 when the phase is over.

    Arguments: the frame, and the share that was worked on; -1 to begin a phase, -2 one that goes backwards. A worker
    takes its own shares in the phase's direction and those of others from their other end.
    """

    def kernel(frame: int, mine: int, unused: int) -> Any:
        shares, count = load_i64(frame + 8 * SHARE_AT), load_i64(frame + 8 * SHARES)
        each = count // load_i64(frame + 8 * WORKERS)
        own = load_i64(frame + 8 * WORKER) * each
        phase = load_i64(frame + 8 * PHASE)
        if mine < 0:
            phase += 1
            store_i64(frame + 8 * PHASE, phase)
            store_i64(frame + 8 * BACKWARDS, -1 - mine)
        else:
            publish(load_i64(frame + 8 * JOB), shares + LINE * mine + 8 * DONE, phase)
        backwards = load_i64(frame + 8 * BACKWARDS) != 0
        for i in range(each):
            share = own + (each - 1 - i if backwards else i)
            words = shares + LINE * share
            if _claimed(words, phase):
                store_i64(words + 8 * PRESENT, 1)
                return share
        for i in range(each, count):
            share = (own + i if backwards else own + count - 1 - i + each) % count
            words, place_of_own = shares + LINE * share, share % each
            if place_of_own == (each - 1 if backwards else 0) and _patient(words, phase):
                continue
            if _claimed(words, phase):
                store_i64(words + 8 * PRESENT, 0)
                return share
        job = load_i64(frame + 8 * JOB)
        for share in range(count):
            wait_for(job, shares + LINE * share + 8 * DONE, phase)
        return -1

    return kernel
