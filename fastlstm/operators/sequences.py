"""Values that are lists of tensors."""

from __future__ import annotations

import numpy as np

from fastlstm.operators.definition import Operator, table
from fastlstm.operators.rules import along
from fastlstm.operators.sizes import integer
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array, Integers

__all__ = ["OPERATORS"]


def construct(*items: Array) -> list[Array]:
    """Return a sequence of the given tensors."""
    return list(items)


def empty() -> list[Array]:
    """Return an empty sequence."""
    return []


def at(items: list[Array], position: Integers) -> Array:
    """Return the tensor at a position; negative positions count from the end."""
    return items[integer(position)]


def insert(items: list[Array], item: Array, position: Integers | None = None) -> list[Array]:
    """Return the sequence with one tensor more, before `position` or at the end."""
    where = len(items) if position is None else integer(position)
    if not -len(items) <= where <= len(items):
        raise ValueError(f"the position {where} is outside the sequence")
    where = where + len(items) if where < 0 else where
    return [*items[:where], item, *items[where:]]


def erase(items: list[Array], position: Integers | None = None) -> list[Array]:
    """Return the sequence without the tensor at `position`, by default the last one."""
    left = list(items)
    del left[-1 if position is None else integer(position)]
    return left


def length(items: list[Array]) -> Array:
    """Return the number of tensors as int64."""
    return np.array(len(items), dtype=np.int64)


def concat(items: list[Array], *, axis: int, new_axis: int = 0) -> Array:
    """Return the tensors joined along `axis`, or stacked along a new one."""
    return np.stack(items, axis=axis) if new_axis else np.concatenate(items, axis=axis)


def split(x: Array, sizes: Integers | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Array]:
    """Return x cut along `axis`: into single slices, or into pieces of the given size or sizes.

    Single slices lose the axis without `keepdims`. ONNX says so only where no size is given; onnxruntime does it too
    where the size is 1, and exported files rely on it.
    """
    total = x.shape[axis]
    if sizes is None:
        pieces = np.split(x, range(1, total), axis=axis) if total else []
        return pieces if keepdims else [np.squeeze(piece, axis=axis) for piece in pieces]
    if sizes.ndim == 0:
        if sizes <= 0:
            raise ValueError(f"the size of the pieces is {sizes}; expected at least 1")
        pieces = np.split(x, range(int(sizes), total, int(sizes)), axis=axis)
        return pieces if keepdims or sizes != 1 else [np.squeeze(piece, axis=axis) for piece in pieces]
    if int(sizes.sum()) != total:
        raise ValueError(f"the pieces {sizes.tolist()} do not add up to the {total} elements of axis {axis}")
    return np.split(x, [int(end) for end in np.cumsum(sizes)[:-1]], axis=axis)


def _length_info(_at: Operands) -> ValueInfo:
    return ValueInfo((), "int64")


# Why there is no kernel, no shape, no stream.
_LIST = "a sequence of tensors is a list in Python"
_TENSORS = "a sequence's tensors have shapes of their own"
_SEQUENCE = "its output is a sequence"
_APART = "puts tensors in a sequence, which is no value that goes on in time"

OPERATORS = table(
    Operator("SequenceConstruct", construct, _SEQUENCE, _LIST, _APART),
    Operator("SequenceEmpty", empty, _SEQUENCE, _LIST, _APART, unused=frozenset({"dtype"})),
    Operator("SequenceAt", at, _TENSORS, _LIST, _APART),
    Operator("SequenceInsert", insert, _SEQUENCE, _LIST, _APART),
    Operator("SequenceErase", erase, _SEQUENCE, _LIST, _APART),
    Operator("SequenceLength", length, _length_info, _LIST, _APART),
    Operator("ConcatFromSequence", concat, _TENSORS, _LIST, _APART),
    Operator("SplitToSequence", split, _SEQUENCE, _LIST, _APART, along(0)),
)
