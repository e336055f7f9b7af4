"""Plain RNNs over a block of time steps; what all recurrent kernels share is in `fastlstm.kernels.recurrent`."""

from __future__ import annotations

from fastlstm.kernels.activations import activation, bounded, clipping
from fastlstm.kernels.frame import arg, bound
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import LAST_WIDTH, PANELS, WEIGHTS, Activation, Compiled, K, over_time
from fastlstm.simd import vload

__all__ = ["rnn"]


def rnn(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """Plain RNN: h = f(z + h W)."""
    function = activation(*activations[0])
    clipped = clipping(clip)
    group, run, panel_bytes, prepared = operand(lanes, 1, max_sums, bits, True, bounded(*activations))
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights = arg(args, K), arg(args, WEIGHTS)
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        panels = arg(args, PANELS)
        first, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            sums = z + panel * width
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, z_row, sums, z_row)
            for p in range(panel, panel + n):
                for b in range(rows):
                    h = function(clipped(vload(lanes, z + b * z_row + p * width)))
                    put(y + b * y_row + p * width, h, last_width if p == end else lanes, table + 8 * rows)
            left -= n

    return over_time(lanes, step, masked)
