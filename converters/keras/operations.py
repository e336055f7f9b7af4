"""The bare operations of functional models: ``x + y``, ``x[:, -1]``, ``keras.ops.mean(x, axis=1)``.

Keras 3 keeps them by class (``Add``, ``GetItem``), with the options in the configuration or in the call. An
operation hands on no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.activations import activation
from fastlstm.converters.keras.layer import Convert, Kind, Layer
from fastlstm.converters.keras.shapes import reshaped
from fastlstm.converters.keras.tensor import Tensor, broadcast
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators.dims import Dim

__all__ = ["OPERATIONS"]

_END = (1 << 63) - 1


def _arguments(layer: Layer, *names: str) -> list[Any]:
    """Return what the operation is called with, by position or by name; options of its class count as named."""
    args = list(layer.arguments.take("args", []))
    if len(args) > len(names):
        raise UnsupportedError(f"{layer.label}: at most {len(names)} arguments are supported; got {len(args)}.")
    layer.arguments.take("name")
    for name in names[len(args) :]:
        value = layer.arguments.take(name)
        args.append(layer.config.get(name) if value is None else value)
    return args


def _tensor(layer: Layer, value: Any) -> Tensor:
    """Return an argument as a tensor; numbers and arrays become constants."""
    if isinstance(value, Tensor):
        return value.with_mask(None)
    if isinstance(value, bool) or not isinstance(value, int | float | np.ndarray):
        raise UnsupportedError(f"{layer.label}: a tensor or a number was expected; got {value!r:.80}.")
    if isinstance(value, int):
        return layer.emit.number(value, "int32")
    return layer.emit.array(np.asarray(value, np.float32) if isinstance(value, float) else value, "number")


def _same_kind(layer: Layer, *values: Any) -> list[Tensor]:
    """Return arguments as tensors of one dtype: floats if any is, else that of the tensors among them."""
    tensors = [_tensor(layer, value) for value in values]
    dtypes = [x.dtype for x, value in zip(tensors, values, strict=True) if isinstance(value, Tensor)]
    if any(x.dtype == "float32" for x in tensors):
        dtype = "float32"
    else:
        dtype = str(np.result_type(*dtypes)) if dtypes else tensors[0].dtype
    # A number of Python's is taken over at full precision, not by way of an integer.
    return [
        x if x.dtype == dtype
        else layer.emit.cast(x, dtype) if isinstance(value, Tensor)
        else layer.emit.array(np.asarray(value, dtype), "number")
        for x, value in zip(tensors, values, strict=True)
    ]  # fmt: skip


def _binary(op: str, floats: bool = False, dtype: str | None = None) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        a, b = _same_kind(layer, *_arguments(layer, "x1", "x2"))
        if floats:
            a, b = layer.emit.floats(a), layer.emit.floats(b)
        return [layer.emit.binary(op, a, b, layer.label, dtype)]

    return convert


def _not_equal(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    a, b = _same_kind(layer, *_arguments(layer, "x1", "x2"))
    return [layer.emit.negated(layer.emit.logic("Equal", a, b, layer.label))]


def _logical(op: str) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        a, b = (layer.emit.cast(_tensor(layer, value), "bool") for value in _arguments(layer, "x1", "x2"))
        return [layer.emit.logic(op, a, b, layer.label)]

    return convert


def _logical_not(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    (x,) = _arguments(layer, "x")
    return [layer.emit.negated(layer.emit.cast(_tensor(layer, x), "bool"))]


def _convert_to_tensor(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, dtype = _arguments(layer, "x", "dtype")
    layer.config.choice("sparse", [None, False])
    layer.config.choice("ragged", [None, False])
    return [_cast_to(layer, _tensor(layer, given), dtype)]


def _cast(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, dtype = _arguments(layer, "x", "dtype")
    return [_cast_to(layer, _tensor(layer, given), dtype)]


def _cast_to(layer: Layer, x: Tensor, dtype: Any) -> Tensor:
    """Return `x` as `dtype`; halves are computed in float32."""
    if dtype is None:
        return x
    wanted = {"float16": "float32", "bfloat16": "float32", "float64": "float32"}.get(str(dtype), dtype)
    if wanted not in ("float32", "int32", "int64", "bool", "int8", "int16", "uint8"):
        raise UnsupportedError(f"{layer.label}: the dtype {dtype!r:.40} is not supported.")
    return layer.emit.cast(x, wanted)


def _unary(op: str, **attrs: Any) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        (x,) = _arguments(layer, "x")
        return [layer.emit.like(op, layer.emit.floats(_tensor(layer, x)), **attrs)]

    return convert


def _square(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    x = _tensor(layer, _arguments(layer, "x")[0])
    return [layer.emit.binary("Mul", x, x, layer.label)]


def _activation(name: str) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        (x,) = _arguments(layer, "x")
        return [activation(layer.emit, _tensor(layer, x), name, layer.label, layer.major)]

    return convert


def _softmax(op: str) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        given, axis = _arguments(layer, "x", "axis")
        x = layer.emit.floats(_tensor(layer, given))
        return [layer.emit.like(op, x, axis=_axis(layer, -1 if axis is None else axis, x.rank))]

    return convert


def _leaky_relu(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    x, slope = _arguments(layer, "x", "negative_slope")
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise FileFormatError(f"{layer.label}: negative_slope should be a number; got {slope!r:.40}.")
    return [layer.emit.like("LeakyRelu", layer.emit.floats(_tensor(layer, x)), alpha=float(slope))]


def _clip(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    x, low, high = _same_kind(layer, *_arguments(layer, "x", "x_min", "x_max"))
    return [layer.emit.like("Clip", x, low, high)]


def _axis(layer: Layer, value: Any, rank: int) -> int:
    if type(value) is not int or not -rank <= value < rank:
        raise FileFormatError(f"{layer.label}: axis should be within {rank} axes; got {value!r:.40}.")
    return value % rank


def _axes(layer: Layer, value: Any, rank: int) -> list[int]:
    if value is None:
        return list(range(rank))
    return [_axis(layer, axis, rank) for axis in (value if isinstance(value, list) else [value])]


def _reduction(op: str) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        given, axis, keepdims = _arguments(layer, "x", "axis", "keepdims")
        layer.config.choice("initial", [None])
        x = _tensor(layer, given)
        if op in ("ReduceMean", "ReduceLogSumExp"):
            x = layer.emit.floats(x)
        return [layer.emit.reduce(op, x, _axes(layer, axis, x.rank), keepdims is True)]

    return convert


def _any(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis, keepdims = _arguments(layer, "x", "axis", "keepdims")
    x = layer.emit.cast(_tensor(layer, given), "bool")
    for one in sorted(_axes(layer, axis, x.rank), reverse=True):
        x = layer.emit.any(x, one, keepdims is True)
    return [x]


def _all(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis, keepdims = _arguments(layer, "x", "axis", "keepdims")
    x = layer.emit.negated(layer.emit.cast(_tensor(layer, given), "bool"))
    for one in sorted(_axes(layer, axis, x.rank), reverse=True):
        x = layer.emit.any(x, one, keepdims is True)
    return [layer.emit.negated(x)]


def _arg(op: str) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        given, axis, keepdims = _arguments(layer, "x", "axis", "keepdims")
        x = _tensor(layer, given)
        over, keep = _axis(layer, axis, x.rank), keepdims is True
        shape = [1 if i == over else size for i, size in enumerate(x.shape) if keep or i != over]
        y = layer.emit.node(op, x, shape=shape, dtype="int64", axis=over, keepdims=int(keep), select_last_index=0)
        return [layer.emit.cast(y, "int32")]

    return convert


def _where(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    condition, x1, x2 = _arguments(layer, "condition", "x1", "x2")
    keep = layer.emit.cast(_tensor(layer, condition), "bool")
    a, b = _same_kind(layer, x1, x2)
    shape = broadcast(broadcast(keep.shape, a.shape, layer.label), b.shape, layer.label)
    return [layer.emit.node("Where", keep, a, b, shape=shape, dtype=a.dtype)]


def _matmul(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    turned = [layer.arguments.flag(name) for name in ("transpose_a", "transpose_b")]  # of TensorFlow's function
    a, b = (layer.emit.floats(_tensor(layer, value)) for value in _arguments(layer, "x1", "x2"))
    if min(a.rank, b.rank) < 2 or (layer.kind == "Dot" and b.rank != 2):
        raise UnsupportedError(f"{layer.label}: a product of {a.rank} and {b.rank} axes is not supported.")
    a, b = (
        layer.emit.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2]) if turn else x
        for x, turn in zip((a, b), turned, strict=True)
    )
    inner = a.shape[-1], b.shape[-2]
    if isinstance(inner[0], int) and isinstance(inner[1], int) and inner[0] != inner[1]:
        raise FileFormatError(f"{layer.label}: a product over {inner[0]} and {inner[1]} elements.")
    shape = (*broadcast(a.shape[:-2], b.shape[:-2], layer.label), a.shape[-2], b.shape[-1])
    return [layer.emit.node("MatMul", a, b, shape=shape)]


def _values(layer: Layer, given: Any) -> list[Tensor]:
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise FileFormatError(f"{layer.label}: it joins nothing.")
    return _same_kind(layer, *listed)


def _concatenate(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis = _arguments(layer, "xs", "axis")
    values = _values(layer, given)
    return [layer.emit.concat(values, _axis(layer, -1 if axis is None else axis, values[0].rank), layer.label)]


def _stack(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis = _arguments(layer, "xs", "axis")
    values = _values(layer, given)
    at = _axis(layer, 0 if axis is None else axis, values[0].rank + 1)
    return [layer.emit.concat([layer.emit.unsqueeze(x, at) for x in values], at, layer.label)]


def _expand_dims(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis = _arguments(layer, "x", "axis")
    x = _tensor(layer, given)
    for at in sorted(_axes(layer, axis, x.rank + 1)):
        x = layer.emit.unsqueeze(x, at)
    return [x]


def _squeeze(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis = _arguments(layer, "x", "axis")
    x = _tensor(layer, given)
    axes = [i for i, size in enumerate(x.shape) if size == 1] if axis is None else _axes(layer, axis, x.rank)
    for at in sorted(axes, reverse=True):
        if isinstance(x.shape[at], int) and x.shape[at] != 1:
            raise FileFormatError(f"{layer.label}: axis {at} has {x.shape[at]} elements and cannot be left out.")
        x = layer.emit.squeeze(x, at)
    return [x]


def _transpose(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axes = _arguments(layer, "x", "axes")
    x = _tensor(layer, given)
    perm = list(range(x.rank))[::-1] if axes is None else _axes(layer, axes, x.rank)
    if sorted(perm) != list(range(x.rank)):
        raise FileFormatError(f"{layer.label}: axes should be an order of {x.rank} axes; got {axes!r:.80}.")
    return [layer.emit.transpose(x, perm)]


def _swap_axes(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, one, other = _arguments(layer, "x", "axis1", "axis2")
    x = _tensor(layer, given)
    perm = list(range(x.rank))
    i, j = _axis(layer, one, x.rank), _axis(layer, other, x.rank)
    perm[i], perm[j] = perm[j], perm[i]
    return [layer.emit.transpose(x, perm)]


def _flip(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, axis = _arguments(layer, "x", "axis")
    x = _tensor(layer, given)
    for at in _axes(layer, axis, x.rank):
        x = layer.emit.flip(x, at)
    return [x]


def _reshape(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    given, target = _arguments(layer, "x", "newshape")
    x = _tensor(layer, given)
    sizes: list[Any] = [-1 if size is None else size for size in target] if isinstance(target, list) else [None]
    if any(type(size) is not int or size < -1 or size == 0 for size in sizes) or sizes[0] != -1:
        raise UnsupportedError(
            f"{layer.label}: a shape [-1, ...] that leaves the batch open was expected; got {target!r:.80}."
        )
    return [reshaped(layer, x, sizes[1:])]


def _get_item(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    """Index with integers, slices, None and an ellipsis, as in NumPy."""
    given, index = _arguments(layer, "x", "key")
    x, items = _tensor(layer, given), index if isinstance(index, list) else [index]
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if items.count(Ellipsis) > 1 or taken > x.rank:
        raise FileFormatError(f"{layer.label}: {taken} indices into {x.rank} axes.")
    rest = [slice(None)] * (x.rank - taken)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    axis = 0
    for item in [*items[:at], *rest, *items[at + 1 :]]:
        if item is None:
            x = layer.emit.unsqueeze(x, axis)
        elif isinstance(item, slice):
            x = _sliced(layer, x, axis, item)
        elif type(item) is int:
            size = x.shape[axis]
            if isinstance(size, int) and not -size <= item < size:
                raise FileFormatError(f"{layer.label}: there is no index {item} along axis {axis}, which has {size}.")
            x = layer.emit.pick(x, item, axis)
            continue
        else:
            raise UnsupportedError(f"{layer.label}: the index {item!r:.80} is not supported; numbers and slices are.")
        axis += 1
    return [x]


def _sliced(layer: Layer, x: Tensor, axis: int, item: slice) -> Tensor:
    if any(part is not None and type(part) is not int for part in (item.start, item.stop, item.step)) or item.step == 0:
        raise UnsupportedError(f"{layer.label}: the bounds of a slice should be numbers; got {item}.")
    if item == slice(None):
        return x
    step, size = item.step or 1, x.shape[axis]
    start = item.start if item.start is not None else 0 if step > 0 else _END
    stop = item.stop if item.stop is not None else _END if step > 0 else -_END
    length: Dim = len(range(*item.indices(size))) if isinstance(size, int) else f"{layer.name}.axis{axis}"
    emit = layer.emit
    parts = [emit.ints([value]) for value in (start, stop, axis, step)]
    return emit.node("Slice", x, *parts, shape=(*x.shape[:axis], length, *x.shape[axis + 1 :]), dtype=x.dtype)


def _constant_like(value: int) -> Convert:
    def convert(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
        (given,) = _arguments(layer, "x")
        x, emit = _tensor(layer, given), layer.emit
        dtype = layer.config.choice("dtype", [None, "float32", "int32", "int64", "bool"]) or x.dtype
        return [emit.node("Expand", emit.number(value, dtype), emit.sizes(x, 0, x.rank), shape=x.shape, dtype=dtype)]

    return convert


_REDUCTIONS = {"Mean": "ReduceMean", "Sum": "ReduceSum", "Max": "ReduceMax", "Min": "ReduceMin", "Prod": "ReduceProd"}
_BINARY = {"Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min"}
_COMPARISONS = {
    "Equal": "Equal", "Greater": "Greater", "GreaterEqual": "GreaterOrEqual",
    "Less": "Less", "LessEqual": "LessOrEqual",
}  # fmt: skip
_UNARY = {"Negative": "Neg", "Absolute": "Abs", "Sqrt": "Sqrt", "Exp": "Exp", "Log": "Log", "Sin": "Sin", "Cos": "Cos",
          "Erf": "Erf", "Floor": "Floor", "Ceil": "Ceil"}  # fmt: skip
_ACTIVATIONS = {
    "Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Relu6": "relu6", "Softplus": "softplus",
    "Softsign": "softsign", "Silu": "silu", "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu",
    "HardTanh": "hard_tanh", "LogSigmoid": "log_sigmoid", "TanhShrink": "tanh_shrink", "Selu": "selu",
}  # fmt: skip

_CLASSES: Mapping[str, Convert] = {
    **{name: _binary(op) for name, op in _BINARY.items()},
    **{name: _binary(op, dtype="bool") for name, op in _COMPARISONS.items()},
    **{name: _unary(op) for name, op in _UNARY.items()},
    **{name: _activation(function) for name, function in _ACTIVATIONS.items()},
    **{name: _reduction(op) for name, op in _REDUCTIONS.items()},
    "TrueDivide": _binary("Div", floats=True),
    "Divide": _binary("Div", floats=True),
    "Power": _binary("Pow", floats=True),
    "NotEqual": _not_equal,
    "LogicalAnd": _logical("And"),
    "LogicalOr": _logical("Or"),
    "LogicalNot": _logical_not,
    "Any": _any,
    "All": _all,
    "Argmax": _arg("ArgMax"),
    "Argmin": _arg("ArgMin"),
    "Square": _square,
    "ConvertToTensor": _convert_to_tensor,
    "Cast": _cast,
    "Softmax": _softmax("Softmax"),
    "LogSoftmax": _softmax("LogSoftmax"),
    "LeakyRelu": _leaky_relu,
    "Clip": _clip,
    "Where": _where,
    "Matmul": _matmul,
    "Dot": _matmul,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "SwapAxes": _swap_axes,
    "Swapaxes": _swap_axes,
    "Flip": _flip,
    "Reshape": _reshape,
    "GetItem": _get_item,
    "ZerosLike": _constant_like(0),
    "OnesLike": _constant_like(1),
}

OPERATIONS: Mapping[str, Kind] = {name: Kind(convert) for name, convert in sorted(_CLASSES.items())}
"""The bare operations of Keras 3, by their class."""
