"""Running the parts of a program whose batch is divided: see `fastlstm.runtime.split`."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import arg, bound, first_share, next_share, word
from fastlstm.kernels.simd import call_kernel, load_i64, store_i64
from fastlstm.program import layout
from fastlstm.program.arguments import positions, size_of
from fastlstm.program.arguments.rows import Part, Split, SplitTable

__all__ = ["split"]

SLOT_BYTES = 8 * layout.SLOT_WORDS
SPLIT, TABLE, PART = positions(Split), positions(SplitTable), positions(Part)
TABLE_BYTES, PART_BYTES = 8 * size_of(SplitTable), 8 * size_of(Part)


def split() -> Callable[[int, int, int], int]:
    """Run every part over all time steps. Arguments: `Split`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        table = arg(args, SPLIT.table)
        parts, drive, externals = word(table, TABLE.parts), word(table, TABLE.drive), word(table, TABLE.externals)
        names, ours = table + TABLE_BYTES + PART_BYTES * parts, word(frame, layout.SLOTS)
        share = first_share(frame)
        while share >= 0:
            for number in range(bound(frame, parts, share), bound(frame, parts, share + 1)):
                part = table + TABLE_BYTES + PART_BYTES * number
                inner, row = word(part, PART.frame), word(part, PART.row)
                for i in range(externals):
                    source = ours + word(names, i) * SLOT_BYTES
                    target = word(part, PART.slots) + word(names, i) * SLOT_BYTES
                    for field in range(layout.SLOT_WORDS):
                        store_i64(target + 8 * field, word(source, field))
                    base = word(source, layout.SLOT_BASE) + row * word(source, layout.SLOT_ROW)
                    store_i64(target + 8 * layout.SLOT_BASE, base)
                store_i64(inner + 8 * layout.TOTAL, word(frame, layout.TOTAL))
                store_i64(inner + 8 * layout.ACTIVE, 0)
                store_i64(inner + 8 * layout.STATUS, 0)
                call_kernel(drive, word(part, PART.program), inner)
                if load_i64(inner + 8 * layout.STATUS) != 0:
                    store_i64(frame + 8 * layout.STATUS, 1)
            share = next_share(frame, share)
        return 0

    return kernel
