"""Operations on the features of one time step, on padded buffers: whole vectors, no tails.

The lanes behind a row's last feature may hold anything; nothing here lets them reach the features.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.activations import activation, exp, operation
from fastlstm.kernels.frame import arg, bound, first_share, next_share, origin, row_stride, time_stride, word
from fastlstm.kernels.logarithm import log
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, load_f32, sqrt, store_f32, vload, vsplat, vsplat_load, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Binary, LayerNorm, Softmax, Unary
from fastlstm.program.layout import ROWS, STEPS

__all__ = ["binary", "layer_norm", "row_address", "softmax", "unary"]

UNARY, BINARY, SOFTMAX = positions(Unary), positions(Binary), positions(Softmax)
LAYER_NORM = positions(LayerNorm)

Compiled = Callable[[int, int, int], int]


@inlined
def row_address(frame, slot, row):
    """Address of row `row` of the block, counted over time steps and batch rows."""
    batch = word(frame, ROWS)
    if batch == 1:  # a division takes longer than all else that is done with a short row
        return origin(frame, slot) + row * time_stride(frame, slot)
    return origin(frame, slot) + (row // batch) * time_stride(frame, slot) + (row % batch) * row_stride(frame, slot)


def unary(lanes: int, name: str, alpha: float | None, beta: float | None) -> Compiled:
    """Out = f(x). Arguments: `Unary`."""
    function = activation(name, alpha, beta)
    width = 4 * lanes

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                x, out = row_address(frame, arg(args, UNARY.x), row), row_address(frame, arg(args, UNARY.out), row)
                for i in range(arg(args, UNARY.vectors)):
                    vstore(out + i * width, function(vload(lanes, x + i * width)))
            share = next_share(frame, share)
        return 0

    return kernel


def binary(lanes: int, name: str) -> Compiled:
    """Out = a op b. Arguments: `Binary`. A constant is a slot without strides."""
    function = operation(name)
    width = 4 * lanes

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                a, b = row_address(frame, arg(args, BINARY.a), row), row_address(frame, arg(args, BINARY.b), row)
                out = row_address(frame, arg(args, BINARY.out), row)
                for i in range(arg(args, BINARY.vectors)):
                    at = i * width
                    vstore(out + at, function(vload(lanes, a + at), vload(lanes, b + at)))
            share = next_share(frame, share)
        return 0

    return kernel


def softmax(lanes: int, logarithm: bool) -> Compiled:
    """Out = exp(x - max) / sum, or its logarithm. Arguments: `Softmax`."""
    width = 4 * lanes

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        features = arg(args, SOFTMAX.features)
        vectors = (features + lanes - 1) // lanes
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                x, out = row_address(frame, arg(args, SOFTMAX.x), row), row_address(frame, arg(args, SOFTMAX.out), row)
                largest = load_f32(x)
                for i in range(features):
                    value = load_f32(x + 4 * i)
                    # A NaN must win: it is the only number that differs from itself.
                    if value > largest or value != value:
                        largest = value
                store_f32(out, largest)
                top = vsplat_load(lanes, out)
                for i in range(vectors):
                    vstore(out + i * width, exp(vload(lanes, x + i * width) - top))
                total = 0.0
                for i in range(features):
                    total += load_f32(out + 4 * i)
                if logarithm:
                    shift = vsplat(lanes, log(total))
                    for i in range(vectors):
                        vstore(out + i * width, vload(lanes, x + i * width) - top - shift)
                else:
                    for i in range(vectors):
                        vstore(out + i * width, vload(lanes, out + i * width) / vsplat(lanes, total))
            share = next_share(frame, share)
        return 0

    return kernel


def layer_norm(lanes: int, epsilon: float) -> Compiled:
    """Out = (x - mean) / sqrt(var + epsilon) * scale + bias, sums in double precision.

    Arguments: `LayerNorm`; scale and bias are padded.
    """
    width = 4 * lanes

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        features = arg(args, LAYER_NORM.features)
        scale, bias = origin(frame, arg(args, LAYER_NORM.scale)), origin(frame, arg(args, LAYER_NORM.bias))
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                x = row_address(frame, arg(args, LAYER_NORM.x), row)
                out = row_address(frame, arg(args, LAYER_NORM.out), row)
                total = 0.0
                for i in range(features):
                    total += load_f32(x + 4 * i)
                mean = total / features
                square = 0.0
                for i in range(features):
                    away = load_f32(x + 4 * i) - mean
                    square += away * away
                factor = vsplat(lanes, 1.0 / sqrt(square / features + epsilon))
                middle = vsplat(lanes, mean)
                for i in range((features + lanes - 1) // lanes):
                    at = i * width
                    value = (vload(lanes, x + at) - middle) * factor
                    vstore(out + at, fma(value, vload(lanes, scale + at), vload(lanes, bias + at)))
            share = next_share(frame, share)
        return 0

    return kernel
