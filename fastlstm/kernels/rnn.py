"""Plain RNNs over a block of time steps; what all recurrent kernels share is in `fastlstm.kernels.recurrent`."""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.activations import activation, bounded, clipping
from fastlstm.kernels.frame import arg, bound
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lockstep import in_lockstep
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import Activation, over_time
from fastlstm.kernels.simd import vload
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import RNN
from fastlstm.target import FLOAT32, WeightFormat

__all__ = ["rnn"]

A = positions(RNN)


def rnn(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation],
    clip: float | None = None,
    masked: bool = False,
    weight_format: WeightFormat = FLOAT32,
) -> Compiled:
    """Plain RNN: h = f(z + h W). Arguments: `RNN`."""
    function = activation(*activations[0])
    clipped = clipping(clip)
    group, run, panel_bytes, prepared = operand(lanes, 1, max_sums, weight_format, True, bounded(*activations))
    put = partial_store(lanes)
    width = 4 * lanes

    def outputs_of(load: Any, store: Any) -> Any:
        @inlined
        def outputs(s, s_by, z, z_by):
            store(s, s_by, function(clipped(load(s, s_by) + load(z, z_by))))

        return outputs

    outputs = in_lockstep(outputs_of, lanes, max_sums)

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, zeros = arg(args, A.k), arg(args, A.weights), arg(args, A.zeros)
        spare = table + 8 * rows
        sums = spare + width
        end, last_width = arg(args, A.panels) - 1, arg(args, A.last_width)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        panels = arg(args, A.panels)
        first, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            run(frame, k, rows, h_rows, n, weights + panel * stride, stride, zeros, 0, sums, n * width)
            # Along the panels of one row, or along the rows of each panel.
            one = rows == 1
            count, s_by, z_by = (n, width, width) if one else (rows, n * width, z_row)
            for p in range(1 if one else n):
                outputs(count, sums + p * width, s_by, z + (panel + p) * width, z_by)
            for b in range(rows):
                for p in range(n):
                    h = vload(lanes, sums + (b * n + p) * width)
                    put(y + b * y_row + (panel + p) * width, h, last_width if panel + p == end else lanes, spare)
            left -= n

    return over_time(lanes, step, masked)
