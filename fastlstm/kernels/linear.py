"""Linear layers: input projections of recurrent layers, and dense layers.

    out[t, b, :] = bias + x[t, b, :] @ W

for all rows of a block of time steps at once, into a padded buffer with contiguous rows.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import (
    active_rows,
    arg,
    bound,
    first_share,
    next_share,
    origin,
    row_stride,
    time_stride,
    word,
)
from fastlstm.kernels.operand import operand
from fastlstm.kernels.simd import store_i64
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Linear
from fastlstm.program.layout import ROWS, SCRATCH, START, STEPS
from fastlstm.target import FLOAT32, WeightFormat

A = positions(Linear)


def linear(
    lanes: int, vectors: int, max_sums: int, weight_format: WeightFormat = FLOAT32, integers: bool = False
) -> Callable[[int, int, int], int]:
    """Return the kernel of a linear layer. Arguments: `Linear`. Workers share the panels."""
    group, run, panel_bytes, prepared = operand(lanes, vectors, max_sums, weight_format, integers=integers)
    panel_row = vectors * lanes * 4

    def kernel(args: int, frame: int, unused: int) -> int:
        x, out = origin(frame, arg(args, A.x)), origin(frame, arg(args, A.out)) + arg(args, A.out_bytes)
        x_time, x_row = time_stride(frame, arg(args, A.x)), row_stride(frame, arg(args, A.x))
        out_row = row_stride(frame, arg(args, A.out))
        k, weights, bias, panels = arg(args, A.k), arg(args, A.weights), arg(args, A.bias), arg(args, A.panels)
        start, active = word(frame, START), arg(args, A.active) != 0
        table = word(frame, SCRATCH)
        w_stride = panel_bytes(k)
        share = first_share(frame)
        while share >= 0:
            rows = 0
            for t in range(word(frame, STEPS)):
                batch = active_rows(frame, start + t) if active else word(frame, ROWS)
                for b in range(batch):
                    store_i64(table + 8 * (rows + b), x + t * x_time + b * x_row)
                rows += batch
            panel, last = bound(frame, panels, share), bound(frame, panels, share + 1)
            x_rows = prepared(frame, rows, table, k)
            while panel < last:
                n = group(rows, last - panel)
                run(
                    frame, k, rows, x_rows, n, weights + panel * w_stride, w_stride,
                    bias + panel * panel_row, 0, out + panel * panel_row, out_row,
                )  # fmt: skip
                panel += n
            share = next_share(frame, share)
        return 0

    return kernel
