"""What every kernel asks of its frame and slots.

The six first are primitives: `fastlstm.kernels.primitives` reads them from memory, an exported model has constants in
their place.
"""

from __future__ import annotations

from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import call_kernel, primitive
from fastlstm.program import layout

__all__ = [
    "active_rows",
    "arg",
    "bound",
    "complain",
    "first_share",
    "is_last",
    "next_share",
    "origin",
    "own_memory",
    "row_stride",
    "time_stride",
    "word",
]

WORKERS, SHARES, FOLLOWING = layout.WORKERS, layout.SHARES, layout.FOLLOWING

word = primitive("fl_word", 2)
"""word(frame, INDEX) -> the frame's word."""
arg = primitive("fl_arg", 2)
"""arg(args, INDEX) -> the instruction's argument."""
origin = primitive("fl_origin", 2)
"""origin(frame, slot) -> address of batch row 0 at the first time step of the running block."""
time_stride = primitive("fl_time_stride", 2)
"""time_stride(frame, slot) -> bytes from one time step to the next."""
row_stride = primitive("fl_row_stride", 2)
"""row_stride(frame, slot) -> bytes from one batch row to the next."""
complain = primitive("fl_complain", 1)
"""complain(frame) notes that an index points to nothing; the caller raises an error."""
active_rows = primitive("fl_active_rows", 2)
"""active_rows(frame, t) -> how many rows (sorted by length, longest first) are active at absolute time `t`."""


@inlined
def own_memory(frame, memory, size):
    """Address of this worker's part of `memory`, `size` bytes a worker."""
    return memory + word(frame, layout.WORKER) * size


@inlined
def first_share(frame):
    """Begin a phase: return the number of a share to work on, -1 if the phase is over.

    A phase is a loop over shares; `fastlstm.kernels.shares` says who gets which, and when it is over::

        share = first_share(frame)
        while share >= 0:
            ...  # items bound(frame, count, share) to bound(frame, count, share + 1)
            share = next_share(frame, share)
    """
    if word(frame, WORKERS) == 1:
        return 0
    return call_kernel(word(frame, FOLLOWING), frame, -1)


@inlined
def next_share(frame, done):
    """Note that a share is done, and return the next one to work on, -1 if the phase is over."""
    if word(frame, WORKERS) == 1:
        return -1
    return call_kernel(word(frame, FOLLOWING), frame, done)


@inlined
def is_last(frame, share):
    """Whether no share comes after this one; there is one such share, also where some have no items."""
    return share + 1 == word(frame, SHARES)


@inlined
def bound(frame, count, share):
    """Where a share of `count` items begins; the last shares are the smaller ones."""
    shares = word(frame, SHARES)
    return (count * share + shares - 1) // shares
