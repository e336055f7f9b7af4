"""Tiled products with integer weights: the counterpart of `fastlstm.kernels.product`.

Sums are split into blocks of k that are exact in 32 bits; the blocks are added as float32, in ascending order,
whatever the tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.integer_rows import first_row, row_bytes
from fastlstm.kernels.integer_shape import Shape
from fastlstm.kernels.integer_tile import integer_tiles
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import group_size
from fastlstm.program.layout import LINE
from fastlstm.target.limits import BLOCK

__all__ = ["integer_product"]


@cache
def integer_product(shape: Shape) -> tuple[Any, Any]:
    """Return ``group`` and ``run`` as in `fastlstm.kernels.product`, for rows as `quantised` returns them."""
    # A tile with more sums than registers makes several passes over k (see `integer_tiles`), but with 6 rows weights
    # are widened a third as often as with 2.
    vectorised = shape.max_sums >= 12
    sums = shape.max_sums if vectorised else 8
    most_rows = 6 if vectorised else min(2, max(1, sums // shape.vectors))
    if shape.magnitudes:
        sums, most_rows = 8, 4
    alone = group_size(shape.vectors, 1, sums if shape.magnitudes else shape.max_sums)
    beside = group_size(shape.vectors, most_rows, sums)
    shapes = [(1, p) for p in range(1, alone + 1)]
    for r in range(2, most_rows + 1):
        shapes += [(r, 1), (r, beside)] if beside > 1 else [(r, 1)]
    run_tile = integer_tiles(tuple(dict.fromkeys(shapes)), shape)
    lanes, size, together = shape.lanes, shape.row_size, shape.together
    header, k_bytes, blocked = shape.header_bytes, shape.k_bytes, shape.blocked
    group_bytes = k_bytes * together

    @inlined
    def group(rows, panels):
        if rows > 1:
            return beside if panels >= beside else 1
        if panels <= alone:
            return panels
        return alone if panels >= 2 * alone else (panels + 1) // 2

    @inlined
    def run(frame, k, rows, place, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride):
        a_stride, values = row_bytes(k, lanes, size), place + first_row(rows)
        start, source, source_stride = 0, c_in, c_in_stride
        block = BLOCK if blocked else k
        while start < k:
            groups = (min(block, k - start) + together - 1) // together
            at = w + header + start * k_bytes
            # While the rows pass over this slice of the weights, tile by tile, the next slice is prefetched into L2.
            done, ahead = 0, at + groups * group_bytes
            end = ahead + groups * group_bytes
            while done < rows:
                left = rows - done
                r = left
                if left > most_rows:
                    r = most_rows if left >= 2 * most_rows else (left + 1) // 2
                run_tile(
                    r, panels, groups, values + done * a_stride + size * start, a_stride, place + LINE + 4 * done,
                    at, w_stride, w, source + done * source_stride, source_stride,
                    c_out + done * c_out_stride, c_out_stride, ahead if ahead < end else at,
                )  # fmt: skip
                ahead += LINE * groups
                done += r
            source, source_stride = c_out, c_out_stride
            start += block

    return group, run
