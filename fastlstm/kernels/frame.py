"""What every kernel asks of its frame and slots."""

from __future__ import annotations

from fastlstm import layout
from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import call_kernel, load_i64

__all__ = [
    "active_rows",
    "arg",
    "bound",
    "first_share",
    "is_last",
    "next_share",
    "origin",
    "own_memory",
    "row_stride",
    "time_stride",
    "word",
]

SLOTS, START, ACTIVE, ROWS, TOTAL = layout.SLOTS, layout.START, layout.ACTIVE, layout.ROWS, layout.TOTAL
WORKERS, FOLLOWING = layout.WORKERS, layout.FOLLOWING
BASE, TIME, ROW, BLOCK = layout.SLOT_BASE, layout.SLOT_TIME, layout.SLOT_ROW, layout.SLOT_BLOCK
SLOT_BYTES = 8 * layout.SLOT_WORDS


@inlined
def word(frame, index):
    """The frame's word `index`."""
    return load_i64(frame + 8 * index)


@inlined
def arg(args, index):
    """The instruction's argument `index`."""
    return load_i64(args + 8 * index)


@inlined
def own_memory(frame, memory, size):
    """Address of this worker's part of `memory`, `size` bytes a worker."""
    return memory + word(frame, layout.WORKER) * size


@inlined
def origin(frame, slot):
    """Address of batch row 0 at the first time step of the running block."""
    place = load_i64(frame + 8 * SLOTS) + slot * SLOT_BYTES
    base = load_i64(place + 8 * BASE)
    if load_i64(place + 8 * BLOCK) != 0:
        return base
    return base + load_i64(frame + 8 * START) * load_i64(place + 8 * TIME)


@inlined
def time_stride(frame, slot):
    """Bytes from one time step of `slot` to the next."""
    return load_i64(load_i64(frame + 8 * SLOTS) + slot * SLOT_BYTES + 8 * TIME)


@inlined
def row_stride(frame, slot):
    """Bytes from one batch row of `slot` to the next."""
    return load_i64(load_i64(frame + 8 * SLOTS) + slot * SLOT_BYTES + 8 * ROW)


@inlined
def active_rows(frame, t):
    """How many rows (they are sorted by length, longest first) are active at absolute time `t`."""
    table = load_i64(frame + 8 * ACTIVE)
    if table == 0:
        return load_i64(frame + 8 * ROWS)
    if t < 0 or t >= load_i64(frame + 8 * TOTAL):
        return 0
    return load_i64(table + 8 * t)


@inlined
def first_share(frame):
    """Begin a phase: return the number of a share to work on, -1 if the phase is over.

    A phase is a loop over shares; `fastlstm.kernels.shares` says who gets which, and when it is over::

        share = first_share(frame)
        while share >= 0:
            ...  # items bound(frame, count, share) to bound(frame, count, share + 1)
            share = next_share(frame, share)
    """
    if load_i64(frame + 8 * WORKERS) == 1:
        return 0
    return call_kernel(load_i64(frame + 8 * FOLLOWING), frame, -1)


@inlined
def next_share(frame, done):
    """Note that a share is done, and return the next one to work on, -1 if the phase is over."""
    if load_i64(frame + 8 * WORKERS) == 1:
        return -1
    return call_kernel(load_i64(frame + 8 * FOLLOWING), frame, done)


@inlined
def is_last(frame, share):
    """Whether no share comes after this one; there is one such share, also where some have no items."""
    return share + 1 == load_i64(frame + 8 * WORKERS)


@inlined
def bound(frame, count, share):
    """Where a share of `count` items begins; the last shares are the smaller ones."""
    workers = load_i64(frame + 8 * WORKERS)
    return (count * share + workers - 1) // workers
