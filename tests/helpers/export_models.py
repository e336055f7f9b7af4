"""Small models that tests export, made as graphs."""

from __future__ import annotations

import numpy as np

import fastlstm
from fastlstm.graph import Graph, Node, TensorSpec, default_activations

FEATURES = 3


def lstm_graph(
    units: int = 8, *, ids: bool = False, directions: tuple[str, ...] = ("forward",), name: str = "tiny"
) -> Graph:
    """Return an LSTM with a dense layer behind it, over rows or over the rows of an embedding."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> np.ndarray:
        return rng.uniform(-0.5, 0.5, shape).astype(np.float32)

    count = len(directions)
    constants = {
        "w": weights(count, 4 * units, FEATURES),
        "r": weights(count, 4 * units, units),
        "b": weights(count, 4 * units),
        "d": weights(count * units, 2),
        "e": weights(2),
    }
    attrs = {
        "hidden_size": units, "directions": list(directions), "activations": default_activations("LSTM", count),
        "clip": None, "input_forget": 0,
    }  # fmt: skip
    nodes = [
        Node("LSTM", ("rows", "w", "r", "b"), ("y", "", ""), attrs, "lstm"),
        Node("Dense", ("y", "d", "e"), ("out",), {}, "dense"),
    ]
    x = TensorSpec("rows", ("time", "batch", FEATURES), "float32")
    if ids:
        x = TensorSpec("ids", ("time", "batch"), "int64")
        constants["table"] = weights(11, FEATURES)
        nodes.insert(0, Node("Gather", ("table", "ids"), ("rows",), {"axis": 0}, "embedding"))
    return Graph((x,), (TensorSpec("out", ("time", "batch", 2), "float32"),), tuple(nodes), constants, name)


def tiny(**options: object) -> fastlstm.Model:
    """Return a model of `lstm_graph`."""
    return fastlstm.Model(lstm_graph(**options))  # type: ignore[arg-type]
