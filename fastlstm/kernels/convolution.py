"""Convolutions: sums of products of weights and inputs at fixed offsets from each output position.

    y[m, p] = f(bias[m] + sum over terms t in ascending order of w[m, t] * x[p + offset[t]])

A term is a pair of an input channel and a tap of the filter. Positions are numbered through padded planes (see
`fastlstm.lowering.tapes.planes`), so the inputs of adjacent positions are adjacent too, and no copy of the input (as
by im2col) is needed. `by_channel` processes a vector of positions at a time and suits large outputs; `by_position`
processes a vector of output channels.

Results are bit-identical for any number of positions: the terms are split into pieces (whose size depends on the
weights alone), each piece is one chain of multiply-adds from zero, and the pieces are added in ascending order; then
the bias is added. In spectra that are computed as long convolutions, terms almost cancel: there, one chain over 256
terms was measured to lose twice as much accuracy.

For integers whose sums are exact in float32 (quantised convolutions), a term may be two channels: `pairs` packs them
as two 16-bit integers in place of a float, and one instruction multiplies and adds both. The sums are the same, in
half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba.extending import intrinsic

from fastlstm.kernels.frame import arg, bound, first_share, next_share, own_memory, word
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import group_size, in_tiles, shift
from fastlstm.kernels.simd import (
    constant,
    int_vector,
    load_f32,
    load_i64,
    store_f32,
    store_i64,
    vload,
    vmax,
    vmin,
    vsplat,
    vsplat_load,
    vstore,
    vstore_first,
    where_negative,
)
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Convolution, Pairs
from fastlstm.program.layout import SCRATCH, TOGETHER

__all__ = ["by_channel", "by_position", "pairs"]

Compiled = Callable[[int, int, int], int]

A, PAIRS = positions(Convolution), positions(Pairs)

# The words at `finish` are the addresses of the two bounds that outputs are clipped to, and of each channel's slope for
# negative outputs. Infinite bounds and slopes of one change nothing.


@inlined
def _finished(value, bias, low, high, slope):
    """Add the bias and apply the activation; NaN stays NaN."""
    value = value + bias
    return vmin(high, vmax(low, where_negative(value, value * slope, value)))


@cache
def _in_pieces(lanes: int, vectors: int, max_sums: int, gathered: str, pairs: bool) -> tuple[Any, Any]:
    """Return ``group`` of `fastlstm.kernels.product.in_tiles`, and a function that sums all terms."""
    group, all_rows = in_tiles(lanes, vectors, max_sums, gathered=gathered, pairs=pairs)
    rows_move = gathered == "vectors"  # the rows are contiguous in the terms
    panel_row = 0 if rows_move else 4 * lanes * vectors

    @inlined
    def run(args, rows, table, panels, w, w_stride, sums, stride):
        terms, piece = arg(args, A.terms), arg(args, A.piece)
        source, source_stride, offsets = 0, 0, arg(args, A.offsets)  # nothing to add to yet
        for i in range(max(1, (terms + piece - 1) // piece)):
            size = min(piece, terms - i * piece)
            all_rows(size, rows, table, panels, w, w_stride, source, source_stride, sums, stride, offsets)
            source, source_stride = sums, stride
            offsets += 8 * size
            w += panel_row * size
            if rows_move:
                shift(table, rows, 4 * size)

    return group, run


@cache
def _line(lanes: int) -> Any:
    """Return a function that finishes adjacent positions of one channel and writes them out."""

    @inlined
    def put(target, step, source, count, bias, low, high, slope, spare):
        done = 0
        if step == 4:
            while done + lanes <= count:
                vstore(target + 4 * done, _finished(vload(lanes, source + 4 * done), bias, low, high, slope))
                done += lanes
            if done < count:
                value = _finished(vload(lanes, source + 4 * done), bias, low, high, slope)
                vstore_first(target + 4 * done, value, count - done)
        else:
            while done < count:
                vstore(spare, _finished(vload(lanes, source + 4 * done), bias, low, high, slope))
                for i in range(min(lanes, count - done)):
                    store_f32(target + (done + i) * step, load_f32(spare + 4 * i))
                done += lanes

    return put


def by_channel(lanes: int, vectors: int, max_sums: int, pairs: bool = False) -> Compiled:
    """Return the kernel whose weights are rows [group][output][term], and a panel is `vectors` vectors of positions."""
    _, run = _in_pieces(lanes, vectors, max_sums, "vectors", pairs)
    put, width = _line(lanes), lanes * vectors
    alone = group_size(vectors, 1, max_sums)

    @inlined
    def put_block(args, frame, sums, stride, first, count, rows, channel):
        """Write out the positions of a block, line by line; positions in the padding between lines are dropped."""
        bounds, slopes = load_i64(arg(args, A.finish)), load_i64(arg(args, A.finish) + 8) + 4 * channel
        low, high, bias = vsplat_load(lanes, bounds), vsplat_load(lanes, bounds + 4), arg(args, A.bias) + 4 * channel
        pitch, lines, height, width = arg(args, A.pitch), arg(args, A.lines), arg(args, A.height), arg(args, A.width)
        by_channel, by_element, spare = arg(args, A.out_channel), arg(args, A.out_step), word(frame, SCRATCH)
        done = 0
        while done < count:
            y, column, image = 0, first + done, 0
            if column >= pitch:
                y, column = column // pitch, column % pitch
            if y >= lines:
                y, image = y % lines, y // lines
            if column < width and y < height:
                here = min(width - column, count - done)
                target = arg(args, A.out) + image * arg(args, A.out_image) + channel * by_channel
                target += y * arg(args, A.out_line) + column * by_element
                source = sums + 4 * done
                for r in range(rows):
                    put(
                        target, by_element, source, here, vsplat_load(lanes, bias + 4 * r), low, high,
                        vsplat_load(lanes, slopes + 4 * r), spare,
                    )  # fmt: skip
                    target += by_channel
                    source += stride
            done += pitch - column

    def kernel(args: int, frame: int, unused: int) -> int:
        groups, outputs, chunk, terms = (
            arg(args, A.groups),
            arg(args, A.outputs),
            arg(args, A.chunk),
            arg(args, A.terms),
        )
        positions = ((arg(args, A.batch) - 1) * arg(args, A.lines) + arg(args, A.height) - 1) * arg(args, A.pitch)
        positions += arg(args, A.width)
        block = width * (alone if outputs == 1 else 1)  # a single row has few sums
        stride = 4 * block
        table = own_memory(frame, arg(args, A.memory), arg(args, A.memory_bytes))
        sums = table + 8 * chunk
        chunks, blocks = (outputs + chunk - 1) // chunk, (positions + block - 1) // block
        tasks = groups * blocks * chunks
        part = first_share(frame)
        while part >= 0:
            task = bound(frame, tasks, part)
            row, first, section = task % chunks * chunk, task // chunks % blocks * block, task // chunks // blocks
            for _ in range(bound(frame, tasks, part + 1) - task):
                count, rows = min(block, positions - first), min(chunk, outputs - row)
                channel = section * outputs + row
                for r in range(rows):
                    store_i64(table + 8 * r, arg(args, A.weights) + 4 * terms * (channel + r))
                x = arg(args, A.x) + section * arg(args, A.x_group) + 4 * first
                panels = (count + width - 1) // width
                run(args, rows, table, panels, x, 4 * width, sums, stride)
                put_block(args, frame, sums, stride, first, count, rows, channel)
                row += chunk
                if row >= outputs:
                    row, first = 0, first + block
                if first >= positions:
                    first, section = 0, section + 1
            part = next_share(frame, part)
        return 0

    return kernel


def by_position(lanes: int, vectors: int, max_sums: int, pairs: bool = False) -> Compiled:
    """Return the kernel whose weights are panels ``[group][panel][term][vector][lane]``.

    Bias and slopes are ``[group][panel][vector][lane]``.
    """
    group, run = _in_pieces(lanes, vectors, max_sums, "rows", pairs)
    width = lanes * vectors

    @inlined
    def put_rows(args, sums, stride, first, rows, floats, channel, padded):
        """Write out one position after another: `channel` and the channels after it."""
        count = min(floats, arg(args, A.outputs) - channel % arg(args, A.outputs))
        bounds, slopes = load_i64(arg(args, A.finish)), load_i64(arg(args, A.finish) + 8) + 4 * padded
        low, high = vsplat_load(lanes, bounds), vsplat_load(lanes, bounds + 4)
        bias, step = arg(args, A.bias) + 4 * padded, arg(args, A.out_channel)
        x, y = first % arg(args, A.width), first // arg(args, A.width) % arg(args, A.height)
        target = arg(args, A.out) + channel * step
        target += first // arg(args, A.width) // arg(args, A.height) * arg(args, A.out_image)
        for r in range(rows):
            here, source, done = target + y * arg(args, A.out_line) + x * arg(args, A.out_step), sums + r * stride, 0
            while done < count:
                value = vload(lanes, source + 4 * done)
                value = _finished(value, vload(lanes, bias + 4 * done), low, high, vload(lanes, slopes + 4 * done))
                if step == 4:
                    vstore_first(here + 4 * done, value, count - done)
                else:
                    vstore(source + 4 * done, value)
                    for i in range(done, min(done + lanes, count)):
                        store_f32(here + i * step, load_f32(source + 4 * i))
                done += lanes
            x += 1
            if x == arg(args, A.width):
                x, y = 0, y + 1
                if y == arg(args, A.height):
                    y, target = 0, target + arg(args, A.out_image)

    @inlined
    def list_rows(args, table, x, first, rows):
        """Write the input addresses of the positions from `first` on to `table`."""
        column, line = first % arg(args, A.width), first // arg(args, A.width)
        y, image = line % arg(args, A.height), line // arg(args, A.height)
        for r in range(rows):
            place = (image * arg(args, A.lines) + y) * arg(args, A.pitch) + column
            store_i64(table + 8 * r, x + 4 * place)
            column += 1
            if column == arg(args, A.width):
                column, y = 0, y + 1
                if y == arg(args, A.height):
                    y, image = 0, image + 1

    def kernel(args: int, frame: int, unused: int) -> int:
        groups, outputs, terms = arg(args, A.groups), arg(args, A.outputs), arg(args, A.terms)
        positions = arg(args, A.batch) * arg(args, A.height) * arg(args, A.width)
        panels = (outputs + width - 1) // width
        together = group(min(positions, TOGETHER), panels)
        stride, panel_bytes = 4 * together * width, 4 * terms * width
        table = own_memory(frame, arg(args, A.memory), arg(args, A.memory_bytes))
        sums = table + 8 * TOGETHER
        parts, blocks = (panels + together - 1) // together, (positions + TOGETHER - 1) // TOGETHER
        tasks = groups * blocks * parts
        share = first_share(frame)
        while share >= 0:
            for task in range(bound(frame, tasks, share), bound(frame, tasks, share + 1)):
                section, first, panel = task // parts // blocks, task // parts % blocks * TOGETHER, task % parts
                panel *= together
                rows = min(TOGETHER, positions - first)
                list_rows(args, table, arg(args, A.x) + section * arg(args, A.x_group), first, rows)
                weights = arg(args, A.weights) + (section * panels + panel) * panel_bytes
                done, last = panel, min(panels, panel + together)
                while done < last:
                    some = group(rows, last - done)
                    run(
                        args, rows, table, some, weights + (done - panel) * panel_bytes, panel_bytes,
                        sums + 4 * width * (done - panel), stride,
                    )  # fmt: skip
                    done += some
                put_rows(
                    args, sums, stride, first, rows, (last - panel) * width, section * outputs + panel * width,
                    (section * panels + panel) * width,
                )  # fmt: skip
            share = next_share(frame, share)
        return 0

    return kernel


@intrinsic
def side_by_side(typingctx: Any, a: Any, b: Any) -> Any:
    """side_by_side(a, b): the integers of two vectors packed as 16 bits each, a's in the lower half of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = int_vector(a.lanes)
        low, high = (builder.fptosi(value, kind) for value in args)
        both = builder.or_(builder.and_(low, constant(kind, 0xFFFF)), builder.shl(high, constant(kind, 16)))
        return builder.bitcast(both, args[0].type)

    return a(a, b), codegen


def pairs(lanes: int) -> Compiled:
    """Out [image][pair of channels][element] = x [image][channel][element], integers. Arguments: `Pairs`.

    An odd number of channels is followed by one of zeros.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        channels, elements = arg(args, PAIRS.channels), arg(args, PAIRS.elements)
        each = (channels + 1) // 2
        tasks = arg(args, PAIRS.images) * each
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                pair = task % each
                x = arg(args, PAIRS.x) + 4 * elements * (task // each * channels + 2 * pair)
                other, out = x + 4 * elements, arg(args, PAIRS.out) + 4 * elements * task
                alone = 2 * pair + 1 == channels
                for i in range(0, elements, lanes):
                    second = vsplat(lanes, 0.0)
                    if not alone:
                        second = vload(lanes, other + 4 * i)
                    both = side_by_side(vload(lanes, x + 4 * i), second)
                    if elements - i < lanes:
                        vstore_first(out + 4 * i, both, elements - i)
                    else:
                        vstore(out + 4 * i, both)
            part = next_share(frame, part)
        return 0

    return kernel
