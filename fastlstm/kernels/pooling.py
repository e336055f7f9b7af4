"""Max and average pooling of images: each window first down its lines, then across."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastlstm.kernels.frame import arg, bound, first_share, next_share, own_memory, word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import (
    every_second,
    load_f32,
    store_f32,
    vgreater,
    vload,
    vsplat,
    vsplat_load,
    vstore,
    vstore_first,
)
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Pool
from fastlstm.program.layout import SCRATCH

__all__ = ["pool"]

POOL = positions(Pool)
DOWN, ACROSS = POOL.down, POOL.across


def pool(lanes: int, name: str) -> Callable[[int, int, int], int]:
    """Out = the largest of each window ("Max"; a NaN counts as largest) or the mean ("Mean"). Arguments: `Pool`."""
    nothing = -math.inf if name == "Max" else 0.0

    @inlined
    def joined(so_far, value):
        return vgreater(so_far, value) if name == "Max" else so_far + value

    @inlined
    def column(x, step, taps):
        """Combine `taps` vectors, `step` bytes apart."""
        total = vsplat(lanes, nothing)
        for _ in range(taps):
            total = joined(total, vload(lanes, x))
            x += step
        return total

    @inlined
    def down(args, x, line, row):
        """Pool each column of a row of windows, over the lines inside the image, into `line`."""
        width, height, step = arg(args, ACROSS.size), arg(args, DOWN.size), arg(args, DOWN.dilation)
        y = row * arg(args, DOWN.stride) - arg(args, DOWN.before)
        taps = arg(args, DOWN.taps)
        if y < 0:
            skipped = min(taps, (step - 1 - y) // step)
            y, taps = y + skipped * step, taps - skipped
        if y + (taps - 1) * step >= height:
            taps = max(0, (height - y + step - 1) // step)
        x, step, done = x + 4 * width * y, 4 * width * step, 0
        while done + lanes <= width:
            vstore(line + 4 * done, column(x + 4 * done, step, taps))
            done += lanes
        if done < width:
            vstore_first(line + 4 * done, column(x + 4 * done, step, taps), width - done)

    @inlined
    def across(place, stride, taps, dilation, spare):
        """Combine the elements of neighbouring windows of a line."""
        total = vsplat(lanes, nothing)
        if stride == 1:
            for _ in range(taps):
                total = joined(total, vload(lanes, place))
                place += dilation
        elif stride == 2:
            for _ in range(taps):
                total = joined(total, every_second(vload(lanes, place), vload(lanes, place + 4 * lanes)))
                place += dilation
        else:
            for _ in range(taps):
                for i in range(lanes):
                    store_f32(spare + 4 * i, load_f32(place + 4 * i * stride))
                total = joined(total, vload(lanes, spare))
                place += dilation
        return total

    def kernel(args: int, frame: int, unused: int) -> int:
        out_h, out_w, taps, stride = (
            arg(args, DOWN.outputs),
            arg(args, ACROSS.outputs),
            arg(args, ACROSS.taps),
            arg(args, ACROSS.stride),
        )
        line, room = own_memory(frame, arg(args, POOL.memory), arg(args, POOL.memory_bytes)), arg(args, POOL.room)
        dilation, spare, done = 4 * arg(args, ACROSS.dilation), word(frame, SCRATCH), 0
        while done < room:
            vstore_first(line + 4 * done, vsplat(lanes, nothing), room - done)
            done += lanes
        part = first_share(frame)
        while part >= 0:
            for plane in range(
                bound(frame, arg(args, POOL.planes), part), bound(frame, arg(args, POOL.planes), part + 1)
            ):
                x = arg(args, POOL.x) + 4 * plane * arg(args, DOWN.size) * arg(args, ACROSS.size)
                out = arg(args, POOL.out) + plane * arg(args, POOL.out_plane)
                for row in range(out_h):
                    down(args, x, line + 4 * arg(args, ACROSS.before), row)
                    done, target = 0, out + 4 * row * out_w
                    while done < out_w:
                        total = across(line + 4 * done * stride, stride, taps, dilation, spare)
                        if name == "Mean":
                            count = vsplat_load(lanes, arg(args, POOL.counts_down) + 4 * row)
                            total = total / (count * vload(lanes, arg(args, POOL.counts_across) + 4 * done))
                        if done + lanes <= out_w:
                            vstore(target + 4 * done, total)
                        else:
                            vstore_first(target + 4 * done, total, out_w - done)
                        done += lanes
            part = next_share(frame, part)
        return 0

    return kernel
