"""The entry from Python: it takes just what fits, and everything else goes the long way."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from fastlstm import InputError, Model, executor
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.kernels import compiler
from fastlstm.runtime.native import likely_entry, never

HIDDEN, FEATURES = 12, 3


def layer(seed: int) -> Model:
    """Return a model of one LSTM."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(size=(1, 4 * HIDDEN, FEATURES)).astype(np.float32),
        "r": rng.normal(size=(1, 4 * HIDDEN, HIDDEN)).astype(np.float32),
    }
    attrs = {
        "hidden_size": HIDDEN,
        "directions": ["forward"],
        "activations": default_activations("LSTM", 1),
        "clip": None,
        "input_forget": 0,
    }
    node = Node("LSTM", ("x", "w", "r"), ("y",), attrs, "lstm")
    x, y = TensorSpec("x", ("time", "batch", FEATURES)), TensorSpec("y", ("time", "batch", HIDDEN))
    return Model(Graph((x,), (y,), (node,), weights))


@pytest.fixture(scope="module")
def model() -> Model:
    return layer(1)


def frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(*shape, FEATURES)).astype(np.float32)


def test_a_shape_met_before_goes_through_the_entry_with_the_same_bits(model: Model) -> None:
    x = frames(7, 2)
    first = model(x)
    assert model._executor.quick is not never
    again = model._executor.quick(x)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, model.run({"x": x})["y"])
    assert again.flags.owndata
    assert again.flags.writeable


def test_the_first_result_of_a_process_that_compiles_does_not_wait_for_an_entry(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, expected = frames(7, 2), model(frames(7, 2))
    monkeypatch.setattr(executor, "ahead", lambda kernels, _: [k for k in kernels if k == likely_entry(1, 1)])
    cold = Model(model.graph)
    for entered in (False, True):
        np.testing.assert_array_equal(cold(x), expected)
        assert (cold._executor.quick is not never) == entered
    with compiler.listing() as kernels:
        monkeypatch.undo()
        Model(model.graph)(x)
    assert likely_entry(1, 1) in kernels


def test_a_recorded_model_gets_its_entry_with_the_second_call() -> None:
    weights = {"w": np.ones((FEATURES, FEATURES), np.float32)}
    x, y = TensorSpec("x", ("n", FEATURES)), TensorSpec("y", (FEATURES, "n"))
    nodes = (Node("MatMul", ("x", "w"), ("p",)), Node("Transpose", ("p",), ("y",), {"perm": [1, 0]}))
    graph = Graph((x,), (y,), nodes, weights)
    with compiler.listing() as kernels:
        Model(graph)(frames(4))
    assert likely_entry(1, 1) in kernels
    recorded = Model(graph)
    expected = recorded(frames(4))
    assert recorded._executor.quick is never
    np.testing.assert_array_equal(recorded(frames(4)), expected)
    assert recorded._executor.quick is not never


@pytest.mark.parametrize(
    "wrong",
    [
        frames(7, 3),
        frames(7, 2).astype(np.float64),
        np.repeat(frames(7, 2), 2, axis=2)[:, :, ::2],
        frames(7, 2)[None],
        frames(7, 2).astype(">f4"),
        np.ma.masked_array(frames(7, 2)),
        [1.0],
        None,
        3,
    ],
)
def test_the_entry_answers_none_to_what_it_does_not_know(model: Model, wrong: object) -> None:
    model(frames(7, 2))
    call = model._executor.quick
    assert call(wrong) is None
    assert call() is None
    assert wrong is None or call(frames(7, 2), wrong) is None
    read_only = np.zeros((7, 2, HIDDEN), np.float32)
    read_only.flags.writeable = False
    assert call(frames(7, 2), read_only) is None
    assert call(frames(7, 2)) is not None


@pytest.mark.parametrize("width", [4, 16])
def test_an_output_over_the_input_does_not_change_what_is_still_to_be_read(width: int) -> None:
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(4 * width, width)), rng.normal(size=(4 * width, width))
    specs = TensorSpec("x", ("time", "batch", width)), TensorSpec("y", ("time", "batch", width))
    attrs = {
        "hidden_size": width,
        "directions": ["forward"],
        "activations": default_activations("LSTM", 1),
        "clip": None,
        "input_forget": 0,
    }
    constants = {name: w[None].astype(np.float32) for name, w in zip("wr", weights, strict=True)}
    node = Node("LSTM", ("x", "w", "r"), ("y",), attrs, "lstm")
    stream = Model(Graph(specs[:1], specs[1:], (node,), constants)).stream()
    x = rng.normal(size=(600, width)).astype(np.float32)  # more steps than a block has
    want = stream.push(x)
    for shift in (-2, -1, 0, 1, 2, 600):
        memory = np.zeros((1204, width), np.float32)
        chunk, out = memory[2:602], memory[2 + shift : 602 + shift]
        chunk[:] = x
        stream.reset()
        assert stream.push(chunk, out=out) is out
        np.testing.assert_array_equal(out, want, err_msg=f"out begins {shift} frames behind the chunk")


def test_what_the_entry_does_not_know_is_converted_or_told(model: Model) -> None:
    x = frames(7, 2)
    want = model(x)
    np.testing.assert_array_equal(model(x.astype(np.float64)), want)
    np.testing.assert_array_equal(model(np.repeat(x, 2, axis=1)[:, ::2]), want)
    with pytest.raises(InputError, match="dimensions"):
        model(x[None])


def test_outputs_and_arguments_are_counted_right(model: Model) -> None:
    x, out = frames(5, 1), np.zeros((5, 1, HIDDEN), np.float32)
    model(x)
    call = model._executor.quick
    gc.collect()  # what other tests left may hold dtypes
    before = [sys.getrefcount(thing) for thing in (x, out, np.dtype(np.float32))]
    for _ in range(100):
        call(x)
        assert call(x, out) is out
        call(None)
    gc.collect()
    after = [sys.getrefcount(thing) for thing in (x, out, np.dtype(np.float32))]
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 50


def test_the_entry_outlives_its_model() -> None:
    short_lived = layer(3)
    want = short_lived(frames(4, 1))
    call = short_lived._executor.quick
    del short_lived
    gc.collect()
    np.testing.assert_array_equal(call(frames(4, 1)), want)


def test_threads_that_share_a_model_get_their_own_answers(model: Model) -> None:
    # Long enough to release the interpreter lock, so that calls do meet.
    inputs = [frames(400, 8) + np.float32(i) for i in range(4)]
    want = [model(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(20) if not np.array_equal(model(inputs[number]), want[number]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
