"""Keras's attention layers, written out as products of matrices and a softmax.

Where a query may look at nothing at all, the layers differ, and so does what is written here: Attention, and
MultiHeadAttention in Keras 2, subtract 1e9 from the scores, MultiHeadAttention in Keras 3 puts one large
negative number in their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.tensor import Tensor, broadcast
from fastlstm.converters.keras.weights import Slot
from fastlstm.errors import UnsupportedError

__all__ = ["KINDS"]

_FAR = 1e9
_LOWEST = float(np.finfo(np.float32).max) * -0.7


def _attention(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    emit, config, arguments = layer.emit, layer.config, layer.arguments
    if len(inputs) not in (2, 3):
        raise UnsupportedError(f"{layer.label}: query, value and perhaps key were expected; got {len(inputs)} inputs.")
    query_mask, value_mask, *_ = arguments.masks("mask", inputs)
    query, value, *more = (layer.rank(emit.floats(x), 3) for x in inputs)
    key = more[0] if more else value
    config.ignore("dropout")
    causal = arguments.flag("use_causal_mask") or config.flag("causal")
    scores = _additive_scores(layer, query, key) if layer.kind == "AdditiveAttention" else _scores(layer, query, key)
    keep = None if value_mask is None else emit.unsqueeze(value_mask, 1)
    if causal:
        keep = _both(layer, keep, _causal(layer, query, key))
    if keep is not None:
        scores = _lowered(layer, scores, keep)
    weights = emit.node("Softmax", scores, shape=scores.shape, axis=-1)
    y = emit.node("MatMul", weights, value, shape=(*query.shape[:2], value.shape[2]))
    if query_mask is not None:
        y = emit.where(emit.unsqueeze(query_mask, -1), y, 0.0, layer.label).with_mask(query_mask)
    return [y, weights] if arguments.flag("return_attention_scores") else [y]


def _lowered(layer: Layer, scores: Tensor, keep: Tensor) -> Tensor:
    """Return the scores, far lower where a query may not look."""
    far = layer.emit.binary("Sub", scores, layer.emit.number(_FAR), layer.label)
    shape = broadcast(keep.shape, scores.shape, layer.label)
    return layer.emit.node("Where", keep, scores, far, shape=shape)


def _scores(layer: Layer, query: Tensor, key: Tensor) -> Tensor:
    emit, config = layer.emit, layer.config
    mode, scaled = config.choice("score_mode", ["dot", "concat"], "dot"), config.flag("use_scale")
    scale = layer.constant("scale", layer.weight("scale", ())) if scaled else None
    if mode == "concat":
        weight = layer.constant("concat_score_weight", layer.weight("concat_score_weight", ()))
        total = _summed_tanh(layer, query, key, inner=scale, outer=None)
        return emit.binary("Mul", total, weight, layer.label)
    shape = (*query.shape[:2], key.shape[1])
    scores = emit.node("MatMul", query, emit.transpose(key, [0, 2, 1]), shape=shape)
    return scores if scale is None else emit.binary("Mul", scores, scale, layer.label)


def _additive_scores(layer: Layer, query: Tensor, key: Tensor) -> Tensor:
    scale = None
    if layer.config.flag("use_scale", True):
        scale = layer.constant("scale", layer.weight("scale", (query.size(2, layer.label),)))
    return _summed_tanh(layer, query, key, inner=None, outer=scale)


def _summed_tanh(layer: Layer, query: Tensor, key: Tensor, inner: Tensor | None, outer: Tensor | None) -> Tensor:
    """Return the sum over features of outer * tanh(inner * (query + key)), [batch, queries, keys]."""
    emit = layer.emit
    pairs = emit.binary("Add", emit.unsqueeze(query, 2), emit.unsqueeze(key, 1), layer.label)
    if inner is not None:
        pairs = emit.binary("Mul", pairs, inner, layer.label)
    bent = emit.like("Tanh", pairs)
    if outer is not None:
        bent = emit.binary("Mul", bent, outer, layer.label)
    return emit.reduce("ReduceSum", bent, [3])


def _causal(layer: Layer, query: Tensor, key: Tensor) -> Tensor:
    """Return where a query may look at a key, which must not come later, [1, queries, keys]."""
    emit = layer.emit
    sizes = emit.node(
        "Concat", emit.ints([1]), emit.sizes(query, 1, 2), emit.sizes(key, 1, 2), shape=(3,), dtype="int64", axis=0
    )
    one = Tensor(emit.constant(np.int64(1), "index"), (), "int64")
    shape = (1, query.shape[1], key.shape[1])
    ones = emit.node("Expand", one, sizes, shape=shape, dtype="int64")
    rows, columns = (
        emit.node(
            "CumSum", ones, emit.constant(np.int64(axis), "index"), shape=shape, dtype="int64", exclusive=0, reverse=0
        )
        for axis in (1, 2)
    )
    return emit.logic("GreaterOrEqual", rows, columns, layer.label)


def _both(layer: Layer, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return layer.emit.logic("And", a, b, layer.label)


def _attention_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    slots = [Slot("scale")] if config.get("use_scale") else []
    return [*slots, Slot("concat_score_weight")] if config.get("score_mode") == "concat" else slots


def _additive_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("scale")] if config.get("use_scale", True) else []


def _multi_head_attention(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    emit, config, arguments = layer.emit, layer.config, layer.arguments
    heads, key_dim = config.integer("num_heads"), config.integer("key_dim")
    value_dim = key_dim if config.get("value_dim") is None else config.integer("value_dim")
    config.ignore("query_shape", "key_shape", "value_shape")  # what Keras 2 built it for
    robust = config.flag("softmax_robust_masking", layer.major == 3)
    for option, standard in (("use_gate", False), ("sliding_window", None), ("flash_attention", None)):
        config.choice(option, [standard], standard)
    axes = config.get("attention_axes")
    if axes not in (None, [1], 1):
        raise UnsupportedError(f"{layer.label}: attention_axes={axes!r:.40} is not supported; supported: [1].")
    query, value, key = _named_inputs(layer, inputs)
    with_scores, keep = arguments.flag("return_attention_scores"), _keep(layer, query, value, key)
    # Without dropout and scores Keras 3 takes a shorter way, in which a query that may see nothing sees all;
    # so it does in Keras 2.
    strict = layer.major == 3 and (config.number("dropout", 0.0) > 0 or with_scores)
    config.ignore("dropout")
    q = emit.binary(
        "Mul", _heads(layer, "query", query, heads, key_dim), emit.number(1 / math.sqrt(key_dim)), layer.label
    )
    k, v = _heads(layer, "key", key, heads, key_dim), _heads(layer, "value", value, heads, value_dim)
    scores = emit.node("MatMul", q, emit.transpose(k, [0, 1, 3, 2]), shape=(*q.shape[:3], k.shape[2]))
    if keep is not None and robust:
        scores = emit.where(keep, scores, _LOWEST, layer.label)
    elif keep is not None:
        scores = _lowered(layer, scores, keep)
    weights = emit.node("Softmax", scores, shape=scores.shape, axis=-1)
    if keep is not None and strict:
        weights = emit.where(keep, weights, 0.0, layer.label)
    mixed = emit.node("MatMul", weights, v, shape=(*q.shape[:3], value_dim))
    size = heads * value_dim
    joined = emit.reshape(emit.transpose(mixed, [0, 2, 1, 3]), [0, 0, size], (*query.shape[:2], size))
    y = _output(layer, joined, query, heads, value_dim).with_mask(query.mask)
    return [y, weights] if with_scores else [y]


def _named_inputs(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, value and key; after the query they may be named arguments."""
    named = [layer.arguments.tensor(name) for name in ("query", "value", "key")]
    given = [*inputs, *(x for x in named if x is not None)]
    if len(given) not in (2, 3):
        raise UnsupportedError(f"{layer.label}: query, value and perhaps key were expected; got {len(given)} inputs.")
    if layer.major == 3:
        for x in given:
            layer.translator.take_mask(x)
    query, value, *more = (layer.rank(layer.emit.floats(x), 3).with_mask(x.mask) for x in given)
    return query, value, more[0] if more else value.with_mask(None)


def _keep(layer: Layer, query: Tensor, value: Tensor, key: Tensor) -> Tensor | None:
    """Return where a query may look at a key, [batch or 1, 1, queries, keys], None: everywhere."""
    emit, arguments = layer.emit, layer.arguments
    keep: Tensor | None = None
    for name, x, axis in (("query_mask", query, -1), ("value_mask", value, 1), ("key_mask", key, 1)):
        (mask,) = arguments.masks(name, [x])
        if name == "query_mask" and layer.major == 3:  # Keras 3 looks at the query's own mask only
            mask = query.mask
        keep = _both(layer, keep, None if mask is None else emit.unsqueeze(mask, axis))
    if arguments.flag("use_causal_mask"):
        keep = _both(layer, keep, _causal(layer, query, key))
    given = arguments.tensor("attention_mask")
    if given is not None and given.rank == 4:
        return (
            emit.cast(given, "bool")
            if keep is None
            else _both(layer, emit.unsqueeze(keep, 1), emit.cast(given, "bool"))
        )
    keep = _both(layer, keep, None if given is None else emit.cast(given, "bool"))
    return None if keep is None else emit.unsqueeze(keep, 1)


def _heads(layer: Layer, part: str, x: Tensor, heads: int, size: int) -> Tensor:
    """Return the projection of `x` for every head, [batch, heads, steps, size]."""
    emit, features = layer.emit, x.size(2, layer.label)
    kernel = layer.weight(f"{part}_kernel", (features, heads, size), f"{part}_dense").reshape(features, -1)
    operands = [x, layer.constant(f"{part}_kernel", kernel)]
    if layer.config.flag("use_bias", True):
        bias = layer.weight(f"{part}_bias", (heads, size), f"{part}_dense").reshape(-1)
        operands.append(layer.constant(f"{part}_bias", bias))
    y = emit.node("Dense", *operands, shape=(*x.shape[:2], heads * size))
    return emit.transpose(emit.reshape(y, [0, 0, heads, size], (*x.shape[:2], heads, size)), [0, 2, 1, 3])


def _output(layer: Layer, x: Tensor, query: Tensor, heads: int, size: int) -> Tensor:
    given = layer.config.get("output_shape")
    features = [query.size(2, layer.label)] if given is None else layer.config.integers("output_shape", None)
    if len(features) != 1:
        raise UnsupportedError(f"{layer.label}: output_shape should be one size; got {features}.")
    kernel = layer.weight("output_kernel", (heads, size, features[0]), "output_dense").reshape(-1, features[0])
    operands = [x, layer.constant("output_kernel", kernel)]
    if layer.config.flag("use_bias", True):
        operands.append(layer.constant("output_bias", layer.weight("output_bias", (features[0],), "output_dense")))
    return layer.emit.node("Dense", *operands, shape=(*x.shape[:2], features[0]))


def _multi_head_slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    parts = ["query", "key", *(["gate"] if config.get("use_gate") else []), "value", "output"]
    names = ["kernel", "bias"] if config.get("use_bias", True) else ["kernel"]
    return [Slot(f"{part}_{name}", f"{part}_dense") for part in parts for name in names]


KINDS: Mapping[str, Kind] = {
    "Attention": Kind(
        _attention,
        _attention_slots,
        "use_scale, score_mode dot and concat, masks, use_causal_mask, return_attention_scores",
    ),
    "AdditiveAttention": Kind(
        _attention, _additive_slots, "use_scale, masks, use_causal_mask, return_attention_scores"
    ),
    "MultiHeadAttention": Kind(
        _multi_head_attention,
        _multi_head_slots,
        "num_heads, key_dim, value_dim, output_shape, use_bias, masks, attention_mask, use_causal_mask, "
        "return_attention_scores",
        "use_gate, sliding_window, attention over several axes",
    ),
}
"""Attention."""
