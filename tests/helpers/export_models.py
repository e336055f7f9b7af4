"""Small models that tests export, made as graphs."""

from __future__ import annotations

import numpy as np

import fastlstm
from fastlstm.graph import Graph, Node, RecurrentInputs, TensorSpec, default_activations
from fastlstm.operators import OPERATORS, Function

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


def convolutions(count: int) -> fastlstm.Model:
    """Return a model of so many convolutions and a softmax's logarithm, for one size."""
    rng = np.random.default_rng(5)
    constants = {f"w{i}": rng.uniform(-0.4, 0.4, (4, 4, 3)).astype(np.float32) for i in range(count)}
    nodes = [Node("Conv", (f"v{i}", f"w{i}"), (f"v{i + 1}",), {"pads": [1, 1]}, f"conv{i}") for i in range(count)]
    nodes.append(Node("LogSoftmax", (f"v{count}",), ("y",), {"axis": 1}, "softmax"))
    ports = [TensorSpec(name, (1, 4, 16), "float32") for name in ("v0", "y")]
    return fastlstm.Model(Graph((ports[0],), (ports[1],), tuple(nodes), constants, "convolutions"))


def masking(units: int = 8) -> fastlstm.Model:
    """Return an LSTM that skips frames of zeros, as Keras writes Masking down."""
    plain = lstm_graph(units)
    constants = {**plain.constants, "zero": np.zeros((), np.float32), "last": np.array([-1])}
    given = [
        Node("Equal", ("rows", "zero"), ("zeros",), {}, "zeros"),
        Node("Not", ("zeros",), ("others",), {}, "others"),
        Node("Cast", ("others",), ("numbers",), {"to": 6}, "numbers"),
        Node("ReduceMax", ("numbers", "last"), ("most",), {"keepdims": 0}, "any"),
        Node("Cast", ("most",), ("mask",), {"to": 9}, "mask"),
    ]
    lstm, dense = plain.nodes
    nodes = (
        *given,
        Node("LSTM", RecurrentInputs(*lstm.inputs, mask="mask").given(), lstm.outputs, lstm.attrs, "lstm"),
        dense,
    )
    return fastlstm.Model(plain.replace(nodes=nodes, constants=constants))


def arithmetic() -> fastlstm.Model:
    """Return every operator whose function a C library could compute, side by side, for one size."""
    spread = np.array([0.3, 1.7, 40.6, 5000.5], np.float32)
    constants = {"spread": spread, "half": np.array(0.5, np.float32), "scale": np.ones(4, np.float32)}
    nodes = [
        Node("Mul", ("x", "spread"), ("any",), {}, "any"),
        Node("Abs", ("any",), ("positive",), {}, "positive"),
        Node("Pow", ("positive", "half"), ("Pow.out",), {}, "Pow"),
        Node("LayerNormalization", ("any", "scale"), ("LayerNormalization.out",), {"axis": -1}, "LayerNormalization"),
    ]
    functions = [name for name, operator in OPERATORS.items() if isinstance(operator.lowering, Function)]
    named = [op for op in (*functions, "Log", "Softmax", "LogSoftmax") if op not in ("Clip", "Abs")]  # those compare
    given = {"Log": "positive", "Sqrt": "positive"}
    nodes += [Node(op, (given.get(op, "any"),), (f"{op}.out",), {}, op) for op in named]
    outs = tuple(node.outputs[0] for node in nodes[2:])
    nodes.append(Node("Concat", outs, ("y",), {"axis": 2}, "all"))
    ports = [TensorSpec("x", (1, 3, 4), "float32"), TensorSpec("y", (1, 3, 4 * len(outs)), "float32")]
    return fastlstm.Model(Graph((ports[0],), (ports[1],), tuple(nodes), constants, "arithmetic"))
