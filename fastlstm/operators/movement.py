"""Joining, cutting, turning, padding and repeating: every element of the result is one of the input's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.sizes import checked_shape, integer

__all__ = ["OPS", "pad"]

Array = npt.NDArray[Any]


def concat(*arrays: Array, axis: int) -> Array:
    """Return the arrays joined along `axis`."""
    if len({array.dtype for array in arrays}) > 1:
        raise ValueError("the inputs must have one element type; cast them to it first")
    return np.concatenate(arrays, axis=axis)


def split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int | None = None, count: int = 1
) -> tuple[Array, ...]:
    """Return x cut along `axis`: into the given sizes, or into equal ones (the last may be less)."""
    total = x.shape[axis]
    if sizes is None:
        pieces = num_outputs or count
        step = -(-total // pieces)
        ends = [min(step * (i + 1), total) for i in range(pieces)]
    else:
        ends = [int(end) for end in np.cumsum(sizes)]
        if ends and ends[-1] != total:
            raise ValueError(f"the pieces {sizes.tolist()} do not add up to the {total} elements of axis {axis}")
    return tuple(np.split(x, ends[:-1], axis=axis))


def slice_(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Return x[start:end:step] on each of the axes, with the meaning of Python's slices."""
    cuts = [slice(None)] * x.ndim
    along = range(len(starts)) if axes is None else [int(axis) for axis in axes]
    by = [1] * len(starts) if steps is None else [int(step) for step in steps]
    for axis, start, end, step in zip(along, starts, ends, by, strict=True):
        cuts[axis] = slice(int(start), int(end), step)
    return x[tuple(cuts)]


def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Return x with its axes in another order, by default reversed."""
    return np.transpose(x, perm)


def pad(
    x: Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """Return x with elements added (or, where negative, taken off) before and after its axes.

    Parameters
    ----------
    pads : array of int, [2 * number of axes]
        All the numbers before, then all the numbers after.
    mode : "constant", "edge", "reflect" (the edge not repeated) or "wrap"
    """
    chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
    if len(pads) != 2 * len(chosen):
        raise ValueError(f"expected two pads for each of {len(chosen)} axes; got {len(pads)} pads")
    widths = np.zeros((x.ndim, 2), dtype=np.int64)
    widths[chosen] = np.reshape(pads, (2, -1)).T
    checked_shape(n + sum(map(int, around)) for n, around in zip(x.shape, widths, strict=True))
    cropped = x[
        tuple(slice(max(-before, 0), n - max(-after, 0)) for n, (before, after) in zip(x.shape, widths, strict=True))
    ]
    added = np.maximum(widths, 0)
    if mode == "constant":
        fill = x.dtype.type(0) if value is None else np.asarray(value, dtype=x.dtype).reshape(())
        return np.pad(cropped, added, constant_values=fill)
    if mode not in ("edge", "reflect", "wrap"):
        raise ValueError(f"the mode is '{mode}'; expected constant, edge, reflect or wrap")
    return np.asarray(np.pad(cropped, added, mode=mode))  # type: ignore[call-overload]


def tile(x: Array, repeats: Array) -> Array:
    """Return x repeated along each axis."""
    if len(repeats) != x.ndim:
        raise ValueError(f"expected a number of repeats for each of {x.ndim} axes; got {len(repeats)}")
    checked_shape(n * int(times) for n, times in zip(x.shape, repeats, strict=True))
    return np.tile(x, repeats)


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """Return the upper or lower triangle of the last two axes, zero elsewhere, from the k-th diagonal."""
    diagonal = 0 if k is None else integer(k)
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


def reverse_sequence(x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """Return x with the first `lengths[b]` steps of each row turned round, the others where they were."""
    moved = np.moveaxis(x, (time_axis, batch_axis), (0, 1))
    time = np.arange(moved.shape[0])[:, None]
    source = np.where(time < lengths, lengths - 1 - time, time)
    turned = moved[source, np.arange(moved.shape[1])]
    return np.moveaxis(turned, (0, 1), (time_axis, batch_axis))


def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Return [N, C * b * b, H, W] as [N, C, H * b, W * b] (DCR: blocks before channels)."""
    N, C, H, W = x.shape
    b = blocksize
    if mode == "DCR":
        blocks = x.reshape(N, b, b, C // (b * b), H, W).transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        blocks = x.reshape(N, C // (b * b), b, b, H, W).transpose(0, 1, 4, 2, 5, 3)
    else:
        raise ValueError(f"the mode is '{mode}'; expected DCR or CRD")
    return blocks.reshape(N, C // (b * b), H * b, W * b)


def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Return [N, C, H * b, W * b] as [N, C * b * b, H, W]; the inverse of `depth_to_space`."""
    N, C, H, W = x.shape
    b = blocksize
    order = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}[mode]
    blocks = x.reshape(N, C, H // b, b, W // b, b).transpose(order)
    return blocks.reshape(N, C * b * b, H // b, W // b)


OPS: Mapping[str, Callable[..., Any]] = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Transpose": transpose,
    "Pad": pad,
    "Tile": tile,
    "Trilu": trilu,
    "ReverseSequence": reverse_sequence,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
