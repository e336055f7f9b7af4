"""Convolutions over one or two axes, straight and transposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node
from fastlstm.layout import TOGETHER
from fastlstm.ops.windows import windows
from fastlstm.pack import panels_of, plain_panels
from fastlstm.tapes.recorder import Cell, Recorder, address

__all__ = ["EMITTERS"]

Array = npt.NDArray[Any]
MOST_VECTORS = 4


@dataclass(frozen=True)
class _Shape:
    """What a convolution of images [N, C, H, W] is made of, as the kernels take it."""

    batch: int
    channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    out: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    dilations: tuple[int, int]
    groups: int

    def words(self) -> tuple[int, ...]:
        return (
            self.batch, self.channels, *self.size, self.out_channels, *self.kernel, *self.out, *self.strides,
            *self.before, *self.dilations, self.groups,
        )  # fmt: skip

    @property
    def terms(self) -> int:
        """Products that an output element is the sum of."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        return self.out[0] * self.out[1]

    def prefers_positions(self, lanes: int) -> bool:
        """Whether gathering a row for each position costs less than a panel for each few; both give the same bits.

        Counted in vector instructions: what is gathered element by element, and the multiply-adds.
        """
        outputs = self.out_channels // self.groups
        rows = self.positions * (1.0 + panels_of(outputs, lanes) / 2) + self.positions * outputs / self.terms
        gathered = panels_of(self.positions, lanes) * (2.0 if self.strides[1] == 1 else float(lanes))
        return rows < gathered + outputs * panels_of(self.positions, lanes) / 2


def _two(values: Sequence[int], one: int) -> tuple[int, int]:
    """Return what belongs to two axes; a single axis is the second."""
    return (one, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _conv(rec: Recorder, node: Node, cells: Sequence[Cell | None]) -> list[Cell] | None:
    x, weight, bias = [*cells, None][:3]
    if not _fits(x, weight, bias) or x is None or weight is None:
        return None
    attrs = node.attrs
    group = int(attrs.get("group", 1))
    N, C, *sizes = x.array.shape
    M, channels, *kernel = weight.array.shape
    if channels * group != C or M % group or list(attrs.get("kernel_shape") or kernel) != kernel:
        return None
    w = windows(
        sizes, kernel, attrs.get("strides"), attrs.get("dilations"), attrs.get("pads"), attrs.get("auto_pad", "NOTSET")
    )
    shape = _Shape(
        N, C, _two(sizes, 1), M, _two(kernel, 1), _two(w.outputs, 1), _two(w.strides, 1), _two(w.before, 0),
        _two(w.dilations, 1), group,
    )  # fmt: skip
    out = rec.memory((N, M, *w.outputs))
    if out.array.size:
        _emit(rec, shape, rec.tight(x), weight, bias, out.array)
    return [out]


def _fits(x: Cell | None, weight: Cell | None, bias: Cell | None) -> bool:
    if x is None or weight is None or not x.is_float or not weight.is_float or not weight.fixed:
        return False
    return (
        (bias is None or (bias.fixed and bias.is_float))
        and x.array.ndim == weight.array.ndim
        and x.array.ndim in (3, 4)
    )


def _emit(rec: Recorder, shape: _Shape, x: Array, weight: Cell, bias: Cell | None, out: Array) -> None:
    lanes, sums = rec.machine.lanes, rec.machine.max_sums
    M, outputs, k = shape.out_channels, shape.out_channels // shape.groups, shape.terms
    if bias is not None and bias.array.shape != (M,):
        raise ValueError(f"the bias has the shape {bias.array.shape} for {M} channels")
    macs = out.size * k
    given = Cell(np.zeros(M, np.float32), fixed=True) if bias is None else bias
    if shape.prefers_positions(lanes):
        vectors = min(MOST_VECTORS, panels_of(outputs, lanes))
        width = -(-outputs // (lanes * vectors)) * lanes * vectors

        def panels(array: Array) -> Array:
            parts = array.reshape(shape.groups, outputs, k)
            return np.stack([plain_panels(part.T, vectors, lanes) for part in parts])

        def rows(array: Array) -> Array:
            padded = np.zeros((shape.groups, width), np.float32)
            padded[:, :outputs] = array.reshape(shape.groups, outputs)
            return padded

        packed = rec.prepared(weight, ("by position", vectors, shape.groups), panels)
        start = rec.prepared(given, ("by position", vectors, shape.groups), rows)
        scratch = rec.scratch(TOGETHER * (8 + 4 * k + 8 * width) + 4 * width + 256)
        kernel = "convolution.by_position"
    else:
        vectors = min(MOST_VECTORS, panels_of(shape.positions, lanes))
        packed, start = rec.tight(weight), rec.tight(given)
        scratch = rec.scratch(8 * outputs + 4 * (k + 2 * outputs + 1) * lanes * vectors + 256)
        kernel = "convolution.by_channel"
    args = (address(x), address(packed), address(start), address(out), *scratch, *shape.words())
    rec.emit(kernel, (lanes, vectors, sums), args, macs)


def _conv_transpose(rec: Recorder, node: Node, cells: Sequence[Cell | None]) -> list[Cell] | None:
    """As a convolution of the input with zeros between its elements, by the kernel turned round."""
    x, weight, bias = [*cells, None][:3]
    attrs = node.attrs
    if not _fits(x, weight, bias) or x is None or weight is None:
        return None
    if attrs.get("output_shape") or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    group = int(attrs.get("group", 1))
    N, C, *sizes = x.array.shape
    channels, *kernel = weight.array.shape[1:]
    if weight.array.shape[0] != C or C % group or list(attrs.get("kernel_shape") or kernel) != kernel:
        return None
    rank, M = len(sizes), channels * group
    strides, dilations = (list(attrs.get(name) or [1] * rank) for name in ("strides", "dilations"))
    pads, extra = list(attrs.get("pads") or [0] * 2 * rank), list(attrs.get("output_padding") or [0] * rank)
    spread = [(size - 1) * s + 1 for size, s in zip(sizes, strides, strict=True)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    before = [r - p for r, p in zip(reach, pads[:rank], strict=True)]
    outputs = [n + r - a - b + e for n, r, a, b, e in zip(spread, reach, pads[:rank], pads[rank:], extra, strict=True)]
    if min(outputs) <= 0:
        return None
    source = rec.tight(x)
    if any(s > 1 for s in strides):
        wide = rec.memory((N, C, *spread)).array
        rec.fill(wide, 0.0)
        rec.copy(source, wide[(slice(None), slice(None), *(slice(None, None, s) for s in strides))])
        source = wide

    def turned(array: Array) -> Array:
        parts = np.flip(array, tuple(range(2, rank + 2))).reshape(group, C // group, channels, *kernel)
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(M, C // group, *kernel)

    flipped = rec.prepared(weight, ("turned", group), turned)
    shape = _Shape(
        N, C, _two(spread, 1), M, _two(kernel, 1), _two(outputs, 1), (1, 1), _two(before, 0), _two(dilations, 1), group
    )
    out = rec.memory((N, M, *outputs))
    if out.array.size:
        _emit(rec, shape, source, Cell(flipped, fixed=True, shared=weight.shared), bias, out.array)
    return [out]


_Emit = Callable[[Recorder, Node, Sequence[Cell | None]], "list[Cell] | None"]

EMITTERS: Mapping[str, _Emit] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
