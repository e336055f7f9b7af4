"""The arguments of aten operations by name, as TorchScript's code calls them: by position, without an overload.

Types: T tensor, L list of tensors, i integer, I list of those, n number, b bool, s text, y dtype, d device. T and L
have to be there; T? and all others may be None or be left out. The arguments about memory alone (layout,
memory_format ...) are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastlstm.converters.torch.program import Tensor
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import UnsupportedError

__all__ = ["DTYPES", "SCHEMAS", "SYNONYMS", "Device", "bind", "by_overload"]

T = TypeVar("T")

_TABLE = """
T self:
    abs bitwise_not ceil clone contiguous cos detach erf exp expm1 floor hardsigmoid hardswish log log1p log_sigmoid
    square logical_not mT max min mish neg reciprocal relu relu6 round rsqrt selu sigmoid sign silu sin sqrt squeeze
    t tan tanh
I size, y dtype:
    ones zeros
L tensors, i dim:
    cat stack
T self, I dim:
    squeeze.dims
T self, I dims:
    flip permute
T self, I output_size:
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d
T self, I repeats:
    repeat
T self, I shape:
    reshape
T self, I size:
    expand view
T self, L indices:
    index.Tensor
T self, T exponent:
    pow.Tensor_Tensor
T self, T mat2:
    bmm mm
T self, T other:
    __and__.Tensor __or__.Tensor bitwise_and.Tensor bitwise_or.Tensor div.Tensor eq.Tensor expand_as ge.Tensor
    gt.Tensor le.Tensor logical_and logical_or logical_xor lt.Tensor matmul maximum minimum mul.Tensor
    ne.Tensor reshape_as type_as view_as
T self, T vec:
    mv
T self, T weight:
    prelu
T self, b unbiased:
    std var
T self, i diagonal:
    tril triu
T self, T end, T weight:
    lerp.Tensor
T self, T end, n weight:
    lerp.Scalar
T self, i num_classes:
    one_hot
T self, i repeats, i dim, i output_size:
    repeat_interleave.self_int
T self, i dim:
    logcumsumexp glu squeeze.dim unbind.int unsqueeze
T self, n exponent:
    pow.Tensor_Scalar
T self, n max:
    clamp_max
T self, n min:
    clamp_min
T self, n negative_slope:
    leaky_relu
T self, n other:
    __and__.Scalar __or__.Scalar bitwise_and.Scalar bitwise_or.Scalar div.Scalar eq.Scalar ge.Scalar gt.Scalar
    le.Scalar lt.Scalar mul.Scalar ne.Scalar
T self, s approximate:
    gelu
T self, y dtype:
    mean ones_like prod sum zeros_like
n end, y dtype:
    arange
n s, y dtype:
    scalar_tensor
n self, T exponent:
    pow.Scalar
I size, n fill_value, y dtype:
    full
T condition, T self, T other:
    where.self
T condition, T self, n other:
    where.ScalarOther
T condition, n self, T other:
    where.ScalarSelf
T condition, n self, n other:
    where.Scalar
T input, T weight, T? bias:
    linear
T input, n p, b train:
    alpha_dropout dropout
T self, I dim, b keepdim:
    amax amin logsumexp
T self, I size, y dtype:
    new_ones new_zeros
T self, I source, I destination:
    movedim.intlist
T self, I split_size, i dim:
    split.sizes
T self, I split_sizes, i dim:
    split split_with_sizes
T self, T mask, T value:
    masked_fill.Tensor
T self, T mask, n value:
    masked_fill.Scalar
T self, T other, n alpha:
    add.Tensor rsub.Tensor sub.Tensor
T self, T other, s rounding_mode:
    div.Tensor_mode
T self, b non_blocking, b copy:
    to.prim_other
T self, i chunks, i dim:
    chunk
T self, i dim, I sizes:
    unflatten.int
T self, i dim, T index:
    gather index_select
T self, i dim, b keepdim:
    argmax argmin max.dim min.dim
T self, i dim, i index:
    select.int
T self, i dim, y dtype:
    cumsum log_softmax.int softmax.int
T self, i dim0, i dim1:
    transpose.int
T self, i source, i destination:
    movedim.int
T self, i split_size, i dim:
    split.Tensor
T self, i start_dim, i end_dim:
    flatten.using_ints
T self, n beta, n threshold:
    softplus
T self, n fill_value, y dtype:
    full_like
T self, n min, n max:
    clamp
T self, n min_val, n max_val:
    hardtanh
T self, n other, n alpha:
    add.Scalar rsub.Scalar sub.Scalar
T self, n other, s rounding_mode:
    div.Scalar_mode
n start, n end, y dtype:
    arange.start
s equation, L tensors, I path:
    einsum
T self, I dim, b keepdim, y dtype:
    mean.dim sum.dim_IntList
T self, I dim, b unbiased, b keepdim:
    std.dim var.dim
T self, I dim, n correction, b keepdim:
    std.correction var.correction
T self, I pad, s mode, n value:
    pad
T self, I size, n fill_value, y dtype:
    new_full
T self, i dim, b keepdim, y dtype:
    prod.dim_int
T self, i dim, i start, i length:
    narrow
T self, n alpha, n scale, n input_scale:
    elu
T self, y dtype, b non_blocking, b copy:
    to.prim_dtype
n start, n end, n step, y dtype:
    arange.start_step
T self, T batch1, T batch2, n beta, n alpha:
    baddbmm
T self, T mat1, T mat2, n beta, n alpha:
    addmm
T self, T other, b non_blocking, b copy, i memory_format:
    to.other
T self, d device, y dtype, b non_blocking, b copy:
    to.prim_Device
T self, i dim, i start, i end, i step:
    slice.Tensor
T self, n ord, I dim, b keepdim, y dtype:
    linalg_vector_norm
T self, y dtype, b non_blocking, b copy, i memory_format:
    to.dtype
T weight, T indices, i padding_idx, b scale_grad_by_freq, b sparse:
    embedding
T input, I normalized_shape, T? weight, T? bias, n eps, b cudnn_enable:
    layer_norm
T input, L hx, T w_ih, T w_hh, T? b_ih, T? b_hh:
    lstm_cell
T input, T hx, T w_ih, T w_hh, T? b_ih, T? b_hh:
    gru_cell rnn_relu_cell rnn_tanh_cell
T input, i num_groups, T? weight, T? bias, n eps, b cudnn_enabled:
    group_norm
T self, I kernel_size, I stride, I padding, I dilation, b ceil_mode:
    max_pool1d max_pool2d
T self, I kernel_size, I stride, I padding, b ceil_mode, b count_include_pad:
    avg_pool1d
T self, d device, y dtype, b non_blocking, b copy, i memory_format:
    to.device
T input, T weight, T? bias, I stride, I padding, I dilation, i groups:
    conv1d conv2d
T input, T weight, T? bias, I stride, s padding, I dilation, i groups:
    conv1d.padding conv2d.padding _convolution_mode
T self, I kernel_size, I stride, I padding, b ceil_mode, b count_include_pad, i divisor_override:
    avg_pool2d
T input, T weight, T? bias, I stride, I padding, I output_padding, i groups, I dilation:
    conv_transpose1d conv_transpose2d.input
T query, T key, T value, T? attn_mask, n dropout_p, b is_causal, n scale, b enable_gqa:
    scaled_dot_product_attention
T input, L hx, L params, b has_biases, i num_layers, n dropout, b train, b bidirectional, b batch_first:
    lstm.input
T input, T hx, L params, b has_biases, i num_layers, n dropout, b train, b bidirectional, b batch_first:
    gru.input rnn_relu.input rnn_tanh.input
T input, T weight, T? bias, I stride, I padding, I dilation, b transposed, I output_padding, i groups:
    convolution
T input, T? weight, T? bias, T? running_mean, T? running_var, b training, n momentum, n eps, b cudnn_enabled:
    batch_norm
T input, T? weight, T? bias, T? running_mean, T? running_var, b use_input_stats, n momentum, n eps, b cudnn_enabled:
    instance_norm
T weight, T indices, T offsets, b scale_grad_by_freq, i mode, b sparse, T? per_sample_weights,
  b include_last_offset, i padding_idx:
    embedding_bag.padding_idx
T v, T g, i dim:
    _weight_norm
T self, T tensor1, T tensor2, n value:
    addcmul
"""

SYNONYMS: Mapping[str, str] = {
    "absolute": "abs", "broadcast_to": "expand", "clip": "clamp", "concat": "cat", "concatenate": "cat",
    "_convolution": "convolution", "divide": "div", "greater": "gt", "greater_equal": "ge", "less": "lt",
    "less_equal": "le", "moveaxis": "movedim", "multiply": "mul", "negative": "neg", "norm": "linalg_vector_norm",
    "not_equal": "ne", "subtract": "sub", "swapaxes": "transpose", "swapdims": "transpose", "true_divide": "div",
    "unsafe_chunk": "chunk", "unsafe_split": "split", "unsafe_split_with_sizes": "split_with_sizes",
}  # fmt: skip
"""Operations that are another one by a second name."""

DTYPES: Mapping[int, str] = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    15: "bfloat16",
}  # fmt: skip
"""TorchScript's numbers of dtypes (``c10/core/ScalarType.h``)."""

_IGNORED = frozenset({"layout", "device", "pin_memory", "memory_format", "generator", "implicit", "sparse_grad"})


class Device:
    """A place where tensors are: of no meaning here."""


def _parsed(table: str) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    schemas: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {}
    arguments: list[tuple[str, str]] = []
    for line in re.sub(r",\n +", ", ", table).strip().splitlines():
        if line.endswith(":"):
            arguments = [(part.split()[0], part.split()[1]) for part in line[:-1].split(", ")]
            continue
        for operation in line.split():
            name, _, overload = operation.partition(".")
            schemas.setdefault(name, []).append((overload or "default", arguments))
    return schemas


SCHEMAS = _parsed(_TABLE)
"""The overloads of each operation: name, and the arguments as type and name."""


def by_overload(handlers: Mapping[str, T]) -> dict[str, T]:
    """Return what belongs to operations by the full name of each of their overloads, as in ``aten.add.Tensor``."""
    return {
        f"aten.{name}.{overload}": handler
        for name, handler in handlers.items()
        for overload, _ in SCHEMAS.get(SYNONYMS.get(name, name), [("default", [])])
    }


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, Size)) and not isinstance(value, bool)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "T": lambda v: isinstance(v, Tensor),
    "L": lambda v: isinstance(v, (list, tuple)) and all(t is None or isinstance(t, Tensor) for t in v),
    "i": _is_integer,
    "I": lambda v: _is_integer(v) or (isinstance(v, (list, tuple)) and all(_is_integer(item) for item in v)),
    "n": lambda v: isinstance(v, (int, float, Size)),
    "b": lambda v: isinstance(v, bool),
    "s": lambda v: isinstance(v, str),
    "y": lambda v: _is_integer(v) and v in DTYPES,
    "d": lambda v: isinstance(v, Device),
}


def _fits(kind: str, value: Any) -> bool:
    return kind not in ("T", "L") if value is None else _CHECKS[kind.removesuffix("?")](value)


def bind(name: str, positional: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the overload that a call means and its arguments by name, dtypes by their names.

    Raises
    ------
    UnsupportedError
        If no overload takes these arguments.
    """
    keywords = {key: value for key, value in keywords.items() if key not in _IGNORED}
    for overload, arguments in SCHEMAS.get(name, []):
        names = [argument for _, argument in arguments]
        given = {**dict(zip(names, positional, strict=False)), **keywords}
        if len(positional) > len(names) or not set(keywords) <= set(names[len(positional) :]):
            continue
        if all(_fits(kind, given.get(argument)) for kind, argument in arguments):
            return overload, {
                argument: DTYPES[given[argument]] if kind == "y" and given[argument] is not None else given[argument]
                for kind, argument in arguments
                if argument in given
            }
    kinds = ", ".join(type(value).__name__ for value in (*positional, *keywords.values()))
    raise UnsupportedError(f"The operation 'aten.{name}' with the arguments ({kinds}) is not supported.")
