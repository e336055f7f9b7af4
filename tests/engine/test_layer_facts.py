"""Lengths, masks and states belong to a layer, not to the layers around it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastlstm
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.operators import reference

Array = npt.NDArray[Any]

T, B, H = 6, 4, 8
LENGTHS = {"": None, "short": np.array([3, 6, 0, 1]), "long": np.array([5, 2, 6, 4])}
PAIRS = list(itertools.product(LENGTHS, LENGTHS))


def layer(number: int, x: str, *more: str) -> Node:
    attrs = {"hidden_size": H, "directions": ["forward"], "activations": default_activations("LSTM"), "clip": None}
    names = (x, f"w_ih{number}", f"w_hh{number}", "", *more)
    return Node(
        "LSTM", names, (f"y{number}", f"h_n{number}", f"c_n{number}"), {**attrs, "input_forget": 0}, f"l{number}"
    )


def graph(nodes: list[Node], feeds: dict[str, Array], outputs: list[str]) -> Graph:
    rng = np.random.default_rng(0)
    names = [n for node in nodes for n in node.inputs if n.startswith("w_")]
    weights = {name: rng.uniform(-0.5, 0.5, (1, 4 * H, H)).astype(np.float32) for name in names}
    specs = [TensorSpec(n, ("time", "batch", H) if a.ndim == 3 else ("batch",), a.dtype.name) for n, a in feeds.items()]
    return Graph(tuple(specs), tuple(TensorSpec(n, ("...",)) for n in outputs), tuple(nodes), weights)


def feeds(*lengths: str) -> dict[str, Array]:
    found = {name: array for name in lengths if (array := LENGTHS[name]) is not None}
    return {"x": np.random.default_rng(1).standard_normal((T, B, H)).astype(np.float32), **found}


def check(made: Graph, given: dict[str, Array]) -> fastlstm.Model:
    model = fastlstm.Model(made)
    for name, expected in reference.run(made, given).items():
        np.testing.assert_allclose(model.run(given)[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    return model


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_stacked_layers_have_lengths_of_their_own(first: str, second: str) -> None:
    given = feeds(first, second)
    made = graph([layer(1, "x", first), layer(2, "y1", second)], given, ["h_n1", "c_n1", "y2", "h_n2"])
    model = check(made, given)
    assert len(model.plan.parts) == (1 if first == second else 2), "layers with the same lengths are one call"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_layers_side_by_side_have_lengths_of_their_own(first: str, second: str) -> None:
    given = feeds(first, second)
    nodes = [Node("Tanh", ("x",), ("t",)), layer(1, "t", first), layer(2, "t", second)]
    nodes += [Node("Add", ("y1", "y2"), ("sum",)), layer(3, "sum", first)]
    check(graph(nodes, given, ["sum", "y3", "h_n1", "h_n2"]), given)


@pytest.mark.parametrize("masked", [1, 2])
@pytest.mark.parametrize("long", ["", "short"])
def test_a_mask_is_that_of_its_layer(masked: int, long: str) -> None:
    given = feeds(long)
    given["mask"] = np.random.default_rng(2).random((T, B)) < 0.6
    more = [("", "mask") if number == masked else (long,) for number in (1, 2)]
    made = graph([layer(1, "x", *more[0]), layer(2, "y1", *more[1])], given, ["y1", "y2", "h_n2"])
    specs = tuple(TensorSpec(s.name, ("time", "batch"), "bool") if s.name == "mask" else s for s in made.inputs)
    check(made.replace(inputs=specs), given)


def test_a_state_given_to_two_layers_has_the_directions_of_each() -> None:
    given = feeds()
    given["h_0"] = np.zeros((2, B, H), np.float32)
    both = layer(2, "x", "", "", "h_0")
    attrs = {**both.attrs, "directions": ["forward", "reverse"], "activations": default_activations("LSTM", 2)}
    made = graph([layer(1, "x", "", "", "h_0"), both], given, ["y1", "y2"])
    twice = {n: np.concatenate([a, a]) if n.endswith("2") else a for n, a in made.constants.items()}
    specs = (made.inputs[0], TensorSpec("h_0", ("directions", "batch", H)))
    nodes = (made.nodes[0], Node(both.op, both.inputs, both.outputs, attrs, both.name))
    with pytest.raises(InputError, match=r"'h_0' should have the shape \[1, 4, 8\]"):
        fastlstm.Model(made.replace(inputs=specs, nodes=nodes, constants=twice)).run(given)
