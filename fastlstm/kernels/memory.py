"""Copying and clearing memory inside kernels, in float32 elements."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import load_f32, store_f32, vload, vstore

__all__ = ["clear", "copy", "copy_vectors", "partial_store"]


@inlined
def copy(target, source, count):
    """Copy `count` floats between places that do not overlap."""
    for i in range(count):
        store_f32(target + 4 * i, load_f32(source + 4 * i))


@cache
def copy_vectors(lanes: int) -> Any:
    """Return ``copied(target, source, count)``: like `copy`, but vector by vector as long as whole ones remain.

    What was stored as vectors should be loaded as vectors: a load that spans two stores waits until both have reached
    the cache.
    """

    @inlined
    def copied(target, source, count):
        whole = count - count % lanes
        for i in range(0, whole, lanes):
            vstore(target + 4 * i, vload(lanes, source + 4 * i))
        copy(target + 4 * whole, source + 4 * whole, count - whole)

    return copied


@inlined
def clear(target, count):
    """Write `count` zeros."""
    for i in range(count):
        store_f32(target + 4 * i, 0.0)


@cache
def partial_store(lanes: int) -> Any:
    """Return ``put(address, vec, count, spare)``, which stores the first `count` lanes, at least one.

    `spare` is the address of memory for one vector.
    """
    copy_fewer = _fewer(lanes)

    @inlined
    def put(address, value, count, spare):
        if count == lanes:
            vstore(address, value)
        else:
            vstore(spare, value)
            copy_fewer(address, spare, count)

    return put


@cache
def _fewer(lanes: int) -> Any:
    """Return ``copy(target, source, count)`` for fewer floats than `lanes`, by halves: one for each bit of `count`.

    LLVM would vectorise and unroll a plain loop at each of its many uses, which took a quarter of an LSTM's compile
    time.
    """
    half = lanes // 2

    if half == 0:

        @inlined
        def none(target, source, count):
            return

        return none
    rest = _fewer(half)

    @inlined
    def some(target, source, count):
        copied = 0
        if count & half:
            vstore(target, vload(half, source))
            copied = 4 * half
        rest(target + copied, source + copied, count)

    return some
