"""Operations on the features of one time step in padded buffers: whole vectors, no tails.

The lanes after a row's last feature may hold anything; nothing here lets them reach the features.
"""

from __future__ import annotations

from fastlstm.kernels.activations import activation, operation
from fastlstm.kernels.frame import arg, bound, first_share, next_share, origin, row_stride, time_stride, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lines import layer_norm_line, softmax_line
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import vload, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Binary, LayerNorm, Softmax, Unary
from fastlstm.program.layout import ROWS, STEPS

__all__ = ["binary", "layer_norm", "row_address", "softmax", "unary"]

UNARY, BINARY, SOFTMAX = positions(Unary), positions(Binary), positions(Softmax)
LAYER_NORM = positions(LayerNorm)


@inlined
def row_address(frame, slot, row):
    """Address of row `row` of the block, counted over time steps and batch rows."""
    batch = word(frame, ROWS)
    if batch == 1:  # a division takes longer than everything else done with a short row
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


@inlined
def whole_store(address, value, count, spare):
    """Store a whole vector, whatever `count`: rows are padded."""
    vstore(address, value)


def softmax(lanes: int, logarithm: bool) -> Compiled:
    """Softmax of each row, or its logarithm. Arguments: `Softmax`."""
    softmax_of = softmax_line(lanes, logarithm, whole_store)

    def kernel(args: int, frame: int, unused: int) -> int:
        rows, features = word(frame, STEPS) * word(frame, ROWS), arg(args, SOFTMAX.features)
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                x, out = row_address(frame, arg(args, SOFTMAX.x), row), row_address(frame, arg(args, SOFTMAX.out), row)
                softmax_of(x, out, features, 0)
            share = next_share(frame, share)
        return 0

    return kernel


def layer_norm(lanes: int, epsilon: float) -> Compiled:
    """Layer normalisation of each row. Arguments: `LayerNorm`; scale and bias are padded."""
    normalised = layer_norm_line(lanes, epsilon, whole_store)

    def kernel(args: int, frame: int, unused: int) -> int:
        rows, features = word(frame, STEPS) * word(frame, ROWS), arg(args, LAYER_NORM.features)
        scale, bias = origin(frame, arg(args, LAYER_NORM.scale)), origin(frame, arg(args, LAYER_NORM.bias))
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                x = row_address(frame, arg(args, LAYER_NORM.x), row)
                normalised(x, scale, bias, row_address(frame, arg(args, LAYER_NORM.out), row), features, 0)
            share = next_share(frame, share)
        return 0

    return kernel
