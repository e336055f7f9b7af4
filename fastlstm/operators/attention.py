"""Attention over keys and values, and rotary embeddings, as ONNX opset 25 defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import RARE, Operator, table
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.rules import same
from fastlstm.operators.values import Operands, ValueInfo
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    valid: Array | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | str | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Array, Array, Array, Array]:
    """Return softmax(q k' * scale + mask) v, the keys and values with the past before them, and the scores.

    Parameters
    ----------
    q, k, v : arrays, [B, heads, T, size], or [B, T, heads * size] with the numbers of heads
    mask : array that broadcasts to [B, heads, T of q, T of k], bool or added to the scores
    past_key, past_value : arrays, [B, heads of k, T of the past, size]
    valid : array of int, [B]
        Number of keys that count in each row.
    qk_matmul_output_mode : int
        Which scores to return: 0 the products, 1 after the soft cap, 2 with the mask added, 3 after softmax.
    left_window_size, right_window_size : int
        How many keys before and after its own position a query sees; -1 all.
    """
    flat = q.ndim == 3
    if flat:
        if q_num_heads is None or kv_num_heads is None:
            raise ValueError("inputs of rank 3 need q_num_heads and kv_num_heads")
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    key = k if past_key is None else np.concatenate([past_key, k], axis=2)
    value = v if past_value is None else np.concatenate([past_value, v], axis=2)
    window = (left_window_size, 0 if is_causal else right_window_size)
    bias = _bias(q, key, mask, valid, past_key, window)
    group = q.shape[1] // key.shape[1]
    # Half of the scale on either side, as ONNX has it: the products stay in range.
    half = q.dtype.type(np.sqrt(1 / np.sqrt(q.shape[3]) if scale is None else scale))
    products = (q * half) @ (np.repeat(key, group, axis=1).swapaxes(2, 3) * half)
    capped = products if softcap == 0 else q.dtype.type(softcap) * np.tanh(products / q.dtype.type(softcap))
    scores = capped + bias
    weights = _softmax(scores, bias, q.dtype if softmax_precision is None else dtype_of(softmax_precision))
    y = weights @ np.repeat(value, group, axis=1)
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], y.shape[1] * y.shape[3])
    shown = (products, capped, scores, weights)[qk_matmul_output_mode]
    return y, key, value, np.asarray(shown, dtype=q.dtype)


def _heads(x: Array, count: int) -> Array:
    """Return [B, T, heads * size] as [B, heads, T, size]."""
    return x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(0, 2, 1, 3)


def _bias(
    q: Array,
    key: Array,
    mask: Array | None,
    valid: Array | None,
    past: Array | None,
    window: tuple[int, int],
) -> Array:
    """Return what is added to the scores: the mask, and -inf where a key must not be seen."""
    B, T, S = q.shape[0], q.shape[2], key.shape[2]
    bias = np.zeros((1, 1, T, S), dtype=q.dtype)
    if mask is not None:
        missing = [(0, 0)] * (mask.ndim - 1) + [(0, S - mask.shape[-1])]
        if mask.dtype == np.bool_:
            mask = np.where(np.pad(mask, missing), 0, -np.inf)
        else:
            mask = np.pad(mask, missing, constant_values=-np.inf)
        bias = bias + mask.astype(q.dtype)
    if past is not None:
        before = np.array(past.shape[2])
    else:
        before = np.array(0) if valid is None else (valid - T).reshape(B, 1, 1, 1)
    ahead = np.arange(S) - (np.arange(T)[:, None] + before)  # how far the key is past the query
    left, right = window
    seen = np.ones(ahead.shape, dtype=bool)
    if left >= 0:
        seen &= -ahead <= left
    if right >= 0:
        seen &= ahead <= right
    if valid is not None:
        seen = seen & (np.arange(S) < valid.reshape(B, 1, 1, 1))
    return np.where(seen, bias, -np.inf).astype(q.dtype)


def _softmax(scores: Array, bias: Array, dtype: np.dtype[Any]) -> Array:
    """Return the softmax of each row, 0 in rows that may see no key at all."""
    wide = scores.astype(dtype)
    top = np.max(wide, axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(wide - np.where(np.isneginf(top), 0, top))
    blind = np.isneginf(np.max(bias, axis=-1, keepdims=True, initial=-np.inf))
    return np.where(blind, 0, e / np.sum(e, axis=-1, keepdims=True)).astype(scores.dtype)


def rotary_embedding(
    x: Array,
    cosines: Array,
    sines: Array,
    positions: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Array:
    """Return x with pairs of features turned by an angle that grows with the position.

    Parameters
    ----------
    x : array, [B, heads, T, size], or [B, T, heads * size] with `num_heads`
    cosines, sines : arrays, [positions, size / 2], or [B, T, size / 2] without `positions`
    interleaved : int
        1 pairs features 0 and 1, 2 and 3; 0 pairs the first half with the second.
    rotary_embedding_dim : int
        Number of features that turn; 0 all.
    """
    flat = x.ndim == 3
    if flat and not num_heads:
        raise ValueError("an input of rank 3 needs num_heads")
    rows = _heads(x, num_heads) if flat else x
    width = rotary_embedding_dim or rows.shape[3]
    turned, rest = rows[..., :width], rows[..., width:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cosines, sines = cosines[:, None], sines[:, None]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
    pair = (cosines * a - sines * b, sines * a + cosines * b)
    joined = np.stack(pair, axis=-1).reshape(turned.shape) if interleaved else np.concatenate(pair, axis=-1)
    y = np.concatenate([joined, rest], axis=-1)
    return y.transpose(0, 2, 1, 3).reshape(x.shape) if flat else y


def _attention_info(at: Operands) -> tuple[ValueInfo, ...]:
    q, v, dtype = at[0].shape, at[2].shape, at[0].dtype
    if q is None or v is None or len(q) != len(v) or len(q) not in (3, 4):
        return (ValueInfo(None, dtype),)
    if len(q) == 4:
        return (ValueInfo((*q[:3], v[3]), dtype),)
    heads, sources = int(at.attr("q_num_heads", 1)), int(at.attr("kv_num_heads", 1)) or 1
    return (ValueInfo((*q[:2], dims.multiply(heads, dims.floor_divide(v[2], sources))), dtype),)


OPERATORS = table(
    Operator("Attention", attention, _attention_info, RARE, "looks at all frames at once"),
    Operator(
        "RotaryEmbedding",
        rotary_embedding,
        same,
        RARE,
        "turns features by an angle that depends on how many frames there are",
    ),
)
