"""Copies and clears inside kernels, in float32 elements."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import load_f32, store_f32, vload, vstore

__all__ = ["clear", "copy", "copy_vectors", "partial_store"]


@inlined
def copy(target, source, count):
    """Copy `count` floats between places that do not overlap."""
    for i in range(count):
        store_f32(target + 4 * i, load_f32(source + 4 * i))


@cache
def copy_vectors(lanes: int) -> Any:
    """Return ``copied(target, source, count)``: `copy`, vector by vector as long as whole ones are left.

    What was stored as vectors is read as such: a load over parts of two stores has to wait until both are in the cache.
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
    """Return ``put(address, vec, count, spare)``, which stores the first `count` lanes.

    `spare` is the address of room for one vector.
    """

    @inlined
    def put(address, value, count, spare):
        if count == lanes:
            vstore(address, value)
        else:
            vstore(spare, value)
            copy(address, spare, count)

    return put
