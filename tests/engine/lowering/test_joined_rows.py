"""Rows that are joined along other axes than their features are still computed right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.operators import reference

T, B, F, H = 6, 3, 2, 5
RNG = np.random.default_rng(0)
W, D = (RNG.standard_normal(shape).astype(np.float32) for shape in ((1, H, F), (H, 4)))
R = RNG.standard_normal((1, H, H)).astype(np.float32)


def op(kind: str, inputs: str, output: str, **attrs: Any) -> Node:
    return Node(kind, tuple(inputs.split()), (output,), attrs)


LAYER = op("RNN", "x w r", "y", hidden_size=H, directions=["forward"], clip=None, activations=[[["Tanh", None, None]]])
LAST = op("Gather", "y last", "row", axis=0)
BEHIND = {
    "product": [op("Dense", "j d", "z")],
    "function": [op("Sigmoid", "j", "z")],
    "last of a product": [op("Dense", "j d", "p"), op("Gather", "p last", "z", axis=1)],
    "last and product": [op("Gather", "j last", "p", axis=0), op("Dense", "p d", "z")],
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=list(BEHIND))
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("what", ["one step", "one step alone", "sequences"])
def test_rows_joined_along_another_axis(what: str, axis: int, behind: list[Node]) -> None:
    """A Dense over the last step and its tanh, joined along a new axis, read the last step twice."""
    join = op("Concat", "one two", "j", axis=axis)
    if what == "one step alone":
        joined, join = [LAST, op("Unsqueeze", "row place", "one")], op("Tanh", "one", "j")
    elif what == "one step":
        joined = [LAST, op("Unsqueeze", "row place", "one"), op("Tanh", "one", "two")]
    else:
        joined = [op("Identity", "y", "one"), op("Tanh", "y", "two")]
    constants = {"w": W, "r": R, "d": D, "last": np.array(-1), "place": np.array([axis])}
    nodes = (LAYER, *joined, join, *behind)
    graph = Graph((TensorSpec("x", ("time", "batch", F)),), (TensorSpec("z", ("...",)),), nodes, constants)
    given = {"x": RNG.standard_normal((T, B, F)).astype(np.float32)}
    expected, found = reference.run(graph, given)["z"], fastlstm.Model(graph).run(given)["z"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
