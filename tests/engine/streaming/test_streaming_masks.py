"""Layers with a mask stream: a masked frame leaves the state as it is and repeats the last output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.operators import reference

STEPS, WORDS, WIDTH, HIDDEN = 40, 9, 5, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(op: str, x: str, y: str, constants: dict[str, np.ndarray], size: int, *more: str) -> Node:
    """Return a recurrent layer with random weights; `more` inputs are lengths, mask and states."""
    rng = np.random.default_rng(len(constants))
    rows = GATES[op] * HIDDEN
    shapes = {"w": (1, rows, size), "r": (1, rows, HIDDEN), "b": (1, rows + (HIDDEN if op == "GRU" else 0))}
    names = {key: f"{y}.{key}" for key in shapes}
    constants.update((names[key], rng.normal(size=shape).astype(np.float32) / 2) for key, shape in shapes.items())
    attrs: dict[str, Any] = {"hidden_size": HIDDEN, "directions": ["forward"], "clip": None}
    attrs["activations"] = default_activations(op, 1)
    attrs.update({"input_forget": 0} if op == "LSTM" else {"reset_after": 1} if op == "GRU" else {})
    return Node(op, (x, *names.values(), *more), (y,), attrs, y)


def masked(*ops: str, more: tuple[str, ...] = (), **constants: np.ndarray) -> Graph:
    """Ids [batch, time], of which 0 is no word, through an embedding and layers under its mask."""
    rng = np.random.default_rng(3)
    tables = {"table": rng.normal(size=(WORDS, WIDTH)).astype(np.float32), "zero": np.array(0), **constants}
    nodes = [Node("Transpose", ("ids",), ("turned",), {"perm": [1, 0]}), Node("Equal", ("turned", "zero"), ("none",))]
    nodes += [Node("Not", ("none",), ("mask",)), Node("Gather", ("table", "turned"), ("x0",), {"axis": 0})]
    for i, op in enumerate(ops):
        nodes.append(layer(op, f"x{i}", f"x{i + 1}", tables, HIDDEN if i else WIDTH, "", "mask", *more))
    nodes.append(Node("Transpose", (f"x{len(ops)}",), ("y",), {"perm": [1, 0, 2]}))
    inputs = (TensorSpec("ids", ("batch", "time"), "int64"),)
    return Graph(inputs, (TensorSpec("y", ("batch", "time", HIDDEN)),), tuple(nodes), tables)


def ids(rows: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    found = rng.integers(1, WORDS, (rows, STEPS)) * (rng.random((rows, STEPS)) < 0.5)
    found[0, :9] = 0  # nothing before the first word, over more than one call
    found[-1, 12:30] = 0
    return found


@pytest.mark.parametrize("ops", [("LSTM",), ("GRU",), ("RNN",), ("LSTM", "GRU", "LSTM")], ids="-".join)
def test_any_chunks_have_the_bits_of_the_whole(ops: tuple[str, ...]) -> None:
    graph, x = masked(*ops), ids(3)
    model = fastlstm.Model(graph)
    whole = model(x)
    np.testing.assert_allclose(whole, reference.run(graph, {"ids": x})["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(whole[-1, 11], whole[-1, 29])
    stream, rng, parts = model.stream(batch=3), np.random.default_rng(5), []
    while (at := sum(part.shape[1] for part in parts)) < STEPS:
        if rng.random() < 0.4:
            parts.append(stream.step(x[:, at])[:, None])
        else:
            parts.append(stream.push(x[:, at : at + int(rng.integers(0, 8))]))
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_a_pool_holds_each_stream_by_its_own_mask() -> None:
    model, x = fastlstm.Model(masked("LSTM", "GRU")), ids(4)
    whole, pool = model(x), model.streams(capacity=4)
    opened = [pool.open() for _ in x]
    for t in range(10):
        np.testing.assert_array_equal(pool.step(opened, x[:, t]), whole[:, t])
    for row, y in enumerate(pool.push(opened, [x[row, 10 : 20 + row] for row in range(4)])):
        np.testing.assert_array_equal(y, whole[row, 10 : 20 + row])


@pytest.mark.parametrize(
    ("more", "constants", "words"),
    [
        (("h",), {"h": np.ones((1, 1, HIDDEN), np.float32)}, "has a mask and starts from a state that is not zero"),
        ((), {}, None),
        (("h",), {"h": np.zeros((1, 1, HIDDEN), np.float32)}, None),
    ],
)
def test_a_start_that_is_not_zero_is_refused(
    more: tuple[str, ...], constants: dict[str, np.ndarray], words: str | None
) -> None:
    model = fastlstm.Model(masked("GRU", more=more, **constants))
    if words is None:
        model.stream()
        return
    with pytest.raises(UnsupportedError, match=words):
        model.stream()


def test_a_mask_that_does_not_move_and_lengths_are_refused() -> None:
    constants = {"fixed": np.arange(STEPS)[:, None] % 2 == 0}
    for more, words in ((("", "fixed"), "mask that does not advance with its frames"), (("n",), "lengths")):
        nodes = (layer("LSTM", "x", "y", constants, WIDTH, *more),)
        inputs = [TensorSpec("x", (STEPS, 1, WIDTH))] + [TensorSpec("n", (1,), "int64")] * (more == ("n",))
        graph = Graph(tuple(inputs), (TensorSpec("y", (STEPS, 1, HIDDEN)),), nodes, constants)
        with pytest.raises(UnsupportedError, match=words):
            fastlstm.Model(graph).stream()


def test_outputs_come_in_the_models_order() -> None:
    constants: dict[str, np.ndarray] = {}
    nodes = (layer("LSTM", "x", "a", constants, WIDTH), layer("GRU", "a", "b", constants, HIDDEN))
    inputs = (TensorSpec("x", ("time", "batch", WIDTH)),)
    outputs = tuple(TensorSpec(name, ("time", "batch", HIDDEN)) for name in ("b", "a"))
    model = fastlstm.Model(Graph(inputs, outputs, nodes, constants))
    x = np.ones((3, WIDTH), np.float32)
    pool = model.streams(capacity=1)
    number = pool.open()
    found = [model.stream().step(x[0]), model.stream().push(x), model.stream().push(x[:0])]
    found += [pool.step([number], x[:1]), pool.push([number], [x])[0]]
    assert [list(y) for y in found] == [["b", "a"]] * len(found)
