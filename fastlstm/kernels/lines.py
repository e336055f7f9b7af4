"""Functions along the last axis of contiguous arrays: softmax, normalisation, reductions."""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.activations import exp
from fastlstm.kernels.frame import arg, bound, first_share, next_share, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.logarithm import log
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, load_f32, sqrt, store_f32, vload, vmax, vsplat, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import LayerNorm, Lines
from fastlstm.program.layout import SCRATCH

__all__ = ["layer_norm", "layer_norm_line", "reduce", "softmax", "softmax_line"]

LINES, NORM = positions(Lines), positions(LayerNorm)


def softmax_line(lanes: int, logarithm: bool, put: Any) -> Any:
    """Return ``line(x, out, count, spare)``: out = exp(x - max) / sum, or its logarithm; `put` stores vectors."""

    @inlined
    def line(x, out, count, spare):
        largest = load_f32(x)
        for i in range(count):
            value = load_f32(x + 4 * i)
            if value > largest or value != value:  # NaN, the only value that differs from itself, counts as largest
                largest = value
        top = vsplat(lanes, largest)
        for done in range(0, count, lanes):
            put(out + 4 * done, exp(vload(lanes, x + 4 * done) - top), min(lanes, count - done), spare)
        total = 0.0
        for i in range(count):
            total += load_f32(out + 4 * i)
        if logarithm:
            shift = vsplat(lanes, log(total))
            for done in range(0, count, lanes):
                put(out + 4 * done, vload(lanes, x + 4 * done) - top - shift, min(lanes, count - done), spare)
        else:
            divisor = vsplat(lanes, total)
            for done in range(0, count, lanes):
                put(out + 4 * done, vload(lanes, out + 4 * done) / divisor, min(lanes, count - done), spare)

    return line


def layer_norm_line(lanes: int, epsilon: float, put: Any) -> Any:
    """Return ``line(x, scale, bias, out, count, spare)``: out = (x - mean) / sqrt(var + epsilon) * scale + bias.

    Sums are in double precision; `put` stores vectors.
    """

    @inlined
    def line(x, scale, bias, out, count, spare):
        total = 0.0
        for i in range(count):
            total += load_f32(x + 4 * i)
        mean = total / count
        square = 0.0
        for i in range(count):
            away = load_f32(x + 4 * i) - mean
            square += away * away
        factor, middle = vsplat(lanes, 1.0 / sqrt(square / count + epsilon)), vsplat(lanes, mean)
        for done in range(0, count, lanes):
            value = (vload(lanes, x + 4 * done) - middle) * factor
            value = fma(value, vload(lanes, scale + 4 * done), vload(lanes, bias + 4 * done))
            put(out + 4 * done, value, min(lanes, count - done), spare)

    return line


def softmax(lanes: int, logarithm: bool) -> Compiled:
    """Softmax of each line, or its logarithm. Arguments: `Lines`."""
    softmax_of = softmax_line(lanes, logarithm, partial_store(lanes))

    def kernel(args: int, frame: int, unused: int) -> int:
        lines, step = arg(args, LINES.lines), 4 * arg(args, LINES.length)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, lines, part), bound(frame, lines, part + 1)):
                x, out = arg(args, LINES.x) + step * line, arg(args, LINES.out) + step * line
                softmax_of(x, out, arg(args, LINES.length), word(frame, SCRATCH))
            part = next_share(frame, part)
        return 0

    return kernel


def layer_norm(lanes: int, epsilon: float) -> Compiled:
    """Layer normalisation of each line. Arguments: `LayerNorm`."""
    normalised = layer_norm_line(lanes, epsilon, partial_store(lanes))

    def kernel(args: int, frame: int, unused: int) -> int:
        lines, count, step = arg(args, NORM.lines), arg(args, NORM.length), 4 * arg(args, NORM.length)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, lines, part), bound(frame, lines, part + 1)):
                x, out = arg(args, NORM.x) + step * line, arg(args, NORM.out) + step * line
                normalised(x, arg(args, NORM.scale), arg(args, NORM.bias), out, count, word(frame, SCRATCH))
            part = next_share(frame, part)
        return 0

    return kernel


def _largest(lanes: int) -> Any:
    """Return a function that finds the largest of some values, NaN if there is one.

    Vectors are checked for NaN on the way (a NaN or an infinity times zero is NaN), and only if there is one are values
    compared one by one, which takes seven cycles each. Of two zeros the positive one is the larger, because vectors see
    values in another order than lines have.
    """

    @inlined
    def one_by_one(x, first, count, largest):
        for i in range(first, count):
            value = load_f32(x + 4 * i)
            if value > largest or value != value:
                largest = value
        return largest

    @inlined
    def largest_of(x, count, spare):
        largest, done = load_f32(x), 0
        if count >= 4 * lanes:
            a, b = vload(lanes, x), vload(lanes, x + 4 * lanes)
            c, d = vload(lanes, x + 8 * lanes), vload(lanes, x + 12 * lanes)
            zero = vsplat(lanes, 0.0)
            odd, odder = zero, zero
            while done + 4 * lanes <= count:
                at = x + 4 * done
                first, second = vload(lanes, at), vload(lanes, at + 4 * lanes)
                third, fourth = vload(lanes, at + 8 * lanes), vload(lanes, at + 12 * lanes)
                a, b, c, d = vmax(a, first), vmax(b, second), vmax(c, third), vmax(d, fourth)
                odd, odder = fma(first, zero, odd), fma(second, zero, odder)
                odd, odder = fma(third, zero, odd), fma(fourth, zero, odder)
                done += 4 * lanes
            vstore(spare, odd + odder)
            for i in range(lanes):
                if load_f32(spare + 4 * i) != 0.0:
                    done = 0
            if done:
                vstore(spare, vmax(vmax(a, b), vmax(c, d)))
                largest = one_by_one(spare, 0, lanes, largest)
        return one_by_one(x, done, count, largest) + 0.0

    return largest_of


def reduce(lanes: int, name: str) -> Compiled:
    """Out = the sum, mean or maximum of each line; sums in double precision. Arguments: `Lines`."""
    largest_of = _largest(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        lines, count, spare = arg(args, LINES.lines), arg(args, LINES.length), word(frame, SCRATCH)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, lines, part), bound(frame, lines, part + 1)):
                x = arg(args, LINES.x) + 4 * count * line
                total = 0.0
                if name == "Max":
                    total += largest_of(x, count, spare)
                elif name == "SumSquare":
                    for i in range(count):
                        value = load_f32(x + 4 * i) + 0.0
                        total += value * value
                else:
                    for i in range(count):
                        total += load_f32(x + 4 * i)
                    if name == "Mean":
                        total /= count
                store_f32(arg(args, LINES.out) + 4 * line, total)
            part = next_share(frame, part)
        return 0

    return kernel
