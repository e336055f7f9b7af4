"""Values on their way through a Keras model, and the graph that grows from them.

A `Tensor` knows its shape and, as in Keras, may carry a mask. `Emitter` adds the nodes; equal nodes are
made once, so that the masks which Keras 3 writes out as operations meet those that travel with the values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from fastlstm.converters.common.builder import GraphBuilder
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim
from fastlstm.typing import Array

__all__ = ["Emitter", "Tensor", "broadcast"]

_MOST_NODES = 50_000


@dataclass(frozen=True)
class Tensor:
    """One value.

    Attributes
    ----------
    name : str
    shape : tuple of int or str
        Batch first, as in Keras; str where a size is not known before run time.
    dtype : str
    mask : Tensor or None
        Boolean, [batch, time]: False where a step is padding.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"
    mask: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def with_mask(self, mask: Tensor | None) -> Tensor:
        """Return the same value with another mask."""
        return replace(self, mask=mask)

    def size(self, axis: int, label: str) -> int:
        """Return the size of `axis`, which must be known.

        Raises
        ------
        UnsupportedError
            If it is not.
        """
        size = self.shape[axis]
        if not isinstance(size, int):
            raise UnsupportedError(
                f"{label}: the size of axis {axis} of its input must be known before run time; "
                f"the input's shape is [{', '.join(map(str, self.shape))}]."
            )
        return size


class Emitter:
    """Adds nodes and constants to a graph and keeps track of shapes.

    `layer` is the Keras layer that is being translated: nodes are called after it.
    """

    def __init__(self, name: str) -> None:
        self.builder, self.layer = GraphBuilder(name), ""
        self._made: dict[str, list[str]] = {}
        self._constants: dict[str, list[str]] = {}

    def note(self, sentence: str) -> None:
        """Add a sentence about something assumed."""
        self.builder.note(sentence)

    def constant(self, value: Any, name: str = "constant") -> str:
        """Return the name of a constant; a constant of the same name and value is made once."""
        array = np.asarray(value)
        known = self._constants.setdefault(name, [])
        for other in known:
            found = self.builder.constants[other]
            if (
                found.dtype == array.dtype
                and found.shape == array.shape
                and np.array_equal(found, array, equal_nan=array.dtype.kind == "f")
            ):
                return other
        known.append(self.builder.constant(name, array))
        return known[-1]

    def ints(self, values: Sequence[int]) -> str:
        """Return the name of a constant vector of int64."""
        return self.constant(np.asarray(values, np.int64), "ints")

    def outputs(self, op: str, inputs: Sequence[Tensor | str], names: Sequence[str], **attrs: Any) -> list[str]:
        """Add a node with an output for each of `names`; return the values' names.

        Raises
        ------
        UnsupportedError
            If the graph becomes larger than any real model's.
        """
        given = [value.name if isinstance(value, Tensor) else value for value in inputs]
        key = json.dumps([op, given, len(names), attrs], sort_keys=True)
        if key not in self._made:
            if len(self.builder.nodes) >= _MOST_NODES:
                raise UnsupportedError(f"The model needs more than {_MOST_NODES} operations.")
            self._made[key] = self.builder.nodes_out(op, given, list(names), **attrs)
        return self._made[key]

    def node(
        self, op: str, *inputs: Tensor | str, shape: Sequence[Dim], dtype: str = "float32", **attrs: Any
    ) -> Tensor:
        """Add a node of one output, whose shape the caller knows."""
        name = op.lower() if self.layer in ("", op.lower()) else f"{self.layer}.{op.lower()}"
        return Tensor(self.outputs(op, inputs, [name], **attrs)[0], tuple(shape), dtype)

    def like(self, op: str, x: Tensor, *more: Tensor | str, **attrs: Any) -> Tensor:
        """Add a node whose result has the shape and dtype of `x`, and its mask."""
        return self.node(op, x, *more, shape=x.shape, dtype=x.dtype, **attrs).with_mask(x.mask)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Return `x` as `dtype`."""
        if x.dtype == dtype:
            return x
        return self.node("Cast", x, shape=x.shape, dtype=dtype, to=dtype).with_mask(x.mask)

    def floats(self, x: Tensor) -> Tensor:
        """Return `x` as float32."""
        return self.cast(x, "float32")

    def binary(self, op: str, a: Tensor, b: Tensor, label: str, dtype: str | None = None) -> Tensor:
        """Add an element-wise node of two values that are broadcast against one another."""
        return self.node(op, a, b, shape=broadcast(a.shape, b.shape, label), dtype=dtype or a.dtype)

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """Return `x` with its axes in the order `perm`; the mask is dropped."""
        if list(perm) == list(range(x.rank)):
            return x.with_mask(None)
        shape = [x.shape[axis] for axis in perm]
        return self.node("Transpose", x, shape=shape, dtype=x.dtype, perm=list(perm))

    def unsqueeze(self, x: Tensor, axis: int) -> Tensor:
        """Return `x` with an axis of size 1 put in."""
        axis = axis % (x.rank + 1)
        shape = [*x.shape[:axis], 1, *x.shape[axis:]]
        return self.node("Unsqueeze", x, self.ints([axis]), shape=shape, dtype=x.dtype)

    def squeeze(self, x: Tensor, axis: int) -> Tensor:
        """Return `x` without an axis of size 1."""
        axis = axis % x.rank
        shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
        return self.node("Squeeze", x, self.ints([axis]), shape=shape, dtype=x.dtype)

    def pick(self, x: Tensor, index: int, axis: int) -> Tensor:
        """Return the slice at `index` of `axis`, without that axis."""
        axis = axis % x.rank
        shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
        place = self.constant(np.int64(index), "index")
        return self.node("Gather", x, place, shape=shape, dtype=x.dtype, axis=axis)

    def flip(self, x: Tensor, axis: int) -> Tensor:
        """Return `x` with `axis` backwards."""
        ends = np.iinfo(np.int64).min
        parts = [self.ints([-1]), self.ints([ends]), self.ints([axis]), self.ints([-1])]
        return self.node("Slice", x, *parts, shape=x.shape, dtype=x.dtype)

    def reshape(self, x: Tensor, target: Sequence[int], shape: Sequence[Dim]) -> Tensor:
        """Return `x` in another shape; in `target` 0 keeps an axis and -1 takes what is left."""
        return self.node("Reshape", x, self.ints(target), shape=shape, dtype=x.dtype)

    def sizes(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Return the sizes of the axes from `begin` to `end` as a vector made at run time."""
        whole = self.node("Shape", x, shape=(x.rank,), dtype="int64")
        parts = [self.ints([begin]), self.ints([end])]
        return self.node("Slice", whole, *parts, shape=(end - begin,), dtype="int64")

    def reduce(self, op: str, x: Tensor, axes: Sequence[int], keepdims: bool = False) -> Tensor:
        """Return ReduceSum, ReduceMean and the like of `x` over `axes`."""
        over = sorted({axis % x.rank for axis in axes})
        shape = [1 if axis in over else size for axis, size in enumerate(x.shape) if keepdims or axis not in over]
        return self.node(op, x, self.ints(over), shape=shape, dtype=x.dtype, keepdims=int(keepdims))

    def any(self, x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
        """Return whether any element of the boolean `x` along `axis` holds."""
        kept = self.cast(self.reduce("ReduceMax", self.cast(x, "int32"), [axis], keepdims=True), "bool")
        return kept if keepdims else self.squeeze(kept, axis)

    def logic(self, op: str, a: Tensor, b: Tensor, label: str) -> Tensor:
        """Return And, Or, Equal, Greater and the like of two values."""
        return self.binary(op, a, b, label, dtype="bool")

    def negated(self, x: Tensor) -> Tensor:
        """Return the opposite of the boolean `x`."""
        return self.node("Not", x, shape=x.shape, dtype="bool")

    def concat(self, values: Sequence[Tensor], axis: int, label: str) -> Tensor:
        """Return the values joined along `axis`."""
        if len(values) == 1:
            return values[0].with_mask(None)
        first = values[0]
        axis = axis % first.rank
        shape: list[Dim] = list(first.shape)
        shape[axis] = reduce(dims.add, [value.shape[axis] for value in values])
        for value in values[1:]:
            if value.rank != first.rank:
                raise FileFormatError(f"{label}: its inputs have different ranks.")
            for i, (a, b) in enumerate(zip(first.shape, value.shape, strict=True)):
                if i != axis and isinstance(a, int) and isinstance(b, int) and a != b:
                    raise FileFormatError(f"{label}: its inputs have the sizes {a} and {b} along axis {i}.")
        return self.node("Concat", *values, shape=shape, dtype=first.dtype, axis=axis)

    def where(self, mask: Tensor, x: Tensor, otherwise: float, label: str) -> Tensor:
        """Return `x` where `mask` holds and the number `otherwise` elsewhere."""
        number = self.constant(np.asarray(otherwise, x.dtype), "number")
        return self.node("Where", mask, x, number, shape=broadcast(mask.shape, x.shape, label), dtype=x.dtype)

    def number(self, value: float, dtype: str = "float32") -> Tensor:
        """Return a scalar constant."""
        return Tensor(self.constant(np.asarray(value, dtype), "number"), (), dtype)

    def array(self, value: Array, name: str) -> Tensor:
        """Return a constant tensor."""
        return Tensor(self.constant(value, name), value.shape, value.dtype.name)


def broadcast(a: Sequence[Dim], b: Sequence[Dim], label: str) -> tuple[Dim, ...]:
    """Return the shape that NumPy's broadcasting gives.

    Raises
    ------
    FileFormatError
        If two known sizes do not fit one another.
    """
    rank = max(len(a), len(b))
    result: list[Dim] = []
    for x, y in zip([1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b), strict=True):
        size = dims.broadcast(x, y)
        if size is None:
            raise FileFormatError(f"{label}: shapes {list(a)} and {list(b)} do not fit one another.")
        result.append(x if isinstance(x, str) and isinstance(y, str) else size)  # two names are taken for one size
    return tuple(result)
