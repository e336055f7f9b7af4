"""Shapes and dtypes of the operators that compute: element-wise, products, reductions, layers."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.graph import RecurrentInputs
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.values import CONTENT_LIMIT, UNKNOWN, Operands, ValueInfo, normal_axis, rule

__all__ = ["ELEMENTWISE", "REDUCTIONS", "broadcast_shapes"]

_SAME = """
    Abs Acos Acosh Affine Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh CumProd
    CumSum Dropout Elu Erf Exp Floor Gelu GeluTanh GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization LRN LayerNormalization LeakyRelu Linear Log LogSoftmax LpNormalization
    MeanVarianceNormalization Mish Neg RMSNormalization Reciprocal Relu ReverseSequence RotaryEmbedding Round
    ScaledTanh ScatterElements ScatterND Selu Shrink Sigmoid Sign Silu Sin Sinh Softmax Softplus Softsign Sqrt
    Swish Tan Tanh TensorScatter ThresholdedRelu Trilu
"""
_BINARY = "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Or PRelu Pow Sub Sum Xor"
_COMPARE = "Equal Greater GreaterOrEqual Less LessOrEqual"
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_ELEMENTWISE = """
    Abs Acos Acosh Affine Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu GeluTanh
    HardSigmoid HardSwish IsInf IsNaN LeakyRelu Linear Log Mish Neg Not Reciprocal Relu Round ScaledTanh Selu
    Shrink Sigmoid Sign Silu Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""

REDUCTIONS = tuple(f"Reduce{kind}" for kind in _REDUCTIONS.split())
"""Operators that reduce over the axes in their second input."""

ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Operators whose first input is changed element by element, the others being scalars."""


def broadcast_shapes(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape that all `shapes` broadcast to, None if one is not known or they do not fit."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = [1] * rank
    for shape in known:
        for i, dim in enumerate(shape, start=rank - len(shape)):
            merged = dims.broadcast(result[i], dim)
            if merged is None:
                return None
            result[i] = merged
    return tuple(result)


@rule(*_SAME.split())
def _same(at: Operands) -> tuple[ValueInfo, ...]:
    """Give every output the first input's shape and dtype; Identity also passes on the content."""
    if at.node.op == "Identity":
        return (at[0],)
    plain = ValueInfo(at[0].shape, at[0].dtype)
    if at.node.op == "Dropout":
        return plain.but(fill=0.0 if at[0].fill == 0 else None), plain.but(dtype="bool")
    if at.node.op == "Neg" and at[0].const is not None:
        negative = tuple(None if v is None else dims.multiply(-1, v) for v in at[0].const)
        return (ValueInfo.of_content(negative, at[0].shape or (), at[0].dtype),)
    if at.node.op == "LayerNormalization":
        return plain, UNKNOWN, UNKNOWN
    return (plain,)


@rule("Not", "IsNaN", "IsInf")
def _to_bool(at: Operands) -> ValueInfo:
    content = at[0].const
    if at.node.op == "Not" and content is not None and content in ((0,), (1,)):
        return ValueInfo.of_content((1 - int(content[0] or 0),), at[0].shape or (), "bool")
    return ValueInfo(at[0].shape, "bool")


@rule("Cast", "CastLike")
def _cast(at: Operands) -> ValueInfo:
    dtype = at.cast_to() if at.node.op == "Cast" else at[1].dtype
    info = at[0].but(dtype=dtype)
    if dtype == "bool":
        decided = at[0].const is not None and all(isinstance(v, int) for v in at[0].const)
        content = tuple(int(v != 0) for v in at[0].const or ()) if decided else None
        return ValueInfo(at[0].shape, dtype, content, None)
    if isinstance(info.fill, float) and dtype is not None and "float" not in dtype:
        info = info.but(fill=int(info.fill))
    return info


@rule(*_BINARY.split())
def _binary(at: Operands) -> ValueInfo:
    infos = [info for i, info in enumerate(at.infos) if at.given(i)]
    dtype = next((info.dtype for info in infos if info.dtype), None)
    shape = broadcast_shapes([info.shape for info in infos])
    content = _content(at, shape)
    if content is not None and shape is not None:
        return ValueInfo.of_content(content, shape, dtype)
    return ValueInfo(shape, dtype, None, _filled(at))


@rule(*_COMPARE.split())
def _compare(at: Operands) -> ValueInfo:
    shape = broadcast_shapes([at[0].shape, at[1].shape])
    content = _content(at, shape)
    if content is not None and shape is not None:
        return ValueInfo.of_content(content, shape, "bool")
    return ValueInfo(shape, "bool")


def _filled(at: Operands) -> float | str | None:
    """Return the one number of a sum or product of such; a product with 0 counts as 0.

    (0 times infinity or NaN is NaN, but an exporter's ``x * 0`` stands for its framework's zeros_like.)
    """
    a, b = at[0].fill, at[1].fill
    if at.node.op == "Mul" and (a == 0 or b == 0):
        return 0
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None or len(at.infos) != 2:
        return None
    if at.node.op in ("Add", "Sub"):
        return a + b if at.node.op == "Add" else a - b
    return a * b if at.node.op == "Mul" else None


def _content(at: Operands, shape: Shape | None) -> tuple[Dim | None, ...] | None:
    """Compute whole-number content element by element for rank 0 and 1."""
    if shape is None or len(shape) > 1 or len(at.infos) != 2:
        return None
    a, b = at[0].const, at[1].const
    size = 1 if not shape else shape[0]
    if a is None or b is None or not isinstance(size, int) or size > CONTENT_LIMIT:
        return None
    if {len(a), len(b)} - {1, size}:
        return None
    floating = any("float" in (info.dtype or "float") for info in at.infos)
    return tuple(_element(at.node.op, a[i % len(a)], b[i % len(b)], floating) for i in range(size))


def _element(op: str, a: Dim | None, b: Dim | None, floating: bool) -> Dim | None:
    if a is None or b is None:
        return 0 if op == "Mul" and (a == 0 or b == 0) else None
    if op in _ARITHMETIC:
        return _ARITHMETIC[op](a, b)
    if op == "Div":
        if b == 0:
            return None
        exact = dims.divide(a, b)
        if exact is not None or floating or not isinstance(b, int) or b < 0:
            return exact
        # Integer division truncates; it is the floor where the quotient cannot be negative.
        return dims.floor_divide(a, b) if dims.at_least(a, 0) else None
    if op in ("Max", "Min"):
        low, high = (a, b) if dims.at_least(b, a) else (b, a)
        return (high if op == "Max" else low) if dims.at_least(high, low) else None
    return _comparison(op, a, b)


_ARITHMETIC = {"Add": dims.add, "Sub": dims.subtract, "Mul": dims.multiply}


def _comparison(op: str, a: Dim, b: Dim) -> int | None:
    """Decide a comparison where it holds, or fails, whatever the names stand for."""
    if isinstance(a, int) and isinstance(b, int):
        decided = {
            "And": bool(a and b), "Or": bool(a or b), "Xor": bool(a) != bool(b), "Equal": a == b,
            "Greater": a > b, "GreaterOrEqual": a >= b, "Less": a < b, "LessOrEqual": a <= b,
        }  # fmt: skip
        return int(decided[op]) if op in decided else None
    if op in ("Greater", "GreaterOrEqual"):
        return _comparison({"Greater": "Less", "GreaterOrEqual": "LessOrEqual"}[op], b, a)
    if op == "LessOrEqual":
        return 1 if dims.at_least(b, a) else 0 if dims.at_least(a, dims.add(b, 1)) else None
    if op == "Less":
        return 1 if dims.at_least(b, dims.add(a, 1)) else 0 if dims.at_least(a, b) else None
    if op == "Equal":
        if a == b:
            return 1
        apart = dims.at_least(a, dims.add(b, 1)) or dims.at_least(b, dims.add(a, 1))
        return 0 if apart else None
    return None


@rule("Where")
def _where(at: Operands) -> ValueInfo:
    shape = broadcast_shapes([at[0].shape, at[1].shape, at[2].shape])
    dtype = at[1].dtype or at[2].dtype
    condition, yes, no = at[0].numbers, at[1].const, at[2].const
    if shape is None or len(shape) > 1 or not condition or not yes or not no:
        return ValueInfo(shape, dtype)
    size = shape[0] if shape else 1
    if not isinstance(size, int) or size > CONTENT_LIMIT:
        return ValueInfo(shape, dtype)
    chosen = [yes if condition[i % len(condition)] else no for i in range(size)]
    return ValueInfo.of_content(tuple(c[i % len(c)] for i, c in enumerate(chosen)), shape, dtype)


@rule("MatMul")
def _matmul(at: Operands) -> ValueInfo:
    a, b = at[0].shape, at[1].shape
    if not a or not b:
        return ValueInfo(None, at[0].dtype)
    batch = broadcast_shapes([a[:-2], b[:-2]])
    if batch is None:
        return ValueInfo(None, at[0].dtype)
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    return ValueInfo((*batch, *rows, *columns), at[0].dtype)


@rule("Einsum")
def _einsum(at: Operands) -> ValueInfo:
    given, arrow, result = str(at.attr("equation", "")).replace(" ", "").partition("->")
    sizes: dict[str, Dim] = {}
    for i, axes in enumerate(given.split(",")):
        shape = at[i].shape
        if not arrow or "." in axes or shape is None or len(shape) != len(axes):
            return ValueInfo(None, at[0].dtype)
        for axis, size in zip(axes, shape, strict=True):
            if sizes.get(axis, 1) == 1:  # one element goes with any number
                sizes[axis] = size
    if not set(result) <= set(sizes):
        return ValueInfo(None, at[0].dtype)
    return ValueInfo(tuple(sizes[axis] for axis in result), at[0].dtype)


@rule("Gemm")
def _gemm(at: Operands) -> ValueInfo:
    a, b = at[0].shape, at[1].shape
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return ValueInfo(None, at[0].dtype)
    rows = a[1] if at.attr("transA", 0) else a[0]
    columns = b[0] if at.attr("transB", 0) else b[1]
    return ValueInfo((rows, columns), at[0].dtype)


@rule("Dense")
def _dense(at: Operands) -> ValueInfo:
    x, weight = at[0].shape, at[1].shape
    if not x or weight is None:
        return ValueInfo(None, at[0].dtype)
    return ValueInfo((*x[:-1], weight[1]), at[0].dtype)


@rule("LSTM", "GRU", "RNN")
def _recurrent(at: Operands) -> tuple[ValueInfo, ...]:
    x, w_hh = (at[RecurrentInputs.position(name)].shape for name in ("x", "w_hh"))
    hidden = int(at.attr("hidden_size", 0))
    directions = len(at.attr("directions", ["forward"]))
    size: Dim = w_hh[2] if w_hh is not None and len(w_hh) == 3 else at.fresh(2, 1)
    time, batch = (x[0], x[1]) if x is not None and len(x) == 3 else (at.fresh(0), at.fresh(1))
    dtype = at[0].dtype
    return (
        ValueInfo((time, batch, dims.multiply(directions, size)), dtype),
        ValueInfo((directions, batch, size), dtype),
        ValueInfo((directions, batch, hidden), dtype),
    )


@rule(*REDUCTIONS)
def _reduce(at: Operands) -> ValueInfo:
    shape, dtype = at[0].shape, at[0].dtype
    keep = bool(at.attr("keepdims", 1))
    axes = at[1].numbers if at.given(1) else []
    if axes == [] and at.attr("noop_with_empty_axes", 0):
        return ValueInfo(shape, dtype)
    if shape is None or axes is None:
        return at.unknown_shape(len(shape) if shape is not None and keep else None, dtype)
    reduced = {normal_axis(a, len(shape)) for a in axes} or set(range(len(shape)))
    left = tuple(1 if i in reduced else d for i, d in enumerate(shape) if keep or i not in reduced)
    content = at[0].const
    if content is not None and len(shape) == 1 and at.node.op in ("ReduceProd", "ReduceSum"):
        known = [v for v in content if v is not None]
        if len(known) == len(content):
            total: Dim = 0
            for v in known:
                total = dims.add(total, v)
            value = dims.product(known) if at.node.op == "ReduceProd" else total
            return ValueInfo.of_content((value,), left, dtype)
    return ValueInfo(left, dtype)


@rule("ArgMax", "ArgMin")
def _arg(at: Operands) -> ValueInfo:
    shape = at[0].shape
    if shape is None:
        return ValueInfo(None, "int64")
    axis, keep = at.axis(len(shape)), bool(at.attr("keepdims", 1))
    return ValueInfo((*shape[:axis], *([1] if keep else []), *shape[axis + 1 :]), "int64")


@rule("Conv")
def _conv(at: Operands) -> ValueInfo:
    x, w = at[0].shape, at[1].shape
    if x is None or w is None:
        return ValueInfo(None, at[0].dtype)
    kernel = at.attr("kernel_shape", w[2:])
    return ValueInfo((x[0], w[0], *_windows(at, x[2:], kernel)), at[0].dtype)


@rule("MaxPool", "AveragePool", "LpPool")
def _pool(at: Operands) -> tuple[ValueInfo, ...]:
    x = at[0].shape
    if x is None:
        return ValueInfo(None, at[0].dtype), ValueInfo(None, "int64")
    shape = (x[0], x[1], *_windows(at, x[2:], at.attr("kernel_shape", ())))
    return ValueInfo(shape, at[0].dtype), ValueInfo(shape, "int64")


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(at: Operands) -> ValueInfo:
    x = at[0].shape
    return ValueInfo(None if x is None else (*x[:2], *[1] * (len(x) - 2)), at[0].dtype)


def _windows(at: Operands, sizes: Shape, kernel: Sequence[Dim]) -> list[Dim]:
    """Return the sizes after sliding a window: floor((size + pads - dilated kernel) / stride) + 1."""
    n = len(sizes)
    strides, dilations = at.attr("strides", [1] * n), at.attr("dilations", [1] * n)
    pads, auto = at.attr("pads", [0] * 2 * n), at.attr("auto_pad", "NOTSET")
    result: list[Dim] = []
    for i, size in enumerate(sizes):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            result.append(dims.ceil_divide(size, strides[i]))
            continue
        around = 0 if auto == "VALID" else pads[i] + pads[i + n]
        reach = dims.add(1, dims.multiply(dilations[i], dims.subtract(kernel[i], 1)))
        if at.attr("ceil_mode", 0):  # a last window that would start in the padding is left out
            result.append(at.fresh(i + 2))
            continue
        room = dims.subtract(dims.add(size, around), reach)
        result.append(dims.add(dims.floor_divide(room, strides[i]), 1))
    return result
