"""Quantised operators become float32 arithmetic on integers, which has kernels and rounds nothing.

A float32 holds every integer up to 2**24. The products of 8-bit values with 8-bit weights stay below that if a
column's weights are not too many, which is known when their values are; then sums in float32 are those in integers, bit
for bit. What multiplies by a scale or rounds to the nearest integer does the same in the same order.

Such products are marked `integers`: kernels may then multiply integers, and weights that are worth it stay narrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node
from fastlstm.graph.quantise import pays_as_dense
from fastlstm.passes.rewrite import Scope

__all__ = [
    "constant_weights",
    "convolution_in_floats",
    "dequantised",
    "dynamic_range",
    "plain_sum",
    "product_in_floats",
    "quantised",
    "quantised_product",
    "scaled_product",
]

Array = npt.NDArray[Any]

EXACT = 1 << 24
FARTHEST = 255  # of an 8-bit value from its zero point
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6
_BYTES = {"uint8": UINT8, "int8": INT8}


class _Chain:
    """Writes nodes one behind the other; the last one makes the output that is asked for."""

    def __init__(self, scope: Scope, hint: str, value: str) -> None:
        self.scope, self.hint, self.value, self.start = scope, hint, value, value
        self.nodes: list[Node] = []

    def product(self, op: str, weight: Array, attrs: dict[str, Any]) -> _Chain:
        """Add an exact product, MatMul or Conv, with integer weights."""
        if op == "Conv":
            return self.then(op, weight.astype(np.float32), **attrs | {"integers": 1})
        if self.scope.shape(self.start) and pays_as_dense(weight.shape):
            narrow = weight.astype(np.int8 if weight.min() >= -128 and weight.max() <= 127 else np.int16)
            ones = self.scope.constant(self.hint, np.ones(weight.shape[1], np.float32))
            return self.then("Dense", self.scope.constant(self.hint, narrow), "", ones, integers=1)
        return self.then(op, weight.astype(np.float32), **attrs)

    def then(self, op: str, *others: str | float | Array, **attrs: Any) -> _Chain:
        """Add an operator of the value so far and others."""
        names = [o if isinstance(o, str) else self.scope.constant(self.hint, np.float32(o)) for o in others]
        out = self.scope.fresh(self.hint)
        self.nodes.append(Node(op, (self.value, *names), (out,), attrs, out))
        self.value = out
        return self

    def into(self, output: str, name: str = "") -> list[Node]:
        """Return the nodes, the last of which makes `output`."""
        last = self.nodes[-1]
        return [*self.nodes[:-1], Node(last.op, last.inputs, (output,), last.attrs, name or output)]


def _scalar(scope: Scope, name: str) -> float | None:
    """Return a constant of one element, None if it is something else."""
    array = scope.const(name)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _parameters(scope: Scope, node: Node, first: int = 1) -> tuple[float, float] | None:
    """Return scale and zero point of a node that has one of each, both constant."""
    scale = _scalar(scope, node.input(first))
    zero = _scalar(scope, node.input(first + 1)) if node.input(first + 1) else 0.0
    fits = scale is not None and zero is not None and 0 < scale < np.inf and not node.attrs.get("block_size", 0)
    array = scope.const(node.input(first))
    if not fits or scale is None or zero is None or array is None or array.dtype != np.float32:
        return None
    return scale, zero


def quantised(scope: Scope, node: Node) -> list[Node] | None:
    """``QuantizeLinear(x)`` with one scale  →  ``Cast(Clip(Round(x / scale) + zero))``."""
    found, kind = _parameters(scope, node), scope.infer(node)[0].dtype
    if found is None or kind not in _BYTES or scope.info(node.input(0)).dtype != "float32":
        return None
    chain = _Chain(scope, node.outputs[0], node.input(0)).then("Div", found[0]).then("Round")
    return _in_bytes(chain, found[1], kind).into(node.outputs[0], node.name)


def _in_bytes(chain: _Chain, zero: float, kind: str) -> _Chain:
    limits = np.iinfo(kind)
    if zero:
        chain.then("Add", zero)
    return chain.then("Clip", float(limits.min), float(limits.max)).then("Cast", to=_BYTES[kind])


def dequantised(scope: Scope, node: Node) -> list[Node] | None:
    """``DequantizeLinear(q)`` of bytes with one scale  →  ``(Cast(q) - zero) * scale``; of rounded values, no casts."""
    found, kind = _parameters(scope, node), scope.info(node.input(0)).dtype
    if found is None or kind not in _BYTES or node.attrs.get("output_dtype", 0):
        return None
    scale, zero = found
    steps = _rounded(scope, node.input(0), zero)
    if steps is not None:
        limits = np.iinfo(kind)
        chain = _Chain(scope, node.outputs[0], steps).then("Clip", limits.min - zero, limits.max - zero)
        return chain.then("Mul", scale).into(node.outputs[0], node.name)
    chain = _Chain(scope, node.outputs[0], node.input(0)).then("Cast", to=FLOAT)
    if zero:
        chain.then("Sub", zero)
    return chain.then("Mul", scale).into(node.outputs[0], node.name)


def constant_weights(scope: Scope, node: Node) -> list[Node] | None:
    """Remember what ``DequantizeLinear(constant bytes)`` was made of; that it is folded is another rule's business."""
    q, scale = scope.const(node.input(0)), scope.const(node.input(1))
    zero = scope.const(node.input(2)) if node.input(2) else np.int8(0)
    if q is None or scale is None or zero is None or q.dtype.name not in _BYTES or q.ndim < 2:
        return None
    if node.attrs.get("block_size", 0) or node.attrs.get("output_dtype", 0) or scale.dtype != np.float32:
        return None
    spread = [1] * q.ndim
    if scale.size <= 1:
        if scale.size + np.size(zero) != 2:  # what does not fit is said when the node runs
            return None
    else:
        axis = int(node.attrs.get("axis", 1)) % q.ndim
        if scale.shape != (q.shape[axis],) or np.size(zero) not in (1, scale.size):
            return None
        spread[axis] = -1
    offset = np.asarray(zero, np.int64).reshape(spread if np.size(zero) > 1 else ())
    scope.whole[node.outputs[0]] = (q.astype(np.int64) - offset, scale.reshape(spread))
    return None


def scaled_product(scope: Scope, node: Node) -> list[Node] | None:
    """``Conv(r * s, q * t)`` of rounded r and bytes q  →  ``Conv(r, q) * (s * t)``, whose sums are exact."""
    scaled = scope.maker(node.input(0), "Mul")
    found, step = scope.whole.get(node.input(1)), _scalar(scope, scaled.input(1)) if scaled is not None else None
    if scaled is None or found is None or step is None or not _byte(scope, scaled.input(0), around_zero=True):
        return None
    q, scale = found
    convolved = node.op == "Conv"
    output_axis = 0 if convolved else q.ndim - 1
    if (q.ndim != 2 and not convolved) or any(n != 1 for i, n in enumerate(scale.shape) if i != output_axis):
        return None
    axes = tuple(range(1, q.ndim)) if convolved else (0,)
    if FARTHEST * np.abs(q).sum(axis=axes).max(initial=0) >= EXACT:
        return None
    across = (-1, *[1] * (q.ndim - 2)) if convolved else (-1,)
    factor = (np.float32(step) * scale).reshape(across)
    chain = _Chain(scope, node.outputs[0], scaled.input(0))
    chain.product(node.op, q, dict(node.attrs)).then("Mul", factor)
    if node.input(2):
        bias = scope.const(node.input(2))
        if bias is None or bias.ndim != 1:
            return None
        chain.then("Add", bias.reshape(across))
    return chain.into(node.outputs[0], node.name)


def _rounded(scope: Scope, name: str, zero: float) -> str | None:
    """Return r of ``Cast(Clip(r + zero))``, where r is rounded and the clip is that to the type."""
    cast = scope.maker(name, "Cast")
    clip = scope.maker(cast.input(0), "Clip") if cast is not None else None
    if clip is None:
        return None
    limits = np.iinfo(scope.info(name).dtype or "int8")
    if [_scalar(scope, clip.input(i)) for i in (1, 2)] != [limits.min, limits.max]:
        return None
    steps = clip.input(0)
    if zero:
        shifted = scope.maker(steps, "Add")
        if shifted is None or _scalar(scope, shifted.input(1)) != zero:
            return None
        steps = shifted.input(0)
    return steps if scope.maker(steps, "Round") is not None else None


def dynamic_range(scope: Scope, node: Node) -> list[Node] | None:
    """``DynamicQuantizeLinear(x)``  →  its definition in float32, then casts."""
    x, out = node.input(0), node.outputs[0] or node.outputs[1]
    if scope.info(x).dtype != "float32":
        return None
    nodes: list[Node] = []

    def add(op: str, *inputs: str | float, **attrs: Any) -> str:
        names = [i if isinstance(i, str) else scope.constant(out, np.float32(i)) for i in inputs]
        made = scope.fresh(out)
        nodes.append(Node(op, tuple(names), (made,), attrs, made))
        return made

    above = add("Relu", add("ReduceMax", x, keepdims=0))
    below = add("Relu", add("ReduceMax", add("Neg", x), keepdims=0))
    scale = add("Div", add("Add", above, below), 255.0)
    scale = add("Where", add("Equal", scale, 0.0), 1.0, scale)
    zero = add("Clip", add("Round", add("Div", below, scale)), 0.0, 255.0)
    q = add("Clip", add("Add", add("Round", add("Div", x, scale)), zero), 0.0, 255.0)
    results = (("Cast", q), ("Identity", scale), ("Cast", zero))
    for (op, value), name in zip(results, node.outputs, strict=False):
        if name:
            nodes.append(Node(op, (value,), (name,), {"to": UINT8} if op == "Cast" else {}, name))
    return nodes


def product_in_floats(scope: Scope, node: Node) -> list[Node] | None:
    """``MatMulInteger(a, weights)``  →  ``Cast(MatMul(a - zero, weights))``, if the sums are exact."""
    weight, zero = scope.const(node.input(1)), scope.const(node.input(3))
    if weight is None or weight.ndim != 2 or not _zeros_fit(node, weight, zero, weight.shape[1]):
        return None
    offset = np.int32(0) if zero is None else zero.astype(np.int32)
    return _in_floats(scope, node, weight.astype(np.int32) - offset, "MatMul", (0,), {})


def convolution_in_floats(scope: Scope, node: Node) -> list[Node] | None:
    """``ConvInteger(x, weights)``  →  ``Cast(Conv(x - zero, weights))``, if the sums are exact."""
    weight, zero = scope.const(node.input(1)), scope.const(node.input(3))
    if weight is None or weight.ndim < 3 or not _zeros_fit(node, weight, zero, weight.shape[0]):
        return None
    offset = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    whole = weight.astype(np.int32) - offset.reshape(-1, *[1] * (weight.ndim - 1))
    return _in_floats(scope, node, whole, "Conv", tuple(range(1, weight.ndim)), dict(node.attrs))


def _zeros_fit(node: Node, weight: Array, zero: Array | None, outputs: int) -> bool:
    """Whether weights are bytes, and their zero point one for all or one an output, if there is one."""
    if weight.dtype.name not in _BYTES or (node.input(3) and zero is None):
        return False
    return zero is None or (zero.dtype == weight.dtype and zero.shape in ((), (1,), (outputs,)))


def _in_floats(
    scope: Scope, node: Node, weight: Array, op: str, axes: tuple[int, ...], attrs: dict[str, Any]
) -> list[Node] | None:
    zero = scope.info(node.input(2))
    known = scope.info(node.input(0)).dtype in _BYTES and scope.shape(node.input(0)) is not None
    if not known or (node.input(2) and (zero.shape not in ((), (1,)) or zero.dtype not in _BYTES)):
        return None
    if FARTHEST * np.abs(weight).sum(axis=axes).max(initial=0) >= EXACT:
        return None
    chain = _Chain(scope, node.outputs[0], node.input(0)).then("Cast", to=FLOAT)
    nodes = []
    if node.input(2):
        offset = _Chain(scope, node.outputs[0], node.input(2)).then("Cast", to=FLOAT)
        nodes = offset.nodes
        chain.then("Sub", offset.value)
    chain.product(op, weight, attrs)
    return [*nodes, *chain.then("Cast", to=INT32).into(node.outputs[0], node.name)]


def quantised_product(scope: Scope, node: Node) -> list[Node] | None:
    """``QLinearMatMul`` and ``QLinearConv``  →  the product of integers, scaled, rounded and cut to bytes."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (node.input(i) for i in range(8))
    first, second, last = (scope.const(name) for name in (a_scale, b_scale, y_scale))
    zero, kind = _scalar(scope, y_zero), scope.info(y_zero).dtype
    bias = scope.const(node.input(8)) if node.input(8) else np.zeros(1)
    if zero is None or kind not in _BYTES or bias is None or first is None or second is None or last is None:
        return None
    if np.abs(bias.astype(np.float64)).max(initial=0) >= EXACT // 2 or bias.ndim != 1:
        return None
    if {first.dtype.name, second.dtype.name, last.dtype.name} != {"float32"}:
        return None
    if first.size != 1 or last.size != 1 or second.ndim > 1:
        return None
    factor = first.reshape(()) * second / last.reshape(())
    convolved = node.op == "QLinearConv"
    rank = len(scope.shape(a) or ()) if convolved else 0
    if factor.size == 1:
        factor = factor.reshape(())
    elif convolved and rank > 2:
        factor = factor.reshape(-1, *[1] * (rank - 2))
    total = scope.fresh(node.outputs[0])
    op = "ConvInteger" if convolved else "MatMulInteger"
    product = Node(op, (a, b, a_zero, b_zero), (total,), dict(node.attrs) if convolved else {}, node.name)
    chain = _Chain(scope, node.outputs[0], total).then("Cast", to=FLOAT)
    if node.input(8):
        if rank < 3:
            return None
        chain.then("Add", bias.astype(np.float32).reshape(-1, *[1] * (rank - 2)))
    chain.then("Mul", factor).then("Round")
    return [product, *_in_bytes(chain, zero, kind).into(node.outputs[0], node.name)]


def plain_sum(scope: Scope, node: Node) -> list[Node] | None:
    """``Cast(Cast(x))`` from float32 to integers and back, of integers that fit them  →  ``x``.

    So does ``Cast(Cast(x) + Cast(y))``, as biases are added to sums: both round the same integer once.
    """
    if scope.infer(node)[0].dtype != "float32":
        return None
    kind, added = scope.info(node.input(0)).dtype, scope.maker(node.input(0), "Add")
    if added is not None and kind == "int32":
        nodes: list[Node] = []
        terms = [_in_float(scope, name, nodes) for name in added.inputs]
        return None if None in terms else [*nodes, Node("Add", tuple(map(str, terms)), node.outputs, {}, node.name)]
    inner = scope.maker(node.input(0), "Cast")
    if inner is None or scope.info(inner.input(0)).dtype != "float32":
        return None
    source = scope.maker(inner.input(0))
    if source is None:
        return None
    if kind in _BYTES and source.op == "Clip":
        low, high = (_scalar(scope, source.input(i)) for i in (1, 2))
        limits = np.iinfo(kind)
        whole = low is not None and high is not None and limits.min <= low and high <= limits.max
        return [Node("Identity", (inner.input(0),), node.outputs)] if whole and _whole(scope, source.input(0)) else None
    if kind == "int32" and _is_sum(scope, source):
        return [Node("Identity", (inner.input(0),), node.outputs)]
    return None


def _is_sum(scope: Scope, source: Node) -> bool:
    return source.op in ("MatMul", "Dense", "Conv") and _exact(scope, source)


def _in_float(scope: Scope, name: str, nodes: list[Node]) -> str | None:
    """Return a float32 value that holds the same numbers as one of int32, made by nodes that are added; or None."""
    array, maker = scope.const(name), scope.maker(name)
    if array is not None:
        return scope.constant(name, array.astype(np.float32)) if np.abs(array).max(initial=0) <= EXACT else None
    if maker is None:
        return None
    if maker.op in ("Reshape", "Squeeze", "Unsqueeze", "Transpose"):
        moved = _in_float(scope, maker.input(0), nodes)
        if moved is None:
            return None
        out = scope.fresh(name)
        nodes.append(Node(maker.op, (moved, *maker.inputs[1:]), (out,), dict(maker.attrs), out))
        return out
    source = scope.maker(maker.input(0)) if maker.op == "Cast" else None
    if source is None or scope.info(maker.input(0)).dtype != "float32":
        return None
    whole = source.op in ("Round", "Floor", "Ceil") or _is_sum(scope, source)
    return maker.input(0) if whole else None


def _whole(scope: Scope, name: str) -> bool:
    """Whether a value is a sum of a rounded one and integers."""
    maker = scope.maker(name)
    if maker is None:
        array = scope.const(name)
        return array is not None and bool(np.all(array == np.rint(array)))
    if maker.op == "Round":
        return True
    if maker.op == "Clip":
        return all(_whole(scope, value) for value in maker.inputs)
    return maker.op == "Add" and all(_whole(scope, value) for value in maker.inputs)


def _exact(scope: Scope, node: Node) -> bool:
    """Whether a product has whole weights, bytes less a zero point as its data, and sums that float32 holds."""
    weight, data = scope.const(node.input(1)), scope.maker(node.input(0))
    if weight is None or data is None or node.input(2) or not bool(np.all(weight == np.rint(weight))):
        return False
    if node.input(3) and not node.attrs.get("integers", 0):
        return False
    axes = tuple(range(1, weight.ndim)) if node.op == "Conv" else (0,)
    if FARTHEST * np.abs(weight).sum(axis=axes).max(initial=0) >= EXACT:
        return False
    parts = data.inputs if data.op == "Sub" else (node.input(0),)
    return all(_byte(scope, value) for value in parts)


def _byte(scope: Scope, name: str, around_zero: bool = False) -> bool:
    """Whether a float value holds integers of eight bits, or such less their zero point."""
    maker, array = scope.maker(name), scope.const(name)
    if array is not None:
        return bool(np.all(array == np.rint(array)) and np.all(array >= -128) and np.all(array <= 255))
    if maker is None:
        return False
    if maker.op == "Cast":
        return scope.info(maker.input(0)).dtype in _BYTES
    if maker.op == "Clip":
        low, high = (_scalar(scope, maker.input(i)) for i in (1, 2))
        if low is None or high is None or not _whole(scope, maker.input(0)):
            return False
        return (low, high) in ((0, 255), (-128, 127)) or (around_zero and high - low == 255 and low <= 0 <= high)
    return maker.op in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather") and _byte(
        scope, maker.input(0), around_zero
    )
