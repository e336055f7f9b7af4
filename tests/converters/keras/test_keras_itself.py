"""Models saved by Keras give here what they give in Keras, from ``.keras`` and from ``.h5``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras

import fastlstm
from fastlstm.verification.runners import own_framework

L, ops, Input = keras.layers, keras.ops, keras.Input


def masked_sentiment() -> Any:
    return keras.Sequential(
        [Input((None,), dtype="int32"), L.Embedding(20, 8, mask_zero=True),
         L.Bidirectional(L.LSTM(6, return_sequences=True)),
         L.GRU(5), L.Dense(1, activation="sigmoid")]
    )  # fmt: skip


def masking_layer_in_a_functional_model() -> Any:
    x = Input((7, 4))
    y = L.LSTM(5, return_sequences=True)(L.Masking(0.0)(x))
    both = L.Bidirectional(
        L.LSTM(4, return_sequences=True), backward_layer=L.GRU(4, go_backwards=True, return_sequences=True)
    )(y)
    return keras.Model(x, [y, both, L.GRU(5, go_backwards=True)(both)])


def merge_modes() -> Any:
    x = Input((7, 4))
    modes = ("concat", "sum", "mul", "ave", None)
    runs = [L.Bidirectional(L.GRU(5, return_sequences=True), merge_mode=mode)(x) for mode in modes]
    return keras.Model(x, keras.tree.flatten([runs, L.Bidirectional(L.LSTM(5, return_state=True))(x)]))


def cells() -> Any:
    x = Input((7, 4))
    y = L.RNN([L.LSTMCell(5), L.GRUCell(6, reset_after=False), L.SimpleRNNCell(3)], return_sequences=True)(x)
    return keras.Model(x, [y, *L.RNN(L.GRUCell(4), return_state=True)(y)])


def encoder_and_decoder_with_attention() -> Any:
    source, target = Input((None, 4)), Input((None, 3))
    memory, h, c = L.LSTM(6, return_sequences=True, return_state=True)(source)
    query = L.LSTM(6, return_sequences=True)(target, initial_state=[h, c])
    seen = [L.Attention(use_scale=True)([query, memory]), L.AdditiveAttention()([query, memory])]
    seen.append(L.MultiHeadAttention(2, 5, value_dim=3)(query, memory))
    return keras.Model([source, target], L.Dense(4, activation="softmax")(L.Concatenate()([query, *seen])))


def masked_attention() -> Any:
    words, others = Input((None,), dtype="int32"), Input((None,), dtype="int32")
    a, b = (L.Embedding(20, 6, mask_zero=True)(ids) for ids in (words, others))
    causal = L.AdditiveAttention()([a, b], use_causal_mask=True)
    seen = L.Attention(score_mode="concat")([a, b])
    return keras.Model([words, others], [seen, causal, L.LSTM(3)(seen)])


def masked_heads() -> Any:
    words = Input((None,), dtype="int32")
    x = L.Embedding(20, 6, mask_zero=True)(words)
    return keras.Model(words, L.LSTM(3, return_sequences=True)(L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)))


def heads_take_masks_away() -> Any:
    """A layer that reads a tensor after a MultiHeadAttention has, sees no mask: one before it does."""
    words, others = Input((None,), dtype="int32"), Input((None,), dtype="int32")
    x, y = (L.Embedding(20, 6, mask_zero=True)(ids) for ids in (words, others))
    before = L.Attention()([x, y])
    heads = L.MultiHeadAttention(2, 4)(L.Dropout(0.1)(x), before)
    block = L.LayerNormalization()(L.Add()([x, heads]))
    after = L.AdditiveAttention()([block, y])
    deep = L.Attention()([L.MultiHeadAttention(2, 3)(y, x), x])
    return keras.Model([words, others], [L.LSTM(3, return_sequences=True)(z) for z in (before, block, after, deep)])


def masks_handed_on() -> Any:
    words = Input((6,), dtype="int32")
    x = L.Embedding(20, 4, mask_zero=True)(words)
    kinds = [L.EinsumDense("abc,cd->abd", (None, 4)), L.RMSNormalization(), L.UnitNormalization(), L.Identity()]
    kinds += [L.GroupNormalization(2), L.PReLU(), L.UpSampling1D(2), L.TimeDistributed(L.Dense(4)), L.Rescaling(2.0)]
    return keras.Model(words, [L.LSTM(3, return_sequences=True)(kind(x)) for kind in kinds])


def normalisations() -> Any:
    x = Input((None, 6))
    kinds = [
        L.GroupNormalization(2),
        L.GroupNormalization(-1, scale=False),
        L.RMSNormalization(),
        L.UnitNormalization(),
    ]
    kinds += [L.EinsumDense("abc,cde->abed", (None, 2, 3), bias_axes="ed"), L.EinsumDense("...c,cd->...d", 4)]
    fixed = Input((5, 6))
    return keras.Model(
        [x, fixed],
        [*(kind(x) for kind in kinds), L.LayerNormalization(axis=[1, 2])(fixed), L.GroupNormalization(5, 1)(fixed)],
    )


def transposed_convolutions() -> Any:
    x, image = Input((None, 4)), Input((5, 4, 2))
    kinds = [L.Conv1DTranspose(3, 4, strides=2, padding="same"), L.Conv1DTranspose(3, 2, strides=3, activation="tanh")]
    flat = L.Conv2DTranspose(3, (3, 2), strides=(1, 2), use_bias=False)(image)
    return keras.Model([x, image], [*(L.LSTM(3)(kind(x)) for kind in kinds), flat])


def activations() -> Any:
    x = Input((7, 4))
    names = (
        "celu",
        "glu",
        "hard_shrink",
        "soft_shrink",
        "sparse_plus",
        "squareplus",
        "mish",
        "hard_silu",
        "log_sigmoid",
    )
    relus = [L.ReLU(negative_slope=0.1, threshold=0.2), L.ReLU(0.5, 0.1), L.ReLU(max_value=0.4, threshold=0.1)]
    return keras.Model(x, [*(L.Activation(name)(x) for name in names), *(relu(x) for relu in relus)])


def backwards_first() -> Any:
    x = Input((7, 4))
    back, forth = L.LSTM(5, return_sequences=True, go_backwards=True), L.LSTM(5, return_sequences=True)
    y = L.SpatialDropout1D(0.2)(L.Bidirectional(back, backward_layer=forth)(x))
    last = L.Bidirectional(L.GRU(3, go_backwards=True), backward_layer=L.GRU(3), merge_mode="sum")(y)
    return keras.Model(x, [y, last])


def convolutions() -> Any:
    return keras.Sequential(
        [Input((None, 4)), L.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu"), L.BatchNormalization(),
         L.Conv1D(6, 4, strides=2, padding="same", groups=2), L.AveragePooling1D(3, strides=2, padding="same"),
         L.UpSampling1D(2), L.LayerNormalization(), L.LSTM(5, return_sequences=True), L.GlobalMaxPooling1D()]
    )  # fmt: skip


def convolutional_recurrent() -> Any:
    return keras.Sequential(
        [Input((16, 12, 1)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(scale=False), L.ReLU(max_value=1.0),
         L.MaxPooling2D((1, 2)), L.DepthwiseConv2D(3, padding="same", strides=2), L.Conv2D(3, (3, 2)),
         L.Permute((2, 1, 3)), L.Reshape((-1, 18)), L.Bidirectional(L.LSTM(4)), L.Dense(3, activation="softmax")]
    )  # fmt: skip


def distributed_over_time() -> Any:
    return keras.Sequential(
        [Input((5, 6, 3)), L.TimeDistributed(L.Conv1D(4, 3)), L.TimeDistributed(L.LSTM(4)), L.RNN(L.LSTMCell(2)),
         L.RepeatVector(6), L.LSTM(4, return_sequences=True, unroll=True), L.TimeDistributed(L.Dense(3))]
    )  # fmt: skip


def moved_and_bent() -> Any:
    return keras.Sequential(
        [Input((8, 3)), L.ZeroPadding1D((1, 2)), L.Cropping1D((0, 1)), L.Flatten(), L.Reshape((5, 6)),
         L.PReLU(shared_axes=[1]),
         L.LeakyReLU(0.2), L.ELU(), L.Softmax(axis=1), L.Rescaling(2.0, 1.0), L.Normalization(mean=0.3, variance=2.0),
         L.SimpleRNN(3, recurrent_dropout=0.2)]
    )  # fmt: skip


def merged() -> Any:
    a, b = Input((5, 3)), Input((5, 3))
    kinds = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
    results = [kind()([a, b]) for kind in kinds]
    dots = [L.Dot(axes=2)([a, b]), L.Dot(axes=(1, 1), normalize=True)([a, b])]
    return keras.Model([a, b], [*results, *dots, L.Concatenate(axis=1)([a, b])])


def merged_under_masks() -> Any:
    a, b, c = Input((5,), dtype="int32"), Input((5,), dtype="int32"), Input((5, 3))
    embedding = L.Embedding(20, 3, mask_zero=True)
    x, y = embedding(a), embedding(b)
    pairs = [L.Add()([x, y]), L.Multiply()([x, y]), L.Maximum()([x, c]), L.Concatenate()([x, c])]
    pairs.append(L.Concatenate(axis=1)([x, y]))
    return keras.Model([a, b, c], [L.LSTM(3, return_sequences=True)(pair) for pair in pairs])


def nested_and_shared() -> Any:
    x, y = Input((5, 3)), Input((5, 3))
    inner = keras.Sequential([Input((5, 3)), L.LSTM(4, return_sequences=True), L.Dense(3)])
    twice = keras.Model(y, [L.GRU(3, return_sequences=True)(y), L.Dense(2)(y)])
    return keras.Model(x, [inner(inner(x)), *twice(inner(x)), *twice(x)])


def stateful() -> Any:
    return keras.Sequential(
        [Input(batch_shape=(2, 5, 3)), L.LSTM(4, stateful=True, return_sequences=True), L.GRU(3, stateful=True)]
    )


def operations() -> Any:
    x = Input((7, 4))
    y = L.LSTM(4, return_sequences=True)(x)
    results = [ops.mean(y, axis=1, keepdims=True), ops.concatenate([y, x]), y[:, -1], y[..., 0], y[:, None, ::2], 1 - y]
    results += [ops.reshape(y, (-1, 28)), ops.where(y > 0, y, 0.0), 2.0 / (y * y + 1), ops.matmul(x, ops.ones((4, 2)))]
    return keras.Model(x, results)


MODELS: list[Callable[[], Any]] = [
    masked_sentiment, masking_layer_in_a_functional_model, merge_modes, cells, encoder_and_decoder_with_attention,
    masked_attention, masked_heads, heads_take_masks_away, masks_handed_on, normalisations, transposed_convolutions,
    activations,
    backwards_first, convolutions, convolutional_recurrent, distributed_over_time, moved_and_bent,
    merged, merged_under_masks, nested_and_shared, stateful, operations,
]  # fmt: skip


def make(build: Callable[[], Any]) -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    """Return a model of random weights, inputs (some of them padding) and Keras's outputs."""
    keras.utils.set_random_seed(0)
    model, rng = build(), np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            values = rng.normal(scale=0.4, size=weight.shape)
            weight.assign(np.abs(values) if "variance" in weight.path else values)
    inputs = []
    for spec in model.inputs:
        shape = [{0: 2, 1: 6}[axis] if size is None else size for axis, size in enumerate(spec.shape)]
        x = rng.normal(size=shape).astype("f4")
        if "int" in str(spec.dtype):
            x = (rng.integers(1, 20, shape) * (rng.random(shape) > 0.4)).astype("i4")
            x[:, 0] = 3
        elif len(shape) == 3:
            x[0, 1] = x[1, -2:] = 0
        inputs.append(x)
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return model, inputs, [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(found)]


def check(model: fastlstm.Model, inputs: list[np.ndarray], expected: list[np.ndarray]) -> None:
    found = model.run({spec.name: x for spec, x in zip(model.inputs, inputs, strict=True)})
    for y, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_saved_models(build: Callable[[], Any], tmp_path: Path) -> None:
    model, inputs, expected = make(build)
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"model{suffix}")
        check(fastlstm.load(tmp_path / f"model{suffix}"), inputs, expected)


def test_a_live_model() -> None:
    model, inputs, expected = make(masked_sentiment)
    check(fastlstm.from_keras(model), inputs, expected)


def test_keras_runs_the_file_for_verify(tmp_path: Path) -> None:
    model, inputs, expected = make(encoder_and_decoder_with_attention)
    model.save(tmp_path / "model.keras")
    graph = fastlstm.load(tmp_path / "model.keras").graph
    runner = own_framework(tmp_path / "model.keras", graph)
    found = runner.run({spec.name: x for spec, x in zip(graph.inputs, inputs, strict=True)})
    np.testing.assert_allclose(next(iter(found.values())), expected[0], atol=1e-6)


def test_keras_keeps_no_state_between_two_runs(tmp_path: Path) -> None:
    model, inputs, _ = make(stateful)
    model.save(tmp_path / "model.keras")
    graph = fastlstm.load(tmp_path / "model.keras").graph
    runner = own_framework(tmp_path / "model.keras", graph)
    first, second = (next(iter(runner.run({graph.inputs[0].name: inputs[0]}).values())) for _ in range(2))
    np.testing.assert_array_equal(first, second)
