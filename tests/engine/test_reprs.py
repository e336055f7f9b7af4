"""What a prompt shows of models and what they run on: short, and what a person wants to know."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

import fastlstm
from fastlstm import Model
from fastlstm.graph import Graph, Node, TensorSpec


def test_reprs_are_short_whatever_a_model_holds() -> None:
    width = 64
    weights = {f"w{i}": np.ones((width, width), np.float32) for i in range(40)}
    nodes = [Node("MatMul", (f"v{i}", f"w{i}"), (f"v{i + 1}",), {}) for i in range(40)]
    sizes = ("time", "batch", width)
    model = Model(Graph((TensorSpec("v0", sizes),), (TensorSpec("v40", sizes),), tuple(nodes), weights, "deep"))
    executor = model._executor
    segment = executor.plan.parts[0]
    shown = [model, model.plan, executor, segment, segment.program, segment.bound(3)]
    for thing in shown:
        assert len(repr(thing)) < 400, repr(thing)
    assert "80 steps in 40 parts" in repr(model.plan)
    assert "163,840 multiply-adds" in repr(model.plan)
    assert "3 rows" in repr(shown[-1])
    assert "deep" in repr(model)
    assert len(str(model.plan).splitlines()) == 81


def test_notebooks_get_tables_of_well_formed_html() -> None:
    sizes = {"lstm.weight_ih_l0": (32, 3), "lstm.weight_hh_l0": (32, 8)}
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in sizes.items()}
    model = fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)
    pool = model.streams(3)
    pool.open()
    x = np.zeros((1, 4, 3), np.float32)
    wanted = {
        "float32[batch, time, 3]": model,
        "recurrent.": model.plan,
        "a step takes one frame; no delay": model.stream(),
        "1 of 3 streams": pool,
        "svg": model.profile({model.inputs[0].name: x}, seconds=0.01),
    }
    for text, thing in wanted.items():
        html = thing._repr_html_()
        assert text in html
        ElementTree.fromstring(f"<div>{html}</div>")
        assert len(repr(thing)) < 400
