"""LSTMs with layer normalisation of the input's sums, the recurrent sums and the cell states.

A mean is taken over all units, so a time step has three phases: the product, the gates, the outputs. Each worker
computes the means itself, in double precision and in the order of the units, so they are the same for any number of
workers and lanes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation, bounded, clipping
from fastlstm.kernels.frame import arg, bound, origin, row_stride
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.memory import clear, partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import Activation, over_time
from fastlstm.kernels.simd import fma, load_f32, sqrt, vload, vsplat, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Normalised
from fastlstm.target import FLOAT32, WeightFormat

__all__ = ["lstm"]

A = positions(Normalised)


@cache
def _sums(lanes: int, vectors: int, first: int) -> tuple[Any, Any]:
    """Return ``totals(a, b, units)`` and ``squares(a, b, units, a_mean, b_mean)`` of two rows, as pairs.

    A row has so many vectors a panel, of which the `first` ones are looked at: gate by gate, unit by unit. Each sum is
    a chain of additions that wait for one another; two of them take the time of one.
    """
    width = 4 * lanes

    @inlined
    def totals(a, b, units):
        a_total, b_total = 0.0, 0.0
        for gate in range(first):
            for unit in range(0, units, lanes):
                at = unit * 4 * vectors + gate * width
                for lane in range(min(lanes, units - unit)):
                    a_total += load_f32(a + at + 4 * lane)
                    b_total += load_f32(b + at + 4 * lane)
        return a_total, b_total

    @inlined
    def squares(a, b, units, a_mean, b_mean):
        a_square, b_square = 0.0, 0.0
        for gate in range(first):
            for unit in range(0, units, lanes):
                at = unit * 4 * vectors + gate * width
                for lane in range(min(lanes, units - unit)):
                    a_away = load_f32(a + at + 4 * lane) - a_mean
                    b_away = load_f32(b + at + 4 * lane) - b_mean
                    a_square += a_away * a_away
                    b_square += b_away * b_away
        return a_square, b_square

    return totals, squares


def lstm(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    epsilon: float,
    masked: bool = False,
    weight_format: WeightFormat = FLOAT32,
) -> Compiled:
    """LSTM with layer normalisation. Arguments: `Normalised`."""
    gate, candidate, squash = (activation(*a) for a in activations)
    clipped, within = clipping(clip), bounded(activations[0], activations[2])
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, weight_format, True, within)
    totals, squares = _sums(lanes, 4, 4)
    cell_totals, cell_squares = _sums(lanes, 2, 1)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def product(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, panels = arg(args, A.k), arg(args, A.weights), arg(args, A.panels)
        sums, sums_row = origin(frame, arg(args, A.sums)), row_stride(frame, arg(args, A.sums))
        panel, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        while panel < last:
            n = group(rows, last - panel)
            at = sums + panel * 4 * width
            for b in range(rows):
                clear(at + b * sums_row, n * 4 * lanes)
            run(frame, k, rows, h_rows, n, weights + panel * stride, stride, at, sums_row, at, sums_row)
            panel += n

    @inlined
    def sums_of(at, x, x_mean, x_factor, h, h_mean, h_factor, scale, h_scale, bias):
        """Return the sums of one gate's panel, those of x and those of h normalised separately."""
        one = fma((vload(lanes, x + at) - x_mean) * x_factor, vload(lanes, scale + at), vload(lanes, bias + at))
        return fma((vload(lanes, h + at) - h_mean) * h_factor, vload(lanes, h_scale + at), one)

    @inlined
    def gates(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        """Store the new cell states, not yet normalised, and the output gates."""
        units, panels = arg(args, A.units), arg(args, A.panels)
        scale, h_scale, bias = arg(args, A.scale), arg(args, A.h_scale), arg(args, A.bias)
        sums, sums_row = origin(frame, arg(args, A.sums)), row_stride(frame, arg(args, A.sums))
        cells, cells_row = origin(frame, arg(args, A.cells)), row_stride(frame, arg(args, A.cells))
        for b in range(rows):
            x, h = z + b * z_row, sums + b * sums_row
            x_total, h_total = totals(x, h, units)
            x_middle, h_middle = x_total / (4 * units), h_total / (4 * units)
            x_square, h_square = squares(x, h, units, x_middle, h_middle)
            x_mean, x_factor = vsplat(lanes, x_middle), vsplat(lanes, 1.0 / sqrt(x_square / (4 * units) + epsilon))
            h_mean, h_factor = vsplat(lanes, h_middle), vsplat(lanes, 1.0 / sqrt(h_square / (4 * units) + epsilon))
            for panel in range(bound(frame, panels, share), bound(frame, panels, share + 1)):
                at = panel * 4 * width
                i = sums_of(at, x, x_mean, x_factor, h, h_mean, h_factor, scale, h_scale, bias)
                f = sums_of(at + 1 * width, x, x_mean, x_factor, h, h_mean, h_factor, scale, h_scale, bias)
                g = sums_of(at + 2 * width, x, x_mean, x_factor, h, h_mean, h_factor, scale, h_scale, bias)
                o = sums_of(at + 3 * width, x, x_mean, x_factor, h, h_mean, h_factor, scale, h_scale, bias)
                i, f, g = gate(clipped(i)), gate(clipped(f)), candidate(clipped(g))
                new = cells + b * cells_row + panel * 2 * width
                vstore(new, fma(f, vload(lanes, c + b * c_row + panel * width), i * g))
                vstore(new + width, gate(clipped(o)))

    @inlined
    def outputs(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        units, panels = arg(args, A.units), arg(args, A.panels)
        scale, bias, last_width = arg(args, A.c_scale), arg(args, A.c_bias), arg(args, A.last_width)
        cells, cells_row = origin(frame, arg(args, A.cells)), row_stride(frame, arg(args, A.cells))
        for b in range(rows):
            row = cells + b * cells_row
            total, _ = cell_totals(row, row, units)
            middle = total / units
            square, _ = cell_squares(row, row, units, middle, middle)
            shift, times = vsplat(lanes, middle), vsplat(lanes, 1.0 / sqrt(square / units + epsilon))
            for panel in range(bound(frame, panels, share), bound(frame, panels, share + 1)):
                at, new = panel * width, row + panel * 2 * width
                state = fma((vload(lanes, new) - shift) * times, vload(lanes, scale + at), vload(lanes, bias + at))
                vstore(c + b * c_row + at, state)
                count = last_width if panel == panels - 1 else lanes
                put(y + b * y_row + at, vload(lanes, new + width) * squash(state), count, table + 8 * rows)

    return over_time(lanes, outputs, masked, before=product, between=gates, cells=True)
