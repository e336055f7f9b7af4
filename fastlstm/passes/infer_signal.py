"""Shapes and dtypes of the operators on images, spectra, attention and sequences of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.operators import dims
from fastlstm.operators.dims import Dim
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.values import UNKNOWN, Operands, ValueInfo, normal_axis, rule

__all__ = ["UNTOLD"]

UNTOLD: Mapping[str, str] = {
    "ConcatFromSequence": "a sequence's tensors have shapes of their own",
    "OnnxReference": "it stands for operators that onnx computes",
    "SequenceAt": "a sequence's tensors have shapes of their own",
    "SequenceConstruct": "its output is a sequence",
    "SequenceEmpty": "its output is a sequence",
    "SequenceErase": "its output is a sequence",
    "SequenceInsert": "its output is a sequence",
    "SplitToSequence": "its output is a sequence",
}
"""Operators of whose outputs nothing is known before they run, and why."""


def _only(info: ValueInfo) -> Dim | None:
    """Return the one integer that a value holds, None if it is not known."""
    return info.const[0] if info.const is not None and len(info.const) == 1 else None


def _datatype(at: Operands) -> str | None:
    try:
        return dtype_of(at.attr("output_datatype", 1)).name
    except ValueError:  # said when the operator runs
        return None


@rule("HannWindow", "HammingWindow", "BlackmanWindow")
def _window(at: Operands) -> ValueInfo:
    size = _only(at[0])
    return ValueInfo((at.fresh(0) if size is None else size,), _datatype(at))


@rule("MelWeightMatrix")
def _mel(at: Operands) -> ValueInfo:
    bins, length = _only(at[0]), _only(at[1])
    rows = at.fresh(0) if length is None else _half(length)
    return ValueInfo((rows, at.fresh(1) if bins is None else bins), _datatype(at))


def _half(length: Dim) -> Dim:
    """Return the number of frequencies of a real signal of `length` samples."""
    return dims.add(dims.floor_divide(length, 2), 1)


@rule("DFT")
def _dft(at: Operands) -> ValueInfo:
    shape = at[0].shape
    axis = _only(at[2]) if at.given(2) else -2
    if not shape or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return at.unknown_shape(at[0].rank, at[0].dtype)
    axis = normal_axis(axis, len(shape))
    inverse, onesided = bool(at.attr("inverse", 0)), bool(at.attr("onesided", 0))
    length: Dim | None = shape[axis]
    if at.given(1):
        length = _only(at[1])
    elif inverse and onesided:
        length = dims.multiply(2, dims.subtract(shape[axis], 1))
    if length is None:
        length = at.fresh(axis)
    elif onesided and not inverse:
        length = _half(length)
    sizes = [*shape[:-1], 1 if inverse and onesided else 2]
    sizes[axis] = length
    return ValueInfo(tuple(sizes), at[0].dtype)


@rule("STFT")
def _stft(at: Operands) -> ValueInfo:
    x, window, step = at[0].shape, at[2].shape, _only(at[1])
    if x is None or len(x) != 3:
        return ValueInfo(None, at[0].dtype)
    size: Dim | None = x[1]
    if at.given(3):
        size = _only(at[3])
    elif at.given(2):
        size = window[0] if window else None
    frames: Dim = at.fresh(1)
    if size is not None and step is not None:
        frames = dims.add(dims.floor_divide(dims.subtract(x[1], size), step), 1)
    if size is None:
        bins: Dim = at.fresh(2)
    else:
        bins = _half(size) if at.attr("onesided", 1) else size
    return ValueInfo((x[0], frames, bins, 2), at[0].dtype)


@rule("ConvTranspose")
def _conv_transpose(at: Operands) -> ValueInfo:
    x, w, dtype = at[0].shape, at[1].shape, at[0].dtype
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return ValueInfo(None, dtype)
    n = len(x) - 2
    channels = dims.multiply(w[1], int(at.attr("group", 1)))
    strides, dilations = at.attr("strides", [1] * n), at.attr("dilations", [1] * n)
    wanted, auto = at.attr("output_shape"), at.attr("auto_pad", "NOTSET")
    if wanted is not None:
        return ValueInfo((x[0], channels, *list(wanted)[-n:]), dtype)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return ValueInfo((x[0], channels, *map(dims.multiply, x[2:], strides)), dtype)
    pads = at.attr("pads", [0] * 2 * n) if auto == "NOTSET" else [0] * 2 * n
    extra = at.attr("output_padding", [0] * n)
    sizes = []
    for i in range(n):
        reach = dims.add(1, dims.multiply(dilations[i], dims.subtract(w[i + 2], 1)))
        spread = dims.multiply(strides[i], dims.subtract(x[i + 2], 1))
        sizes.append(dims.add(dims.add(spread, reach), extra[i] - pads[i] - pads[i + n]))
    return ValueInfo((x[0], channels, *sizes), dtype)


@rule("Col2Im")
def _col2im(at: Operands) -> ValueInfo:
    x, image, block = at[0].shape, at[1].const, at[2].const
    if x is None or len(x) != 3 or image is None or block is None or None in block:
        return ValueInfo(None, at[0].dtype)
    channels = dims.floor_divide(x[1], dims.product(size for size in block if size is not None))
    sizes = (at.fresh(i + 2) if size is None else size for i, size in enumerate(image))
    return ValueInfo((x[0], channels, *sizes), at[0].dtype)


@rule("Resize")
def _resize(at: Operands) -> ValueInfo:
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


@rule("DepthToSpace", "SpaceToDepth")
def _blocks(at: Operands) -> ValueInfo:
    shape, block = at[0].shape, int(at.attr("blocksize", 1))
    if shape is None or len(shape) != 4 or block < 1:
        return ValueInfo(None, at[0].dtype)
    grow, shrink = dims.multiply, dims.floor_divide
    channels, space = (shrink, grow) if at.node.op == "DepthToSpace" else (grow, shrink)
    return ValueInfo(
        (shape[0], channels(shape[1], block * block), *[space(size, block) for size in shape[2:]]), at[0].dtype
    )


@rule("Det")
def _det(at: Operands) -> ValueInfo:
    return ValueInfo(None if at[0].shape is None else at[0].shape[:-2], at[0].dtype)


@rule("Compress")
def _compress(at: Operands) -> ValueInfo:
    return _some_slices(at)


def _some_slices(at: Operands) -> ValueInfo:
    """Return a value that keeps an unknown number of slices along the attribute ``axis``, or of elements."""
    shape, axis = at[0].shape, at.attr("axis")
    if axis is None:
        return ValueInfo((at.fresh(0),), at[0].dtype)
    if shape is None:
        return ValueInfo(None, at[0].dtype)
    axis = normal_axis(int(axis), len(shape))
    return ValueInfo((*shape[:axis], at.fresh(axis), *shape[axis + 1 :]), at[0].dtype)


@rule("Unique")
def _unique(at: Operands) -> tuple[ValueInfo, ...]:
    count, all_of_them = at.fresh(0), at.fresh(0, 2)
    values = _some_slices(at)
    if at.attr("axis") is not None and values.shape is not None:
        axis = normal_axis(int(at.attr("axis")), len(values.shape))
        count = str(values.shape[axis])
        all_of_them = str(at[0].shape[axis]) if at[0].shape and isinstance(at[0].shape[axis], str) else all_of_them
    places = ValueInfo((count,), "int64")
    return values, places, ValueInfo((all_of_them,), "int64"), places


@rule("Attention")
def _attention(at: Operands) -> tuple[ValueInfo, ...]:
    q, v, dtype = at[0].shape, at[2].shape, at[0].dtype
    if q is None or v is None or len(q) != len(v) or len(q) not in (3, 4):
        return (ValueInfo(None, dtype),)
    if len(q) == 4:
        return (ValueInfo((*q[:3], v[3]), dtype),)
    heads, sources = int(at.attr("q_num_heads", 1)), int(at.attr("kv_num_heads", 1)) or 1
    return (ValueInfo((*q[:2], dims.multiply(heads, dims.floor_divide(v[2], sources))), dtype),)


@rule("SequenceLength")
def _length(_at: Operands) -> ValueInfo:
    return ValueInfo((), "int64")


@rule(*UNTOLD)
def _untold(at: Operands) -> Sequence[ValueInfo]:
    return (UNKNOWN,) * len(at.node.outputs)
