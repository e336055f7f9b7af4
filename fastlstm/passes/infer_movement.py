"""Shapes, dtypes and content of the operators that move, cut and join data or compute with shapes."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.operators import dims
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.values import CONTENT_LIMIT, Operands, ValueInfo, normal_axis, rule
from fastlstm.passes.infer_compute import broadcast_shapes

__all__ = ["slice_bounds"]

FAR = 2**31 - 1
"""A slice's end of this much or more means the end of the axis."""


@rule("Shape")
def _shape(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return ValueInfo((at.fresh(0),), "int64")
    part = shape[slice(at.attr("start", 0), at.attr("end"))]
    return ValueInfo.of_content(part, (len(part),), "int64")


@rule("Size")
def _size(at: Operands) -> ValueInfo:
    shape = at[0].shape
    return ValueInfo((), "int64") if shape is None else ValueInfo.of_content((dims.product(shape),), (), "int64")


@rule("Gather")
def _gather(at: Operands) -> ValueInfo:
    data, indices = at[0], at[1]
    if data.shape is None or indices.shape is None:
        return ValueInfo(None, data.dtype)
    axis = at.axis(len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    numbers = indices.numbers
    if data.const is not None and data.rank == 1 and numbers is not None and len(shape) <= 1:
        size = len(data.const)
        if all(-size <= i < size for i in numbers):
            return ValueInfo.of_content(tuple(data.const[i] for i in numbers), shape, data.dtype)
    return ValueInfo(shape, data.dtype, None, data.fill)


@rule("GatherElements")
def _gather_elements(at: Operands) -> ValueInfo:
    return ValueInfo(at[1].shape, at[0].dtype, None, at[0].fill)


@rule("GatherND")
def _gather_nd(at: Operands) -> ValueInfo:
    data, indices, batch = at[0].shape, at[1].shape, int(at.attr("batch_dims", 0))
    if data is None or not indices or not isinstance(indices[-1], int):
        return ValueInfo(None, at[0].dtype)
    return ValueInfo((*indices[:-1], *data[batch + indices[-1] :]), at[0].dtype, None, at[0].fill)


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


@rule("Slice")
def _slice(at: Operands) -> ValueInfo:
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


def _count(numbers: range) -> int:
    """Return the length of a range, which Python's ``len`` does not tell of more than 2^63 numbers."""
    return max(0, -((numbers.start - numbers.stop) // numbers.step))


def _slice_length(dim: Dim, start: int, end: Dim, step: int) -> Dim | None:
    """Return how many elements of an axis of size `dim` the slice keeps, None if it depends on the input."""
    if isinstance(dim, int) and isinstance(end, int):
        bounds = slice(start, end, step) if step > 0 else _backward(start, end, step)
        return _count(range(dim)[bounds])
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


@rule("Concat")
def _concat(at: Operands) -> ValueInfo:
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


@rule("Split")
def _split(at: Operands) -> tuple[ValueInfo, ...]:
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


@rule("Squeeze")
def _squeeze(at: Operands) -> ValueInfo:
    data = at[0]
    if data.shape is None:
        return data.but(const=None)
    if at.given(1):
        axes = at[1].numbers
        if axes is None:
            return ValueInfo(None, data.dtype, None, data.fill)
        dropped = {normal_axis(a, len(data.shape)) for a in axes}
    else:
        dropped = {i for i, d in enumerate(data.shape) if d == 1}
    return data.but(shape=tuple(d for i, d in enumerate(data.shape) if i not in dropped))


@rule("Unsqueeze")
def _unsqueeze(at: Operands) -> ValueInfo:
    data, axes = at[0], at[1].numbers
    if data.shape is None or axes is None:
        return ValueInfo(None, data.dtype, None, data.fill)
    rank = len(data.shape) + len(axes)
    new = {normal_axis(a, rank) for a in axes}
    if len(new) != len(axes) or not new <= set(range(rank)):  # axes that do not fit: running it says so
        return ValueInfo(None, data.dtype)
    rest = iter(data.shape)
    shape = tuple(1 if i in new else next(rest) for i in range(rank))
    return data.but(shape=shape, const=data.const if rank <= 1 else None)


@rule("Reshape")
def _reshape(at: Operands) -> ValueInfo:
    data, target = at[0], at[1]
    plain = ValueInfo(None, data.dtype, None, data.fill)
    if target.const is None:
        size = target.shape[0] if target.shape else None
        return at.unknown_shape(size if isinstance(size, int) else None, data.dtype).but(fill=data.fill)
    shape: list[Dim | None] = []
    for i, wanted in enumerate(target.const):
        if wanted == 0 and not at.attr("allowzero", 0):
            wanted = data.shape[i] if data.shape is not None and i < len(data.shape) else None
        shape.append(wanted)
    if -1 in shape and data.shape is not None:
        known = [d for d in shape if d != -1]
        if None not in known:
            rest = dims.divide(dims.product(data.shape), dims.product(d for d in known if d is not None))
            shape[shape.index(-1)] = rest
    dims_known = tuple(at.fresh(i) if d is None or d == -1 else d for i, d in enumerate(shape))
    if len(dims_known) <= 1 and data.const is not None:
        size = dims_known[0] if dims_known else 1
        if size == len(data.const):
            return data.but(shape=dims_known)
    return plain.but(shape=dims_known)


@rule("Flatten")
def _flatten(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return at.unknown_shape(2, at[0].dtype)
    axis = at.axis(len(shape), 1)
    return ValueInfo((dims.product(shape[:axis]), dims.product(shape[axis:])), at[0].dtype, None, at[0].fill)


@rule("Transpose")
def _transpose(at: Operands) -> ValueInfo:
    data = at[0]
    if data.shape is None:
        perm = at.attr("perm")
        return at.unknown_shape(len(perm) if perm else None, data.dtype).but(fill=data.fill)
    perm = at.attr("perm", list(range(len(data.shape)))[::-1])
    shape = tuple(data.shape[p] for p in perm)
    return data.but(shape=shape, const=data.const if len(shape) <= 1 else None)


@rule("Expand")
def _expand(at: Operands) -> ValueInfo:
    data, target = at[0], at[1].const
    if target is None:
        return ValueInfo(None, data.dtype, None, data.fill)
    wanted = tuple(at.fresh(i) if d is None else d for i, d in enumerate(target))
    return _repeated(at, broadcast_shapes([data.shape, wanted]))


@rule("Tile")
def _tile(at: Operands) -> ValueInfo:
    data, repeats = at[0], at[1].const
    if data.shape is None or repeats is None or len(repeats) != len(data.shape):
        return at.unknown_shape(data.rank, data.dtype).but(fill=data.fill)
    shape = tuple(
        at.fresh(i) if r is None else dims.multiply(d, r)
        for i, (d, r) in enumerate(zip(data.shape, repeats, strict=True))
    )
    return _repeated(at, shape)


@rule("ConstantOfShape")
def _constant_of_shape(at: Operands) -> ValueInfo:
    value = at.attr("value", 0.0)
    number = value[0] if isinstance(value, (list, tuple)) and value else value
    dtype = str(at.attr("dtype", "float32"))
    target = at[0].const
    fill = float(number) if "float" in dtype else int(number)
    if target is None:
        return ValueInfo(None, dtype, None, fill)
    shape = tuple(at.fresh(i) if d is None else d for i, d in enumerate(target))
    return _repeated(at, shape, ValueInfo((), dtype, (int(fill),) if fill == int(fill) else None, fill))


def _repeated(at: Operands, shape: Shape | None, data: ValueInfo | None = None) -> ValueInfo:
    """Return a value of `shape` made of copies of the data; short vectors keep their content."""
    data = at[0] if data is None else data
    if shape is not None and len(shape) <= 1 and data.const is not None:
        size = shape[0] if shape else 1
        if isinstance(size, int) and 0 <= size <= CONTENT_LIMIT and len(data.const) > 0:
            content = tuple(data.const[i % len(data.const)] for i in range(size))
            return ValueInfo.of_content(content, shape, data.dtype)
    return ValueInfo(shape, data.dtype, None, data.fill)


@rule("Range")
def _range(at: Operands) -> ValueInfo:
    bounds = [at[i].const for i in range(3)]
    dtype = at[0].dtype
    if any(b is None or len(b) != 1 or b[0] is None for b in bounds):
        return ValueInfo((at.fresh(0),), dtype)
    start, limit, delta = (b[0] for b in bounds if b is not None)
    if start is None or limit is None or not isinstance(delta, int) or delta == 0:
        return ValueInfo((at.fresh(0),), dtype)
    if isinstance(start, int) and isinstance(limit, int):
        numbers = range(start, limit, delta)
        if _count(numbers) <= CONTENT_LIMIT:
            return ValueInfo.of_content(tuple(numbers), (_count(numbers),), dtype)
        return ValueInfo((_count(numbers),), dtype)
    if delta == 1 and dims.at_least(limit, start):
        return ValueInfo((dims.subtract(limit, start),), dtype)
    return ValueInfo((at.fresh(0),), dtype)


@rule("Pad")
def _pad(at: Operands) -> ValueInfo:
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


@rule("OneHot")
def _one_hot(at: Operands) -> ValueInfo:
    indices, depth = at[0].shape, at[1].const
    if indices is None:
        return ValueInfo(None, at[2].dtype)
    axis = normal_axis(int(at.attr("axis", -1)), len(indices) + 1)
    size = depth[0] if depth else None
    return ValueInfo((*indices[:axis], at.fresh(axis) if size is None else size, *indices[axis:]), at[2].dtype)


@rule("TopK")
def _top_k(at: Operands) -> tuple[ValueInfo, ...]:
    shape, k = at[0].shape, at[1].const
    if shape is None:
        return ValueInfo(None, at[0].dtype), ValueInfo(None, "int64")
    axis = at.axis(len(shape), -1)
    size = k[0] if k else None
    result = (*shape[:axis], at.fresh(axis) if size is None else size, *shape[axis + 1 :])
    return ValueInfo(result, at[0].dtype), ValueInfo(result, "int64")


@rule("NonZero")
def _non_zero(at: Operands) -> ValueInfo:
    return ValueInfo((at.fresh(0) if at[0].rank is None else at[0].rank, at.fresh(1)), "int64")


@rule("EyeLike")
def _eye_like(at: Operands) -> ValueInfo:
    named = at.attr("dtype")
    return ValueInfo(at[0].shape, at[0].dtype if named is None else dtype_of(named).name)
