"""LSTMs with layer normalisation: the kernel against the float64 oracle, the same bits however it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastlstm
from fastlstm import Graph, Model, Node, TensorSpec, UnsupportedError
from fastlstm.graph import RecurrentInputs
from fastlstm.operators import reference

Array = npt.NDArray[Any]
RNG = np.random.default_rng(16)


def layer(units: int = 12, features: int = 5, directions: int = 1, **given: str) -> Graph:
    """Return a layer of random weights; `given` are inputs, by the names of the node's."""
    shapes = {
        "w_ih": (4 * units, features), "w_hh": (4 * units, units), "bias": (4 * units,), "norm": (10 * units,),
    }  # fmt: skip
    constants = {
        name: RNG.normal(scale=0.4, size=(directions, *shape)).astype(np.float32) for name, shape in shapes.items()
    }
    constants["norm"] += np.float32(1)
    taken = {
        "lengths": TensorSpec("lengths", ("B",), "int64"),
        "mask": TensorSpec("mask", ("T", "B"), "bool"),
        "h_0": TensorSpec("h_0", (directions, "B", units)),
        "c_0": TensorSpec("c_0", (directions, "B", units)),
    }
    read = RecurrentInputs("x", **{name: name for name in constants}, **given)
    attrs = {
        "hidden_size": units, "directions": ["forward", "reverse"][:directions], "norm_epsilon": 1e-5,
        "activations": [[["Sigmoid", None, None], ["Tanh", None, None], ["Tanh", None, None]]] * directions,
    }  # fmt: skip
    outputs = (
        TensorSpec("y", ("T", "B", directions * units)), TensorSpec("h_n", (directions, "B", units)),
        TensorSpec("c_n", (directions, "B", units)),
    )  # fmt: skip
    inputs = (TensorSpec("x", ("T", "B", features)), *(taken[name] for name in given))
    return Graph(inputs, outputs, (Node("LSTM", read.given(), ("y", "h_n", "c_n"), attrs, "lstm"),), constants)


def frames(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def agree(graph: Graph, inputs: dict[str, Array], atol: float = 2e-5) -> None:
    """Hold a run against the oracle, within what float32 sums and two normalisations of each round away."""
    got = Model(graph).run(inputs)
    for name, expected in reference.run(graph, inputs).items():
        np.testing.assert_allclose(got[name], expected, atol=atol, rtol=1e-5)


def test_both_directions_with_lengths_and_states_are_the_oracle_s() -> None:
    graph = layer(directions=2, lengths="lengths", h_0="h_0", c_0="c_0")
    inputs = {"x": frames(6, 3, 5), "lengths": np.array([6, 2, 4]), "h_0": frames(2, 3, 12), "c_0": frames(2, 3, 12)}
    agree(graph, inputs)


def test_masked_steps_keep_the_states() -> None:
    mask = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1]], bool)
    agree(layer(mask="mask"), {"x": frames(4, 3, 5), "mask": mask})


def test_a_mean_far_from_zero_is_taken_in_double_precision() -> None:
    graph = layer()
    weights = graph.constants["w_ih"] + np.float32(40)  # one mean of all gates, a hundred times their spread
    # Sums of 200 have an ulp of 1.5e-5, which the normalisation and the steps behind it make larger.
    agree(graph.replace(constants={**graph.constants, "w_ih": weights}), {"x": np.abs(frames(5, 2, 5))}, atol=2e-4)


def test_rows_steps_chunks_and_threads_have_the_same_bits() -> None:
    graph = layer(128)
    x = frames(20, 3, 5)
    model = Model(graph)
    whole = model.run({"x": x})
    two = Model(graph, threads=2).run({"x": x})
    for name, value in whole.items():
        assert np.array_equal(two[name], value)
    only_y = Model(graph.replace(outputs=graph.outputs[:1]))
    stream, y = only_y.stream(), whole["y"]
    for row in range(3):
        alone = only_y(x[:, row : row + 1])[:, 0]
        assert np.array_equal(alone, y[:, row])
        stream.reset()
        steps = [stream.step(frame) for frame in x[:4, row]]
        assert np.array_equal(np.concatenate([steps, stream.push(x[4:, row])]), alone)
    pool = only_y.streams(4)
    together = [pool.open() for _ in range(3)]
    assert all(np.array_equal(pool.step(together, x[t]), y[t]) for t in range(3))


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_narrow_weights_stay_near(precision: str) -> None:
    graph, x = layer(128), frames(10, 2, 5)
    got, expected = (Model(graph, precision=p).run({"x": x})["y"] for p in (precision, "float32"))
    assert 0 < np.abs(got - expected).max() < (5e-3 if precision == "int16" else 0.15)


def test_a_file_says_that_it_needs_a_release_that_knows_it(tmp_path: Path) -> None:
    graph, x = layer(), frames(4, 2, 5)
    model = Model(graph)
    model.save(tmp_path / "m.fastlstm")
    assert b'"fastlstm.format":"3"' in (tmp_path / "m.fastlstm").read_bytes().replace(b": ", b":")
    assert np.array_equal(fastlstm.load(tmp_path / "m.fastlstm").run({"x": x})["y"], model.run({"x": x})["y"])


def test_half_a_normalisation_is_refused() -> None:
    graph = layer()
    (node,) = graph.nodes
    attrs = {name: value for name, value in node.attrs.items() if name != "norm_epsilon"}
    with pytest.raises(UnsupportedError, match="norm_epsilon"):
        Model(graph.replace(nodes=(Node("LSTM", node.inputs, node.outputs, attrs),)))
    inputs = RecurrentInputs.of(node)._replace(peephole="peephole").given()
    constants = {**graph.constants, "peephole": np.zeros((1, 36), np.float32)}
    with pytest.raises(UnsupportedError, match="no peepholes"):
        Model(graph.replace(nodes=(Node("LSTM", inputs, node.outputs, node.attrs),), constants=constants))
    with pytest.raises(UnsupportedError, match="norm should be"):
        Model(graph.replace(constants={**graph.constants, "norm": graph.constants["norm"][:, :-1]}))
