"""Keras's everyday layers: Dense, Embedding, Masking, activations, and those that do nothing at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.activations import activation, wrapped_layer
from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.converters.keras.weights import Slot

__all__ = ["KINDS", "activated", "kernel_and_bias"]


def activated(layer: Layer, x: Tensor, key: str = "activation") -> Tensor:
    """Apply the activation that the layer's configuration names: a function, or a whole layer."""
    spec = layer.config.get(key)
    inner = wrapped_layer(spec)
    if inner is None:
        return activation(layer.emit, x, spec, layer.label, layer.major)
    return layer.one(layer.translator.call(spec, f"{layer.owner}/activation", [x], layer.arguments))


def kernel_and_bias(config: Mapping[str, Any], _major: int) -> list[Slot]:
    """Return the variables of a layer with a kernel and, unless it says no, a bias."""
    return [Slot("kernel"), Slot("bias")] if config.get("use_bias", True) else [Slot("kernel")]


def _dense(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, config = layer.emit.floats(layer.one(inputs)), layer.config
    units, features = config.integer("units"), x.size(-1, layer.label)
    config.choice("lora_rank", [None])
    config.ignore("lora_alpha", "input_dim")
    operands: list[Tensor] = [x, layer.constant("kernel", layer.weight("kernel", (features, units)))]
    if config.flag("use_bias", True):
        operands.append(layer.constant("bias", layer.weight("bias", (units,))))
    y = layer.emit.node("Dense", *operands, shape=(*x.shape[:-1], units)).with_mask(x.mask)
    return [activated(layer, y)]


def _embedding(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    ids, config, emit = layer.one(inputs), layer.config, layer.emit
    rows, columns = config.integer("input_dim"), config.integer("output_dim")
    config.ignore("input_length")
    config.choice("lora_rank", [None])
    config.choice("sparse", [False], False)
    config.ignore("lora_alpha")
    mask = None
    if config.flag("mask_zero"):
        zero = Tensor(emit.constant(np.asarray(0, ids.dtype), "number"), (), ids.dtype)
        mask = emit.negated(emit.logic("Equal", ids, zero, layer.label))
    table = layer.constant("embeddings", layer.weight("embeddings", (rows, columns)))
    if ids.dtype not in ("int32", "int64"):
        ids = emit.cast(ids, "int32")
    y = emit.node("Gather", table, ids, shape=(*ids.shape, columns), axis=0)
    return [y.with_mask(mask)]


def _embeddings(_config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("embeddings")]


def _masking(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, emit = layer.one(inputs), layer.emit
    value = emit.number(layer.config.number("mask_value", 0.0), x.dtype)
    keep = emit.any(emit.negated(emit.logic("Equal", x, value, layer.label)), -1, keepdims=True)
    return [emit.where(keep, x, 0.0, layer.label).with_mask(emit.squeeze(keep, -1))]


def _activation(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [activated(layer, layer.one(inputs))]


def _unchanged(*training_only: str) -> Any:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        layer.config.ignore(*training_only)
        return [layer.one(inputs)]

    return convert


def _identity(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the input; Keras 2 drops its mask."""
    x = layer.one(inputs)
    return [x.with_mask(None) if layer.major == 2 else x]


KINDS: Mapping[str, Kind] = {
    "InputLayer": Kind(_unchanged(), options="dtype float or integer", refused="sparse, ragged, string inputs"),
    "Dense": Kind(_dense, kernel_and_bias, "units, use_bias, activation", "lora, quantised weights"),
    "Embedding": Kind(_embedding, _embeddings, "mask_zero", "lora, quantised weights"),
    "Masking": Kind(_masking, options="mask_value"),
    "Activation": Kind(_activation, options="activation by name"),
    "Dropout": Kind(_unchanged("rate", "noise_shape"), options="nothing at inference"),
    "SpatialDropout1D": Kind(_unchanged("rate", "noise_shape"), options="nothing at inference"),
    "SpatialDropout2D": Kind(_unchanged("rate", "noise_shape", "data_format"), options="nothing at inference"),
    "GaussianDropout": Kind(_unchanged("rate"), options="nothing at inference"),
    "AlphaDropout": Kind(_unchanged("rate", "noise_shape"), options="nothing at inference"),
    "GaussianNoise": Kind(_unchanged("stddev"), options="nothing at inference"),
    "ActivityRegularization": Kind(_unchanged("l1", "l2"), options="nothing at inference"),
    "Identity": Kind(_identity),
}
"""The everyday layers."""
