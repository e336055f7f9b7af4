"""Graphs of one recurrent layer with all that it may take, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import Model
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, default_activations

HIDDEN, FEATURES, ROWS = 12, 3, 5
Arrays = dict[str, Any]


def graph_of(
    op: str = "LSTM",
    directions: int = 1,
    *,
    states: bool = True,
    lengths: str = "",
    masked: bool = False,
    ids: str = "",
    batch_first: bool = False,
    last: bool = False,
) -> Graph:
    """Return a graph of one layer; `lengths` and `ids` are dtypes, "" for none, `last` adds the last step."""
    rng = np.random.default_rng(1)
    gates = RECURRENT_OPS[op] * HIDDEN
    constants = {
        "w": rng.normal(size=(directions, gates, FEATURES)).astype(np.float32),
        "r": (rng.normal(size=(directions, gates, HIDDEN)) / 3).astype(np.float32),
    }
    given = ["h", "c"][: 2 if op == "LSTM" else 1] if states else []
    attrs: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "directions": ["forward", "reverse"][:directions],
        "activations": default_activations(op, directions),
        "clip": None,
        **({"input_forget": 0} if op == "LSTM" else {}),
        **({"reset_after": 1} if op == "GRU" else {}),
    }
    axes = ("batch", "time") if batch_first else ("time", "batch")
    inputs = [TensorSpec("x", (*axes, *(() if ids else (FEATURES,))), ids or "float32")]
    nodes, value = [], "x"
    if ids:
        constants["table"] = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        nodes.append(Node("Gather", ("table", "x"), ("rows",), {"axis": 0}))
        value = "rows"
    if batch_first:
        nodes.append(Node("Transpose", (value,), ("turned",), {"perm": [1, 0, 2]}))
        value = "turned"
    if lengths:
        inputs.append(TensorSpec("lengths", ("batch",), lengths))
    if masked:
        inputs.append(TensorSpec("mask", ("time", "batch"), "bool"))
    inputs += [TensorSpec(name, (directions, "batch", HIDDEN)) for name in given]
    names = [value, "w", "r", "", "lengths" if lengths else "", "mask" if masked else "", *given]
    outputs = ["y", *(f"{name}_n" for name in given)]
    nodes.append(Node(op, tuple(names), tuple(outputs), attrs, "layer"))
    shown = [TensorSpec("y", ("time", "batch", directions * HIDDEN))]
    shown += [TensorSpec(f"{name}_n", (directions, "batch", HIDDEN)) for name in given]
    if last:
        constants["last"] = np.array(-1, np.int64)
        nodes.append(Node("Gather", ("y", "last"), ("z",), {"axis": 0}))
        shown[0] = TensorSpec("z", ("batch", directions * HIDDEN))
    return Graph(tuple(inputs), tuple(shown), tuple(nodes), constants)


def inputs_of(model: Model | Graph, steps: int, batch: int, rng: np.random.Generator) -> Arrays:
    """Return random inputs of a model or its graph."""
    sizes = {"time": steps, "batch": batch}
    made: Arrays = {}
    for spec in model.inputs:
        shape = tuple(sizes.get(n, n) for n in spec.shape)
        if spec.name == "lengths":
            made[spec.name] = rng.integers(0, steps + 1, shape).astype(spec.dtype)
        elif spec.dtype == "bool":
            made[spec.name] = rng.random(shape) < 0.7
        elif spec.name == "x" and spec.dtype != "float32":
            made[spec.name] = rng.integers(-ROWS, ROWS, shape).astype(spec.dtype)
        else:
            made[spec.name] = rng.normal(size=shape).astype(np.float32)
    return made
