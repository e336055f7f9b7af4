"""LSTMs whose output is projected: like `fastlstm.kernels.recurrent`, with a product after the cells."""

from __future__ import annotations

from fastlstm.kernels.activations import bounded
from fastlstm.kernels.frame import arg, bound, origin, row_stride
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lstm_cell import lstm_cells, lstm_share
from fastlstm.kernels.memory import clear, partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import Activation, over_time
from fastlstm.kernels.simd import store_i64, vload
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Projected
from fastlstm.target import FLOAT32, WeightFormat

__all__ = ["lstm"]

A = positions(Projected)


def lstm(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None = None,
    coupled: bool = False,
    peephole: bool = False,
    masked: bool = False,
    weight_format: WeightFormat = FLOAT32,
    projection_format: WeightFormat = FLOAT32,
) -> Compiled:
    """LSTM whose output is projected. Arguments: `Projected`."""
    cells = lstm_cells(lanes, max_sums, activations, clip, coupled, peephole)
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, weight_format, True)
    run_share = lstm_share(lanes, cells, group, run)
    within = bounded(activations[0], activations[2])
    project_group, project, projection_bytes, projected = operand(lanes, 1, max_sums, projection_format, bounded=within)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def hidden(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, extra = arg(args, A.k), arg(args, A.weights), arg(args, A.peepholes)
        full, full_row = origin(frame, arg(args, A.unprojected)), row_stride(frame, arg(args, A.unprojected))
        panels = arg(args, A.hidden_panels)
        h_rows = prepared(frame, rows, table, k)
        run_share(
            frame, k, rows, h_rows, weights, panel_bytes(k), z, z_row, c, c_row, extra, full, full_row,
            bound(frame, panels, share), bound(frame, panels, share + 1), backwards, panels, lanes, table + 8 * rows,
        )  # fmt: skip

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        hidden_k = arg(args, A.hidden)
        full, full_row = origin(frame, arg(args, A.unprojected)), row_stride(frame, arg(args, A.unprojected))
        panels, last_width = arg(args, A.panels), arg(args, A.last_width)
        panel, last, end = bound(frame, panels, share), bound(frame, panels, share + 1), panels - 1
        for b in range(rows):
            store_i64(table + 8 * b, full + b * full_row)
        # The sums of one group of panels, row by row, after the table of rows.
        sums = table + 8 * rows + width
        full_rows = projected(frame, rows, table, hidden_k)
        stride = projection_bytes(hidden_k)
        while panel < last:
            n = project_group(rows, last - panel)
            clear(sums, rows * n * lanes)
            run_at = arg(args, A.projection) + panel * stride
            project(frame, hidden_k, rows, full_rows, n, run_at, stride, sums, n * width, sums, n * width)
            for p in range(n):
                for b in range(rows):
                    value = vload(lanes, sums + (b * n + p) * width)
                    count = last_width if panel + p == end else lanes
                    put(y + b * y_row + (panel + p) * width, value, count, table + 8 * rows)
            panel += n

    return over_time(lanes, step, masked, before=hidden, cells=True, projected=True)
