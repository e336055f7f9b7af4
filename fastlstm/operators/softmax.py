"""Softmax and its relatives along one axis, with the meaning they have since opset 13."""

from __future__ import annotations

import numpy as np

from fastlstm.operators import sums
from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.rules import along, same
from fastlstm.typing import Array

__all__ = ["OPERATORS", "softmax"]


def softmax(x: Array, *, axis: int = -1) -> Array:
    """Return exp(x) / sum(exp(x)) along `axis`, with the largest taken off x first: nothing overflows."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / sums.total(e, axis, keepdims=True))


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Return log(softmax(x)) along `axis`."""
    shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(sums.total(np.exp(shifted), axis, keepdims=True)))


def hardmax(x: Array, *, axis: int = -1) -> Array:
    """Return 1 at the first largest element along `axis`, else 0."""
    largest = np.argmax(x, axis=axis, keepdims=True)
    result = np.zeros_like(x)
    np.put_along_axis(result, largest, 1, axis=axis)
    return result


OPERATORS = table(
    Operator("Softmax", softmax, same, Lowering.TAPE, Stream.ALONG_AXIS, along(-1)),
    Operator("LogSoftmax", log_softmax, same, Lowering.TAPE, Stream.ALONG_AXIS, along(-1)),
    Operator("Hardmax", hardmax, same, RARE, Stream.ALONG_AXIS, along(-1)),
)
