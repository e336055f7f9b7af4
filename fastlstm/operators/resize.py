"""Resizing by interpolation: along each axis a matrix of weights, which is what makes it readable.

Interpolation is separable, so the result is the input times one matrix [size out, size in] for each axis. Row
o of it holds the weights of the inputs around the position x(o) that output o comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import RARE, Operator, table
from fastlstm.operators.sizes import checked_shape
from fastlstm.operators.values import Operands, ValueInfo, normal_axis
from fastlstm.typing import Array

__all__ = ["OPERATORS"]

_ROUND: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    mode: Literal["nearest", "linear", "cubic"] = "nearest",
    nearest_mode: Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] = "round_prefer_floor",
    coordinate_transformation_mode: Literal[
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
    ] = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: Literal["stretch", "not_larger", "not_smaller"] = "stretch",
) -> Array:
    """Return x resized along `axes` (by default all) by `scales` or to `sizes`."""
    if mode not in ("nearest", "linear", "cubic"):
        raise ValueError(f"the mode is '{mode}'; expected nearest, linear or cubic")
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    given = [x.shape[axis] for axis in chosen]
    factors, wanted = _targets(given, scales, sizes, keep_aspect_ratio_policy)
    checked_shape(wanted)
    y = x
    for i, (axis, size, factor, target) in enumerate(zip(chosen, given, factors, wanted, strict=True)):
        crop = coordinate_transformation_mode == "tf_crop_and_resize"
        if factor == 1 and target == size and not crop:
            continue
        span = (float(roi[i]), float(roi[i + len(chosen)])) if crop and roi is not None else (0.0, 1.0)
        where = _positions(size, target, factor, coordinate_transformation_mode, span)
        if mode == "nearest":
            nearest = np.clip(_ROUND[nearest_mode](where), 0, size - 1).astype(np.int64)
            y = np.take(y, nearest, axis=axis)
        else:
            stretch = min(factor, 1.0) if antialias else 1.0
            kernel, reach = _kernel(mode, cubic_coeff_a)
            weights = _weights(where, size, kernel, reach, stretch, bool(exclude_outside))
            y = np.moveaxis(np.tensordot(weights, y, axes=(1, axis)), 0, axis)
        if crop:
            outside = (where < 0) | (where > size - 1)
            shape = [1] * x.ndim
            shape[axis] = -1
            y = np.where(outside.reshape(shape), extrapolation_value, y)
    if x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), limits.min, limits.max)
    return np.asarray(y, dtype=x.dtype)


def _targets(
    given: Sequence[int], scales: Array | None, sizes: Array | None, policy: str
) -> tuple[list[float], list[int]]:
    """Return the factor and the size of each axis."""
    if sizes is not None and sizes.size:
        wanted = [int(size) for size in sizes]
        factors = [target / size for target, size in zip(wanted, given, strict=True)]
        if policy == "stretch":
            return factors, wanted
        factor = {"not_larger": min, "not_smaller": max}[policy](factors)
        return [factor] * len(given), [math.floor(factor * size + 0.5) for size in given]
    if scales is None or not scales.size:
        raise ValueError("neither scales nor sizes are given; expected one of them")
    factors = [float(scale) for scale in scales]
    return factors, [math.floor(size * factor) for size, factor in zip(given, factors, strict=True)]


def _positions(size: int, target: int, factor: float, mode: str, span: tuple[float, float]) -> Array:
    """Return where in the input (0 to size - 1) each of the outputs comes from."""
    o = np.arange(target, dtype=np.float64)
    length = factor * size
    if mode == "align_corners":
        return o * (size - 1) / (length - 1) if length != 1 else np.zeros(target)
    if mode == "asymmetric":
        return o / factor
    if mode == "tf_crop_and_resize":
        first, last = span
        if length == 1:
            return np.full(target, (first + last) * (size - 1) / 2)
        return first * (size - 1) + o * (last - first) * (size - 1) / (length - 1)
    half_pixel = (o + 0.5) / factor - 0.5
    if mode == "half_pixel":
        return half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if length != 1 else np.full(target, -0.5)
    if mode == "half_pixel_symmetric":
        return half_pixel + size / 2 * (1 - target / length)
    raise ValueError(f"the coordinate_transformation_mode '{mode}' is not supported")


def _kernel(mode: str, a: float) -> tuple[Callable[[Array], Array], int]:
    """Return the weight as a function of the distance, and how far it reaches."""
    if mode == "linear":
        return lambda d: np.maximum(1 - np.abs(d), 0), 1

    def cubic(d: Array) -> Array:
        """Keys (1981), with the slope a."""
        d = np.abs(d)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return cubic, 2


def _weights(
    where: Array, size: int, kernel: Callable[[Array], Array], reach: int, stretch: float, exclude: bool
) -> Array:
    """Return the matrix of weights; beyond the ends the edge is repeated, or has no weight with `exclude`."""
    wide = math.ceil(reach / stretch)
    taps = np.floor(where)[:, None] + np.arange(-wide, wide + 1)
    weights = kernel((taps - where[:, None]) * stretch)
    if exclude:
        weights = np.where((taps < 0) | (taps >= size), 0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(where), size))
    rows = np.broadcast_to(np.arange(len(where))[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(np.int64)), weights)
    return matrix


def _resize_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return ValueInfo(None, at[0].dtype)
    axes = [normal_axis(int(axis), len(shape)) for axis in at.attr("axes", range(len(shape)))]
    by_size = at.given(3) and at[3].shape != (0,)
    if by_size and at.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return at.unknown_shape(len(shape), at[0].dtype)
    given = at[3 if by_size else 2].const
    if given is None or len(given) != len(axes):
        return at.unknown_shape(len(shape), at[0].dtype)
    sizes = list(shape)
    for axis, number in zip(axes, given, strict=True):
        if number is None:
            sizes[axis] = at.fresh(axis)
        else:
            sizes[axis] = number if by_size else dims.multiply(shape[axis], number)
    return ValueInfo(tuple(sizes), at[0].dtype)


OPERATORS = table(Operator("Resize", resize, _resize_info, RARE, "resizes axes of which time may be one"))
