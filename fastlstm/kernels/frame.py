"""What every kernel reads from its frame and slots.

The first ones are primitives: `fastlstm.kernels.primitives` defines them as loads from memory; an exported model has
constants in their place.
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
"""complain(frame) records that an index is out of range; the caller raises an error."""
active_rows = primitive("fl_active_rows", 2)
"""active_rows(frame, t) -> how many rows (sorted by length, longest first) are active at absolute time `t`."""


@inlined
def own_memory(frame, memory, size):
    """Address of this worker's part of `memory`, `size` bytes per worker."""
    return memory + word(frame, layout.WORKER) * size


@inlined
def first_share(frame):
    """Begin a phase: return the number of a share to work on, -1 if the phase is over.

    A phase is a loop over shares; `fastlstm.kernels.shares` decides which worker gets which, and when it is over::

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
    """Record that a share is done, and return the next one to work on, -1 if the phase is over."""
    if word(frame, WORKERS) == 1:
        return -1
    return call_kernel(word(frame, FOLLOWING), frame, done)


@inlined
def is_last(frame, share):
    """Whether this is the last share; there is always exactly one, even if some shares have no items."""
    return share + 1 == word(frame, SHARES)


@inlined
def bound(frame, count, share):
    """First item of a share of `count` items; the later shares are the smaller ones."""
    shares = word(frame, SHARES)
    return (count * share + shares - 1) // shares
