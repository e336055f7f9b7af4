"""GRUs over a block of time steps; what all recurrent kernels share is in `fastlstm.kernels.recurrent`."""

from __future__ import annotations

from fastlstm.kernels.activations import activation, bounded, clipping
from fastlstm.kernels.frame import arg, bound, origin, row_stride
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import (
    EXTRA,
    EXTRA_2,
    LAST_WIDTH,
    PANELS,
    WEIGHTS,
    Activation,
    Compiled,
    K,
    over_time,
)
from fastlstm.simd import fma, load_i64, store_i64, vload, vstore

__all__ = ["gru", "reset_before"]


def gru(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """GRU with the reset gate applied after the product. EXTRA: address of b_hn, padded to whole panels."""
    gate, candidate = (activation(*a) for a in activations)
    clipped, within = clipping(clip), bounded(*activations)
    group, run, panel_bytes, prepared = operand(lanes, 3, max_sums, bits, True, within)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, bias = arg(args, K), arg(args, WEIGHTS), arg(args, EXTRA)
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        spare = table + 8 * rows
        sums = spare + width
        panels = arg(args, PANELS)
        first, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            for b in range(rows):
                for p in range(n):
                    at = sums + (b * n + p) * 3 * width
                    z_at = z + b * z_row + (panel + p) * 3 * width
                    vstore(at, vload(lanes, z_at))
                    vstore(at + width, vload(lanes, z_at + width))
                    vstore(at + 2 * width, vload(lanes, bias + (panel + p) * width))
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, 3 * n * width, sums, 3 * n * width)
            for p in range(n):
                for b in range(rows):
                    at = sums + (b * n + p) * 3 * width
                    place = (panel + p) * width
                    r = gate(clipped(vload(lanes, at)))
                    u = gate(clipped(vload(lanes, at + width)))
                    x_part = vload(lanes, z + b * z_row + 3 * place + 2 * width)
                    new = candidate(clipped(fma(r, vload(lanes, at + 2 * width), x_part)))
                    old = vload(lanes, load_i64(table + 8 * b) + place)
                    h = fma(u, old - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            left -= n

    return over_time(lanes, step, masked)


def reset_before(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """GRU with the reset gate applied to h before the product.

    WEIGHTS holds r and z, ``[panel][k][2][lane]``; EXTRA is the address of n's, ``[panel][k][lane]``; EXTRA_2 a
    slot for r * h, one step.
    """
    gate, candidate = (activation(*a) for a in activations)
    clipped, within = clipping(clip), bounded(*activations)
    group, run, panel_bytes, prepared = operand(lanes, 2, max_sums, bits, True, within)
    new_group, new_run, new_bytes, _ = operand(lanes, 1, max_sums, bits, True, within)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def gates(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights = arg(args, K), arg(args, WEIGHTS)
        reset, reset_row = origin(frame, arg(args, EXTRA_2)), row_stride(frame, arg(args, EXTRA_2))
        panels = arg(args, PANELS)
        panel, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        sums = table + 8 * rows
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        while panel < last:
            n = group(rows, last - panel)
            for b in range(rows):
                for p in range(n):
                    at = sums + (b * n + p) * 2 * width
                    z_at = z + b * z_row + (panel + p) * 3 * width
                    vstore(at, vload(lanes, z_at))
                    vstore(at + width, vload(lanes, z_at + width))
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, 2 * n * width, sums, 2 * n * width)
            for p in range(n):
                for b in range(rows):
                    at = sums + (b * n + p) * 2 * width
                    place = (panel + p) * width
                    r = gate(clipped(vload(lanes, at)))
                    vstore(reset + b * reset_row + place, r * vload(lanes, load_i64(table + 8 * b) + place))
                    vstore(z + b * z_row + 3 * place, gate(clipped(vload(lanes, at + width))))
            panel += n

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights = arg(args, K), arg(args, EXTRA)
        reset, reset_row = origin(frame, arg(args, EXTRA_2)), row_stride(frame, arg(args, EXTRA_2))
        panels, last_width = arg(args, PANELS), arg(args, LAST_WIDTH)
        panel, last, end = bound(frame, panels, share), bound(frame, panels, share + 1), panels - 1
        resets, spare = table + 8 * rows, table + 16 * rows
        sums = spare + width
        for b in range(rows):
            store_i64(resets + 8 * b, reset + b * reset_row)
        reset_rows = prepared(frame, rows, resets, k)
        stride = new_bytes(k)
        while panel < last:
            n = new_group(rows, last - panel)
            for b in range(rows):
                for p in range(n):
                    z_at = z + b * z_row + (panel + p) * 3 * width + 2 * width
                    vstore(sums + (b * n + p) * width, vload(lanes, z_at))
            new_run(k, rows, reset_rows, n, weights + panel * stride, stride, sums, n * width, sums, n * width)
            for p in range(n):
                for b in range(rows):
                    place = (panel + p) * width
                    new = candidate(clipped(vload(lanes, sums + (b * n + p) * width)))
                    u = vload(lanes, z + b * z_row + 3 * place)
                    old = vload(lanes, load_i64(table + 8 * b) + place)
                    h = fma(u, old - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            panel += n

    return over_time(lanes, step, masked, before=gates)
