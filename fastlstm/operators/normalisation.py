"""Normalisation layers: each takes off a mean, divides by a spread, then scales and shifts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastlstm.operators import sums
from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.rules import along, differ, same
from fastlstm.operators.values import UNKNOWN, Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def _per_channel(vector: Array, rank: int) -> Array:
    """Return a vector [C] so that it broadcasts over [N, C, ...]."""
    return vector.reshape(1, -1, *([1] * (rank - 2)))


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """Return (x - mean) / sqrt(variance + epsilon) over `axes`, the mean, and the inverse of the divisor."""
    mean = sums.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt(sums.mean(centred * centred, axes, keepdims=True) + x.dtype.type(epsilon))
    return centred * inverse, mean, inverse


def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    training_mode: int = 0,
) -> Array:
    """Return x [N, C, ...] normalised with the statistics that training has collected for each channel."""
    if training_mode:
        raise ValueError("training_mode is 1, but only inference is supported; export for inference")
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    y = (x - _per_channel(mean, x.ndim)) * _per_channel(factor, x.ndim) + _per_channel(bias, x.ndim)
    return np.asarray(y, dtype=x.dtype)


def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Return x normalised over the axes from `axis` on, its mean, and the inverse standard deviation."""
    y, mean, inverse = _standardised(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = y * scale
    return np.asarray(y if bias is None else y + bias, dtype=x.dtype), mean, inverse


def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5) -> Array:
    """Return x divided by its root mean square over the axes from `axis` on, times scale."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    rms = np.sqrt(sums.mean(x * x, axes, keepdims=True) + x.dtype.type(epsilon))
    return np.asarray(x / rms * scale, dtype=x.dtype)


def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Array:
    """Return x [N, C, ...] with each channel of each row normalised over its own positions."""
    y, _, _ = _standardised(x, tuple(range(2, x.ndim)), epsilon)
    return np.asarray(y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), dtype=x.dtype)


def group_normalization(x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5) -> Array:
    """Return x [N, C, ...] with each of `num_groups` groups of channels of each row normalised."""
    grouped = x.reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    y = _standardised(grouped, (2,), epsilon)[0].reshape(x.shape)
    return np.asarray(y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), dtype=x.dtype)


def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Return x divided by its p-norm along `axis`; a zero vector stays zero."""
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return np.asarray(np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)), dtype=x.dtype)


def mean_variance_normalization(x: Array, *, axes: Sequence[int] = (0, 2, 3)) -> Array:
    """Return (x - mean) / (standard deviation + 1e-9) over `axes`."""
    spread = np.std(x, axis=tuple(axes), keepdims=True) + x.dtype.type(1e-9)
    return np.asarray((x - np.mean(x, axis=tuple(axes), keepdims=True)) / spread, dtype=x.dtype)


def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    """Return x divided by a power of the squares summed over `size` neighbouring channels."""
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return np.asarray(x / (bias + alpha / size * total) ** beta, dtype=x.dtype)


def _layer_info(at: Operands) -> tuple[ValueInfo, ...]:
    return same(at), UNKNOWN, UNKNOWN


def _channels_fit(at: Operands) -> str:
    x = at[0].shape
    if x is not None and len(x) < 2:
        return "a batch and channels"
    for i in range(1, len(at.infos)):
        shape = at[i].shape
        if shape is not None and (len(shape) != 1 or (x is not None and differ(shape[0], x[1]))):
            return "one number a channel for each of its parameters"
    return ""


# Why there is no kernel, no shape, no stream.
_POSITIONS = "normalises over positions of which time may be an axis"

OPERATORS = table(
    Operator(
        "BatchNormalization",
        batch_normalization,
        same,
        Lowering.TAPE,
        Stream.CHANNELS,
        _channels_fit,
        unused=frozenset({"momentum"}),
    ),
    Operator(
        "LayerNormalization",
        layer_normalization,
        _layer_info,
        Lowering.TAPE,
        Stream.FROM_AXIS,
        along(-1),
        unused=frozenset({"stash_type"}),
    ),
    Operator(
        "RMSNormalization", rms_normalization, same, RARE, Stream.FROM_AXIS, along(-1), unused=frozenset({"stash_type"})
    ),
    Operator("InstanceNormalization", instance_normalization, same, RARE, _POSITIONS, _channels_fit),
    Operator("GroupNormalization", group_normalization, same, RARE, _POSITIONS, unused=frozenset({"stash_type"})),
    Operator(
        "LpNormalization",
        lp_normalization,
        same,
        RARE,
        "has sums that may be rounded otherwise for another number of frames",
        along(-1),
    ),
    Operator("MeanVarianceNormalization", mean_variance_normalization, same, RARE, _POSITIONS),
    Operator("LRN", lrn, same, RARE, "sums over neighbouring channels, and time may be their axis"),
)
