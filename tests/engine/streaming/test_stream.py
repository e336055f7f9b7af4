"""Models and streams: the same bits in every way of feeding them, state in and out, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations


def network(last: bool = False, direction: str = "forward", seed: int = 0) -> fastlstm.Model:
    """Return two LSTM layers and a dense head on [batch, time, 3]."""
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    nodes, constants, x, size = [Node("Transpose", ("x",), ("x_t",), {"perm": [1, 0, 2]})], {}, "x_t", 3
    for layer in range(2):
        names = [f"w_ih{layer}", f"w_hh{layer}", f"b{layer}"]
        constants.update(zip(names, (random(1, 80, size), random(1, 80, 20), random(1, 80)), strict=True))
        attrs = {"hidden_size": 20, "directions": [direction], "activations": default_activations("LSTM"), "clip": None}
        nodes.append(Node("LSTM", (x, *names), (f"y{layer}",), {**attrs, "input_forget": 0}, f"lstm{layer}"))
        x, size = f"y{layer}", 20
    constants.update(weight=random(20, 2), bias=random(2), minus_one=np.array(-1))
    if last:
        nodes.append(Node("Gather", (x, "minus_one"), ("end",), {"axis": 0}, "last"))
        nodes.append(Node("Dense", ("end", "weight", "bias"), ("out",)))
        shape: tuple[int | str, ...] = ("batch", 2)
    else:
        nodes.append(Node("Dense", (x, "weight", "bias"), ("dense",)))
        nodes.append(Node("Transpose", ("dense",), ("out",), {"perm": [1, 0, 2]}))
        shape = ("batch", "time", 2)
    inputs = (TensorSpec("x", ("batch", "time", 3)),)
    return fastlstm.Model(Graph(inputs, (TensorSpec("out", shape),), tuple(nodes), constants, "network"))


X = np.random.default_rng(1).standard_normal((1, 200, 3)).astype(np.float32)


def test_step_push_and_run_give_the_same_bits() -> None:
    model = network()
    whole = model(X)[0]
    stream = model.stream()
    np.testing.assert_array_equal([stream.step(frame) for frame in X[0]], whole)
    stream.reset()
    rng, at, parts = np.random.default_rng(2), 0, []
    while at < 200:
        if rng.random() < 0.3:
            parts.append(stream.step(X[0, at])[None])
        else:
            parts.append(stream.push(X[0, at : at + int(rng.integers(0, 50))]))
        at += len(parts[-1])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_call_on_a_shape_seen_before_gives_the_same_bits() -> None:
    model = network()
    first = model(X)
    np.testing.assert_array_equal(model(X), first)
    np.testing.assert_array_equal(model.run({"x": X})["out"], first)
    assert not np.array_equal(model(-X), first)


def test_a_model_of_the_last_step_streams_one_output_a_frame() -> None:
    model = network(last=True)
    stream = model.stream()
    streamed = [stream.step(frame) for frame in X[0, :20]]
    for steps in (1, 7, 20):
        np.testing.assert_array_equal(streamed[steps - 1], model(X[:, :steps])[0])


def test_a_batch_of_streams_is_each_stream() -> None:
    model, x = network(), np.random.default_rng(3).standard_normal((5, 30, 3)).astype(np.float32)
    stream = model.stream(batch=5)
    together = np.stack([stream.step(x[:, t]) for t in range(30)], axis=1)
    np.testing.assert_array_equal(together, model(x))
    stream.reset()
    np.testing.assert_array_equal(stream.push(x), together)


def test_state_goes_out_and_in_through_pickle() -> None:
    model = network()
    stream = model.stream()
    stream.push(X[0, :100])
    kept = pickle.loads(pickle.dumps(stream.state))  # noqa: S301 (its own bytes)
    expected = stream.push(X[0, 100:])
    other = pickle.loads(pickle.dumps(model)).stream()  # noqa: S301
    other.state = kept
    np.testing.assert_array_equal(other.push(X[0, 100:]), expected)
    with pytest.raises(InputError, match="state has the arrays"):
        other.state = {"h": np.zeros(3)}


def test_out_is_written_and_returned() -> None:
    stream = network().stream()
    out = np.empty(2, np.float32)
    assert stream.step(X[0, 0], out=out) is out
    np.testing.assert_array_equal(out, network()(X[:, :1])[0, 0])
    with pytest.raises(InputError, match="out should be"):
        stream.step(X[0, 0], out=np.empty(3, np.float32))


@pytest.mark.parametrize("frame", [np.zeros(4), np.zeros((2, 3)), 1.0, np.array(["a", "b", "c"])])
def test_a_wrong_frame_is_told(frame: Any) -> None:
    with pytest.raises(InputError, match=r"[Ff]rame"):
        network().stream().step(frame)


@pytest.mark.parametrize("chunk", [np.zeros((5, 4)), np.zeros((2, 5, 3)), np.zeros(3), np.array([["a", "b", "c"]])])
def test_a_wrong_chunk_is_told(chunk: Any) -> None:
    with pytest.raises(InputError, match=r"chunk|Frames"):
        network().stream().push(chunk)


def test_a_backward_layer_does_not_stream_and_says_why() -> None:
    with pytest.raises(UnsupportedError, match="'lstm0' runs backwards"):
        network(direction="reverse").stream()


def test_the_last_step_of_nothing_is_told() -> None:
    with pytest.raises(InputError, match="'last' takes the last time step"):
        network(last=True)(X[:, :0])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "'x' is missing"),
        ({"y": X}, "no input 'y'"),
        ({"x": X[0]}, "expected 3 dimensions"),
        ({"x": X[:, :, :2]}, "expected 3 where"),
        ({"x": X.astype(str)}, "Give x.astype"),
        ({"x": [[1, 2], [3]]}, "cannot be read as an array"),
        (X, "takes the inputs by name, a dict of x"),
    ],
)
def test_wrong_inputs_are_told(inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        network().run(inputs)


def test_a_state_that_is_no_dict_is_told() -> None:
    with pytest.raises(InputError, match="a dict of arrays by name"):
        network().stream().state = X


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        model.save(tmp_path / "absent" / "m.fastlstm")
    model.save(tmp_path / "m.fastlstm")
    np.testing.assert_array_equal(fastlstm.load(tmp_path / "m.fastlstm")(X), model(X))


def test_the_plan_prints_every_step_with_its_kernel() -> None:
    text = str(network().plan)
    assert text.count("recurrent.lstm") == 2
    assert "linear.linear" in text
