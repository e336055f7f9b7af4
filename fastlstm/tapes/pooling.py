"""Pooling over windows of one or two axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node
from fastlstm.ops.sizes import checked_shape
from fastlstm.ops.windows import windows
from fastlstm.tapes.recorder import Cell, Recorder, address

__all__ = ["EMITTERS"]

Array = npt.NDArray[Any]


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
    lanes, padded = rec.machine.lanes, bool(attrs.get("count_include_pad", 0))
    numbers = [*zip(sizes, w.outputs, w.kernel, w.strides, w.before, w.dilations, w.after, strict=True)]
    if len(numbers) == 1:
        numbers = [(1, 1, 1, 1, 0, 1, 0), *numbers]
    counts = [_counts(each, padded, lanes) for each in numbers]
    rec.keep += counts
    width, columns, taps, stride, before, dilation, _ = numbers[1]
    whole = -(-columns // lanes) * lanes  # vectors are read whole
    room = max(before + width, (whole - 1) * stride + (taps - 1) * dilation + 1) + 2 * lanes
    memory = rec.scratch(4 * checked_shape([room])[0])
    args = (
        address(rec.tight(x)), address(out.array), N * C,
        *(number for field in list(zip(*numbers, strict=True))[:-1] for number in field),
        *memory, room, *map(address, counts),
    )  # fmt: skip
    rec.emit("pooling.pool", (lanes, "Max" if node.op == "MaxPool" else "Mean"), args, out.array.size)
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
