"""Keras files mean here what Keras's own equations say; no Keras is needed to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_files import layer, sequential, write_h5, write_keras

from fastlstm import UnsupportedError, load
from fastlstm.converters import load_graph
from fastlstm.errors import FileFormatError
from fastlstm.operators import reference

F, H, T, B = 3, 4, 5, 2
RNG = np.random.default_rng(7)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [RNG.normal(scale=0.5, size=shape).astype("f4") for shape in shapes]


def run(path: Path, x: np.ndarray) -> np.ndarray:
    (y,) = reference.run(load_graph(path), {"x": x}).values()
    return y


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def keras_lstm(x, kernel, recurrent, bias, gate=sigmoid, mask=None):
    """Keras's LSTM step by step, gates i, f, c, o; [B, T, H]."""
    h, c = np.zeros((len(x), len(recurrent))), np.zeros((len(x), len(recurrent)))
    outputs, last = [], np.zeros_like(h)
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=-1)
        new_c = gate(f) * c + gate(i) * np.tanh(g)
        new_h = gate(o) * np.tanh(new_c)
        keep = np.ones((len(x), 1), bool) if mask is None else mask[:, t, None]
        h, c, last = np.where(keep, new_h, h), np.where(keep, new_c, c), np.where(keep, new_h, last)
        outputs.append(last)
    return np.stack(outputs, axis=1)


def keras_gru(x, kernel, recurrent, bias, reset_after):
    """Keras's GRU step by step, gates z, r, h; [B, T, H]."""
    h, outputs = np.zeros((len(x), len(recurrent))), []
    inner, outer = bias if reset_after else (bias, np.zeros_like(bias))
    W, R, b, d = (np.split(a, 3, axis=-1) for a in (kernel, recurrent, inner, outer))
    for t in range(x.shape[1]):
        z, r = (sigmoid(x[:, t] @ W[k] + h @ R[k] + b[k] + d[k]) for k in (0, 1))
        past = r * (h @ R[2] + d[2]) if reset_after else (r * h) @ R[2]
        h = z * h + (1 - z) * np.tanh(x[:, t] @ W[2] + b[2] + past)
        outputs.append(h)
    return np.stack(outputs, axis=1)


X = RNG.normal(size=(B, T, F)).astype("f4")


def test_lstm_from_keras_3(tmp_path: Path) -> None:
    weights = arrays((F, 4 * H), (H, 4 * H), (4 * H,))
    model = sequential((None, F), layer("LSTM", "lstm", units=H, return_sequences=True, unit_forget_bias=True))
    path = write_keras(tmp_path / "m.keras", model, {"layers/lstm/cell": weights})
    np.testing.assert_allclose(run(path, X), keras_lstm(X, *weights), atol=1e-6)


@pytest.mark.parametrize("version", ["2.15.0", "3.15.1"])
def test_hard_sigmoid_is_that_of_the_version_that_wrote_the_file(tmp_path: Path, version: str) -> None:
    weights = arrays((F, 4 * H), (H, 4 * H), (4 * H,))
    lstm = layer("LSTM", "lstm", units=H, return_sequences=True, recurrent_activation="hard_sigmoid")
    lstm["config"].update(implementation=2, time_major=False, unit_forget_bias=True, stateful=False, unroll=False)
    names = dict(zip(["lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0"], weights, strict=True))
    path = write_h5(tmp_path / "m.h5", sequential((None, F), lstm), {"x": {}, "lstm": names}, version)
    slope = 0.2 if version[0] == "2" else 1 / 6
    expected = keras_lstm(X, *weights, gate=lambda a: np.clip(slope * a + 0.5, 0, 1))
    np.testing.assert_allclose(run(path, X), expected, atol=1e-6)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_with_the_reset_before_and_after_the_product(tmp_path: Path, reset_after: bool) -> None:
    weights = arrays((F, 3 * H), (H, 3 * H), (2, 3 * H) if reset_after else (3 * H,))
    model = sequential((None, F), layer("GRU", "gru", units=H, return_sequences=True, reset_after=reset_after))
    path = write_keras(tmp_path / "m.keras", model, {"layers/gru/cell": weights})
    np.testing.assert_allclose(run(path, X), keras_gru(X, *weights, reset_after), atol=1e-6)


def test_go_backwards_gives_its_outputs_in_the_order_it_makes_them(tmp_path: Path) -> None:
    weights = arrays((F, 4 * H), (H, 4 * H), (4 * H,))
    model = sequential((None, F), layer("LSTM", "lstm", units=H, return_sequences=True, go_backwards=True))
    path = write_keras(tmp_path / "m.keras", model, {"layers/lstm/cell": weights})
    np.testing.assert_allclose(run(path, X), keras_lstm(X[:, ::-1], *weights), atol=1e-6)


def test_sizes_that_are_open_are_calculated_with(tmp_path: Path) -> None:
    wide = layer("UpSampling1D", "wide", size=3)
    model = sequential((None, F), wide, layer("ZeroPadding1D", "pad", padding=[1, 2]))
    assert load_graph(write_keras(tmp_path / "a.keras", model, {})).outputs[0].shape == ("batch", "3*time + 3", F)
    model["config"]["layers"].append(layer("Cropping1D", "crop", cropping=[0, 3]))
    assert load_graph(write_keras(tmp_path / "b.keras", model, {})).outputs[0].shape == ("batch", "3*time", F)


@pytest.mark.parametrize("padding", ["front", "middle", "end", "all"])
def test_padding_anywhere_keeps_the_state(tmp_path: Path, padding: str) -> None:
    ids = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]], np.int32)
    where = {"front": slice(0, 2), "middle": slice(2, 4), "end": slice(3, 5), "all": slice(None)}[padding]
    ids[1, where] = 0
    (table,) = arrays((6, F))
    weights = arrays((F, 4 * H), (H, 4 * H), (4 * H,))
    model = sequential(
        (None,),
        layer("Embedding", "embedding", input_dim=6, output_dim=F, mask_zero=True),
        layer("LSTM", "lstm", units=H, return_sequences=True),
        dtype="int32",
    )
    path = write_keras(tmp_path / "m.keras", model, {"layers/embedding": [table], "layers/lstm/cell": weights})
    np.testing.assert_allclose(run(path, ids), keras_lstm(table[ids], *weights, mask=ids != 0), atol=1e-6)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_bidirectional_merges(tmp_path: Path, merge: str) -> None:
    forward, backward = (arrays((F, 4 * H), (H, 4 * H), (4 * H,)) for _ in range(2))
    inner = layer("LSTM", "lstm", units=H, return_sequences=True)
    model = sequential((None, F), layer("Bidirectional", "both", layer=inner, merge_mode=merge))
    owners = {"forward_layer/cell": forward, "backward_layer/cell": backward}
    path = write_keras(tmp_path / "m.keras", model, {f"layers/bidirectional/{owner}": w for owner, w in owners.items()})
    a, b = keras_lstm(X, *forward), keras_lstm(X[:, ::-1], *backward)[:, ::-1]
    expected = {"concat": np.concatenate([a, b], -1), "sum": a + b, "mul": a * b, "ave": (a + b) / 2}[merge]
    np.testing.assert_allclose(run(path, X), expected, atol=1e-6)


def test_batch_normalization_uses_the_moving_averages(tmp_path: Path) -> None:
    gamma, beta, mean = arrays((F,), (F,), (F,))
    variance = RNG.uniform(0.5, 2, F).astype("f4")
    model = sequential((T, F), layer("BatchNormalization", "bn", axis=[2], epsilon=0.01, momentum=0.9))
    path = write_keras(tmp_path / "m.keras", model, {"layers/batch_normalization": [gamma, beta, mean, variance]})
    np.testing.assert_allclose(run(path, X), (X - mean) / np.sqrt(variance + 0.01) * gamma + beta, atol=1e-6)


def test_layer_normalization_over_another_axis_than_the_last(tmp_path: Path) -> None:
    gamma, beta = arrays((T,), (T,))
    path = write_keras(
        tmp_path / "m.keras",
        sequential((T, F), layer("LayerNormalization", "ln", axis=[1], epsilon=0.01)),
        {"layers/layer_normalization": [gamma, beta]},
    )
    normal = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 0.01)
    np.testing.assert_allclose(run(path, X), normal * gamma[:, None] + beta[:, None], atol=1e-5)


def test_causal_convolution_looks_at_the_past_only(tmp_path: Path) -> None:
    kernel, bias = arrays((2, F, H), (H,))
    conv = layer("Conv1D", "conv", filters=H, kernel_size=[2], dilation_rate=[2], padding="causal", strides=[1])
    path = write_keras(tmp_path / "m.keras", sequential((None, F), conv), {"layers/conv1d": [kernel, bias]})
    past = np.concatenate([np.zeros((B, 2, F)), X[:, :-2]], axis=1)
    np.testing.assert_allclose(run(path, X), past @ kernel[0] + X @ kernel[1] + bias, atol=1e-6)


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    weights = {"layers/dense": arrays((F, H), (H,))}
    dense = layer("Dense", "dense", units=H)
    cases = {
        "Lambda": layer("Lambda", "magic", function=["4wAAAA=="]),
        "mine": {**dense, "class_name": "Mine", "registered_name": "mine>Mine"},
        "secret_option": layer("Dense", "dense", units=H, secret_option=3),
        "swirl": layer("Dense", "dense", units=H, activation="swirl"),
    }
    for name, one in cases.items():
        path = write_keras(tmp_path / f"{name}.keras", sequential((None, F), one), weights)
        with pytest.raises(UnsupportedError, match=name):
            load_graph(path)


def test_weights_too_many_or_too_few_are_told(tmp_path: Path) -> None:
    model = sequential((None, F), layer("Dense", "dense", units=H))
    kernel, bias = arrays((F, H), (H,))
    cases = [{}, {"layers/dense": [kernel]}, {"layers/dense": [kernel, bias, bias]}, {"layers/dense": [kernel.T, bias]}]
    cases.append({"layers/dense": [kernel, bias], "layers/ghost": [bias]})
    for number, weights in enumerate(cases):
        with pytest.raises(FileFormatError, match=r"dense|ghost"):
            load_graph(write_keras(tmp_path / f"{number}.keras", model, weights))


def test_transposed_convolutions_cut_the_smaller_half_in_front(tmp_path: Path) -> None:
    kernel, bias = arrays((3, H, F), (H,))
    conv = layer("Conv1DTranspose", "conv", filters=H, kernel_size=[3], strides=[2], padding="same")
    path = write_keras(tmp_path / "m.keras", sequential((None, F), conv), {"layers/conv1d_transpose": [kernel, bias]})
    spread = np.zeros((B, 2 * T + 1, H))
    for t in range(T):
        spread[:, 2 * t : 2 * t + 3] += np.einsum("bf,khf->bkh", X[:, t], kernel)
    np.testing.assert_allclose(
        run(path, X), spread[:, : 2 * T] + bias, atol=1e-6
    )  # of one step too many, none in front


def masked_pair(kind: str) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Return a model of Keras 2 that merges a masked input with one that is not, its weights and the merged mask."""
    (table,) = arrays((6, F))
    weights = arrays((F if kind == "Add" else 2 * F, 4 * H), (H, 4 * H), (4 * H,))
    inputs = [
        {"class_name": "InputLayer", "name": name, "inbound_nodes": [],
         "config": {"name": name, "batch_input_shape": [None, *shape], "dtype": dtype}}
        for name, shape, dtype in (("ids", [None], "int32"), ("x", [None, F], "float32"))
    ]  # fmt: skip
    rest = [
        layer("Embedding", "embedding", input_dim=6, output_dim=F, mask_zero=True),
        layer(kind, "merge", **({} if kind == "Add" else {"axis": -1})),
        layer("LSTM", "lstm", units=H, return_sequences=True),
    ]
    reads = [[["ids", 0, 0, {}]], [["embedding", 0, 0, {}], ["x", 0, 0, {}]], [["merge", 0, 0, {}]]]
    rest = [
        {**made, "name": made["config"]["name"], "inbound_nodes": [node]}
        for made, node in zip(rest, reads, strict=True)
    ]
    config = {"name": "m", "layers": [*inputs, *rest], "input_layers": [["ids", 0, 0], ["x", 0, 0]]}
    config["output_layers"] = [["lstm", 0, 0]]
    named = dict(zip(["lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0"], weights, strict=True))
    stored = {"embedding": {"embedding/embeddings:0": table}, "lstm": named}
    return {"class_name": "Functional", "config": config}, stored, table


@pytest.mark.parametrize("kind", ["Add", "Concatenate"])
def test_keras_2_keeps_the_mask_of_one_input_for_the_merged_ones(tmp_path: Path, kind: str) -> None:
    model, stored, table = masked_pair(kind)
    ids = np.array([[1, 0, 2, 3, 0], [0, 4, 5, 0, 1]], np.int32)
    merged = table[ids] + X if kind == "Add" else np.concatenate([table[ids], X], -1)
    graph = load_graph(write_h5(tmp_path / "m.h5", model, stored))
    (found,) = reference.run(graph, {"ids": ids, "x": X}).values()
    np.testing.assert_allclose(found, keras_lstm(merged, *stored["lstm"].values(), mask=ids != 0), atol=1e-6)


def test_a_keras_model_streams_with_what_stands_around_its_recurrent_layers(tmp_path: Path) -> None:
    conv, lstm, gru = (
        arrays((3, F, H), (H,)),
        arrays((H, 4 * H), (H, 4 * H), (4 * H,)),
        arrays((H, 3 * H), (H, 3 * H), (2, 3 * H)),
    )
    model = sequential(
        (None, F),
        layer("Conv1D", "conv", filters=H, kernel_size=[3], padding="causal", strides=[1], activation="relu"),
        layer("BatchNormalization", "bn", axis=[2], epsilon=0.01),
        layer("LSTM", "lstm", units=H, return_sequences=True, stateful=True),
        layer("Dropout", "dropout", rate=0.3),
        layer("TimeDistributed", "each", layer=layer("Dense", "dense", units=H, activation="tanh")),
        layer("GRU", "gru", units=H, reset_after=True, stateful=True),
        layer("Dense", "head", units=2),
    )
    stored = {"layers/conv1d": conv, "layers/lstm/cell": lstm, "layers/gru/cell": gru}
    stored |= {"layers/time_distributed/layer": arrays((H, H), (H,)), "layers/dense": arrays((H, 2), (2,))}
    stored["layers/batch_normalization"] = [*arrays((H,), (H,), (H,)), RNG.uniform(0.5, 2, H).astype("f4")]
    found = load(write_keras(tmp_path / "m.keras", model, stored))
    stream = found.stream()
    steps = [stream.step(frame) for frame in X[0]]
    for t in range(T):  # the last of the first t steps is what the stream gave at t, to the bit
        np.testing.assert_array_equal(steps[t], found(X[:1, : t + 1])[0])


def test_one_layer_over_time_and_one_over_features_read_the_same_value(tmp_path: Path) -> None:
    inputs = {
        "class_name": "InputLayer",
        "config": {"name": "x", "batch_input_shape": [None, T, F], "dtype": "float32"},
    }
    made = [
        (layer("Activation", "bent", activation="tanh"), "x"),
        (layer("LSTM", "over_time", units=H, return_sequences=True), "bent"),
        (layer("Permute", "turned", dims=[2, 1]), "bent"),
        (layer("LSTM", "over_features", units=H, return_sequences=True), "turned"),
    ]
    layers = [{**data, "name": data["config"]["name"], "inbound_nodes": [[[read, 0, 0, {}]]]} for data, read in made]
    config = {"name": "m", "layers": [{**inputs, "name": "x", "inbound_nodes": []}, *layers]}
    config |= {"input_layers": [["x", 0, 0]], "output_layers": [["over_time", 0, 0], ["over_features", 0, 0]]}
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    stored = {
        name: dict(zip(names, arrays((n, 4 * H), (H, 4 * H), (4 * H,)), strict=True))
        for name, n in (("over_time", F), ("over_features", T))
    }
    path = write_h5(tmp_path / "m.h5", {"class_name": "Functional", "config": config}, stored)
    found = load(path).run({"x": X})
    for name, x in (("over_time", np.tanh(X)), ("over_features", np.tanh(X).transpose(0, 2, 1))):
        np.testing.assert_allclose(found[name], keras_lstm(x, *stored[name].values()), atol=1e-6)
