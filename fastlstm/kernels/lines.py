"""Functions of the last axis of arrays without gaps: softmax, normalisation, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastlstm.kernels.activations import exp
from fastlstm.kernels.frame import arg, bound, first_share, next_share, word
from fastlstm.kernels.logarithm import log
from fastlstm.kernels.memory import partial_store
from fastlstm.layout import SCRATCH
from fastlstm.simd import fma, load_f32, sqrt, store_f32, vload, vsplat, vsplat_load

__all__ = ["layer_norm", "reduce", "softmax"]

Compiled = Callable[[int, int, int], int]


def softmax(lanes: int, logarithm: bool) -> Compiled:
    """Out = exp(x - max) / sum, or its logarithm. Arguments: x, out, lines, elements of a line."""
    put = partial_store(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        count, spare = arg(args, 3), word(frame, SCRATCH)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, arg(args, 2), part), bound(frame, arg(args, 2), part + 1)):
                x, out = arg(args, 0) + 4 * count * line, arg(args, 1) + 4 * count * line
                largest = load_f32(x)
                for i in range(count):
                    value = load_f32(x + 4 * i)
                    if value > largest or value != value:  # a NaN must win
                        largest = value
                store_f32(spare + 128, largest)
                top = vsplat_load(lanes, spare + 128)
                done = 0
                while done < count:
                    put(out + 4 * done, exp(vload(lanes, x + 4 * done) - top), min(lanes, count - done), spare)
                    done += lanes
                total = 0.0
                for i in range(count):
                    total += load_f32(out + 4 * i)
                shift, divisor = vsplat(lanes, log(total)), vsplat(lanes, total)
                done = 0
                while done < count:
                    here = vload(lanes, out + 4 * done) / divisor
                    if logarithm:
                        here = vload(lanes, x + 4 * done) - top - shift
                    put(out + 4 * done, here, min(lanes, count - done), spare)
                    done += lanes
            part = next_share(frame, part)
        return 0

    return kernel


def layer_norm(lanes: int, epsilon: float) -> Compiled:
    """Out = (x - mean) / sqrt(var + epsilon) * scale + bias. Arguments: x, out, lines, elements, scale, bias."""
    put = partial_store(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        count, spare = arg(args, 3), word(frame, SCRATCH)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, arg(args, 2), part), bound(frame, arg(args, 2), part + 1)):
                x, out = arg(args, 0) + 4 * count * line, arg(args, 1) + 4 * count * line
                total = 0.0
                for i in range(count):
                    total += load_f32(x + 4 * i)
                mean = total / count
                square = 0.0
                for i in range(count):
                    away = load_f32(x + 4 * i) - mean
                    square += away * away
                factor, middle = vsplat(lanes, 1.0 / sqrt(square / count + epsilon)), vsplat(lanes, mean)
                done = 0
                while done < count:
                    value = (vload(lanes, x + 4 * done) - middle) * factor
                    value = fma(value, vload(lanes, arg(args, 4) + 4 * done), vload(lanes, arg(args, 5) + 4 * done))
                    put(out + 4 * done, value, min(lanes, count - done), spare)
                    done += lanes
            part = next_share(frame, part)
        return 0

    return kernel


def reduce(name: str) -> Compiled:
    """Out = a sum, mean or maximum of each line; sums in double precision. Arguments: x, out, lines, elements."""

    def kernel(args: int, frame: int, unused: int) -> int:
        count = arg(args, 3)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, arg(args, 2), part), bound(frame, arg(args, 2), part + 1)):
                x = arg(args, 0) + 4 * count * line
                total = 0.0
                if name == "Max":
                    total = -math.inf
                    for i in range(count):
                        value = load_f32(x + 4 * i)
                        if value > total or value != value:
                            total = value
                elif name == "SumSquare":
                    for i in range(count):
                        value = load_f32(x + 4 * i) + 0.0
                        total += value * value
                else:
                    for i in range(count):
                        total += load_f32(x + 4 * i)
                    if name == "Mean":
                        total /= count
                store_f32(arg(args, 1) + 4 * line, total)
            part = next_share(frame, part)
        return 0

    return kernel
