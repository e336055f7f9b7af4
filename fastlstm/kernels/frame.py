"""What every kernel asks of its frame and slots."""

from __future__ import annotations

from fastlstm import layout
from fastlstm.kernels.barrier import wait
from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import load_i64

__all__ = ["active_rows", "arg", "meet", "origin", "row_stride", "share", "time_stride", "word"]

SLOTS, START, ACTIVE, ROWS, TOTAL = layout.SLOTS, layout.START, layout.ACTIVE, layout.ROWS, layout.TOTAL
WORKER, WORKERS, BARRIER = layout.WORKER, layout.WORKERS, layout.BARRIER
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
def share(frame, count, end):
    """The first (end=0) or past-the-last (end=1) of `count` things that this worker does."""
    return count * (load_i64(frame + 8 * WORKER) + end) // load_i64(frame + 8 * WORKERS)


@inlined
def meet(frame):
    """Wait until all workers on this program's buffers are here."""
    workers = load_i64(frame + 8 * WORKERS)
    if workers > 1:
        wait(load_i64(frame + 8 * BARRIER), workers)
