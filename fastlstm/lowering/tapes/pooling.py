"""Pooling over windows of one or two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.graph import Node
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value
from fastlstm.operators.sizes import MAX_ELEMENTS
from fastlstm.operators.windows import windows
from fastlstm.program.arguments.arrays import Pool, Window
from fastlstm.program.program import place
from fastlstm.typing import Array

__all__ = ["EMITTERS"]

SHARE = 4  # of the L2 cache, for outputs of a convolution that only pooling reads


def _pool(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
    x, attrs = operands[0], node.attrs
    if x is None or not x.is_float or x.array.ndim not in (3, 4) or any(node.outputs[1:]):
        return None
    N, C, *sizes = x.array.shape
    w = windows(
        sizes, attrs["kernel_shape"], attrs.get("strides"), attrs.get("dilations"), attrs.get("pads"),
        attrs.get("auto_pad", "NOTSET"), attrs.get("ceil_mode", 0),
    )  # fmt: skip
    out = rec.memory((N, C, *w.outputs))
    if not out.array.size:
        return [out]
    lanes, padded = rec.target.lanes, bool(attrs.get("count_include_pad", 0))
    axes = [
        Window(*numbers) for numbers in zip(sizes, w.outputs, w.kernel, w.strides, w.before, w.dilations, strict=True)
    ]
    counts = [_counts(axis, after if padded else None, lanes) for axis, after in zip(axes, w.after, strict=True)]
    if len(axes) == 1:
        axes, counts = [Window(1, 1, 1, 1, 0, 1), *axes], [np.ones(1, np.float32), *counts]
    down, across = axes
    whole = -(-across.outputs // lanes) * lanes  # vectors are read whole
    reach = (whole - 1) * across.stride + (across.taps - 1) * across.dilation + 1
    room = max(across.before + across.size, reach) + 2 * lanes
    if room > MAX_ELEMENTS:
        return None
    memory = rec.scratch(4 * room)

    def emit(source: Array, target: Array, down: Window, first: int) -> None:
        """Emit the pooling of contiguous images into lines of the output, beginning with `first`."""
        args = Pool(
            place(source), place(target), source.shape[0] * C, down, across,
            *memory, room, place(counts[0][first:]), place(counts[1]), target.strides[1],
        )  # fmt: skip
        rec.emit("pooling.pool", (lanes, "Max" if node.op == "MaxPool" else "Mean"), args, target.size)

    places = out.array if len(sizes) == 2 else out.array[:, :, None]
    most = (down.outputs - 1) * down.stride + down.taps
    apart = down.before == 0 and down.dilation == 1 and down.taps <= down.stride and most <= down.size
    again = rec.again(x) if apart else None
    if again is None:
        emit(rec.contiguous(x), places, down, 0)
        return [out]
    bands = max(1, rec.target.l2_bytes // SHARE // (4 * C * across.size * down.stride))
    images = max(1, bands // down.outputs)  # of which whole ones go together

    def pooled(which: slice, line: int, values: Array) -> None:
        first, count = line // down.stride, (values.shape[2] - down.taps) // down.stride + 1
        band = down._replace(size=values.shape[2], outputs=count)
        emit(values, places[which, :, first : first + count], band, first)

    again(images, down.stride * min(bands, down.outputs), most, pooled)
    rec.replaced(x)
    return [out]


def _counts(axis: Window, after: int | None, lanes: int) -> Array:
    """Return the number of counted elements of each window along an axis, as floats padded to whole vectors.

    Padding counts too if the number of elements after the input is given.
    """
    places = np.arange(axis.outputs)[:, None] * axis.stride + np.arange(axis.taps) * axis.dilation
    end = axis.before + axis.size
    inside = (places >= axis.before) & (places < end) if after is None else places < end + after
    counts = np.ones(-(-axis.outputs // lanes) * lanes, np.float32)
    counts[: axis.outputs] = inside.sum(axis=1)
    return counts


EMITTERS: Mapping[str, Emitter] = {"MaxPool": _pool, "AveragePool": _pool}
