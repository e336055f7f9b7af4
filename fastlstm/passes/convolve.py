"""Convolutions: explicit padding, and batch normalisation folded into the convolution before it."""

from __future__ import annotations

import numpy as np

from fastlstm.graph import Node
from fastlstm.operators.windows import windows
from fastlstm.passes.rewrite import Scope

__all__ = ["explicit_padding", "normalised_convolution"]


def explicit_padding(scope: Scope, node: Node) -> list[Node] | None:
    """``Conv(x, constant; auto_pad=SAME_UPPER)``  →  ``Conv(x, constant; pads=...)``.

    Along axes with a stride of 1 the size of x does not matter; along others it has to be known.
    """
    kind, weight, shape = node.attrs.get("auto_pad", "NOTSET"), scope.const(node.input(1)), scope.shape(node.input(0))
    if kind == "NOTSET" or weight is None or shape is None or weight.ndim < 3 or len(shape) != weight.ndim:
        return None
    kernel, attrs = weight.shape[2:], {k: v for k, v in node.attrs.items() if k not in ("auto_pad", "pads")}
    strides = tuple(attrs.get("strides") or [1] * len(kernel))
    if kind != "VALID":
        if any(stride != 1 and not isinstance(size, int) for size, stride in zip(shape[2:], strides, strict=False)):
            return None
        sizes = [size if isinstance(size, int) else 1 for size in shape[2:]]
        try:
            found = windows(sizes, kernel, strides, attrs.get("dilations"), None, kind)
        except ValueError:
            return None  # reported when it runs
        attrs["pads"] = [*found.before, *found.after]
    return [Node("Conv", node.inputs, node.outputs, attrs, node.name)]


def normalised_convolution(scope: Scope, node: Node) -> list[Node] | None:
    """``BatchNormalization(Conv(x, weight, bias))``  →  ``Conv(x, weight * scale, (bias - mean) * scale + shift)``.

    Likewise for ConvTranspose without groups. Only if nothing else reads the convolution, which would otherwise have to
    be computed twice.
    """
    before = scope.maker(node.input(0), "Conv", "ConvTranspose")
    if before is None or any(node.outputs[1:]) or not scope.sole(node.input(0)):
        return None
    axis = int(before.op == "ConvTranspose")  # of the weight, for the output's channels
    if axis and int(before.attrs.get("group", 1)) != 1:
        return None
    names = [before.input(1), *node.inputs[1:5], *([before.input(2)] if before.input(2) else [])]
    arrays = [scope.const(name) for name in names]
    if any(a is None or a.dtype != np.float32 for a in arrays):
        return None
    weight, gain, shift, mean, variance, *rest = (a.astype(np.float64) for a in arrays if a is not None)
    if weight.ndim < 3 or any(a.shape != weight.shape[axis : axis + 1] for a in (gain, shift, mean, variance, *rest)):
        return None
    with np.errstate(all="ignore"):
        scale = gain / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    if not np.isfinite(scale).all():
        return None
    bias = shift + ((rest[0] if rest else 0.0) - mean) * scale
    scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1 - axis))
    inputs = (
        before.input(0),
        scope.constant(f"{before.input(1)}.scaled", scaled.astype(np.float32)),
        scope.constant(f"{node.outputs[0]}.bias", bias.astype(np.float32)),
    )
    attrs = {name: value for name, value in before.attrs.items() if name != "integers"}  # its weights are so no more
    return [Node(before.op, inputs, node.outputs[:1], attrs, before.name or node.name)]
