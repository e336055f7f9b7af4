"""Pooling over windows of one or two axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node
from fastlstm.ops.sizes import checked_shape
from fastlstm.ops.windows import windows
from fastlstm.program import place
from fastlstm.tapes.recorder import Cell, Recorder

__all__ = ["EMITTERS"]

Array = npt.NDArray[Any]
SHARE = 4  # of the L2 cache, for the outputs of a convolution that only pooling reads


def _pool(rec: Recorder, node: Node, cells: Sequence[Cell | None]) -> list[Cell] | None:
    x, attrs = cells[0], node.attrs
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
    numbers = [*zip(sizes, w.outputs, w.kernel, w.strides, w.before, w.dilations, w.after, strict=True)]
    if len(numbers) == 1:
        numbers = [(1, 1, 1, 1, 0, 1, 0), *numbers]
    counts = [_counts(each, padded, lanes) for each in numbers]
    rec.keep += counts
    _, across = numbers
    width, columns, taps, stride, before, dilation, _ = across
    whole = -(-columns // lanes) * lanes  # vectors are read whole
    room = max(before + width, (whole - 1) * stride + (taps - 1) * dilation + 1) + 2 * lanes
    memory = rec.scratch(4 * checked_shape([room])[0])

    def emit(source: Array, target: Array, down: tuple[int, ...], first: int) -> None:
        """Emit pooling of tight images into lines of the output from `first` on."""
        args = (
            place(source), place(target), source.shape[0] * C,
            *(number for field in list(zip(down, across, strict=True))[:-1] for number in field),
            *memory, room, place(counts[0][first:]), place(counts[1]), target.strides[1],
        )  # fmt: skip
        rec.emit("pooling.pool", (lanes, "Max" if node.op == "MaxPool" else "Mean"), args, target.size)

    places = out.array if len(sizes) == 2 else out.array[:, :, None]
    height, rows, taps, stride, before, dilation, _ = numbers[0]
    most = (rows - 1) * stride + taps
    apart = before == 0 and dilation == 1 and taps <= stride and most <= height
    again = rec.again(x) if apart else None
    if again is None:
        emit(rec.tight(x), places, numbers[0], 0)
        return [out]
    bands = max(1, rec.target.l2_bytes // SHARE // (4 * C * width * stride))
    images = max(1, bands // rows)  # of which whole ones go together

    def pooled(which: slice, line: int, values: Array) -> None:
        first, count = line // stride, (values.shape[2] - taps) // stride + 1
        down = (values.shape[2], count, taps, stride, 0, 1, 0)
        emit(values, places[which, :, first : first + count], down, first)

    again(images, stride * min(bands, rows), most, pooled)
    rec.replaced(x)
    return [out]


def _counts(axis: tuple[int, ...], padded: bool, lanes: int) -> Array:
    """Return how many elements of each window count along an axis, as floats and whole vectors."""
    size, outputs, taps, stride, before, dilation, after = axis
    places = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation
    inside = (places < before + size + after) if padded else (places >= before) & (places < before + size)
    counts = np.ones(-(-outputs // lanes) * lanes, np.float32)
    counts[:outputs] = inside.sum(axis=1)
    return counts


_Emit = Callable[[Recorder, Node, Sequence[Cell | None]], "list[Cell] | None"]

EMITTERS: Mapping[str, _Emit] = {"MaxPool": _pool, "AveragePool": _pool}
