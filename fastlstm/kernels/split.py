"""Running the parts of a program whose batch is divided: see `fastlstm.segments.split`."""

from __future__ import annotations

from collections.abc import Callable

from fastlstm import layout
from fastlstm.kernels.frame import arg, bound, first_share, next_share, word
from fastlstm.simd import call_kernel, load_i64, store_i64

__all__ = ["split"]

SLOT_BYTES = 8 * layout.SLOT_WORDS
PARTS, DRIVE, EXTERNALS, FIRST = 0, 1, 2, 3  # words of the table
CODE, FRAME, SLOTS, ROW, PART_WORDS = 0, 1, 2, 3, 4  # words of a part; the numbers of external slots follow the parts


def split() -> Callable[[int, int, int], int]:
    """Run every part over all time steps. Arguments: address of the table."""

    def kernel(args: int, frame: int, unused: int) -> int:
        table = arg(args, 0)
        parts, drive, externals = word(table, PARTS), word(table, DRIVE), word(table, EXTERNALS)
        names, ours = table + 8 * (FIRST + PART_WORDS * parts), word(frame, layout.SLOTS)
        share = first_share(frame)
        while share >= 0:
            for number in range(bound(frame, parts, share), bound(frame, parts, share + 1)):
                part = table + 8 * (FIRST + PART_WORDS * number)
                inner, row = word(part, FRAME), word(part, ROW)
                for i in range(externals):
                    source, target = ours + word(names, i) * SLOT_BYTES, word(part, SLOTS) + word(names, i) * SLOT_BYTES
                    for field in range(layout.SLOT_WORDS):
                        store_i64(target + 8 * field, word(source, field))
                    base = word(source, layout.SLOT_BASE) + row * word(source, layout.SLOT_ROW)
                    store_i64(target + 8 * layout.SLOT_BASE, base)
                store_i64(inner + 8 * layout.TOTAL, word(frame, layout.TOTAL))
                store_i64(inner + 8 * layout.ACTIVE, 0)
                store_i64(inner + 8 * layout.STATUS, 0)
                call_kernel(drive, word(part, CODE), inner)
                if load_i64(inner + 8 * layout.STATUS) != 0:
                    store_i64(frame + 8 * layout.STATUS, 1)
            share = next_share(frame, share)
        return 0

    return kernel
