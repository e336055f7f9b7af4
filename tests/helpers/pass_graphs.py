"""Small graphs for the tests of the passes, and `optimise` checked against the reference."""

from __future__ import annotations

import numpy as np

from fastlstm import passes
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.operators import reference
from fastlstm.operators.validation import validated

RNG = np.random.default_rng(7)
H, FEATURES = 4, 3


def constant(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


def lstm(x, prefix="l", directions=("forward",), states=()):
    D = len(directions)
    attrs = {
        "hidden_size": H,
        "directions": list(directions),
        "activations": default_activations("LSTM", D),
        "clip": None,
        "input_forget": 0,
    }
    inputs = (x, f"{prefix}.w", f"{prefix}.r", f"{prefix}.b", "", "", *states)
    return Node("LSTM", inputs, (f"{prefix}.y", f"{prefix}.h", f"{prefix}.c"), attrs)


def weights(prefix="l", directions=1, features=FEATURES):
    return {
        f"{prefix}.w": constant(directions, 4 * H, features),
        f"{prefix}.r": constant(directions, 4 * H, H),
        f"{prefix}.b": constant(directions, 4 * H),
    }


def model(nodes, constants, outputs, inputs=(("x", ("batch", "time", FEATURES)),)):
    specs = [s if isinstance(s, TensorSpec) else TensorSpec(*s) for s in inputs]
    outs = [TensorSpec(name, ("?",)) for name in outputs]
    return validated(Graph(tuple(specs), tuple(outs), tuple(nodes), constants))


def optimised(graph, sizes=({"batch": 2, "time": 5}, {"batch": 1, "time": 1}), tolerance=1e-12):
    """Return optimise(graph) after checking that both give the same results (float64: only the order of
    additions may differ, hence 1e-12)."""
    plain = validated(passes.optimise(graph))
    for dims in sizes:
        feeds = {}
        for spec in graph.inputs:
            shape = [dims.get(d, 2) if isinstance(d, str) else d for d in spec.shape]
            feeds[spec.name] = (RNG.standard_normal(shape) * 3).astype(spec.dtype)
        before, after = reference.run(graph, feeds), reference.run(plain, feeds)
        assert list(before) == list(after)
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance)
    return plain


def ops_of(graph):
    return [node.op for node in graph.nodes]


def onnx_y(prefix="l", directions=1):
    """ONNX's Y [T, D, B, H] as converters write it."""
    target = {f"{prefix}.split": ints(0, 0, directions, H)}
    nodes = [
        Node("Reshape", (f"{prefix}.y", f"{prefix}.split"), (f"{prefix}.4d",)),
        Node("Transpose", (f"{prefix}.4d",), (f"{prefix}.Y",), {"perm": [0, 2, 1, 3]}),
    ]
    return nodes, target
