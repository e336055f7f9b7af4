"""Convolutions over one or two axes as matrix products, in two orders with the same bits.

    y[n, m, o] = bias[m] + sum over c, i, j in ascending order of w[m, c, i, j] * x[n, c, window of o]

`by_position` gathers the window of each output position as a row and multiplies it with packed weights: good where
there are many channels and few positions. `by_channel` lays the windows of neighbouring positions side by side as a
panel and multiplies the weights of each channel with it: good where there are many positions.

Sums of more than `PIECE` terms are made of such pieces, each summed from zero: spectra that are computed as long
convolutions cancel almost to nothing, and one chain over 256 terms was measured to lose twice as much of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm.kernels.contraction import own_memory
from fastlstm.kernels.frame import arg, bound, first_share, next_share
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import product, shift
from fastlstm.layout import TOGETHER
from fastlstm.simd import load_f32, store_f32, store_i64, vload, vstore

__all__ = ["by_channel", "by_position"]

Compiled = Callable[[int, int, int], int]

PIECE = 32

# Arguments of both: x, weights, bias, out, memory of the workers, bytes of it for each, then these sizes.
BATCH, CHANNELS, HEIGHT, WIDTH, OUT, KERNEL_H, KERNEL_W, OUT_H, OUT_W = range(6, 15)
STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, GROUPS = range(15, 22)


@inlined
def _gather_row(target, plane, args, row, column):
    """Write the window of one output position: its kernel rows and columns, zero outside the image."""
    height, width, taps = arg(args, HEIGHT), arg(args, WIDTH), arg(args, KERNEL_W)
    left = column * arg(args, STRIDE_W) - arg(args, PAD_W)
    for i in range(arg(args, KERNEL_H)):
        y = row * arg(args, STRIDE_H) - arg(args, PAD_H) + i * arg(args, DILATION_H)
        if y < 0 or y >= height:
            clear(target, taps)
        else:
            line = plane + 4 * width * y
            for j in range(taps):
                x = left + j * arg(args, DILATION_W)
                store_f32(target + 4 * j, load_f32(line + 4 * x) if x >= 0 and x < width else 0.0)
        target += 4 * taps


def _in_pieces(run: Any, lanes: int, vectors: int) -> Any:
    """Return the product `run` with its sum over k in pieces; it takes room like C and a row of zeros, too."""
    width = lanes * vectors

    @inlined
    def pieces(k, rows, table, panels, w, w_stride, c_in, c_in_stride, out, stride, room, zeros):
        start, source, source_stride, target = 0, c_in, c_in_stride, out
        while start < k:
            size = min(PIECE, k - start)
            run(size, rows, table, panels, w + 4 * start * width, w_stride, source, source_stride, target, stride)
            if start > 0:
                for r in range(rows):
                    for i in range(panels * vectors):
                        at = r * stride + 4 * lanes * i
                        vstore(out + at, vload(lanes, out + at) + vload(lanes, room + at))
            shift(table, rows, 4 * size)
            source, source_stride, target = zeros, 0, room
            start += size
        shift(table, rows, -4 * k)

    return pieces


def by_position(lanes: int, vectors: int, max_sums: int) -> Compiled:
    """Weights are panels ``[group][panel][k][vector][lane]``, bias ``[group][panel][vector][lane]``."""
    group, run = product(lanes, vectors, max_sums)
    pieces = _in_pieces(run, lanes, vectors)
    panel_width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        groups, channels = arg(args, GROUPS), arg(args, CHANNELS) // arg(args, GROUPS)
        out_channels = arg(args, OUT) // groups
        taps = arg(args, KERNEL_H) * arg(args, KERNEL_W)
        k, positions = channels * taps, arg(args, OUT_H) * arg(args, OUT_W)
        panels = (out_channels + panel_width - 1) // panel_width
        plane = 4 * arg(args, HEIGHT) * arg(args, WIDTH)
        memory = own_memory(frame, arg(args, 4), arg(args, 5))
        windows = memory + 8 * TOGETHER
        sums, stride = windows + 4 * TOGETHER * k, 4 * panels * panel_width
        room, zeros = sums + TOGETHER * stride, sums + 2 * TOGETHER * stride
        clear(zeros, panels * panel_width)
        blocks = (positions + TOGETHER - 1) // TOGETHER
        tasks = arg(args, BATCH) * groups * blocks
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                first, section = task % blocks * TOGETHER, task // blocks % groups
                image = task // blocks
                count = min(TOGETHER, positions - first)
                x = arg(args, 0) + image * channels * plane
                for r in range(count):
                    window = windows + 4 * r * k
                    store_i64(memory + 8 * r, window)
                    at = first + r
                    for c in range(channels):
                        _gather_row(
                            window + 4 * c * taps, x + c * plane, args, at // arg(args, OUT_W), at % arg(args, OUT_W)
                        )
                weights = arg(args, 1) + 4 * section * panels * k * panel_width
                panel = 0
                while panel < panels:
                    together = group(count, panels - panel)
                    pieces(
                        k, count, memory, together, weights + 4 * panel * k * panel_width, 4 * k * panel_width,
                        arg(args, 2) + 4 * (section * panels + panel) * panel_width, 0,
                        sums + 4 * panel * panel_width, stride, room + 4 * panel * panel_width, zeros,
                    )  # fmt: skip
                    panel += together
                out = arg(args, 3) + 4 * (image * out_channels * positions + first)
                for m in range(out_channels):
                    for r in range(count):
                        store_f32(out + 4 * (m * positions + r), load_f32(sums + r * stride + 4 * m))
            part = next_share(frame, part)
        return 0

    return kernel


@inlined
def _gather_line(target, line, count, start, step, width):
    """Write `count` elements of an image's line from `start` on, `step` apart, zero outside it."""
    for r in range(count):
        x = start + r * step
        if x >= 0 and x < width:
            store_f32(target + 4 * r, load_f32(line + 4 * x))
        else:
            store_f32(target + 4 * r, 0.0)


@inlined
def _gather_inside(target, line, count, start, step):
    if step == 1:
        copy(target, line + 4 * start, count)
    else:
        for r in range(count):
            store_f32(target + 4 * r, load_f32(line + 4 * (start + r * step)))


@inlined
def _gather_panel(target, plane, args, first, count, i, j):
    """Write the tap (i, j) of `count` neighbouring output positions, line by line."""
    out_width, width = arg(args, OUT_W), arg(args, WIDTH)
    step = arg(args, STRIDE_W)
    done = 0
    while done < count:
        row, column = (first + done) // out_width, (first + done) % out_width
        run = min(count - done, out_width - column)
        y = row * arg(args, STRIDE_H) - arg(args, PAD_H) + i * arg(args, DILATION_H)
        start = column * step - arg(args, PAD_W) + j * arg(args, DILATION_W)
        if y < 0 or y >= arg(args, HEIGHT):
            clear(target + 4 * done, run)
        elif start >= 0 and start + (run - 1) * step < width:
            _gather_inside(target + 4 * done, plane + 4 * width * y, run, start, step)
        else:
            _gather_line(target + 4 * done, plane + 4 * width * y, run, start, step, width)
        done += run


def by_channel(lanes: int, vectors: int, max_sums: int) -> Compiled:
    """Weights are rows [M, k], bias [M]; a panel is as many positions as `vectors` vectors hold."""
    _, run = product(lanes, vectors, max_sums)
    pieces = _in_pieces(run, lanes, vectors)
    width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        groups, channels = arg(args, GROUPS), arg(args, CHANNELS) // arg(args, GROUPS)
        out_channels = arg(args, OUT) // groups
        taps_h, taps_w = arg(args, KERNEL_H), arg(args, KERNEL_W)
        k, positions = channels * taps_h * taps_w, arg(args, OUT_H) * arg(args, OUT_W)
        plane = 4 * arg(args, HEIGHT) * arg(args, WIDTH)
        memory = own_memory(frame, arg(args, 4), arg(args, 5))
        windows = memory + 8 * out_channels
        sums = windows + 4 * k * width
        room, zeros = sums + 4 * out_channels * width, sums + 8 * out_channels * width
        clear(zeros, width)
        blocks = (positions + width - 1) // width
        tasks = arg(args, BATCH) * groups * blocks
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                first, section = task % blocks * width, task // blocks % groups
                image = task // blocks
                count = min(width, positions - first)
                x, at = arg(args, 0) + image * channels * plane, windows
                for c in range(channels):
                    for i in range(taps_h):
                        for j in range(taps_w):
                            _gather_panel(at, x + c * plane, args, first, count, i, j)
                            at += 4 * width
                for m in range(out_channels):
                    store_i64(memory + 8 * m, arg(args, 1) + 4 * k * (section * out_channels + m))
                    bias = load_f32(arg(args, 2) + 4 * (section * out_channels + m))
                    for r in range(width):
                        store_f32(sums + 4 * (m * width + r), bias)
                pieces(k, out_channels, memory, 1, windows, 0, sums, 4 * width, sums, 4 * width, room, zeros)
                out = arg(args, 3) + 4 * (image * out_channels * positions + first)
                for m in range(out_channels):
                    copy(out + 4 * m * positions, sums + 4 * m * width, count)
            part = next_share(frame, part)
        return 0

    return kernel
