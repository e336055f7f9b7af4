"""Aten operations that layers are made of: products, convolutions, normalisation, pooling, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.converters.torch.aten.graph import Arguments, AtenGraph, Handler
from fastlstm.converters.torch.aten.schemas import by_overload

__all__ = ["HANDLERS"]

_CHANNELS = 1 << 24
"""More than any layer normalises over; what a damaged program asks for is not made."""


def _linear(graph: AtenGraph, c: Arguments) -> str:
    weight, bias = graph.constant(c.get("weight")), graph.constant(c.get("bias"))
    c.expect(c.rank("weight") == 2, f"'weight' should be a matrix; it has {c.rank('weight')} axes")
    if weight is not None and (bias is not None or c.get("bias") is None):
        name = c.tensor("weight").name.removesuffix("_weight").removeprefix("p_")
        return graph.builder.dense(c.value("input"), weight, bias, name)
    turned = graph.builder.node("Transpose", c.value("weight"), perm=[1, 0])
    product = graph.builder.node("MatMul", c.value("input"), turned)
    return graph.builder.node("Add", product, c.value("bias")) if c.get("bias") is not None else product


def _matmul(graph: AtenGraph, c: Arguments) -> str:
    second = next((name for name in ("mat2", "vec") if c.get(name) is not None), "other")
    return graph.builder.node("MatMul", c.value("self"), c.value(second))


def _add_product(first: str, second: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        terms = [
            (graph.builder.node("MatMul", c.value(first), c.value(second)), c.number("alpha", 1)),
            (c.value("self"), c.real("beta", 1)),
        ]
        scaled = [
            value if factor == 1 else graph.builder.node("Mul", value, graph.scalar(factor, c.out().dtype))
            for value, factor in terms
        ]
        return graph.builder.node("Add", *scaled)

    return handler


def _einsum(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Einsum", *map(graph.value, c.tensors("tensors")), equation=c.text("equation"))


def _embedding(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Gather", c.value("weight"), c.value("indices"), axis=0)


def _embedding_bag(graph: AtenGraph, c: Arguments) -> str:
    """Bags of one size, as PyTorch makes them of a matrix of indices: offsets 0, n, 2n ..."""
    offsets, mode = c.tensor("offsets"), c.integer("mode", 0)
    c.expect(0 <= mode < 3, f"there is no mode {mode}")
    made_by = next((call for call in graph.program.calls if offsets.name in call.outputs), None)
    known = made_by.arguments if made_by is not None and made_by.target.startswith("aten.arange") else {}
    size = known.get("step")
    if known.get("start") != 0 or size is None or c.get("include_last_offset"):
        raise c.unsupported("its bags should be the rows of a matrix")
    if c.integer("padding_idx", -1) != -1:
        raise c.unsupported("padding_idx is not supported")
    builder = graph.builder
    rows = graph.sizes([-1, size])
    values = builder.node("Gather", c.value("weight"), builder.node("Reshape", c.value("indices"), rows), axis=0)
    if c.get("per_sample_weights") is not None:
        weights = builder.node("Reshape", c.value("per_sample_weights"), rows)
        values = builder.node("Mul", values, builder.node("Unsqueeze", weights, graph.ints([2])))
    reduce = ("ReduceSum", "ReduceMean", "ReduceMax")[mode]
    return builder.node(reduce, values, graph.ints([1]), keepdims=0)


def _weight_norm(graph: AtenGraph, c: Arguments) -> str:
    """G v / |v|, the norm over all axes but one."""
    builder, axis, rank = graph.builder, c.integer("dim", 0), c.rank("v")
    axes = [a for a in range(rank) if axis == -1 or a != axis % rank]
    length = builder.node("ReduceL2", c.value("v"), graph.ints(axes), keepdims=1)
    return builder.node("Mul", c.value("v"), builder.node("Div", c.value("g"), length))


def _dropout(_graph: AtenGraph, c: Arguments) -> str:
    if c.flag("train") and c.number("p", 0.5) > 0:
        raise c.unsupported("the program was exported in training mode; call model.eval() before exporting")
    return c.value("input")


def _check_batched(c: Arguments, name: str, spatial: int) -> None:
    if c.rank(name) != spatial + 2:
        raise c.unsupported(f"it works on [batch, channels, {spatial} axes]; got {c.rank(name)} axes")


def _convolution(transposed: bool = False) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        spatial = c.rank("weight") - 2
        c.expect(spatial > 0, f"'weight' has {spatial + 2} axes")
        _check_batched(c, "input", spatial)
        kernel = [c.size("weight", axis) for axis in range(2, spatial + 2)]
        dilations = c.integers("dilation", 1, spatial)
        turned = c.flag("transposed", transposed)
        attrs: dict[str, Any] = {
            "dilations": dilations,
            "group": c.integer("groups", 1),
            "kernel_shape": kernel,
            "pads": _pads(c, kernel, dilations),
            "strides": c.integers("stride", 1, spatial),
        }
        extra = c.integers("output_padding", 0, spatial)
        if turned and any(extra):
            attrs["output_padding"] = extra
        operands = [c.value("input"), c.value("weight")]
        if c.get("bias") is not None:
            operands.append(c.value("bias"))
        return graph.builder.node("ConvTranspose" if turned else "Conv", *operands, **attrs)

    return handler


def _pads(c: Arguments, kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    padding = c.get("padding")
    if padding == "same":  # torch puts the odd one at the end
        totals = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return [0, 0] * len(kernel) if padding == "valid" else 2 * c.integers("padding", 0, len(kernel))


def _batch_norm(graph: AtenGraph, c: Arguments) -> str:
    if c.flag("training"):
        raise c.unsupported("the program was exported in training mode; call model.eval() before exporting")
    if c.get("running_mean") is None or c.get("running_var") is None:
        raise c.unsupported("without running statistics it depends on the whole batch")
    operands = [c.value("input"), *_scale_and_shift(graph, c, [c.size("input", 1)])]
    operands += [c.value("running_mean"), c.value("running_var")]
    return graph.builder.node("BatchNormalization", *operands, epsilon=c.real("eps", 1e-5))


def _scale_and_shift(graph: AtenGraph, c: Arguments, shape: Sequence[int]) -> list[str]:
    c.expect(all(n > 0 for n in shape) and math.prod(shape) < _CHANNELS, f"it normalises over {list(shape)}")
    neutral = {"weight": 1.0, "bias": 0.0}
    return [
        c.value(name) if c.get(name) is not None else graph.builder.constant(name, np.full(shape, number, np.float32))
        for name, number in neutral.items()
    ]


def _layer_norm(graph: AtenGraph, c: Arguments) -> str:
    shape = c.integers("normalized_shape")
    epsilon = c.real("eps", 1e-5)
    operands = [c.value("input"), *_scale_and_shift(graph, c, shape)]
    return graph.builder.node("LayerNormalization", *operands, axis=-len(shape), epsilon=epsilon)


def _group_norm(graph: AtenGraph, c: Arguments) -> str:
    operands = [c.value("input"), *_scale_and_shift(graph, c, [c.size("input", 1)])]
    attrs: dict[str, Any] = {"num_groups": c.integer("num_groups"), "epsilon": c.real("eps", 1e-5)}
    return graph.builder.node("GroupNormalization", *operands, **attrs)


def _instance_norm(graph: AtenGraph, c: Arguments) -> str:
    if not c.flag("use_input_stats", True):
        return _batch_norm(graph, c)  # the statistics that training has collected
    if c.get("running_mean") is not None:
        raise c.unsupported("the program was exported in training mode; call model.eval() before exporting")
    operands = [c.value("input"), *_scale_and_shift(graph, c, [c.size("input", 1)])]
    return graph.builder.node("InstanceNormalization", *operands, epsilon=c.real("eps", 1e-5))


def _pool(op: str, spatial: int) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        _check_batched(c, "self", spatial)
        kernel = c.integers("kernel_size", count=spatial)
        attrs: dict[str, Any] = {
            "ceil_mode": int(c.flag("ceil_mode")),
            "kernel_shape": kernel,
            "pads": 2 * c.integers("padding", 0, spatial),
            "strides": c.integers("stride", count=spatial) if c.get("stride") else kernel,
        }
        if op == "MaxPool":
            attrs["dilations"] = c.integers("dilation", 1, spatial)
        else:
            attrs["count_include_pad"] = int(c.flag("count_include_pad", True))
            if c.get("divisor_override") is not None:
                raise c.unsupported("divisor_override is not supported")
        return graph.builder.node(op, c.value("self"), **attrs)

    return handler


def _adaptive_pool(op: str, spatial: int) -> Handler:
    """Windows as wide as the output size asks for; where the maxima stood is not told."""

    def handler(graph: AtenGraph, c: Arguments) -> str:
        _check_batched(c, "self", spatial)
        have, want = c.meta("self").shape[-spatial:], c.out().shape[-spatial:]
        c.expect(len(c.out().shape) == spatial + 2 and 0 not in want, f"it gives the shape {list(c.out().shape)}")
        value = c.value("self")
        if set(want) == {1}:
            return graph.builder.node(f"Global{op}", value)
        whole = [axis for axis, size in enumerate(want, 2) if size == 1 and have[axis - 2] != 1]
        if all(a == b or b == 1 for a, b in zip(have, want, strict=True)):
            reduce = "ReduceMax" if op == "MaxPool" else "ReduceMean"
            return graph.builder.node(reduce, value, graph.ints(whole), keepdims=1) if whole else value
        windows = [a // b for a, b in zip(have, want, strict=True) if isinstance(a, int) and isinstance(b, int)]
        if len(windows) != spatial or any(a % b for a, b in zip(have, want, strict=True)):  # type: ignore[operator]
            raise c.unsupported(
                f"the output size {list(want)} of {list(have)} is not supported; supported: 1, the size itself, "
                "and what divides a size that is fixed"
            )
        return graph.builder.node(op, value, kernel_shape=windows, strides=windows)

    return handler


def _attention(graph: AtenGraph, c: Arguments) -> str:
    """softmax(q k^T * scale + mask) v."""
    builder, dtype, rank = graph.builder, c.out().dtype, c.rank("query")
    if c.number("dropout_p", 0.0) or c.flag("is_causal") or c.flag("enable_gqa"):
        raise c.unsupported("dropout, is_causal and enable_gqa are not supported; give the mask as a tensor")
    c.expect(rank > 1 and c.size("query", -1) > 0, "its operands should have an axis of features")
    scale = graph.scalar(c.real("scale", 1 / math.sqrt(c.size("query", -1))), dtype)
    keys = builder.node("Transpose", c.value("key"), perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = builder.node("Mul", builder.node("MatMul", c.value("query"), keys), scale)
    if c.get("attn_mask") is not None:
        mask = c.value("attn_mask")
        if c.meta("attn_mask").dtype == "bool":
            scores = builder.node("Where", mask, scores, graph.scalar(-math.inf, dtype))
        else:
            scores = builder.node("Add", scores, mask)
    return builder.node("MatMul", builder.node("Softmax", scores, axis=-1), c.value("value"))


HANDLERS: dict[str, Handler] = {
    **by_overload(
        {
            **dict.fromkeys(["conv1d", "conv2d", "convolution", "_convolution_mode"], _convolution()),
            **dict.fromkeys(["conv_transpose1d", "conv_transpose2d"], _convolution(transposed=True)),
            **{f"max_pool{d}d": _pool("MaxPool", d) for d in (1, 2)},
            **{f"avg_pool{d}d": _pool("AveragePool", d) for d in (1, 2)},
            **{f"adaptive_avg_pool{d}d": _adaptive_pool("AveragePool", d) for d in (1, 2)},
            **{f"adaptive_max_pool{d}d": _adaptive_pool("MaxPool", d) for d in (1, 2)},
            **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_no_training"], _batch_norm),
            **dict.fromkeys(["layer_norm", "native_layer_norm"], _layer_norm),
            **dict.fromkeys(["bmm", "matmul", "mm", "mv"], _matmul),
            **dict.fromkeys(["alpha_dropout", "dropout", "feature_dropout"], _dropout),
            "_weight_norm": _weight_norm,
            "addmm": _add_product("mat1", "mat2"),
            "baddbmm": _add_product("batch1", "batch2"),
            "einsum": _einsum,
            "embedding": _embedding,
            "embedding_bag": _embedding_bag,
            "group_norm": _group_norm,
            "instance_norm": _instance_norm,
            "linear": _linear,
            "scaled_dot_product_attention": _attention,
        }
    ),
    "aten.embedding_bag.default": _embedding_bag,
}
