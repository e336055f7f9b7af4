"""Shapes as values, changes of shape that move nothing, and tensors made from a shape."""

from __future__ import annotations

import math

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import Lowering, Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.movement import count
from fastlstm.operators.rules import axes_fit, broadcast_shapes, repeated, sizes_fit
from fastlstm.operators.sizes import checked_shape
from fastlstm.operators.values import CONTENT_LIMIT, Operands, ValueInfo, normal_axis
from fastlstm.typing import Array, Integers

__all__ = ["OPERATORS"]


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Return x's dimensions from `start` up to `end` as int64."""
    return np.array(x.shape[start:end], dtype=np.int64)


def size(x: Array) -> Array:
    """Return x's number of elements as int64."""
    return np.array(x.size, dtype=np.int64)


def reshape(x: Array, target: Array, *, allowzero: int = 0) -> Array:
    """Return x in another shape: -1 takes what is left, 0 keeps x's own dimension unless `allowzero`."""
    wanted = [int(n) for n in np.atleast_1d(target)]
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if 0 in wanted and -1 in wanted:
        # NumPy calls -1 beside a 0 ambiguous; ONNX takes the quotient of the sizes without the zeros.
        left = math.prod(n for n in x.shape if n) // math.prod(n for n in wanted if n > 0)
        wanted = [left if n == -1 else n for n in wanted]
    return x.reshape(wanted)


def flatten(x: Array, *, axis: int = 1) -> Array:
    """Return x as a matrix: the axes before `axis` are its rows, the others its columns."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Array, axes: Integers | None = None) -> Array:
    """Return x without the given axes of size 1, or without all such axes."""
    return np.squeeze(x, axis=None if axes is None else tuple(int(a) for a in np.atleast_1d(axes)))


def unsqueeze(x: Array, axes: Integers) -> Array:
    """Return x with new axes of size 1 at the given positions of the result."""
    return np.expand_dims(x, tuple(int(a) for a in np.atleast_1d(axes)))


def expand(x: Array, target: Array) -> Array:
    """Return x broadcast against a shape."""
    wanted = np.broadcast_shapes(x.shape, checked_shape(target))
    return np.array(np.broadcast_to(x, checked_shape(wanted)))


def constant_of_shape(dimensions: Array, *, value: float = 0.0, dtype: int | str = "float32") -> Array:
    """Return a tensor of the given shape that holds one value everywhere."""
    return np.full(checked_shape(np.atleast_1d(dimensions)), value, dtype=dtype_of(dtype))


def eye_like(x: Array, *, k: int = 0, dtype: int | str | None = None) -> Array:
    """Return a matrix like x with ones on its k-th diagonal."""
    rows, columns = x.shape
    return np.eye(rows, columns, k=k, dtype=x.dtype if dtype is None else dtype_of(dtype))


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """Return start, start + delta, ... up to but not including limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    if step == 0:
        raise ValueError("the step is 0; expected a positive or negative step")
    (count,) = checked_shape([max(math.ceil((last - first) / step), 0)])
    return np.asarray(first + step * np.arange(count), dtype=start.dtype)


def _shape_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return ValueInfo((at.fresh(0),), "int64")
    part = shape[slice(at.attr("start", 0), at.attr("end"))]
    return ValueInfo.of_content(part, (len(part),), "int64")


def _size_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    return ValueInfo((), "int64") if shape is None else ValueInfo.of_content((dims.product(shape),), (), "int64")


def _reshape_info(at: Operands) -> ValueInfo:
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


def _flatten_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return at.unknown_shape(2, at[0].dtype)
    axis = at.axis(len(shape), 1)
    return ValueInfo((dims.product(shape[:axis]), dims.product(shape[axis:])), at[0].dtype, None, at[0].fill)


def _squeeze_info(at: Operands) -> ValueInfo:
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


def _unsqueeze_info(at: Operands) -> ValueInfo:
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


def _expand_info(at: Operands) -> ValueInfo:
    data, target = at[0], at[1].const
    if target is None:
        return ValueInfo(None, data.dtype, None, data.fill)
    wanted = tuple(at.fresh(i) if d is None else d for i, d in enumerate(target))
    return repeated(at, broadcast_shapes([data.shape, wanted]))


def _constant_info(at: Operands) -> ValueInfo:
    value = at.attr("value", 0.0)
    number = value[0] if isinstance(value, (list, tuple)) and value else value
    dtype = str(at.attr("dtype", "float32"))
    target = at[0].const
    fill = float(number) if "float" in dtype else int(number)
    if target is None:
        return ValueInfo(None, dtype, None, fill)
    shape = tuple(at.fresh(i) if d is None else d for i, d in enumerate(target))
    return repeated(at, shape, ValueInfo((), dtype, (int(fill),) if fill == int(fill) else None, fill))


def _eye_info(at: Operands) -> ValueInfo:
    named = at.attr("dtype")
    return ValueInfo(at[0].shape, at[0].dtype if named is None else dtype_of(named).name)


def _range_info(at: Operands) -> ValueInfo:
    bounds = [at[i].const for i in range(3)]
    dtype = at[0].dtype
    if any(b is None or len(b) != 1 or b[0] is None for b in bounds):
        return ValueInfo((at.fresh(0),), dtype)
    start, limit, delta = (b[0] for b in bounds if b is not None)
    if start is None or limit is None or not isinstance(delta, int) or delta == 0:
        return ValueInfo((at.fresh(0),), dtype)
    if isinstance(start, int) and isinstance(limit, int):
        numbers = range(start, limit, delta)
        if count(numbers) <= CONTENT_LIMIT:
            return ValueInfo.of_content(tuple(numbers), (count(numbers),), dtype)
        return ValueInfo((count(numbers),), dtype)
    if delta == 1 and dims.at_least(limit, start):
        return ValueInfo((dims.subtract(limit, start),), dtype)
    return ValueInfo((at.fresh(0),), dtype)


def _reshape_fit(at: Operands) -> str:
    target = at[1].const
    if at[1].rank is not None and at[1].rank > 1:
        return "its shape in one row"
    if target is None:
        return ""
    known = [d for d in target if isinstance(d, int)]
    zero = at.attr("allowzero", 0) == 0
    data = at[0].shape
    if min(known, default=0) < -1 or known.count(-1) > 1:
        return f"sizes of 0 or more and at most one -1, not {known}"
    if zero and data is not None and any(d == 0 for d in target[len(data) :]):
        return "a 0 only where its input has an axis"
    if data is None or len(known) != len(target):
        return ""
    wanted: list[Dim] = [data[i] if d == 0 and zero else d for i, d in enumerate(known)]
    before, after = dims.product(data), dims.product(d for d in wanted if d != -1)
    if not (isinstance(before, int) and isinstance(after, int)):
        return ""
    fits = before == after if -1 not in wanted else (after != 0 and before % after == 0) or before == after == 0
    return "" if fits else f"a shape of {before} elements, not {known}"


def _flatten_fit(at: Operands) -> str:
    axis, rank = int(at.attr("axis", 1)), at[0].rank
    return "" if rank is None or -rank <= axis <= rank else f"an axis between {-rank} and {rank}"


def _squeeze_fit(at: Operands) -> str:
    return axes_fit(1, at, at[0].rank)


def _unsqueeze_fit(at: Operands) -> str:
    numbers, rank = at[1].numbers, at[0].rank
    return axes_fit(1, at, None if numbers is None or rank is None else rank + len(numbers))


# Why there is no kernel, no shape, no stream.
_FRAMES = "depends on how many frames there are"
_SIZES = "sizes are constants of a tape"

OPERATORS = table(
    Operator("Shape", shape, _shape_info, _SIZES, Stream.SIZES),
    Operator("Size", size, _size_info, _SIZES, Stream.SIZES),
    Operator("Reshape", reshape, _reshape_info, Lowering.TAPE, Stream.REARRANGED, _reshape_fit),
    Operator("Flatten", flatten, _flatten_info, Lowering.TAPE, Stream.REARRANGED, _flatten_fit),
    Operator("Squeeze", squeeze, _squeeze_info, Lowering.TAPE, Stream.REARRANGED, _squeeze_fit),
    Operator("Unsqueeze", unsqueeze, _unsqueeze_info, Lowering.TAPE, Stream.REARRANGED, _unsqueeze_fit),
    Operator("Expand", expand, _expand_info, Lowering.TAPE, Stream.REPEATED, sizes_fit(1)),
    Operator("ConstantOfShape", constant_of_shape, _constant_info, _SIZES, _FRAMES, sizes_fit(0)),
    Operator("EyeLike", eye_like, _eye_info, _SIZES, _FRAMES),
    Operator("Range", range_, _range_info, _SIZES, _FRAMES, unused=frozenset({"stash_type"})),
)
