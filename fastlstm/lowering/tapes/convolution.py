"""Convolutions over one or two axes, and transposed ones.

A transposed convolution of stride s is s convolutions of stride 1 an axis, one for each remainder of an output
position by s: it has the taps that reach such positions.

Convolutions of integers read their channels two by two (`fastlstm.kernels.convolution.pairs`): pairs of 16 bits
lie and move as the floats of half as many channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from fastlstm.graph import Node
from fastlstm.lowering.pack import panels_of, plain_panels
from fastlstm.lowering.tapes.planes import Axis, Planes, laid_out
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value
from fastlstm.operators.windows import windows
from fastlstm.program.arguments.arrays import Convolution, Pairs
from fastlstm.program.layout import TOGETHER
from fastlstm.program.program import place
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["EMITTERS"]

Axes = tuple[Axis, Axis]
Done = Callable[[slice, int, Array], None]
MOST_VECTORS = 4
MOST_PANELS = 8  # that a kernel works on side by side
CHUNK = 96  # channels that share a block of positions: their sums stay in the L1 cache
PIECES = 32, 128  # terms of a piece where there is one channel, as for a spectrum, and where there are more
WHOLE_PIECE = 256  # terms where sums are exact: as many as stay in the L1 cache


@dataclass(frozen=True)
class _Weights:
    """Weights of one set of taps: rows [M, terms] made from a fixed value, and which part of it they are."""

    value: Value
    name: tuple[Any, ...]
    rows: Callable[[Array], Array]
    outputs: int  # of a group
    groups: int
    channels: int  # of the input, in a group
    pairs: bool = False  # whether those are pairs of channels


def _conv(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, weight, bias = [*operands, None][:3]
    if not _fits(x, weight, bias) or x is None or weight is None:
        return None
    attrs, groups = node.attrs, int(node.attrs.get("group", 1))
    N, C, *sizes = x.array.shape
    M, channels, *kernel = weight.array.shape
    if (
        channels * groups != C
        or M % groups
        or not _is_bias(bias, M)
        or list(attrs.get("kernel_shape") or kernel) != kernel
    ):
        return None
    w = windows(
        sizes, kernel, attrs.get("strides"), attrs.get("dilations"), attrs.get("pads"), attrs.get("auto_pad", "NOTSET")
    )
    axes = [
        Axis(size, outputs, stride, tuple(tap * dilation for tap in range(taps)), before)
        for size, outputs, stride, taps, dilation, before in zip(
            sizes, w.outputs, w.strides, kernel, w.dilations, w.before, strict=True
        )
    ]
    out = rec.memory((N, M, *w.outputs))
    weights = _Weights(weight, (), lambda array: array.reshape(M, -1), M // groups, groups, channels)
    if out.array.size:
        both = _two(axes)
        if attrs.get("integers", 0) and groups == 1 and channels > 1 and rec.target.pairs and rec.target.lanes > 1:
            x = _in_pairs(rec, x)
            weights = replace(weights, name=("pairs",), rows=_rows_of_pairs, channels=x.array.shape[1], pairs=True)
        _emit(rec, x, both, [(both, weights, _images(out.array))], bias, out)
    return [out]


def _in_pairs(rec: Recorder, x: Value) -> Value:
    """Emit what lays integers [N, C, ...] out as pairs of channels; they take the place of float32 numbers."""
    images = rec.contiguous(x)
    N, C, *sizes = images.shape
    out = rec.memory((N, panels_of(C, 2), *sizes))
    args = Pairs(place(images), place(out.array), N, C, math.prod(sizes))
    rec.emit("convolution.pairs", (rec.target.lanes,), args)
    return out


def _rows_of_pairs(weight: Array) -> Array:
    """Return weights [M, C, ...] of integers as rows [M, terms], a term being a pair of channels."""
    M, C = weight.shape[:2]
    whole = np.zeros((M, panels_of(C, 2) * 2, *weight.shape[2:]), np.int16)
    whole[:, :C] = weight
    both = np.moveaxis(whole.reshape(M, -1, 2, *weight.shape[2:]), 2, -1)
    return np.ascontiguousarray(both).view(np.float32).reshape(M, -1)


def _fits(x: Value | None, weight: Value | None, bias: Value | None) -> bool:
    if x is None or weight is None or not x.is_float or not weight.is_float or not weight.fixed:
        return False
    given = bias is None or (bias.fixed and bias.is_float)
    return given and x.array.ndim == weight.array.ndim and x.array.ndim in (3, 4)


def _is_bias(bias: Value | None, channels: int) -> bool:
    """Whether a bias, if there is one, has a value for each channel."""
    return bias is None or bias.array.shape == (channels,)


def _two(axes: Sequence[Axis]) -> Axes:
    """Return both axes; a single axis is the second."""
    return (Axis(), axes[0]) if len(axes) == 1 else (axes[0], axes[1])


def _images(array: Array) -> Array:
    """Return [N, C, H, W]."""
    return array[:, :, None] if array.ndim == 3 else array


def _conv_transpose(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, weight, bias = [*operands, None][:3]
    attrs = node.attrs
    if not _fits(x, weight, bias) or x is None or weight is None:
        return None
    if attrs.get("output_shape") or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    groups = int(attrs.get("group", 1))
    N, C, *sizes = x.array.shape
    outputs, *kernel = weight.array.shape[1:]
    if weight.array.shape[0] != C or C % groups or list(attrs.get("kernel_shape") or kernel) != kernel:
        return None
    rank, M, channels = len(sizes), outputs * groups, C // groups
    if not _is_bias(bias, M):
        return None
    strides, dilations = (list(attrs.get(name) or [1] * rank) for name in ("strides", "dilations"))
    pads, extra = list(attrs.get("pads") or [0] * 2 * rank), list(attrs.get("output_padding") or [0] * rank)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    lengths = [
        (n - 1) * s + 1 + r - a - b + e
        for n, s, r, a, b, e in zip(sizes, strides, reach, pads[:rank], pads[rank:], extra, strict=True)
    ]
    if min(lengths) <= 0:
        return None
    out = rec.memory((N, M, *lengths))
    if not out.array.size:
        return [out]
    axes = [
        _by_remainder(*numbers) for numbers in zip(sizes, kernel, strides, dilations, pads[:rank], lengths, strict=True)
    ]
    parts = []
    for chosen in product(*axes):
        which = tuple(part.taps for part in chosen)

        def rows(array: Array, which: tuple[Any, ...] = which) -> Array:
            taken = array[np.ix_(range(C), range(outputs), *which)].reshape(groups, channels, outputs, -1)
            return np.ascontiguousarray(taken.swapaxes(1, 2)).reshape(M, -1)

        weights = _Weights(weight, (which, groups), rows, outputs, groups, channels)
        place = out.array[(slice(None), slice(None), *(part.outputs for part in chosen))]
        if place.size:
            parts.append((_two([part.axis for part in chosen]), weights, _images(place)))
    whole = _two([_union([part.axis for part in axis]) for axis in axes])
    _emit(rec, x, whole, parts, bias, out)
    return [out]


@dataclass(frozen=True)
class _Remainder:
    """What a transposed convolution does along an axis for every s-th output: an axis, taps of the kernel, outputs."""

    axis: Axis
    taps: tuple[int, ...]
    outputs: slice


def _by_remainder(size: int, kernel: int, stride: int, dilation: int, pad: int, length: int) -> list[_Remainder]:
    # Output o is the sum of taps k times x[(o + pad - k * dilation) / stride], where that is an integer.
    found = []
    reached = {
        r: [k for k in range(kernel) if (r + pad - k * dilation) % stride == 0] for r in range(min(stride, length))
    }
    shifts = {r: [(r + pad - k * dilation) // stride for k in taps] for r, taps in reached.items()}
    before = max(0, -min((least for some in shifts.values() for least in some), default=0))
    for r in range(min(stride, length)):
        outputs = -(-(length - r) // stride)
        axis = Axis(size, outputs, 1, tuple(shift + before for shift in shifts[r]), before)
        found.append(_Remainder(axis, tuple(reached[r]), slice(r, None, stride)))
    return found


def _union(axes: Sequence[Axis]) -> Axis:
    """Return an axis that reads everything these axes read."""
    taps = tuple(sorted({tap for axis in axes for tap in axis.taps})) or (0,)
    return Axis(axes[0].size, max(axis.outputs for axis in axes), 1, taps, axes[0].before)


def _emit(
    rec: Recorder,
    x: Value,
    whole: Axes,
    parts: Sequence[tuple[Axes, _Weights, Array]],
    bias: Value | None,
    out: Value,
) -> None:
    """Emit convolutions of one input, each with its axes, weights and output; `whole` covers all that they read."""
    M = out.array.shape[1]
    given = Value(np.zeros(M, np.float32), fixed=True) if bias is None else bias
    lanes, weights = rec.target.lanes, parts[0][1]
    by_position, vectors = _order(out.array.shape[0], whole, weights, rec.target)
    wide = lanes * vectors
    width = panels_of(weights.outputs, wide) * wide if by_position else weights.outputs

    def spread(array: Array) -> Array:
        """Return one value per channel, laid out so that the kernel finds each group's first."""
        padded = np.zeros((weights.groups, width), np.float32)
        padded[:, : weights.outputs] = array.reshape(weights.groups, weights.outputs)
        return np.concatenate([padded.reshape(-1), np.zeros(lanes, np.float32)])

    start = rec.prepared(given, ("channels", weights.groups, width), spread)
    finish = rec.finish(out, M, spread)
    if by_position:
        panels = min(MOST_PANELS, width // wide)
        scratch = rec.scratch(4 * panels * wide * TOGETHER + 8 * TOGETHER)
    else:
        block = wide * (MOST_PANELS if weights.outputs == 1 else 1)
        scratch = rec.scratch(4 * block * min(CHUNK, weights.outputs) + 8 * CHUNK)
    pairs = (True,) if weights.pairs else ()
    kernel = (
        f"convolution.by_{'position' if by_position else 'channel'}",
        (lanes, vectors, rec.target.max_sums, *pairs),
    )
    height = whole[0].outputs

    def emit(images: int, lines: int, most: int, place_of: Callable[[int, slice, int, int], Array], done: Done) -> None:
        """Emit the computation of lines up to `most`, a few lines of a few images at a time."""
        for which, planes in laid_out(rec, _images(rec.padded(x)), whole, images):
            for first in range(0, most, lines):
                for number, (axes, some, _) in enumerate(parts):
                    offsets = planes.offsets(some.channels, axes)
                    target = place_of(number, which, first, min(first + lines, most))
                    packed = _packed(rec, some, lanes, vectors if by_position else 0)
                    piece = WHOLE_PIECE if some.pairs else PIECES[some.channels > 1]
                    args = Convolution(
                        planes.start + 4 * planes.pitch * first, place(packed), place(start), place(target),
                        *scratch, place(offsets), offsets.size, piece,
                        some.groups, some.outputs, some.channels * planes.channel,
                        planes.images, *_lines(planes, target), finish, CHUNK,
                    )  # fmt: skip
                    rec.emit(*kernel, args, target.size * offsets.size)
                    done(which, first, target)

    def again(images: int, lines: int, most: int, done: Done) -> None:
        """Emit the same into memory for a few lines of a few images."""
        room: list[Array] = []

        def place_of(_: int, which: slice, first: int, last: int) -> Array:
            shape = (which.stop - which.start, M, last - first, out.array.shape[-1])
            if not room:  # the first is the largest
                room.append(rec.memory(shape).array.reshape(-1))
            return room[0][: math.prod(shape)].reshape(shape)

        emit(images, lines, most, place_of, done)

    before = len(rec.pending)
    emit(out.array.shape[0], height, height, lambda number, which, *_: parts[number][2][which], lambda *_: None)
    if len(parts) == 1:
        rec.repeatable(out, before, again)


def _order(images: int, axes: Axes, weights: _Weights, target: Target) -> tuple[bool, int]:
    """Return whether vectors hold channels instead of positions, and how many go together; the bits are the same.

    The cost is counted in multiply-adds of a vector: those that are computed, and those that could have been while sums
    wait for the latency of earlier ones; then the cost of scattering a position's channels: 64 channels of 1,024
    positions took three times as long as 3x3 products of 32 channels, which are as many sums. If a block of positions
    reads more than the L1 cache holds, as for a spectrum of 256 samples, `by_position` was 9 to 38 % faster at equal
    counts.
    """
    outputs, lanes = weights.outputs, target.lanes
    positions, places = images * axes[0].extent * axes[1].extent, images * axes[0].outputs * axes[1].outputs
    terms = weights.channels * max(1, len(axes[0].taps) * len(axes[1].taps))
    across = _vectors(positions, lanes)
    if weights.pairs:  # a product has to be somewhere before it is added
        across = min(across, max(1, target.max_sums // 6))
    rows = 1 if outputs == 1 else min(outputs, 6)
    by_channel = panels_of(positions, lanes * across) * across * outputs / min(1.0, rows * across / 8)
    lines = weights.channels * len(axes[0].phases) * len(axes[1].phases)
    if 4 * lines * (lanes * across + axes[1].extent - axes[1].outputs) > target.l1_bytes // 2:
        by_channel *= 4 / 3
    # With 16 registers 6 positions by 2 vectors read half the weights of 3 by 4: up to 15 % less time for 3x3 kernels.
    side = MOST_VECTORS if places < 6 else min(MOST_VECTORS, target.max_sums // 6)
    vectors = max(1, min(side, panels_of(outputs, lanes)))
    panels = panels_of(outputs, lanes * vectors) * vectors
    sums = min(panels, 8) if places == 1 else min(places, 6) * vectors
    by_position = places * panels / min(1.0, sums / 8) + (8 * places * outputs / terms if places > 1 else 0)
    return (True, vectors) if by_position < by_channel else (False, across)


def _vectors(positions: int, lanes: int) -> int:
    """Return how many vectors of positions make a panel with little padding."""
    needed = panels_of(positions, lanes)
    if needed <= MOST_VECTORS:
        return needed
    return min((MOST_VECTORS, MOST_VECTORS - 1), key=lambda vectors: -(-needed // vectors) * vectors)


def _packed(rec: Recorder, weights: _Weights, lanes: int, vectors: int) -> Array:
    """Return the weights as panels of `vectors` vectors of channels, or as rows if that is 0."""

    def panels(array: Array) -> Array:
        parts = weights.rows(array).reshape(weights.groups, weights.outputs, -1)
        return np.stack([plain_panels(part.T, vectors, lanes) for part in parts])

    def rows(array: Array) -> Array:
        return np.ascontiguousarray(weights.rows(array))

    return rec.prepared(weights.value, (*weights.name, weights.groups, vectors), panels if vectors else rows)


def _lines(planes: Planes, target: Array) -> tuple[int, int, int, int, int, int, int, int]:
    """Return lines and pitch of the input, sizes of the output and its strides by image, channel, line and element.

    Lines that are contiguous in both are merged into one.
    """
    height, width = target.shape[2:]
    by_image, by_channel, by_line, by_element = target.strides
    whole = planes.images == 1 or planes.lines == height
    if planes.pitch == width and whole and by_line == width * by_element:
        return 1, width * height, 1, width * height, by_image, by_channel, by_line, by_element
    return planes.lines, planes.pitch, height, width, by_image, by_channel, by_line, by_element


EMITTERS: Mapping[str, Emitter] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
