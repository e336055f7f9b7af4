"""Convolutions become Dense layers over shifted slices: their sums are the same bits for any number of positions.

A product of matrices in NumPy does not promise that. What stays a convolution (many groups, large kernels) is
computed by `fastlstm.ops.convolution`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node
from fastlstm.passes.rewrite import Scope

__all__ = ["conv_of_groups", "dense_of_conv", "normalised_convolution"]

Array = npt.NDArray[Any]

MOST_GROUPS = 8  # of a convolution's channels that are worth a product of matrices each
MOST_TAPS = 64, 16  # positions of a kernel, over one axis and over more, whose slices' memory may be taken
FAR = (1 << 63) - 1


@dataclass(frozen=True)
class _Window:
    """Kernel, strides, dilations and padding (before, after) for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, kernel: tuple[int, ...]) -> _Window | None:
        """Return the window of a Conv node, None if it depends on the input or does not fit the kernel."""
        attrs, rank = node.attrs, len(kernel)
        strides, dilations = (tuple(attrs.get(name) or [1] * rank) for name in ("strides", "dilations"))
        pads = tuple(attrs.get("pads") or [0] * (2 * rank))
        kind = attrs.get("auto_pad", "NOTSET")
        pointwise = set(kernel) == {1} and set(strides) == {1}
        if kind == "VALID" or (kind in ("SAME_UPPER", "SAME_LOWER") and pointwise):
            pads = (0,) * (2 * rank)
        elif kind != "NOTSET":
            return None
        fits = len(strides) == len(dilations) == rank and len(pads) == 2 * rank and min(*strides, *dilations) > 0
        alike = tuple(attrs.get("kernel_shape") or kernel) == kernel
        return cls(kernel, strides, dilations, pads[:rank], pads[rank:]) if fits and alike else None


def dense_of_conv(scope: Scope, node: Node) -> list[Node] | None:
    """``Conv(x [N, C, …], constant)``  →  ``Transpose``, ``Concat`` of shifted slices, ``Dense``, ``Transpose``."""
    weight, shape = _weight(scope, node)
    if weight is None or int(node.attrs.get("group", 1)) != 1 or shape[1] != weight.shape[1]:
        return None
    window = _Window.of(node, weight.shape[2:])
    if window is None or np.prod(window.kernel) > MOST_TAPS[len(window.kernel) > 1] or 0 in weight.shape:
        return None
    rank, hint = len(window.kernel), node.output(0)
    spatial = [axis + 1 for axis in range(rank)]
    behind = [axis + 1 for axis in spatial]  # where they are while the channels stand before them
    value, joined, out = (scope.fresh(hint) for _ in range(3))
    nodes = [Node("Transpose", (node.input(0),), (value,), {"perm": [0, *behind, 1]})]
    if any(window.before + window.after):
        inside, value = value, scope.fresh(hint)
        pads = scope.constant(f"{hint}.pads", np.array([0, *window.before, 0, 0, *window.after, 0], np.int64))
        nodes.append(Node("Pad", (inside, pads), (value,), {"mode": "constant"}, node.name))
    taps = []
    for offsets in np.ndindex(*window.kernel):
        starts = [offset * by for offset, by in zip(offsets, window.dilations, strict=True)]
        extents = [(size - 1) * by for size, by in zip(window.kernel, window.dilations, strict=True)]
        ends = [start - extent or FAR for start, extent in zip(starts, extents, strict=True)]
        bounds = [scope.constant(f"{hint}.cut", np.array(v, np.int64)) for v in (starts, ends, spatial, window.strides)]
        taps.append(scope.fresh(hint))
        nodes.append(Node("Slice", (value, *bounds), (taps[-1],), {}, node.name))
    if len(taps) > 1:
        nodes.append(Node("Concat", tuple(taps), (joined,), {"axis": rank + 1}, node.name))
    matrix = np.ascontiguousarray(weight.transpose(*behind, 1, 0).reshape(-1, weight.shape[0]))
    operands = (joined if len(taps) > 1 else taps[0], scope.constant(f"{hint}.weight", matrix), *node.inputs[2:])
    nodes.append(Node("Dense", operands, (out,), {}, node.name))
    nodes.append(Node("Transpose", (out,), node.outputs, {"perm": [0, rank + 1, *spatial]}))
    return nodes


def conv_of_groups(scope: Scope, node: Node) -> list[Node] | None:
    """``Conv(x, constant; group=g)`` of few groups  →  ``Split``, a ``Conv`` for each, ``Concat``."""
    weight, shape = _weight(scope, node)
    groups = int(node.attrs.get("group", 1))
    if weight is None or not 1 < groups <= MOST_GROUPS or weight.shape[1] == 1:
        return None
    if shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        return None
    hint, bias = node.output(0), scope.const(node.input(2))
    parts, results = ([scope.fresh(hint) for _ in range(groups)] for _ in range(2))
    sizes = scope.constant(f"{hint}.sizes", np.full(groups, weight.shape[1], np.int64))
    nodes = [Node("Split", (node.input(0), sizes), tuple(parts), {"axis": 1})]
    for i, (x, y) in enumerate(zip(parts, results, strict=True)):
        operands = [scope.constant(f"{hint}.weight", np.split(weight, groups)[i])]
        operands += [] if bias is None else [scope.constant(f"{hint}.bias", np.split(bias, groups)[i])]
        nodes.append(Node("Conv", (x, *operands), (y,), {**node.attrs, "group": 1}, node.name))
    return [*nodes, Node("Concat", tuple(results), node.outputs, {"axis": 1})]


def _weight(scope: Scope, node: Node) -> tuple[Array | None, tuple[Any, ...]]:
    """Return a convolution's constant float32 weight, and the shape of what it is applied to; None if it is not so."""
    weight, shape = scope.const(node.input(1)), scope.shape(node.input(0))
    dtype = scope.info(node.input(0)).dtype
    if weight is None or weight.dtype != np.float32 or dtype not in (None, "float32"):
        return None, ()
    if shape is None or len(shape) != weight.ndim or weight.ndim < 3:
        return None, ()
    if node.input(2) and scope.const(node.input(2)) is None:
        return None, ()
    return weight, shape


def normalised_convolution(scope: Scope, node: Node) -> list[Node] | None:
    """``BatchNormalization(f(x, weight, bias))``  →  ``f(x, weight * scale, (bias - mean) * scale + shift)``.

    f is a Conv, or the Dense and Transpose that it has become. Only where nothing else reads the result of f: it
    would have to be computed twice.
    """
    turned = scope.maker(node.input(0), "Transpose")
    before = scope.maker(turned.input(0) if turned is not None else node.input(0), "Conv", "Dense")
    if before is None or before.input(3) or any(node.outputs[1:]) or (turned is None) != (before.op == "Conv"):
        return None
    if not scope.sole(node.input(0)) or not scope.sole(before.outputs[0]):
        return None
    perm = [] if turned is None else list(turned.attrs.get("perm", ()))
    if turned is not None and (len(perm) < 2 or perm[1] != len(perm) - 1):
        return None  # the channels are not the columns
    names = [before.input(1), *node.inputs[1:5], *([before.input(2)] if before.input(2) else [])]
    arrays = [scope.const(name) for name in names]
    if any(a is None or a.dtype != np.float32 for a in arrays):
        return None
    weight, gain, shift, mean, variance, *rest = (a.astype(np.float64) for a in arrays if a is not None)
    channels = weight.shape[:1] if before.op == "Conv" else weight.shape[1:]
    if any(a.shape != channels for a in (gain, shift, mean, variance, *rest)):
        return None
    with np.errstate(all="ignore"):
        scale = gain / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    if not np.isfinite(scale).all():
        return None
    bias = shift + ((rest[0] if rest else 0.0) - mean) * scale
    scaled = weight * (scale if before.op == "Dense" else scale.reshape(-1, *[1] * (weight.ndim - 1)))
    out = node.outputs[0] if turned is None else scope.fresh(node.outputs[0])
    inputs = (
        before.input(0),
        scope.constant(f"{before.input(1)}.scaled", scaled.astype(np.float32)),
        scope.constant(f"{node.outputs[0]}.bias", bias.astype(np.float32)),
    )
    new = [Node(before.op, inputs, (out,), before.attrs, before.name or node.name)]
    return new if turned is None else [*new, Node("Transpose", (out,), node.outputs[:1], {"perm": perm})]
