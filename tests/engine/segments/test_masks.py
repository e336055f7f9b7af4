"""Masks over recurrent layers: against the oracle, and one row alone, through whichever kernel, against the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plans import kernels_of

import fastlstm
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, default_activations
from fastlstm.kernels import compiler
from fastlstm.operators import reference

STEPS, FEATURES = 300, 6  # more than a block of one row
ROWS = {"none": [], "all": [(0, STEPS)], "start": [(0, 7)], "end": [(270, STEPS)], "middle": [(2, 3), (90, 261)]}


def mask() -> np.ndarray:
    """Return [T, B], False for the steps of `ROWS` in a row each, and in the last for steps here and there."""
    found = np.ones((STEPS, len(ROWS) + 1), bool)
    for b, spans in enumerate(ROWS.values()):
        for start, stop in spans:
            found[start:stop, b] = False
    found[:, -1] = np.random.default_rng(1).random(STEPS) < 0.6
    return found


def make_graph(op: str, units: int, directions: tuple[str, ...], lengths: bool, computed: bool) -> Graph:
    """Return one layer under a mask, which is an input or (`computed`) says where marks are no zeros."""
    rng, gates, count = np.random.default_rng(units), RECURRENT_OPS[op], len(directions)
    shapes = {"w": (gates * units, FEATURES), "r": (gates * units, units), "b": ((gates + (op == "GRU")) * units,)}
    weights = {name: rng.uniform(-0.5, 0.5, (count, *shape)).astype(np.float32) for name, shape in shapes.items()}
    attrs: dict[str, Any] = {"hidden_size": units, "directions": list(directions), "clip": None}
    attrs["activations"] = default_activations(op, count)
    attrs.update({"LSTM": {"input_forget": 0}, "GRU": {"reset_after": 1}, "RNN": {}}[op])
    shown = ["h_n", "c_n"] if op == "LSTM" else ["h_n"]
    before = [f"{name[0]}_0" for name in shown]
    given = ("x", *weights, "lengths" if lengths else "", "mask", *before)
    layer = Node(op, given, ("y", *shown), attrs)
    marks = TensorSpec("marks", ("T", "B", 2)) if computed else TensorSpec("mask", ("T", "B"), "bool")
    inputs = [TensorSpec("x", ("T", "B", FEATURES)), marks]
    inputs += [TensorSpec("lengths", ("B",), "int64")] * lengths
    inputs += [TensorSpec(name, (count, "B", units)) for name in before]
    outputs = [TensorSpec("y", ("T", "B", count * units)), *(TensorSpec(name, (count, "B", units)) for name in shown)]
    constants = {**weights, "axes": np.array([2]), "zero": np.array(0, np.float32)}
    nodes = [
        Node("ReduceSum", ("marks", "axes"), ("sum",), {"keepdims": 0}),
        Node("Greater", ("sum", "zero"), ("mask",)),
    ]
    return Graph(tuple(inputs), tuple(outputs), (*nodes, layer) if computed else (layer,), constants)


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize(
    ("op", "units", "directions"),
    [
        ("LSTM", 3, ("forward", "reverse")),
        ("LSTM", 64, ("forward",)),
        ("GRU", 20, ("forward", "reverse")),
        ("RNN", 20, ("reverse",)),
    ],
)
def test_masked_rows_have_the_bits_of_the_batch(
    op: str, units: int, directions: tuple[str, ...], lengths: bool
) -> None:
    rng, batch = np.random.default_rng(2), len(ROWS) + 1
    graph = make_graph(op, units, directions, lengths, computed=False)
    sizes = {"T": STEPS, "B": batch}
    feeds = {
        spec.name: rng.normal(size=[sizes.get(n, n) for n in spec.shape]).astype(np.float32)
        for spec in graph.inputs
        if spec.name != "lengths"
    }
    feeds["mask"] = mask()
    if lengths:
        feeds["lengths"] = np.array([STEPS, 30, 5, STEPS, 200, 280])
    model, expected = fastlstm.Model(graph), reference.run(graph, feeds)
    whole = model.run(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    # The mask comes from outside, and from an instruction of the same native call.
    taped = fastlstm.Model(make_graph(op, units, directions, lengths, computed=True))
    for rows in [slice(0, batch), *(slice(b, b + 1) for b in range(batch))]:
        some = {name: a[rows] if name == "lengths" else a[:, rows] for name, a in feeds.items()}
        marks = np.stack([some["mask"], some["mask"]], -1).astype(np.float32)
        marked = {"marks": marks, **{name: a for name, a in some.items() if name != "mask"}}
        for found in (model.run(some), taped.run(marked), taped.run(marked)):
            for name, value in found.items():
                np.testing.assert_array_equal(value, whole[name][:, rows], err_msg=f"{name} of rows {rows}")
    assert ("small.lstm" if op == "LSTM" else f"small_gru.{op.lower()}") in kernels_of(model, 1)
    assert lengths or "integers.mask_codes" in {name for name, _ in compiler.loaded()}


def test_what_a_mask_hides_does_not_matter() -> None:
    model = fastlstm.Model(make_graph("LSTM", 3, ("forward",), lengths=False, computed=False))
    feeds: dict[str, Any] = {"mask": mask()[:, -1:], "x": np.ones((STEPS, 1, FEATURES), np.float32)}
    feeds |= {name: np.zeros((1, 1, 3), np.float32) for name in ("h_0", "c_0")}
    clean = model.run(feeds)
    feeds["x"] = np.where(feeds["mask"][..., None], feeds["x"], np.float32(np.nan))
    for name, value in model.run(feeds).items():
        np.testing.assert_array_equal(value, clean[name])
