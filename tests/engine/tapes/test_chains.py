"""Rounding and what follows it joins the operation before it: one pass over an array, and the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastlstm.executor import Executor
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.lowering.tapes import recorder

RNG = np.random.default_rng(7)
SHAPE = (3, 30, 50)
HELD: dict[str, Any] = {
    "low": np.float32(0), "high": np.float32(255), "three": np.float32([3]), "row": RNG.uniform(1, 2, 50),
    "deep": np.full((1, 1, 1, 1), 2.0),
}  # fmt: skip


def op(kind: str, inputs: str, output: str, **attrs: Any) -> Node:
    return Node(kind, tuple(inputs.split()), (output,), attrs)


SCALE = [op("ReduceMax", "x", "top", keepdims=0), op("Div", "top high", "s"), op("Round", "s", "z")]
ROUNDED = [op("Div", "x s", "d"), op("Round", "d", "r")]
REST = [op("Add", "r z", "a"), op("Clip", "a low high", "q"), op("Sub", "q z", "y")]

GRAPHS: dict[str, tuple[list[Node], int]] = {
    "as numbers are quantised": ([*SCALE, *ROUNDED, *REST], 4),
    "by one scale a column": ([op("Div", "x row", "d"), op("Round", "d", "r"), op("Mul", "r three", "y")], 2),
    "the value is the second operand": ([*SCALE, *ROUNDED, op("Sub", "z r", "y")], 2),
    "an operand with more axes": ([*SCALE, *ROUNDED, op("Mul", "r deep", "y")], 1),
    "an operand that is computed later": (
        [*SCALE[:2], *ROUNDED, op("Round", "s", "z"), op("Add", "r z", "a"), op("Mul", "a three", "y")], 1
    ),
    "a value that is read twice": ([*SCALE, *ROUNDED, op("Add", "r three", "a"), op("Mul", "r a", "y")], 1),
    "its own largest element": (
        [*SCALE, *ROUNDED, op("ReduceMax", "r", "m", keepdims=0), op("Mul", "r m", "y")], 1
    ),
    "nothing is rounded": ([op("Div", "x three", "d"), op("Add", "d three", "y")], 0),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", GRAPHS)
def test_functions_join_the_operation_before_them_if_they_may(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, joined = GRAPHS[name]
    held = {key: np.asarray(value, np.float32) for key, value in HELD.items()}
    graph = Graph((TensorSpec("x", ("n", *SHAPE[1:])),), (TensorSpec("y", ("...",)),), tuple(nodes), held)
    x = RNG.standard_normal(SHAPE).astype(np.float32)
    found, extend = [], recorder.Recorder.extend
    monkeypatch.setattr(recorder.Recorder, "extend", lambda *given: found.append(extend(*given)) or found[-1])
    executor = Executor(graph, threads=threads)
    results = [executor.run({"x": each})[0] for each in (x, 2 * x, x)]
    assert sum(found) == joined
    monkeypatch.setattr(recorder, "LEAST_CHAINED", x.size + 1)
    apart = Executor(graph, threads=threads)
    for result, each in zip(results, (x, 2 * x, x), strict=True):
        np.testing.assert_array_equal(result, apart.run({"x": each})[0])
    assert sum(found) == joined
