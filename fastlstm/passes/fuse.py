"""Products with a constant matrix become Dense; normalisations written out become LayerNormalization."""

from __future__ import annotations

import numpy as np

from fastlstm.graph import Node
from fastlstm.operators.values import normal_axis
from fastlstm.passes.rewrite import Scope
from fastlstm.typing import Array

__all__ = ["dense_bias", "dense_of_gemm", "dense_of_matmul", "layer_normalization", "pooled_mean", "swish"]


def dense_of_matmul(scope: Scope, node: Node) -> list[Node] | None:
    """``MatMul(x, constant [I, O])``  →  ``Dense(x)``."""
    weight, shape = scope.const(node.input(1)), scope.shape(node.input(0))
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f" or not shape:
        return None
    return [Node("Dense", node.inputs, node.outputs, {}, node.name)]


def dense_of_gemm(scope: Scope, node: Node) -> list[Node] | None:
    """``Gemm(x, constant, constant row)``  →  ``Dense(x)``; factors other than 1 only where exact."""
    weight, bias = scope.const(node.input(1)), scope.const(node.input(2))
    attrs = node.attrs
    if weight is None or weight.dtype.kind != "f" or attrs.get("transA", 0):
        return None
    turned, alpha, beta = bool(attrs.get("transB", 0)), float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    size = weight.shape[0 if turned else 1]
    matrix = scope.derived(node.input(1), ("matrix", turned, alpha), lambda: _matrix(weight, turned, alpha))
    if matrix is None:
        return None
    operands = (node.input(0), matrix)
    if not node.input(2):
        return [Node("Dense", operands, node.outputs, {}, node.name)]
    row = None
    if bias is not None:
        row = scope.derived(node.input(2), ("row", size, beta), lambda: _scaled_row(bias, size, beta))
    if row is not None:
        return [Node("Dense", (*operands, row), node.outputs, {}, node.name)]
    if beta != 1.0:
        return None
    product = scope.fresh(node.outputs[0])
    return [
        Node("Dense", operands, (product,), {}, node.name),
        Node("Add", (product, node.input(2)), node.outputs),
    ]


def _matrix(weight: Array, turned: bool, factor: float) -> Array | None:
    matrix = _scaled(weight.T if turned else weight, factor)
    return None if matrix is None else np.ascontiguousarray(matrix)


def _scaled_row(bias: Array, size: int, factor: float) -> Array | None:
    row = _row(bias, size)
    return None if row is None else _scaled(row, factor)


def _scaled(array: Array, factor: float) -> Array | None:
    """Return factor * array, None if that would have to be rounded."""
    if factor == 1:
        return array
    scaled = (array * array.dtype.type(factor)).astype(array.dtype)
    return scaled if bool(np.all(scaled == array.astype(np.float64) * factor)) else None


def _row(array: Array, size: int) -> Array | None:
    """Return a bias of shape [size], [1, …, size] or [1] as [size]."""
    if array.size == 1 or (array.size == size and array.shape[-1] == size):
        return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (size,)))
    return None


def dense_bias(scope: Scope, node: Node) -> list[Node] | None:
    """``Add(Dense(x), constant row)``, either way round  →  ``Dense(x)`` with the bias."""
    for here, there in ((0, 1), (1, 0)):
        dense, bias = scope.maker(node.input(here), "Dense"), scope.const(node.input(there))
        if dense is None or bias is None or dense.input(2) or dense.input(3) or not scope.sole(node.input(here)):
            continue
        shape = scope.shape(node.input(here))
        row = _row(bias, int(shape[-1])) if shape and isinstance(shape[-1], int) else None
        if row is None or shape is None or bias.ndim > len(shape):
            continue
        name = node.input(there) if bias.ndim == 1 and bias.shape == row.shape else ""
        name = name or scope.constant(f"{node.outputs[0]}.bias", row)
        return [Node("Dense", (*dense.inputs[:2], name), node.outputs, {}, dense.name)]
    return None


def swish(scope: Scope, node: Node) -> list[Node] | None:
    """``Mul(x, Sigmoid(x))``, either way round  →  ``Swish(x)``, if nothing else reads the sigmoid."""
    for here, there in ((0, 1), (1, 0)):
        gate = scope.maker(node.input(there), "Sigmoid")
        if gate is not None and gate.input(0) == node.input(here) and scope.sole(node.input(there)):
            return [Node("Swish", gate.inputs, node.outputs, {}, node.name)]
    return None


def pooled_mean(scope: Scope, node: Node) -> list[Node] | None:
    """``GlobalAveragePool(x [N, C, L])``  →  ``ReduceMean(x)`` over the last axis."""
    shape = scope.shape(node.input(0))
    if shape is None or len(shape) != 3:
        return None
    axes = scope.constant(f"{node.outputs[0]}.axes", [-1])
    return [Node("ReduceMean", (node.input(0), axes), node.outputs, {"keepdims": 1}, node.name)]


def layer_normalization(scope: Scope, node: Node) -> list[Node] | None:
    """``(x - mean(x)) / sqrt(mean((x - mean(x))²) + ε) [* scale] [+ bias]``  →  ``LayerNormalization(x)``.

    Also tf2onnx's order, ``x * (r * scale) + (bias - mean * (r * scale))`` with r = 1 / sqrt(…).
    """
    if node.op == "Div":
        return _normalised(scope, node, node.input(0), scope.maker(node.input(1), "Sqrt"))
    if node.op == "Mul":
        for a, b in (node.inputs, node.inputs[::-1]):
            inverse = scope.maker(b, "Reciprocal")
            if inverse is not None:
                found = _normalised(scope, node, a, scope.maker(inverse.input(0), "Sqrt"))
                if found is not None:
                    return found
            found = _scaled_normalisation(scope, node, a, b)
            if found is not None:
                return found
        return None
    for a, b in (node.inputs, node.inputs[::-1]):
        found = _shifted_normalisation(scope, node, a, b) or _scaled_difference(scope, node, a, b)
        if found is not None:
            return found
    return None


def _normalised(scope: Scope, node: Node, centred: str, root: Node | None) -> list[Node] | None:
    """Match ``centred / sqrt(mean(centred²) + ε)``."""
    difference = scope.maker(centred, "Sub")
    found = _statistics(scope, root)
    if difference is None or found is None:
        return None
    x, mean, epsilon = found
    if difference.inputs != (x, mean):
        return None
    return _layer(scope, node, x, epsilon, None, None)


def _statistics(scope: Scope, root: Node | None) -> tuple[str, str, float] | None:
    """Return (x, its mean, ε) of ``sqrt(mean((x - mean(x))²) + ε)`` over the last axis."""
    total = scope.maker(root.input(0), "Add") if root is not None and root.op == "Sqrt" else None
    if total is None:
        return None
    for variance, epsilon in (total.inputs, total.inputs[::-1]):
        number, mean = scope.const(epsilon), _mean(scope, variance)
        square = scope.maker(mean, "Mul", "Pow") if mean else None
        if number is None or number.size != 1 or square is None:
            continue
        squared = square.input(1) == square.input(0)
        if square.op == "Pow":
            squared = scope.info(square.input(1)).fill == 2
        difference = scope.maker(square.input(0), "Sub")
        if squared and difference is not None and _mean(scope, difference.input(1)) == difference.input(0):
            return difference.input(0), difference.input(1), float(number.reshape(()))
    return None


def _mean(scope: Scope, name: str) -> str:
    """Return the value whose mean over the last axis, keeping it, is `name`; "" if there is none."""
    mean = scope.maker(name, "ReduceMean")
    shape = scope.shape(mean.input(0)) if mean is not None else None
    axes = scope.numbers(mean.input(1)) if mean is not None and mean.input(1) else None
    if mean is None or shape is None or axes is None or not mean.attrs.get("keepdims", 1):
        return ""
    return mean.input(0) if [normal_axis(a, len(shape)) for a in axes] == [len(shape) - 1] else ""


def _layer(
    scope: Scope, node: Node, x: str, epsilon: float, scale: Array | None, bias: Array | None
) -> list[Node] | None:
    shape, dtype = scope.shape(x), scope.info(x).dtype
    if not shape or not isinstance(shape[-1], int) or dtype is None:
        return None
    rows = [np.ones(shape[-1], dtype) if scale is None else _row(scale, shape[-1])]
    if bias is not None:
        rows.append(_row(bias, shape[-1]))
    names = []
    for what, row in zip(("scale", "bias"), rows, strict=False):
        if row is None:
            return None
        names.append(scope.constant(f"{node.outputs[0]}.{what}", row))
    attrs = {"axis": -1, "epsilon": epsilon}
    return [Node("LayerNormalization", (x, *names), node.outputs, attrs, node.name)]


def _scaled_normalisation(scope: Scope, node: Node, value: str, scale: str) -> list[Node] | None:
    """Match ``LayerNormalization(x) * scale`` where the scale so far is 1 and there is no bias."""
    layer, factor = scope.maker(value, "LayerNormalization"), scope.const(scale)
    if layer is None or factor is None or layer.input(2) or scope.info(layer.input(1)).fill != 1:
        return None
    return _layer(scope, node, layer.input(0), layer.attrs["epsilon"], factor, None) if _last(layer) else None


def _shifted_normalisation(scope: Scope, node: Node, value: str, bias: str) -> list[Node] | None:
    """Match ``LayerNormalization(x) + bias`` where there is no bias yet."""
    layer, shift = scope.maker(value, "LayerNormalization"), scope.const(bias)
    scale = scope.const(layer.input(1)) if layer is not None else None
    if layer is None or shift is None or scale is None or layer.input(2) or not _last(layer):
        return None
    return _layer(scope, node, layer.input(0), layer.attrs["epsilon"], scale, shift)


def _last(layer: Node) -> bool:
    return layer.attrs.get("axis", -1) == -1 and "epsilon" in layer.attrs


def _scaled_difference(scope: Scope, node: Node, scaled: str, shift: str) -> list[Node] | None:
    """Match ``x * m + (bias - mean * m)``, ``x * m + (-mean) * m`` ``m = scale / sqrt(variance + ε)``."""
    product = scope.maker(scaled, "Mul")
    if product is None:
        return None
    for x, m in (product.inputs, product.inputs[::-1]):
        found = _inverse_deviation(scope, m)
        if found is None or found[0][0] != x:
            continue
        (_, mean, epsilon), scale = found
        bias = _minus_mean_times(scope, shift, mean, m)
        if bias is not None:
            return _layer(scope, node, x, epsilon, scale, None if bias == "" else scope.const(bias))
    return None


def _inverse_deviation(scope: Scope, name: str) -> tuple[tuple[str, str, float], Array | None] | None:
    """Return the statistics and the scale of ``1 / sqrt(…) [* scale]``."""
    times = scope.maker(name, "Mul")
    choices = [(name, "")] if times is None else [times.inputs, times.inputs[::-1]]
    for inverse, scale in choices:
        reciprocal = scope.maker(inverse, "Reciprocal")
        found = _statistics(scope, scope.maker(reciprocal.input(0), "Sqrt")) if reciprocal is not None else None
        factor = scope.const(scale)
        if found is not None and (not scale or factor is not None):
            return found, factor
    return None


def _minus_mean_times(scope: Scope, name: str, mean: str, m: str) -> str | None:
    """Return the bias in ``bias - mean * m`` (``""`` in ``-mean * m``), None if `name` is something else."""
    node = scope.maker(name, "Sub", "Mul", "Add")
    if node is None:
        return None
    if node.op == "Sub":
        product = scope.maker(node.input(1), "Mul")
        fits = product is not None and sorted(product.inputs) == sorted((mean, m))
        return node.input(0) if fits and scope.const(node.input(0)) is not None else None
    if node.op == "Mul":
        for a, b in (node.inputs, node.inputs[::-1]):
            negative = scope.maker(a, "Neg")
            if negative is not None and negative.input(0) == mean and b == m:
                return ""
        return None
    for inner, bias in (node.inputs, node.inputs[::-1]):
        if scope.const(bias) is not None and _minus_mean_times(scope, inner, mean, m) == "":
            return bias
    return None
