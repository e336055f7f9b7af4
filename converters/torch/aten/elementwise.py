"""Aten operations that work element by element, comparisons, reductions and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.torch.aten.graph import Arguments, AtenGraph, Handler
from fastlstm.converters.torch.aten.schemas import by_overload
from fastlstm.converters.torch.program import Tensor

__all__ = ["COMPARISONS", "ELEMENTWISE", "HANDLERS"]

_UNARY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "abs": ("Abs", {}),
    "bitwise_not": ("Not", {}),
    "ceil": ("Ceil", {}),
    "cos": ("Cos", {}),
    "erf": ("Erf", {}),
    "exp": ("Exp", {}),
    "floor": ("Floor", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hardswish": ("HardSwish", {}),
    "log": ("Log", {}),
    "logical_not": ("Not", {}),
    "mish": ("Mish", {}),
    "neg": ("Neg", {}),
    "reciprocal": ("Reciprocal", {}),
    "relu": ("Relu", {}),
    "round": ("Round", {}),
    "selu": ("Selu", {}),
    "sigmoid": ("Sigmoid", {}),
    "sign": ("Sign", {}),
    "sin": ("Sin", {}),
    "sqrt": ("Sqrt", {}),
    "tan": ("Tan", {}),
    "tanh": ("Tanh", {}),
}
_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min", "rsub": "Sub",
    "true_divide": "Div",
}  # fmt: skip
_COMPARE = {"eq": "Equal", "ne": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_LOGIC = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor", "bitwise_and": "And", "bitwise_or": "Or",
          "__and__": "And", "__or__": "Or"}  # fmt: skip
COMPARISONS = tuple(_COMPARE)
"""Comparisons."""
ELEMENTWISE = (*_UNARY, *_BINARY, *_COMPARE, *_LOGIC)
"""Operations whose result has the shape of their operands."""

_REDUCE = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}


def _unary(op: str, attrs: Mapping[str, Any]) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        want = c.out().dtype
        if op == "Not" and want != "bool":
            raise c.unsupported(f"it negates the bits of {want}; supported: bool")
        value = graph.operand(c.get("self"), want)  # the square root of integers is a float
        return graph.builder.node(op, value, **attrs)

    return handler


def _binary(name: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        dtype = c.out().dtype
        a, b = graph.operand(c.get("self"), dtype), graph.operand(c.get("other"), dtype)
        if name == "rsub":
            a, b = b, a
        alpha = c.number("alpha", 1)
        if alpha != 1:
            if name == "rsub":
                raise c.unsupported("alpha should be 1")
            b = graph.builder.node("Mul", b, graph.scalar(alpha, dtype))
        if dtype == "bool":
            raise c.unsupported("it calculates with bool")
        return graph.builder.node(_BINARY[name], a, b)

    return handler


def _divide(graph: AtenGraph, c: Arguments) -> str:
    dtype, mode = c.out().dtype, c.get("rounding_mode")
    quotient = graph.builder.node("Div", graph.operand(c.get("self"), dtype), graph.operand(c.get("other"), dtype))
    if mode is None:
        return quotient
    if mode != "floor" or dtype != "float32":
        raise c.unsupported(f"rounding_mode {mode!r} of {dtype} is not supported; supported: 'floor' of floats")
    return graph.builder.node("Floor", quotient)


def _power(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    return graph.builder.node("Pow", graph.operand(c.get("self"), dtype), graph.operand(c.get("exponent"), dtype))


def _compare(name: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        kinds = {
            c.meta(k).dtype if isinstance(c.get(k), Tensor) else type(c.get(k)).__name__ for k in ("self", "other")
        }
        if kinds & {"float32", "float"}:
            dtype = "float32"
        else:
            dtype = "bool" if kinds <= {"bool"} else "int64"
        a, b = graph.operand(c.get("self"), dtype), graph.operand(c.get("other"), dtype)
        found = graph.builder.node(_COMPARE[name], a, b)
        return graph.builder.node("Not", found) if name == "ne" else found

    return handler


def _logic(name: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        if not name.startswith("logical") and c.out().dtype != "bool":
            raise c.unsupported(f"it combines the bits of {c.out().dtype}; supported: bool")
        return graph.builder.node(_LOGIC[name], *(graph.operand(c.get(k), "bool") for k in ("self", "other")))

    return handler


def _where(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    condition = graph.operand(c.get("condition"), "bool")
    return graph.builder.node(
        "Where", condition, graph.operand(c.get("self"), dtype), graph.operand(c.get("other"), dtype)
    )


def _masked_fill(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    filled = graph.operand(c.get("value"), dtype)
    return graph.builder.node("Where", graph.operand(c.get("mask"), "bool"), filled, c.value("self"))


def _clamp(
    lowest: float | None = None, highest: float | None = None, names: tuple[str, str] = ("min", "max")
) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        dtype = c.out().dtype
        defaults = dict(zip(names, (lowest, highest), strict=True))
        bounds = [c.number(n, d) if c.get(n, d) is not None else None for n, d in defaults.items()]
        values = [graph.scalar(bound, dtype) if bound is not None else "" for bound in bounds]
        return graph.builder.node("Clip", graph.operand(c.get("self"), dtype), *values)

    return handler


def _scaled(op: str, **defaults: float) -> Handler:
    """An activation whose attributes are numbers of the call."""

    def handler(graph: AtenGraph, c: Arguments) -> str:
        attrs: dict[str, Any] = {name: c.real(name, default) for name, default in defaults.items()}
        if attrs.pop("scale", 1.0) != 1.0 or attrs.pop("input_scale", 1.0) != 1.0:
            raise c.unsupported("scale and input_scale should be 1")
        if "negative_slope" in attrs:
            attrs = {"alpha": attrs["negative_slope"]}
        return graph.builder.node(op, c.value("self"), **attrs)

    return handler


def _softplus(graph: AtenGraph, c: Arguments) -> str:
    """Torch is linear past its threshold of 20, where the two differ by 2e-9."""
    beta = c.real("beta", 1)
    if c.real("threshold", 20) < 20 or beta == 0:
        raise c.unsupported("a threshold below 20 or a beta of 0 is not supported")
    if beta == 1:
        return graph.builder.node("Softplus", c.value("self"))
    scale = graph.scalar(beta, c.out().dtype)
    inner = graph.builder.node("Softplus", graph.builder.node("Mul", c.value("self"), scale))
    return graph.builder.node("Div", inner, scale)


def _gelu(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Gelu", c.value("self"), approximate=c.text("approximate", "none"))


def _silu(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Mul", c.value("self"), graph.builder.node("Sigmoid", c.value("self")))


def _log_sigmoid(graph: AtenGraph, c: Arguments) -> str:
    negative = graph.builder.node("Neg", c.value("self"))
    return graph.builder.node("Neg", graph.builder.node("Softplus", negative))


def _rsqrt(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Reciprocal", graph.builder.node("Sqrt", c.value("self")))


def _log_of_one_plus(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    return graph.builder.node(
        "Log", graph.builder.node("Add", graph.operand(c.get("self"), dtype), graph.scalar(1, dtype))
    )


def _exp_minus_one(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    return graph.builder.node(
        "Sub", graph.builder.node("Exp", graph.operand(c.get("self"), dtype)), graph.scalar(1, dtype)
    )


def _square(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Mul", c.value("self"), c.value("self"))


def _add_scaled_product(graph: AtenGraph, c: Arguments) -> str:
    dtype = c.out().dtype
    product = graph.builder.node("Mul", *(graph.operand(c.get(name), dtype) for name in ("tensor1", "tensor2")))
    if (factor := c.number("value", 1)) != 1:
        product = graph.builder.node("Mul", product, graph.scalar(factor, dtype))
    return graph.builder.node("Add", graph.operand(c.get("self"), dtype), product)


def _lerp(graph: AtenGraph, c: Arguments) -> str:
    """Start + weight * (end - start)."""
    start, dtype = c.value("self"), c.out().dtype
    way = graph.builder.node("Sub", c.value("end"), start)
    return graph.builder.node("Add", start, graph.builder.node("Mul", way, graph.operand(c.get("weight"), dtype)))


def _one_hot(graph: AtenGraph, c: Arguments) -> str:
    classes = c.integer("num_classes", -1)
    if classes < 1:
        raise c.unsupported("the number of classes depends on the numbers in the tensor; give num_classes")
    values = graph.builder.constant("one_hot", np.array([0, 1], np.int64))
    return graph.builder.node("OneHot", c.value("self"), graph.scalar(classes, "int64"), values, axis=-1)


def _glu(graph: AtenGraph, c: Arguments) -> str:
    axis = c.axis(default=-1)
    a, b = graph.builder.nodes_out("Split", [c.value("self")], ["glu_a", "glu_b"], axis=axis, num_outputs=2)
    return graph.builder.node("Mul", a, graph.builder.node("Sigmoid", b))


def _prelu(graph: AtenGraph, c: Arguments) -> str:
    """The slopes belong to axis 1."""
    slope, rank = c.value("weight"), c.rank("self")
    if c.rank("weight") == 1 and rank > 2 and c.meta("weight").shape != (1,):
        slope = graph.builder.node("Unsqueeze", slope, graph.ints(range(1, rank - 1)))
    return graph.builder.node("PRelu", c.value("self"), slope)


def _softmax(op: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        return graph.builder.node(op, graph.operand(c.get("self"), c.out().dtype), axis=c.axis())

    return handler


def _reduce(name: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        value, axes = graph.operand(c.get("self"), c.out().dtype), c.axes()
        operands = [value, graph.ints(axes)] if axes else [value]
        return graph.builder.node(_REDUCE[name], *operands, keepdims=int(c.flag("keepdim")))

    return handler


def _extreme(name: str) -> Handler:
    """Max and min over all elements, or along one axis with their indices."""
    suffix = name.capitalize()

    def handler(graph: AtenGraph, c: Arguments) -> list[str]:
        value = c.value("self")
        if c.get("dim") is None:
            return [graph.builder.node(f"Reduce{suffix}", value, keepdims=0)]
        axis, keep = c.axis(), int(c.flag("keepdim"))
        largest = graph.builder.node(f"Reduce{suffix}", value, graph.ints([axis]), keepdims=keep)
        return [largest, graph.builder.node(f"Arg{suffix}", value, axis=axis, keepdims=keep)]

    return handler


def _arg_extreme(name: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        value, keep = c.value("self"), int(c.flag("keepdim"))
        if c.get("dim") is None:
            if keep:
                raise c.unsupported("keepdim without dim is not supported")
            return graph.builder.node(name, graph.builder.node("Reshape", value, graph.ints([-1])), axis=0, keepdims=0)
        return graph.builder.node(name, value, axis=c.axis(), keepdims=keep)

    return handler


def _log_sum_exp(graph: AtenGraph, c: Arguments) -> str:
    keep = int(c.flag("keepdim"))
    return graph.builder.node("ReduceLogSumExp", c.value("self"), graph.ints(c.axes()), keepdims=keep)


def _vector_norm(graph: AtenGraph, c: Arguments) -> str:
    order = c.number("ord", 2)
    if order not in (1, 2):
        raise c.unsupported(f"the norm {order:g} is not supported; supported: 1 and 2")
    axes, keep = c.axes() or list(range(c.rank("self"))), int(c.flag("keepdim"))
    return graph.builder.node(f"ReduceL{int(order)}", c.value("self"), graph.ints(axes), keepdims=keep)


def _variance(root: bool) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        builder, value = graph.builder, c.value("self")
        axes = c.axes() or list(range(c.rank("self")))
        correction = c.number("correction", int(c.flag("unbiased", True)))
        centred = builder.node("Sub", value, builder.node("ReduceMean", value, graph.ints(axes), keepdims=1))
        keep = int(c.flag("keepdim"))
        squares = builder.node("Mul", centred, centred)
        if correction == 0:
            variance = builder.node("ReduceMean", squares, graph.ints(axes), keepdims=keep)
        else:
            total = builder.node("ReduceSum", squares, graph.ints(axes), keepdims=keep)
            variance = builder.node("Div", total, _count(graph, c, axes, correction))
        return builder.node("Sqrt", variance) if root else variance

    return handler


def _count(graph: AtenGraph, c: Arguments, axes: Sequence[int], correction: float) -> str:
    """Return how many numbers the axes hold, less the correction."""
    sizes, dtype = [c.meta("self").shape[axis] for axis in axes], c.out().dtype
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        count = math.prod(known)
        if count <= correction:
            raise c.unsupported(f"the variance of {count} numbers with a correction of {correction:g} is not defined")
        return graph.scalar(count - correction, dtype)
    builder = graph.builder
    found = builder.node("Gather", builder.node("Shape", c.value("self")), graph.ints(axes), axis=0)
    count_of_all = graph.cast(builder.node("ReduceProd", found, keepdims=0), "int64", dtype)
    return builder.node("Sub", count_of_all, graph.scalar(correction, dtype))


def _cumulative_sum(graph: AtenGraph, c: Arguments) -> str:
    axis = graph.scalar(c.axis(), "int64")
    return graph.builder.node("CumSum", graph.operand(c.get("self"), c.out().dtype), axis)


def _cumulative_log_sum(graph: AtenGraph, c: Arguments) -> str:
    axis = graph.scalar(c.axis(), "int64")
    return graph.builder.node("LogCumSumExp", graph.operand(c.get("self"), c.out().dtype), axis)


def _cast(graph: AtenGraph, c: Arguments) -> str:
    return graph.operand(c.get("self"), c.out().dtype)


HANDLERS: dict[str, Handler] = {
    **by_overload(
        {
            **{name: _unary(*form) for name, form in _UNARY.items()},
            **{name: _binary(name) for name in _BINARY},
            **{name: _compare(name) for name in _COMPARE},
            **{name: _logic(name) for name in _LOGIC},
            **{name: _reduce(name) for name in _REDUCE},
            **{name: _extreme(name) for name in ("max", "min")},
            **dict.fromkeys(["div", "true_divide"], _divide),
            **dict.fromkeys(["softmax", "_softmax"], _softmax("Softmax")),
            **dict.fromkeys(["log_softmax", "_log_softmax"], _softmax("LogSoftmax")),
            **dict.fromkeys(["clamp", "clamp_max", "clamp_min"], _clamp()),
            **dict.fromkeys(["to", "_to_copy", "type_as"], _cast),
            **dict.fromkeys(["prelu", "_prelu_kernel"], _prelu),
            "addcmul": _add_scaled_product, "argmax": _arg_extreme("ArgMax"), "argmin": _arg_extreme("ArgMin"),
            "cumsum": _cumulative_sum, "elu": _scaled("Elu", alpha=1.0, scale=1.0, input_scale=1.0),
            "expm1": _exp_minus_one, "gelu": _gelu, "glu": _glu,
            "hardtanh": _clamp(-1.0, 1.0, ("min_val", "max_val")),
            "leaky_relu": _scaled("LeakyRelu", negative_slope=0.01), "lerp": _lerp, "linalg_vector_norm": _vector_norm,
            "log1p": _log_of_one_plus, "log_sigmoid": _log_sigmoid, "logcumsumexp": _cumulative_log_sum,
            "logsumexp": _log_sum_exp, "masked_fill": _masked_fill, "one_hot": _one_hot, "pow": _power,
            "relu6": _clamp(0.0, 6.0), "rsqrt": _rsqrt, "silu": _silu, "softplus": _softplus, "square": _square,
            "std": _variance(True), "var": _variance(False), "where": _where,
        }
    ),
    "aten.to.dtype_layout": _cast,
}  # fmt: skip
