"""Computing the small constant graphs out of which exporters hand weights to recurrent layers.

PyTorch's newer exporter writes W as Unsqueeze(Concat(Slice(weight), …)); quantised models write it as
DequantizeLinear. Only what such graphs need is computed, and the size of a result is known before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from fastlstm import operators
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Node
from fastlstm.operators.dims import Shape
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["FOLDED", "Budget", "known"]

VIEWS = frozenset(["Flatten", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"])
"""Operators whose results are views, or small."""

FOLDED = VIEWS | frozenset(
    ["Add", "Cast", "Concat", "ConstantOfShape", "DequantizeLinear", "Div", "Expand", "Gather", "Mul", "Neg", "Sub"]
)
"""The operators whose constant results the converter computes itself, in their opset-21 form."""

# Putting weights in order copies each element a few times: elements a byte of the model, and to begin with.
_COPIES = 4
_SMALL = 1 << 24


class Budget:
    """How many elements may still be computed; every model has one.

    Views take nothing. The limit grows with the model, so that no file makes arrays out of all proportion.

    Parameters
    ----------
    size : int
        Bytes of the model, external data included.
    """

    def __init__(self, size: int = 0) -> None:
        self.left = _SMALL + _COPIES * size

    def take(self, shape: Shape | None) -> None:
        """Take from the budget for an array of `shape` before it is made; InputError if there is none left."""
        sizes = [size for size in shape or () if isinstance(size, int)]
        if shape is None or len(sizes) != len(shape) or min(sizes, default=0) < 0:
            raise InputError("its shape cannot be told beforehand.")
        count = math.prod(sizes)
        self.left -= count
        if self.left < 0:
            raise InputError(f"{count} elements are more than a constant may have here.")


class Values(Protocol):
    """What is known of a graph's values while it is read: see `fastlstm.converters.onnx.scope`."""

    constants: dict[str, Array]
    folded: dict[str, Array]
    makers: dict[str, Node]
    budget: Budget

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
            scope.folded.update(zip(node.outputs, _computed(scope.budget, node, inputs), strict=False))
        except InputError as error:
            label = f"{node.op} node '{node.name or node.output(0)}'"
            raise UnsupportedError(f"{label}: its constant output cannot be computed: {error}") from None
    return scope.folded[value]


def _computed(budget: Budget, node: Node, inputs: Sequence[Array | None]) -> Sequence[Array]:
    """Return the outputs of a node, within the budget; InputError if its inputs do not fit, or none is left."""
    infos = tuple(ValueInfo() if array is None else ValueInfo.of_array(array) for array in inputs)
    at = Operands(node, infos)
    if wrong := operators.misfit(at):
        raise InputError(wrong)
    data = inputs[0]
    if node.op not in VIEWS or (node.op in ("Reshape", "Flatten") and data is not None and not data.flags.c_contiguous):
        for made in operators.infer(at)[: len(node.outputs)]:
            budget.take(made.shape)
    return operators.evaluate(node, inputs)


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
