"""Joining, cutting, turning, padding and repeating: every element of the result is one of the input's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import RARE, Lowering, Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.rules import along, axes_fit, repeated, same, sizes_fit, within
from fastlstm.operators.sizes import checked_shape, integer
from fastlstm.operators.values import CONTENT_LIMIT, Operands, ValueInfo, normal_axis
from fastlstm.typing import Array, Integers

__all__ = ["OPERATORS", "pad"]


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


def slice_(
    x: Array, starts: Integers, ends: Integers, axes: Integers | None = None, steps: Integers | None = None
) -> Array:
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
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
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
    return np.asarray(np.pad(cropped, added, mode=mode))


def tile(x: Array, repeats: Integers) -> Array:
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


def depth_to_space(x: Array, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Array:
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


def space_to_depth(x: Array, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Array:
    """Return [N, C, H * b, W * b] as [N, C * b * b, H, W]; the inverse of `depth_to_space`."""
    N, C, H, W = x.shape
    b = blocksize
    order = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}[mode]
    blocks = x.reshape(N, C, H // b, b, W // b, b).transpose(order)
    return blocks.reshape(N, C * b * b, H // b, W // b)


FAR = 2**31 - 1
"""A slice's end of this much or more means the end of the axis."""


def slice_bounds(at: Operands) -> list[tuple[int, int, Dim, int]] | None:
    """Return (axis, start, end, step) of a Slice whose bounds are known, None if they are not.

    Symbolic ends are kept as dimensions; a symbolic start is not understood.
    """
    starts, ends = at[1].numbers, at[2].const
    steps = at[4].numbers if at.given(4) else [1] * len(starts or [])
    axes = at[3].numbers if at.given(3) else list(range(len(starts or [])))
    if starts is None or ends is None or steps is None or axes is None or at[0].rank is None:
        return None
    if not len(starts) == len(ends) == len(steps) == len(axes) or 0 in steps:
        return None
    found = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if end is None:
            return None
        found.append((normal_axis(axis, at[0].rank), start, end, step))
    return found


def _slice_info(at: Operands) -> ValueInfo:
    data = at[0]
    bounds = slice_bounds(at)
    if data.shape is None or bounds is None:
        return at.unknown_shape(data.rank, data.dtype).but(fill=data.fill)
    shape = list(data.shape)
    for axis, start, end, step in bounds:
        length = _slice_length(shape[axis], start, end, step)
        shape[axis] = at.fresh(axis) if length is None else length
    if data.const is not None and data.rank == 1 and len(bounds) == 1:
        _, start, end, step = bounds[0]
        if isinstance(end, int):
            part = data.const[start:end:step] if step > 0 else data.const[_backward(start, end, step)]
            return ValueInfo.of_content(part, (len(part),), data.dtype)
    return ValueInfo(tuple(shape), data.dtype, None, data.fill)


def _backward(start: int, end: int, step: int) -> slice:
    """Return Python's slice for a step below zero, where an end far below the first element means all."""
    return slice(start, None if end < -FAR else end, step)


def count(numbers: range) -> int:
    """Return the length of a range, which Python's ``len`` does not tell of more than 2^63 numbers."""
    return max(0, -((numbers.start - numbers.stop) // numbers.step))


def _slice_length(dim: Dim, start: int, end: Dim, step: int) -> Dim | None:
    """Return how many elements of an axis of size `dim` the slice keeps, None if it depends on the input."""
    if isinstance(dim, int) and isinstance(end, int):
        bounds = slice(start, end, step) if step > 0 else _backward(start, end, step)
        return count(range(dim)[bounds])
    if step > 1:
        length = _slice_length(dim, start, end, 1)
        return None if length is None else dims.ceil_divide(length, step)
    if step != 1:
        whole = step < 0 and start == -1 and isinstance(end, int) and end < -FAR
        whole = whole or (step < 0 and start >= FAR and isinstance(end, int) and end < -FAR)
        return dim if whole and step == -1 else None
    last = dim if isinstance(end, int) and end >= FAR else end
    if isinstance(last, int) and last < 0:
        last = dims.add(dim, last)
    first = dims.add(dim, start) if start < 0 else start
    if dims.at_least(dim, last) and dims.at_least(last, first) and dims.at_least(first, 0):
        return dims.subtract(last, first)
    # The axis may be shorter than the bounds: these forms are exact all the same.
    if last == dim:
        return f"max({dims.subtract(dim, start)}, 0)" if start >= 0 else f"min({dim}, {-start})"
    if start == 0:
        return f"max({last}, 0)" if dims.at_least(dim, last) else f"min({dim}, {last})"
    if start > 0 and dims.at_least(dim, last):
        return f"max({dims.subtract(last, start)}, 0)"
    return None


def _concat_info(at: Operands) -> ValueInfo:
    infos = at.infos
    known = next((info for info in infos if info.rank is not None), None)
    dtype = next((info.dtype for info in infos if info.dtype), None)
    if known is None or known.shape is None:
        return ValueInfo(None, dtype)
    axis = at.axis(len(known.shape))
    shape = list(known.shape)
    total: Dim = 0
    for info in infos:
        total = dims.add(total, info.shape[axis] if info.shape is not None else at.fresh(axis))
        for i, dim in enumerate(info.shape or ()):
            shape[i] = dim if isinstance(dim, int) else shape[i]
    if any(info.shape is None for info in infos):
        total = at.fresh(axis)
    shape[axis] = total
    contents = [info.const for info in infos]
    if len(shape) == 1 and all(c is not None for c in contents):
        joined = tuple(v for c in contents for v in c or ())
        if len(joined) <= CONTENT_LIMIT:
            return ValueInfo.of_content(joined, (len(joined),), dtype)
    fills = {info.fill for info in infos}
    return ValueInfo(tuple(shape), dtype, None, fills.pop() if len(fills) == 1 else None)


def _split_info(at: Operands) -> tuple[ValueInfo, ...]:
    data, parts = at[0], len(at.node.outputs)
    if data.shape is None:
        return (ValueInfo(None, data.dtype, None, data.fill),) * parts
    axis = at.axis(len(data.shape))
    sizes: Sequence[Dim | None] | None = at[1].const if at.given(1) else _equal_parts(data.shape[axis], parts)
    if sizes is None or len(sizes) != parts:
        sizes = [None] * parts
    infos = []
    for i, size in enumerate(sizes):
        dim = at.fresh(axis, i) if size is None else size
        infos.append(ValueInfo((*data.shape[:axis], dim, *data.shape[axis + 1 :]), data.dtype, None, data.fill))
    if data.const is not None and data.rank == 1 and all(isinstance(size, int) for size in sizes):
        start = 0
        for i, size in enumerate(int(size or 0) for size in sizes):
            infos[i] = ValueInfo.of_content(data.const[start : start + size], (size,), data.dtype)
            start += size
    return tuple(infos)


def _equal_parts(dim: Dim, parts: int) -> list[Dim | None]:
    """Return the sizes of an equal split; the last part is smaller where it does not come out even."""
    if isinstance(dim, int):
        size = -(-dim // parts)
        return [*[size] * (parts - 1), dim - size * (parts - 1)]
    return [dims.divide(dim, parts)] * parts


def _transpose_info(at: Operands) -> ValueInfo:
    data = at[0]
    if data.shape is None:
        perm = at.attr("perm")
        return at.unknown_shape(len(perm) if perm else None, data.dtype).but(fill=data.fill)
    perm = at.attr("perm", list(range(len(data.shape)))[::-1])
    shape = tuple(data.shape[p] for p in perm)
    return data.but(shape=shape, const=data.const if len(shape) <= 1 else None)


def _pad_info(at: Operands) -> ValueInfo:
    shape, pads = at[0].shape, at[1].const
    if shape is None or pads is None:
        return at.unknown_shape(at[0].rank, at[0].dtype)
    axes = list(range(len(shape)))
    if at.given(3):
        given = at[3].numbers
        if given is None:
            return at.unknown_shape(len(shape), at[0].dtype)
        axes = [normal_axis(a, len(shape)) for a in given]
    result = list(shape)
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        known = before is not None and after is not None
        result[axis] = dims.add(result[axis], dims.add(before or 0, after or 0)) if known else at.fresh(axis)
    return ValueInfo(tuple(result), at[0].dtype)


def _tile_info(at: Operands) -> ValueInfo:
    data, repeats = at[0], at[1].const
    if data.shape is None or repeats is None or len(repeats) != len(data.shape):
        return at.unknown_shape(data.rank, data.dtype).but(fill=data.fill)
    shape = tuple(
        at.fresh(i) if r is None else dims.multiply(d, r)
        for i, (d, r) in enumerate(zip(data.shape, repeats, strict=True))
    )
    return repeated(at, shape)


def _blocks_info(at: Operands) -> ValueInfo:
    shape, block = at[0].shape, int(at.attr("blocksize", 1))
    if shape is None or len(shape) != 4 or block < 1:
        return ValueInfo(None, at[0].dtype)
    grow, shrink = dims.multiply, dims.floor_divide
    channels, space = (shrink, grow) if at.node.op == "DepthToSpace" else (grow, shrink)
    return ValueInfo(
        (shape[0], channels(shape[1], block * block), *[space(size, block) for size in shape[2:]]), at[0].dtype
    )


def _concat_fit(at: Operands) -> str:
    shapes = [info.shape for info in at.infos if info.shape is not None]
    if not shapes:
        return ""
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1:
        return "values of the same number of axes"
    wrong = within([int(at.attr("axis", 0))], *ranks)
    if wrong:
        return wrong
    axis = normal_axis(int(at.attr("axis", 0)), *ranks)
    known = [{d for d in sizes if isinstance(d, int)} for i, sizes in enumerate(zip(*shapes, strict=True)) if i != axis]
    return "values that differ along one axis only" if any(len(sizes) > 1 for sizes in known) else ""


def _split_fit(at: Operands) -> str:
    wrong, parts = along(0)(at), len(at.node.outputs)
    sizes = at[1].numbers if at.given(1) else None
    if not wrong and int(at.attr("num_outputs", parts)) != parts:
        return f"num_outputs to be the number of its outputs, {parts}"
    if wrong or sizes is None:
        return wrong
    size = None if at[0].shape is None else at[0].shape[normal_axis(int(at.attr("axis", 0)), len(at[0].shape))]
    total = isinstance(size, int) and sum(sizes) != size
    fits = len(sizes) == parts and min(sizes, default=0) >= 0 and not total
    return "" if fits else f"{parts} sizes that add up to the axis, not {sizes}"


def _slice_fit(at: Operands) -> str:
    lists = [at[i] for i in range(1, 5) if at.given(i)]
    if any(info.rank is not None and info.rank > 1 for info in lists):
        return "starts, ends, axes and steps in one row each"
    lengths = {len(info.const) for info in lists if info.const is not None}
    steps = at[4].numbers if at.given(4) else None
    if len(lengths) > 1 or (steps is not None and 0 in steps):
        return "as many starts as ends, axes and steps, and no step of 0"
    if not at.given(3) and lengths and at[0].rank is not None and next(iter(lengths)) > at[0].rank:
        return f"starts for {at[0].rank} axes at most"
    return axes_fit(3, at, at[0].rank)


def _transpose_fit(at: Operands) -> str:
    perm, rank = at.attr("perm"), at[0].rank
    if perm is None or (sorted(perm) == list(range(len(perm))) and rank in (None, len(perm))):
        return ""
    return f"perm to hold each axis of its input once, not {list(perm)}"


def _pad_fit(at: Operands) -> str:
    rank, pads = at[0].rank, at[1].const
    wrong = axes_fit(3, at, rank)
    if wrong or rank is None or pads is None:
        return wrong
    axes = rank if not at.given(3) else None if at[3].const is None else len(at[3].const)
    return "" if axes is None or len(pads) == 2 * axes else f"{2 * axes} pads, two an axis, not {len(pads)}"


def _tile_fit(at: Operands) -> str:
    rank, repeats = at[0].rank, at[1].const
    if rank is not None and repeats is not None and len(repeats) != rank:
        return f"a number of repeats for each of {rank} axes"
    return sizes_fit(1)(at)


def _reverse_fit(at: Operands) -> str:
    rank = at[0].rank
    axes = [int(at.attr("time_axis", 0)), int(at.attr("batch_axis", 1))]
    return "" if rank is None else within(axes, rank)


OPERATORS = table(
    Operator("Concat", concat, _concat_info, Lowering.TAPE, Stream.JOINED, _concat_fit),
    Operator("Split", split, _split_info, Lowering.TAPE, Stream.PARTED, _split_fit),
    Operator("Slice", slice_, _slice_info, Lowering.TAPE, Stream.CUT, _slice_fit),
    Operator("Transpose", transpose, _transpose_info, Lowering.TAPE, Stream.REARRANGED, _transpose_fit),
    Operator("Pad", pad, _pad_info, Lowering.TAPE, Stream.PADDED, _pad_fit),
    Operator("Tile", tile, _tile_info, RARE, Stream.REPEATED, _tile_fit),
    Operator("Trilu", trilu, same, RARE, "keeps a triangle of two axes of which time may be one"),
    Operator("ReverseSequence", reverse_sequence, same, RARE, "turns time round", _reverse_fit),
    Operator("DepthToSpace", depth_to_space, _blocks_info, RARE, "moves channels to axes of which time may be one"),
    Operator("SpaceToDepth", space_to_depth, _blocks_info, RARE, "moves axes of which time may be one to channels"),
)
