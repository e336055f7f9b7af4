"""Softmax and its relatives along one axis, with the meaning they have since opset 13."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators import sums

__all__ = ["OPS", "softmax"]

Array = npt.NDArray[Any]


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


OPS: Mapping[str, Callable[..., Any]] = {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": hardmax}
