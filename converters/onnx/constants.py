"""Computing the small constant graphs out of which exporters hand weights to recurrent layers.

PyTorch's newer exporter writes W as Unsqueeze(Concat(Slice(weight), …)); quantised models write it as
DequantizeLinear. Only what such graphs need is here, and the size of a result is known before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastlstm.converters.onnx.tensors import ELEMENT_TYPES
from fastlstm.errors import UnsupportedError
from fastlstm.graph import Node

__all__ = ["FOLDED", "Room", "known"]

Array = npt.NDArray[Any]

# Putting weights in order copies each element a few times: elements a byte of the model, and to begin with.
_COPIES = 4
_SMALL = 1 << 24


class Room:
    """How many elements may still be computed; every model has one.

    Views take no room. The limit grows with the model, so that no file makes arrays out of all proportion.

    Parameters
    ----------
    size : int
        Bytes of the model, external data included.
    """

    def __init__(self, size: int = 0) -> None:
        self.left = _SMALL + _COPIES * size

    def take(self, shape: Sequence[int]) -> None:
        """Use up room for an array of `shape`, before it is made."""
        if any(size < 0 for size in shape):
            raise ValueError(f"the shape {list(shape)} has a negative size")
        count = math.prod(shape)
        self.left -= count
        if self.left < 0:
            raise ValueError(f"{count} elements are more than a constant may have here")


class Values(Protocol):
    """What is known of a graph's values while it is read: see `fastlstm.converters.onnx.scope`."""

    constants: dict[str, Array]
    folded: dict[str, Array]
    makers: dict[str, Node]
    room: Room

    @property
    def outer(self) -> Values | None:
        """The graph around a body."""


def known(scope: Values, value: str) -> Array | None:
    """Return the array that `value` always is, or None if it depends on the model's inputs.

    Raises
    ------
    UnsupportedError
        If the constant cannot be computed: shapes that do not fit, or too many elements.
    """
    found = _at_hand(scope, value)
    if found is not None:
        return found
    cone = _cone(scope, value)
    if cone is None:
        return None
    for node in cone:
        inputs = [_at_hand(scope, name) if name else None for name in node.inputs]
        try:
            with np.errstate(all="ignore"):
                results = FOLDED[node.op](scope.room, inputs, node)
        except (ArithmeticError, LookupError, AttributeError, TypeError, ValueError, MemoryError) as error:
            label = f"{node.op} node '{node.name or node.output(0)}'"
            raise UnsupportedError(f"{label}: its constant output cannot be computed: {error}.") from None
        scope.folded.update(zip(node.outputs, results, strict=False))
    return scope.folded[value]


def _at_hand(scope: Values, value: str) -> Array | None:
    place: Values | None = scope
    while place is not None:
        for store in (place.constants, place.folded):
            if value in store:
                return store[value]
        place = place.outer
    return None


def _cone(scope: Values, value: str) -> list[Node] | None:
    """Return the nodes that compute `value` from constants, in order, or None if it depends on inputs."""
    order: list[Node] = []
    seen: set[str] = set()
    stack: list[tuple[str, bool]] = [(value, False)]
    while stack:
        name, done = stack.pop()
        node = _maker(scope, name)
        if done and node is not None:
            order.append(node)
            continue
        if name in seen or not name or _at_hand(scope, name) is not None:
            continue
        if node is None or node.op not in FOLDED:
            return None
        seen.update(node.outputs)
        stack.append((name, True))
        stack += [(source, False) for source in node.inputs]
    return order


def _maker(scope: Values, value: str) -> Node | None:
    place: Values | None = scope
    while place is not None:
        if value in place.makers:
            return place.makers[value]
        place = place.outer
    return None


Inputs = Sequence[Any]
Folder = Callable[[Room, Inputs, Node], Sequence[Array]]


def _ints(array: Array) -> list[int]:
    return [int(v) for v in np.atleast_1d(array)]


def _identity(_room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
    return [inputs[0]]


def _cast(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    room.take(inputs[0].shape)
    return [inputs[0].astype(ELEMENT_TYPES[node.attrs["to"]])]


def _shape(_room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    shape = inputs[0].shape[node.attrs.get("start", 0) : node.attrs.get("end")]
    return [np.array(shape, np.int64)]


def _transpose(_room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    return [np.transpose(inputs[0], node.attrs.get("perm"))]


def _reshape(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    data, wanted = inputs[0], _ints(inputs[1])
    if not node.attrs.get("allowzero", 0):
        wanted = [data.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if not data.flags.c_contiguous:
        room.take(data.shape)
    return [data.reshape(wanted)]


def _flatten(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    data, axis = inputs[0], node.attrs.get("axis", 1)
    if not data.flags.c_contiguous:
        room.take(data.shape)
    axis += data.ndim if axis < 0 else 0
    return [data.reshape(math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))]


def _squeeze(_room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
    axes = tuple(_ints(inputs[1])) if len(inputs) > 1 and inputs[1] is not None else None
    return [np.squeeze(inputs[0], axes)]


def _unsqueeze(_room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
    return [np.expand_dims(inputs[0], tuple(_ints(inputs[1])))]


def _slice(_room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
    data, starts, ends = inputs[0], _ints(inputs[1]), _ints(inputs[2])
    optional = [_ints(v) if v is not None else None for v in [*inputs[3:], None, None][:2]]
    axes = optional[0] if optional[0] is not None else list(range(len(starts)))
    steps = optional[1] if optional[1] is not None else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Going backwards, an end before the first element cannot be written as a negative index.
        below = step < 0 and end < -data.shape[axis]
        index[axis] = slice(start, None if below else end, step)
    return [data[tuple(index)]]


def _concat(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    room.take([sum(part.size for part in inputs)])
    return [np.concatenate(inputs, node.attrs["axis"])]


def _split(_room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    data, axis, count = inputs[0], node.attrs.get("axis", 0), len(node.outputs)
    if len(inputs) > 1:
        sizes = _ints(inputs[1])
    else:
        size = -(-data.shape[axis] // count)
        sizes = [size] * (count - 1) + [data.shape[axis] - size * (count - 1)]
    if len(sizes) != count or sum(sizes) != data.shape[axis] or min(sizes) < 0:
        raise ValueError(f"{data.shape[axis]} elements do not split into {sizes}")
    return np.split(data, np.cumsum(sizes)[:-1], axis)


def _gather(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    data, indices = inputs[0], np.asarray(inputs[1])
    axis = node.attrs.get("axis", 0)
    room.take([max(indices.size, 1), data.size // max(data.shape[axis], 1)])
    return [np.take(data, indices, axis)]


def _expand(room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1])))
    room.take(shape)
    return [np.broadcast_to(inputs[0], shape)]


def _constant_of_shape(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    shape = _ints(inputs[0]) if inputs[0].size else []
    room.take(shape)
    return [np.full(shape, node.attrs.get("value", 0), node.attrs.get("dtype", "float32"))]


def _dequantize(room: Room, inputs: Inputs, node: Node) -> Sequence[Array]:
    if node.attrs.get("block_size", 0):
        raise ValueError("blocks are not supported here")
    data, scale = inputs[0], inputs[1]
    room.take(data.shape)
    zero = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros_like(scale, data.dtype)
    if scale.ndim == 1 and scale.size > 1:  # one scale for each index along the axis
        axis = node.attrs.get("axis", 1)
        sizes = [1] * data.ndim
        sizes[axis] = -1
        scale, zero = scale.reshape(sizes), zero.reshape(sizes)
    return [((data.astype(np.int64) - zero) * scale.astype(np.float64)).astype(scale.dtype)]


def _elementwise(function: Callable[..., Any]) -> Folder:
    def folder(room: Room, inputs: Inputs, _node: Node) -> Sequence[Array]:
        room.take(np.broadcast_shapes(*(array.shape for array in inputs)))
        return [np.asarray(function(*inputs)).astype(inputs[0].dtype, copy=False)]

    return folder


def _divide(a: Array, b: Array) -> Array:
    # Integers divide towards zero, as in C.
    return np.asarray(np.trunc(np.divide(a, b)) if a.dtype.kind in "iu" else np.divide(a, b))


FOLDED: Mapping[str, Folder] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""The operators whose constant results the converter computes itself, in their opset-21 form."""
