"""Several items in lockstep: an item is one panel of one row, and items are equally spaced in memory.

The operations of one activation depend on each other, but those of several items can overlap. So passes over cells
process several items in lockstep, as one long vector that LLVM splits into the processor's vectors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import join, part, vload, vstore

__all__ = ["FEW_ROWS", "PANELS", "access", "in_lockstep", "items_beside"]

FEW_ROWS = 8  # with fewer, items in lockstep are panels of one row: of three rows of a panel, one would run alone
PANELS = 16  # summed before their cells if rows are few: for 3 rows of 128 units 14 % less time than panel by panel


def items_beside(max_sums: int) -> int:
    """Return how many items run in lockstep while there are enough; the rest run in pairs, a last one alone.

    With 16 registers, four items spill some of the constants and still take 3 to 5 % less time than two (an LSTM of 64
    units, GRUs of 32 and 128, 96 rows); eight took 6 % more. Where tiles are kept small to save code size, so is this
    number.
    """
    return 4 if max_sums >= 12 else 2


def in_lockstep(make: Any, lanes: int, max_sums: int) -> Any:
    """Return ``run(count, a, a_by, b, b_by)``, a pass over `count` items, `a_by` bytes apart at `a` and `b_by` at `b`.

    ``make(load, store)`` returns the body of a pass, ``body(a, a_by, b, b_by)``, given the functions of `access`.
    """
    four, two, one = (make(*access(lanes, items)[:2]) for items in (4, 2, 1))
    most = items_beside(max_sums)

    @inlined
    def run(count, a, a_by, b, b_by):
        fours, pairs = count // 4 * 4 if most == 4 else 0, count // 2 * 2
        for i in range(0, fours, 4):
            four(a + i * a_by, a_by, b + i * b_by, b_by)
        for i in range(fours, pairs, 2):
            two(a + i * a_by, a_by, b + i * b_by, b_by)
        for i in range(pairs, count):
            one(a + i * a_by, a_by, b + i * b_by, b_by)

    return run


@cache
def access(lanes: int, items: int) -> tuple[Any, Any, Any]:
    """Return functions that load equally spaced vectors as one long vector, and store them back.

    ``load(address, by)``, ``store(address, by, vec)``, and ``store_first(address, by, vec, whole, count, spare)``,
    which stores only the first `count` lanes of the vectors from number `whole` on.
    """
    put = partial_store(lanes)
    if items == 1:

        @inlined
        def load_one(address, by):
            return vload(lanes, address)

        @inlined
        def store_one(address, by, value):
            vstore(address, value)

        @inlined
        def store_first_one(address, by, value, whole, count, spare):
            put(address, value, lanes if whole > 0 else count, spare)

        return load_one, store_one, store_first_one
    half, upper = items // 2, items // 2 * lanes
    load_half, store_half, store_first_half = access(lanes, half)

    @inlined
    def load(address, by):
        return join(load_half(address, by), load_half(address + half * by, by))

    @inlined
    def store(address, by, value):
        store_half(address, by, part(upper, 0, value))
        store_half(address + half * by, by, part(upper, upper, value))

    @inlined
    def store_first(address, by, value, whole, count, spare):
        store_first_half(address, by, part(upper, 0, value), whole, count, spare)
        store_first_half(address + half * by, by, part(upper, upper, value), whole - half, count, spare)

    return load, store, store_first
