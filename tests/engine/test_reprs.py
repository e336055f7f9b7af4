"""What a prompt shows of models and what they run on: short, and what a person wants to know."""

from __future__ import annotations

import numpy as np

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
