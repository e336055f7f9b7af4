"""NaN and infinities: a NaN stays in its row and after its step, infinities saturate, in streams too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastlstm
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec
from fastlstm.operators import reference

Array = npt.NDArray[Any]
T, B, F, H = 9, 5, 1, 12
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "projected LSTM": ("LSTM", {"P": 5}),
    "GRU": ("GRU", {"reset_after": 1}),
    "GRU, reset before": ("GRU", {"reset_after": 0}),
    "RNN": ("RNN", {}),
}


def layer(kind: str, directions: int = 1, scale: float = 0.5, lengths: bool = False) -> Any:
    op, options = KINDS[kind]
    rng, rows = np.random.default_rng(0), RECURRENT_OPS[op] * H
    size = options.get("P", H)

    def random(*shape: int) -> Array:
        return (scale * rng.standard_normal((directions, *shape))).astype(np.float32)

    constants = {
        "w_ih": random(rows, F),
        "w_hh": random(rows, size),
        "bias": random((4 if op == "GRU" else rows // H) * H),
    }
    constants |= {"w_hr": random(size, H)} if "P" in options else {}
    default = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[op]
    attrs: dict[str, Any] = {"hidden_size": H, "directions": ["forward", "reverse"][:directions], "clip": None}
    attrs["activations"] = [[[name, None, None] for name in default]] * directions
    attrs |= {"LSTM": {"input_forget": 0}, "RNN": {}}.get(op, {key: options[key] for key in options if key != "P"})
    inputs = ["x", "w_ih", "w_hh", "bias", "lengths" if lengths else "", "", "", ""]
    inputs += ["", "w_hr"] if "P" in options else []
    specs = [TensorSpec("x", ("time", "batch", F))]
    specs += [TensorSpec("lengths", ("batch",), "int64")] if lengths else []
    node = Node(op, tuple(inputs[: len(inputs) if op == "LSTM" else 7]), ("y",), attrs, "layer")
    return Graph(tuple(specs), (TensorSpec("y", ("time", "batch", directions * size)),), (node,), constants)


def data() -> Array:
    return np.random.default_rng(1).standard_normal((T, B, F)).astype(np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_in_its_row_and_after_its_step(kind: str, bad: float) -> None:
    model, x = fastlstm.Model(layer(kind, directions=2)), data()
    clean = model(x)
    x[4, 2] = bad
    y = model(x)
    half = clean.shape[2] // 2
    np.testing.assert_array_equal(np.delete(y, 2, axis=1), np.delete(clean, 2, axis=1))
    np.testing.assert_array_equal(y[:4, 2, :half], clean[:4, 2, :half])  # forward: steps before
    np.testing.assert_array_equal(y[5:, 2, half:], clean[5:, 2, half:])  # reverse: steps after
    if np.isnan(bad):
        assert np.isnan(y[4:, 2, :half]).all()
        assert np.isnan(y[:5, 2, half:]).all()
    else:
        expected = reference.run(layer(kind, directions=2), {"x": x})["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert np.isfinite(y).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_past_a_rows_length_is_not_read(kind: str) -> None:
    model, x, lengths = fastlstm.Model(layer(kind, directions=2, lengths=True)), data(), np.array([3, 9, 0, 5, 1])
    clean = model(x, lengths)
    x[np.arange(T)[:, None] >= lengths] = np.nan
    np.testing.assert_array_equal(model(x, lengths), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_in_a_stream_stays_in_its_row_and_goes_with_a_reset(kind: str) -> None:
    model, x = fastlstm.Model(layer(kind)), data()
    clean = model(x)
    stream, bad = model.stream(batch=B), x.copy()
    bad[4, 2] = np.nan
    y = np.stack([stream.step(frame) for frame in bad])
    np.testing.assert_array_equal(np.delete(y, 2, axis=1), np.delete(clean, 2, axis=1))
    np.testing.assert_array_equal(y[:4], clean[:4])
    assert np.isnan(y[4:, 2]).all()
    stream.reset()
    np.testing.assert_array_equal(stream.push(x), clean)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "projected LSTM"])
@pytest.mark.parametrize("size", [1e3, 1e10, -1e20, 3e38])
def test_huge_inputs_and_weights_saturate(kind: str, size: float) -> None:
    for scale in (0.5, 1e15):
        graph = layer(kind, scale=scale)
        graph = graph.replace(constants={**graph.constants, "w_hh": graph.constants["w_hh"] * np.float32(0.5 / scale)})
        x = np.full((2, 2, F), size, np.float32)
        expected = reference.run(graph, {"x": x})["y"]
        np.testing.assert_allclose(fastlstm.Model(graph)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Softsign", "HardSigmoid", "Elu", "Relu"])
def test_activations_keep_a_nan_and_saturate_at_infinities(name: str) -> None:
    rnn = fastlstm.RNN([[1.0]], [[0.0]], activations=[[[name, None, None]]])
    y, _ = rnn(np.array([np.nan, -np.inf], np.float32).reshape(2, 1, 1)[:1])
    assert np.isnan(y).all()
    y, _ = rnn(np.full((1, 1, 1), -np.inf, np.float32))
    assert y.item() == {"Softsign": -1, "HardSigmoid": 0, "Elu": -1, "Relu": 0}[name]


@pytest.mark.parametrize("length", [1, 7, 33, 300])
def test_the_largest_is_none_if_one_is_no_number(length: int) -> None:
    graph = Graph(
        (TensorSpec("x", ("rows", length)),), (TensorSpec("y", ("rows",)),),
        (Node("ReduceMax", ("x", "axes"), ("y",), {"keepdims": 0}, "max"),), {"axes": np.array([1])},
    )  # fmt: skip
    model, x = fastlstm.Model(graph), np.random.default_rng(3).standard_normal((5, length)).astype(np.float32)
    x[1, length // 2], x[2, -1], x[3], x[4] = np.nan, np.inf, -np.inf, -0.0
    np.testing.assert_array_equal(model(x), x.max(axis=1))
