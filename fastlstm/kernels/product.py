"""Tiled matrix products: rows of A times packed panels, added to C.

A panel is ``[k][vector][lane]``. Tiles are chosen so that their sums fill the registers: several rows by one
panel, or one row by several panels. A panel larger than an eighth of the L2 cache is split into blocks of k: a
block's slice takes half of the L1 cache and stays there while all rows pass over it. Between blocks the sums are kept
in C, so the chain over k is the same. (With 128 to 512 units, whole panels measured 1 to 2 % faster than blocks; with
1024, 3 % slower.)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.frame import word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import load_i64, store_i64
from fastlstm.kernels.tile import tiles
from fastlstm.program.layout import CUT_BYTES, LINE, SLICE_BYTES

__all__ = ["group_size", "in_tiles", "product", "rows_per_tile"]


def rows_per_tile(vectors: int, max_sums: int) -> int:
    """Rows of the largest tile: as many as there are registers for, at most 6 (more row pointers spill)."""
    return min(6 if max_sums > 12 else 3, max_sums // 3) if vectors == 1 else min(6, max_sums // vectors)


def group_size(vectors: int, rows: int, max_sums: int) -> int:
    """Panels side by side in a tile of `rows` rows."""
    return max(1, min(8 if rows == 1 else 4, max_sums // (rows * vectors)))


@inlined
def shift(table, rows, by):
    """Advance every row address in `table` by `by` bytes."""
    for i in range(rows):
        store_i64(table + 8 * i, load_i64(table + 8 * i) + by)


@cache
def in_tiles(
    lanes: int, vectors: int, max_sums: int, most_panels: int = 8, gathered: str = "", pairs: bool = False
) -> tuple[Any, Any]:
    """Return two functions: the size of the next group of panels (at most `most_panels`), and all rows by one group.

    ``group(rows, panels)`` returns how many of the remaining `panels` form the next group, for `rows` rows.

    ``all_rows(k, rows, table, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride, offsets)`` adds the product
    to C for all rows, whose addresses are at `table` (8 bytes each); `offsets` is used if terms are `gathered`: see
    `fastlstm.kernels.tile` for this and for `pairs`.
    """
    most_rows = rows_per_tile(vectors, max_sums)
    alone = min(most_panels, group_size(vectors, 1, max_sums))
    together = min(most_panels, group_size(vectors, most_rows, max_sums))
    shapes = [(1, p) for p in range(1, alone + 1)]
    for r in range(2, most_rows + 1):
        shapes += [(r, 1), (r, together)] if together > 1 else [(r, 1)]
    # With 16 registers, hardware prefetching alone is better: by 2 to 4 % for 17 to 64 rows of 200 to 512 units.
    prefetching = not gathered and max_sums > 12
    run_tile = tiles(tuple(shapes), vectors, lanes, gathered, prefetching, pairs)
    panel_row, by_table = vectors * lanes * 4, bool(gathered)

    @inlined
    def group(rows, panels):
        if rows > 1:
            return together if panels >= together else 1
        if panels <= alone:
            return panels
        return alone if panels >= 2 * alone else (panels + 1) // 2

    @inlined
    def all_rows(k, rows, table, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride, offsets):
        # While many rows pass over this slice of the weights, tile by tile, the next slice is prefetched into L2. With
        # few rows that costs more than it saves: 8 to 19 % for 2, 3 and 6 rows of 384 units.
        ahead, end, done = w + k * panel_row, w + 2 * k * panel_row, 0
        if rows <= 2 * most_rows:
            end = w
        while done < rows:
            left = rows - done
            r = left
            if left > most_rows:
                r = most_rows if left >= 2 * most_rows else (left + 1) // 2
            run_tile(
                r, panels, k, table + 8 * done, w, w_stride,
                c_in + done * c_in_stride, c_in_stride, c_out + done * c_out_stride, c_out_stride,
                offsets if by_table else ahead if ahead < end else w,
            )  # fmt: skip
            ahead += LINE * k
            done += r

    return group, all_rows


@cache
def product(lanes: int, vectors: int, max_sums: int, most_panels: int = 8) -> tuple[Any, Any]:
    """Return two functions: the size of the next group of panels (see `in_tiles`), and the product for one group.

    ``run(frame, k, rows, table, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride)`` adds the product to C
    for all rows, whose addresses are at `table` (8 bytes each; advanced in place over the blocks of k, then restored).
    """
    group, all_rows = in_tiles(lanes, vectors, max_sums, most_panels)
    most_rows = rows_per_tile(vectors, max_sums)
    panel_row = vectors * lanes * 4

    @inlined
    def run(frame, k, rows, table, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride):
        row_bytes = panel_row * panels
        block = k
        if rows > most_rows and k * row_bytes > word(frame, CUT_BYTES):
            block = max(1, word(frame, SLICE_BYTES) // row_bytes)
        # The only call site of the tiles: each further one would compile all of them again.
        start, source, source_stride = 0, c_in, c_in_stride
        while start < k:
            size = min(block, k - start)
            at = w + start * panel_row
            all_rows(size, rows, table, panels, at, w_stride, source, source_stride, c_out, c_out_stride, 0)
            source, source_stride = c_out, c_out_stride
            start += size
            if block < k:
                shift(table, rows, 4 * size)
        if block < k:
            shift(table, rows, -4 * k)

    return group, run
