"""Shapes behind an If: a branch that ends in a node that cannot run says nothing about calls that return."""

from __future__ import annotations

import pytest
from pass_graphs import FEATURES, constant, lstm, model, weights

from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.passes import branches, infer_possible, shapes

OPEN = ("rows", FEATURES, "left")


def guarded(number: int, given: str, condition: str) -> Node:
    """An If that squeezes the last axis of a value, or leaves it as it is."""
    squeezed, same = f"squeezed{number}", f"same{number}"
    bodies = {
        "then_branch": Node("Squeeze", (given, "two"), (squeezed,)),
        "else_branch": Node("Identity", (given,), (same,)),
    }
    graphs = {name: Graph((), (TensorSpec(n.outputs[0], ("...",)),), (n,), {}) for name, n in bodies.items()}
    return Node("If", (condition,), (f"plain{number}",), graphs)


def squeezed_lstm(left: str | int = "left") -> Graph:
    """[rows, features, left] squeezed if `left` is one, as a time step of an LSTM."""
    nodes = [
        Node("Shape", ("x",), ("sizes",)),
        Node("Gather", ("sizes", "two"), ("last",), {"axis": 0}),
        Node("Equal", ("last", "one"), ("is_one",)),
        guarded(0, "x", "is_one"),
        Node("Unsqueeze", ("plain0", "zero"), ("steps",)),
        lstm("steps"),
    ]
    numbers = {name: constant(1).astype("int64") * 0 + value for name, value in {"zero": 0, "one": 1, "two": 2}.items()}
    return model(nodes, {**weights(), **numbers}, ["l.y"], [("x", (*OPEN[:2], left))])


def test_a_branch_whose_result_is_refused_is_left_out() -> None:
    graph = squeezed_lstm()
    assert "rows" not in (shapes.infer(graph)["l.h"].shape or ())
    found = infer_possible(graph)
    assert found["plain0"].shape == ("rows", FEATURES)
    assert found["l.h"].shape == (1, "rows", 4)


def test_a_known_condition_takes_its_branch() -> None:
    assert infer_possible(squeezed_lstm(1))["l.h"].shape == (1, "rows", 4)
    impossible = squeezed_lstm(2)  # it is not squeezed, and no LSTM takes four axes
    assert infer_possible(impossible) == shapes.infer(impossible)


def test_shapes_that_both_branches_may_have_are_not_known() -> None:
    nodes = [guarded(0, "x", "either"), Node("Relu", ("plain0",), ("y",)), Node("Relu", ("x",), ("z",))]
    inputs = [("x", OPEN), TensorSpec("either", (), "bool")]
    found = infer_possible(model(nodes, {"two": constant(1).astype("int64") * 0 + 2}, ["y", "z"], inputs))
    assert found["y"].shape is None
    assert found["y"].dtype == "float32"
    assert found["z"].shape == OPEN


def test_of_many_forks_some_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [("x", OPEN), TensorSpec("either", (), "bool")]
    nodes = [guarded(number, "x", "either") for number in range(200)]
    graph = model(nodes, {"two": constant(1).astype("int64") * 0 + 2}, ["plain199"], inputs)
    seen, infer_node = [], shapes.infer_node
    monkeypatch.setattr(shapes, "infer_node", lambda node, known: seen.append(node) or infer_node(node, known))
    assert infer_possible(graph)["plain199"].shape is None
    assert len(seen) <= 2 * 200 * (branches.MOST_FORKS + 1)  # of 2**200 paths
