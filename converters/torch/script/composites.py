"""Operations that PyTorch fuses when it traces: attention and transformer layers, as the operations they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastlstm.converters.torch.script.calls import Recorder
from fastlstm.errors import UnsupportedError

__all__ = ["COMPOSITES"]


def _attention(
    recorder: Recorder,
    query: Any,
    key: Any,
    value: Any,
    embed_dim: int,
    num_head: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    mask: Any = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: Any = None,
) -> tuple[Any, Any]:
    """``torch.nn.MultiheadAttention`` of one size, batch first.

    What is not zero in the mask is left out: of type 0 it is [time, time], of type 1 [batch, time], of type 2
    [batch, heads, time, time].
    """
    if not average_attn_weights:
        raise UnsupportedError(
            "attention that gives the weights of each head is not supported in this form; "
            "export it with torch.export or to ONNX"
        )

    def call(name: str, *arguments: Any) -> Any:
        return recorder.call(name, arguments, {})

    if not isinstance(embed_dim, int) or not isinstance(num_head, int) or num_head < 1:
        raise UnsupportedError("attention over features and heads whose numbers are not known is not supported")
    size = embed_dim // num_head
    weights, biases = call("chunk", qkv_weight, 3, 0), call("chunk", qkv_bias, 3, 0)
    heads = []
    for tensor, weight, bias in zip((query, key, value), weights, biases, strict=True):
        batch, time = (recorder.size(tensor, axis) for axis in (0, 1))
        projected = call("linear", tensor, weight, bias)
        heads.append(call("transpose", call("view", projected, [batch, time, num_head, size]), 1, 2))
    q, k, v = heads
    scores = call("mul", call("matmul", q, call("transpose", k, 2, 3)), size**-0.5)
    if mask is not None:
        hidden = call("ne", mask, 0)
        if mask_type == 1:
            hidden = call("unsqueeze", call("unsqueeze", hidden, 1), 1)
        scores = call("masked_fill", scores, hidden, -math.inf)
    weights_of = call("softmax", scores, -1)
    batch, time = (recorder.size(query, axis) for axis in (0, 1))
    mixed = call("reshape", call("transpose", call("matmul", weights_of, v), 1, 2), [batch, time, embed_dim])
    output = call("linear", mixed, proj_weight, proj_bias)
    return output, call("mean", weights_of, [1]) if need_weights else None


def _encoder_layer(
    recorder: Recorder,
    src: Any,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Any,
    norm_bias_1: Any,
    norm_weight_2: Any,
    norm_bias_2: Any,
    ffn_weight_1: Any,
    ffn_bias_1: Any,
    ffn_weight_2: Any,
    ffn_bias_2: Any,
    mask: Any = None,
    mask_type: Any = None,
) -> Any:
    """``torch.nn.TransformerEncoderLayer``, batch first."""

    def call(name: str, *arguments: Any) -> Any:
        return recorder.call(name, arguments, {})

    def attend(x: Any) -> Any:
        weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _attention(recorder, x, x, x, embed_dim, num_heads, *weights, mask, False, True, mask_type)[0]

    def feed(x: Any) -> Any:
        inner = call("linear", x, ffn_weight_1, ffn_bias_1)
        return call("linear", call("gelu" if use_gelu else "relu", inner), ffn_weight_2, ffn_bias_2)

    def first(x: Any) -> Any:
        return call("layer_norm", x, [embed_dim], norm_weight_1, norm_bias_1, eps)

    def second(x: Any) -> Any:
        return call("layer_norm", x, [embed_dim], norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = call("add", src, attend(first(src)))
        return call("add", x, feed(second(x)))
    x = first(call("add", src, attend(src)))
    return second(call("add", x, feed(x)))


COMPOSITES: Mapping[str, Callable[..., Any]] = {
    "_native_multi_head_attention": _attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}
"""By the name behind ``torch.``; the recorder comes first."""
