"""The memory layout of a convolution's input, in which nothing has to be gathered.

The input is laid out once: padded, with the images of a batch adjacent in each channel and, for a stride s, separated
into s phases (phase i holds elements i, i + s, i + 2s, ...). Then neighbouring output positions read neighbouring
inputs for every tap of the kernel, at an offset that is the same for all positions. An input that needs none of this
is read where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from fastlstm.lowering.tapes.recorder import Recorder
from fastlstm.program.arguments.arrays import Pad
from fastlstm.program.program import Place, place
from fastlstm.typing import Array

__all__ = ["Axis", "Planes", "laid_out"]

ENOUGH = 512  # positions from which an image is worth blocks of its own
MANY = 8  # phases from which they are columns of a single copy, and not separated one by one


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution.

    Attributes
    ----------
    size : int
        Elements of the input.
    outputs : int
    stride : int
        Elements of the padded input from one output to the next.
    taps : tuple of int
        Position of each tap of the kernel in the padded input for the first output.
    before : int
        Elements of padding before the input.
    """

    size: int = 1
    outputs: int = 1
    stride: int = 1
    taps: tuple[int, ...] = (0,)
    before: int = 0

    @property
    def extent(self) -> int:
        """Elements of each phase that kernels read."""
        return self.outputs + max((tap // self.stride for tap in self.taps), default=0)

    @property
    def phases(self) -> tuple[int, ...]:
        """The remainders of the taps' positions modulo the stride."""
        return tuple(sorted({tap % self.stride for tap in self.taps}))

    @property
    def in_place(self) -> bool:
        """Whether the input may be read where it lies."""
        return self.stride == 1 and self.before == 0 and self.extent <= self.size

    def inside(self, phase: int) -> tuple[int, slice]:
        """Return how many elements of padding a phase begins with, and which elements of the input follow."""
        skipped = max(0, -(-(self.before - phase) // self.stride))
        first = skipped * self.stride + phase - self.before
        count = max(0, min(self.extent - skipped, -(-(self.size - first) // self.stride)))
        return min(skipped, self.extent), slice(first, first + count * self.stride, self.stride)

    def places(self, step: int, phase_step: int) -> Array:
        """Return where each tap lies for the first output, given the bytes between elements and between phases."""
        phases = {phase: i for i, phase in enumerate(self.phases)}
        found = [phases[tap % self.stride] * phase_step + tap // self.stride * step for tap in self.taps]
        return np.array(found, np.int64)


@dataclass(frozen=True)
class Planes:
    """An input in memory: its address, strides in bytes, elements of a line and lines of an image.

    ``phases`` holds the strides from one phase of an axis to the next; ``images`` is the number of images in one row of
    positions.
    """

    start: Place
    channel: int
    phases: tuple[int, int]
    images: int
    lines: int
    pitch: int

    def offsets(self, channels: int, axes: tuple[Axis, Axis]) -> Array:
        """Return the offsets of an output's terms from its position: channel by channel, tap by tap."""
        down, across = axes[0].places(4 * self.pitch, self.phases[0]), axes[1].places(4, self.phases[1])
        of_channels = np.arange(channels, dtype=np.int64) * self.channel
        return (of_channels[:, None, None] + down[:, None] + across).reshape(-1)


def laid_out(rec: Recorder, x: Array, axes: tuple[Axis, Axis], most: int) -> Iterator[tuple[slice, Planes]]:
    """Emit the layout of images x [N, C, H, W] for kernels that read `axes`, `most` images at a time; yield which.

    Later images may take the place of earlier ones, so that they are still in the L2 cache when they are read.
    """
    N, C, H, W = x.shape
    close = (W == 1 or x.strides[3] == 4) and (H == 1 or x.strides[2] == 4 * W)
    if all(axis.in_place for axis in axes) and close and (N == 1 or axes[0].outputs * W >= ENOUGH):
        for n, image in enumerate(x):
            yield slice(n, n + 1), Planes(place(image), x.strides[1], (0, 0), 1, H, W)
        return
    down, across = axes
    phases = len(down.phases), len(across.phases)
    plane = down.extent * across.extent
    run = max(1, min(N, most, rec.target.l2_bytes // 2 // (4 * C * phases[0] * phases[1] * plane)))
    room = rec.memory((C, *phases, run, down.extent, across.extent)).array
    lay_out = _turned if _turns(down, across, H) else _parted
    for first in range(0, N, run):
        images = x[first : first + run]
        lay_out(rec, images.swapaxes(0, 1), room, axes)
        yield (
            slice(first, first + len(images)),
            Planes(place(room), room.strides[0], room.strides[1:3], len(images), *room.shape[-2:]),
        )


def _parted(rec: Recorder, x: Array, room: Array, axes: tuple[Axis, Axis]) -> None:
    """Emit the layout of x [C, N, H, W] in memory [C, phase, phase, N, lines, pitch], phase by phase of both axes."""
    down, across = axes
    zero = place(np.zeros(1, np.float32))
    for (i, phase_y), (j, phase_x) in product(enumerate(down.phases), enumerate(across.phases)):
        (top, rows), (left, columns) = down.inside(phase_y), across.inside(phase_x)
        source, target = x[:, :, rows, columns], room[:, i, j]
        (outer, inner, height, width), (lines, pitch) = source.shape, target.shape[2:]
        if source.shape == target.shape:
            rec.copy(source, target)
            continue
        x_outer, x_inner, x_line, x_step = source.strides
        args = Pad(
            place(source), place(target), outer, inner, height, width, top, left, lines, pitch,
            x_outer, x_inner, x_line, x_step, target.strides[0], target.strides[1], zero,
        )  # fmt: skip
        rec.emit("arrays.pad", (rec.target.lanes,), args)


def _turns(down: Axis, across: Axis, height: int) -> bool:
    """Whether a line has many phases, all of them present, as for a spectrum, and lines need no other change."""
    lines_stay = (down.stride, down.before, down.extent) == (1, 0, height)
    return lines_stay and MANY <= across.stride == len(across.phases)


def _turned(rec: Recorder, x: Array, room: Array, axes: tuple[Axis, Axis]) -> None:
    """Emit the same layout as a few copies: a line is rows of `stride` elements, and a phase is a column.

    The first and the last row may be incomplete.
    """
    across = axes[1]
    stride, before = across.stride, across.before
    rows = np.moveaxis(room[:, 0, :, : x.shape[1]], 1, -1)  # [C, N, H, row, phase]
    read = max(0, min(across.size, across.extent * stride - before))
    if before or read < across.extent * stride:
        rec.fill(room, 0.0)
    head = min(-before % stride, read)
    whole, tail = divmod(read - head, stride)
    row = -(-before // stride)
    if head:
        rec.copy(x[..., :head], rows[..., before // stride, before % stride : before % stride + head])
    if whole:
        middle = x[..., head : read - tail]
        rec.copy(middle.reshape(*middle.shape[:-1], whole, stride), rows[..., row : row + whole, :])
    if tail:
        rec.copy(x[..., read - tail : read], rows[..., row + whole, :tail])
