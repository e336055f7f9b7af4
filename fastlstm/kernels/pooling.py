"""The largest or the mean of each window of images: first down the window's lines, then across."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastlstm.kernels.frame import arg, bound, first_share, next_share, own_memory, word
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import SCRATCH
from fastlstm.simd import (
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

__all__ = ["pool"]

# Arguments: images, output, planes, sizes of both, window, strides, padding before, dilations (vertical first) ...
X, OUT, PLANES, HEIGHT, WIDTH, OUT_H, OUT_W, KERNEL_H, KERNEL_W = range(9)
STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W = range(9, 15)
# ... memory of the workers, bytes of it for each, floats of a line of it; how many elements count, a float for each
# line and each column of the output, whose product is what a mean divides by.
MEMORY, MEMORY_BYTES, ROOM, COUNTS_H, COUNTS_W = range(15, 20)
OUT_PLANE = 20  # bytes from one plane of the output to the next


def pool(lanes: int, name: str) -> Callable[[int, int, int], int]:
    """Out = the largest of each window ("Max"; a NaN is that) or the mean ("Mean") of images [planes, H, W]."""
    nothing = -math.inf if name == "Max" else 0.0

    @inlined
    def joined(so_far, value):
        return vgreater(so_far, value) if name == "Max" else so_far + value

    @inlined
    def column(x, step, taps):
        """Join `taps` vectors, `step` bytes apart."""
        total = vsplat(lanes, nothing)
        for _ in range(taps):
            total = joined(total, vload(lanes, x))
            x += step
        return total

    @inlined
    def down(args, x, line, row):
        """Write what each column of a row of windows comes to; only lines inside the image are looked at."""
        width, height, step, y = arg(args, WIDTH), arg(args, HEIGHT), arg(args, DILATION_H), arg(args, PAD_H)
        y = row * arg(args, STRIDE_H) - y
        taps = arg(args, KERNEL_H)
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
        """Join the elements of neighbouring windows of a line."""
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
        out_h, out_w, taps, stride = arg(args, OUT_H), arg(args, OUT_W), arg(args, KERNEL_W), arg(args, STRIDE_W)
        line, room = own_memory(frame, arg(args, MEMORY), arg(args, MEMORY_BYTES)), arg(args, ROOM)
        dilation, spare, done = 4 * arg(args, DILATION_W), word(frame, SCRATCH), 0
        while done < room:
            vstore_first(line + 4 * done, vsplat(lanes, nothing), room - done)
            done += lanes
        part = first_share(frame)
        while part >= 0:
            for plane in range(bound(frame, arg(args, PLANES), part), bound(frame, arg(args, PLANES), part + 1)):
                x = arg(args, X) + 4 * plane * arg(args, HEIGHT) * arg(args, WIDTH)
                out = arg(args, OUT) + plane * arg(args, OUT_PLANE)
                for row in range(out_h):
                    down(args, x, line + 4 * arg(args, PAD_W), row)
                    done, target = 0, out + 4 * row * out_w
                    while done < out_w:
                        total = across(line + 4 * done * stride, stride, taps, dilation, spare)
                        if name == "Mean":
                            count = vsplat_load(lanes, arg(args, COUNTS_H) + 4 * row)
                            total = total / (count * vload(lanes, arg(args, COUNTS_W) + 4 * done))
                        if done + lanes <= out_w:
                            vstore(target + 4 * done, total)
                        else:
                            vstore_first(target + 4 * done, total, out_w - done)
                        done += lanes
            part = next_share(frame, part)
        return 0

    return kernel
