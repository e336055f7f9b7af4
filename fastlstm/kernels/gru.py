"""GRUs over a block of time steps; what all recurrent kernels share is in `fastlstm.kernels.recurrent`."""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.activations import activation, bounded, clipping
from fastlstm.kernels.frame import arg, bound, origin, row_stride
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lockstep import in_lockstep
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import Activation, over_time
from fastlstm.kernels.simd import fma, load_i64, store_i64, vload, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import GRU, ResetBefore
from fastlstm.target import FLOAT32, WeightFormat

__all__ = ["gru", "reset_before"]

A, B = positions(GRU), positions(ResetBefore)


def gru(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    weight_format: WeightFormat = FLOAT32,
) -> Compiled:
    """GRU with the reset gate applied after the product. Arguments: `GRU`."""
    gate, candidate = (activation(*a) for a in activations)
    clipped, within = clipping(clip), bounded(*activations)
    group, run, panel_bytes, prepared = operand(lanes, 3, max_sums, weight_format, True, within)
    put = partial_store(lanes)
    width = 4 * lanes

    def gates_of(load: Any, store: Any) -> Any:
        @inlined
        def gates(s, s_by, z, z_by):
            r = gate(clipped(load(s, s_by) + load(z, z_by)))
            store(s + 2 * width, s_by, fma(r, load(s + 2 * width, s_by), load(z + 2 * width, z_by)))
            store(s + width, s_by, gate(clipped(load(s + width, s_by) + load(z + width, z_by))))

        return gates

    def candidates_of(load: Any, store: Any) -> Any:
        @inlined
        def candidates(s, s_by, unused, unused_by):
            store(s, s_by, candidate(clipped(load(s, s_by))))

        return candidates

    gates = in_lockstep(gates_of, lanes, max_sums)
    candidates = in_lockstep(candidates_of, lanes, max_sums)

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, bias = arg(args, A.k), arg(args, A.weights), arg(args, A.start)
        end, last_width = arg(args, A.panels) - 1, arg(args, A.last_width)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        spare = table + 8 * rows
        sums = spare + width
        panels = arg(args, A.panels)
        first, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            s_row, start = 3 * n * width, bias + 3 * panel * width
            run(frame, k, rows, h_rows, n, weights + panel * stride, stride, start, 0, sums, s_row)
            # Along the panels of one row, or along the rows of each panel.
            one = rows == 1
            count, s_by, z_by = (n, 3 * width, 3 * width) if one else (rows, s_row, z_row)
            for p in range(1 if one else n):
                s, z_at = sums + 3 * p * width, z + 3 * (panel + p) * width
                gates(count, s, s_by, z_at, z_by)
                candidates(count, s + 2 * width, s_by, 0, 0)
            for p in range(n):
                place = (panel + p) * width
                for b in range(rows):
                    at = sums + (b * n + p) * 3 * width
                    new, old = vload(lanes, at + 2 * width), vload(lanes, load_i64(table + 8 * b) + place)
                    h = fma(vload(lanes, at + width), old - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            left -= n

    return over_time(lanes, step, masked)


def reset_before(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    weight_format: WeightFormat = FLOAT32,
) -> Compiled:
    """GRU with the reset gate applied to h before the product. Arguments: `ResetBefore`."""
    gate, candidate = (activation(*a) for a in activations)
    clipped, within = clipping(clip), bounded(*activations)
    group, run, panel_bytes, prepared = operand(lanes, 2, max_sums, weight_format, True, within)
    new_group, new_run, new_bytes, _ = operand(lanes, 1, max_sums, weight_format, True, within)
    put = partial_store(lanes)
    width = 4 * lanes

    def gates_of(load: Any, store: Any) -> Any:
        @inlined
        def pair(s, s_by, z, z_by):
            store(s, s_by, gate(clipped(load(s, s_by) + load(z, z_by))))
            store(z + width, z_by, gate(clipped(load(s + width, s_by) + load(z + width, z_by))))

        return pair

    def candidates_of(load: Any, store: Any) -> Any:
        @inlined
        def candidates(s, s_by, z, z_by):
            store(s, s_by, candidate(clipped(load(s, s_by) + load(z, z_by))))

        return candidates

    pairs = in_lockstep(gates_of, lanes, max_sums)
    candidates = in_lockstep(candidates_of, lanes, max_sums)

    @inlined
    def gates(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, zeros = arg(args, B.k), arg(args, B.weights), arg(args, B.zeros)
        reset, reset_row = origin(frame, arg(args, B.reset)), row_stride(frame, arg(args, B.reset))
        panels = arg(args, B.panels)
        panel, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        sums = table + 8 * rows
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        while panel < last:
            n = group(rows, last - panel)
            run(frame, k, rows, h_rows, n, weights + panel * stride, stride, zeros, 0, sums, 2 * n * width)
            one = rows == 1
            count, s_by, z_by = (n, 2 * width, 3 * width) if one else (rows, 2 * n * width, z_row)
            for p in range(1 if one else n):
                pairs(count, sums + 2 * p * width, s_by, z + 3 * (panel + p) * width, z_by)
            for p in range(n):
                place = (panel + p) * width
                for b in range(rows):
                    r = vload(lanes, sums + (b * n + p) * 2 * width)
                    vstore(reset + b * reset_row + place, r * vload(lanes, load_i64(table + 8 * b) + place))
            panel += n

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, zeros = arg(args, B.k), arg(args, B.new_weights), arg(args, B.zeros)
        reset, reset_row = origin(frame, arg(args, B.reset)), row_stride(frame, arg(args, B.reset))
        panels, last_width = arg(args, B.panels), arg(args, B.last_width)
        panel, last, end = bound(frame, panels, share), bound(frame, panels, share + 1), panels - 1
        resets, spare = table + 8 * rows, table + 16 * rows
        sums = spare + width
        for b in range(rows):
            store_i64(resets + 8 * b, reset + b * reset_row)
        reset_rows = prepared(frame, rows, resets, k)
        stride = new_bytes(k)
        while panel < last:
            n = new_group(rows, last - panel)
            new_run(frame, k, rows, reset_rows, n, weights + panel * stride, stride, zeros, 0, sums, n * width)
            one = rows == 1
            count, s_by, z_by = (n, width, 3 * width) if one else (rows, n * width, z_row)
            for p in range(1 if one else n):
                candidates(count, sums + p * width, s_by, z + (3 * (panel + p) + 2) * width, z_by)
            for p in range(n):
                place = (panel + p) * width
                for b in range(rows):
                    new = vload(lanes, sums + (b * n + p) * width)
                    u = vload(lanes, z + b * z_row + 3 * place + width)
                    h = fma(u, vload(lanes, load_i64(table + 8 * b) + place) - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            panel += n

    return over_time(lanes, step, masked, before=gates)
