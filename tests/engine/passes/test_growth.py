"""What loading takes grows in proportion to the file: chains and bodies of n, 2n and 4n nodes, counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastlstm import passes
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.lowering.plan import make_plan
from fastlstm.operators import dims
from fastlstm.passes import rewrite, vectors
from fastlstm.target.machine import detect

RNG = np.random.default_rng(0)


def chain(n: int, link: Callable[[int, str], list[Node]], constants: dict[str, Any] | None = None) -> Graph:
    """Return a graph in which n links follow one another, the last one's value its output."""
    nodes, value = [], "x"
    for i in range(n):
        nodes += link(i, value)
        value = nodes[-1].outputs[0]
    held = {name: np.asarray(array) for name, array in (constants or {}).items()}
    return Graph((TensorSpec("x", ("time", 2, 4)),), (TensorSpec(value, ("...",)),), tuple(nodes), held)


def op(kind: str, inputs: str, output: str, **attrs: Any) -> Node:
    return Node(kind, tuple(inputs.split()), tuple(output.split()), attrs)


W = RNG.standard_normal((4, 4)).astype(np.float32)


def squares(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Mul", f"{x} {x}", f"m{i}")])


def sums(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Add", f"{x} x", f"a{i}"), op("Mul", f"a{i} {x}", f"m{i}")])


def cubes(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Sigmoid", x, f"s{i}"), op("Mul", f"s{i} {x}", f"m{i}")])


def joins(n: int) -> Graph:
    """Values of growing width, joined with themselves and cut in two again."""
    return chain(
        n,
        lambda i, x: [
            op("Concat", f"{x} {x}", f"c{i}", axis=-1), op("Split", f"c{i}", f"p{i} q{i}", axis=-1),
            op("Add", f"p{i} q{i}", f"a{i}"),
        ],
    )  # fmt: skip


def widening(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Concat", f"{x} {x}", f"c{i}", axis=-1)])


def products(n: int) -> Graph:
    return chain(
        n,
        lambda i, x: [
            op("MatMul", f"{x} W", f"p{i}"),
            op("Sigmoid", f"p{i}", f"s{i}"),
            op("Mul", f"s{i} {x}", f"m{i}"),
        ],
        {"W": W},
    )


def matrices(n: int) -> Graph:
    return chain(n, lambda i, x: [op("MatMul", f"{x} W", f"p{i}")], {"W": W})


def sigmoids(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Sigmoid", x, f"s{i}")])


def sliced_sigmoids(n: int) -> Graph:
    constants = {"from": [0], "to": [2], "last": [-1]}
    return chain(
        n,
        lambda i, x: [
            op("Sigmoid", x, f"s{i}"), op("Slice", f"s{i} from to last", f"l{i}"),
            op("Concat", f"l{i} l{i}", f"c{i}", axis=-1),
        ],
        constants,
    )  # fmt: skip


def transposes(n: int) -> Graph:
    return chain(n, lambda i, x: [op("Transpose", x, f"t{i}", perm=[1, 0, 2]), op("Relu", f"t{i}", f"r{i}")])


def reshapes(n: int) -> Graph:
    return chain(
        n,
        lambda i, x: [
            op("Reshape", f"{x} flat", f"f{i}"),
            op("Tanh", f"f{i}", f"t{i}"),
            op("Reshape", f"t{i} back", f"b{i}"),
        ],
        {"flat": np.array([-1, 4]), "back": np.array([-1, 2, 4])},
    )


def sizes_squared(n: int) -> Graph:
    """A size multiplied with itself and one more, over and over."""
    nodes = [op("Shape", "x", "s"), op("Gather", "s zero", "v")]
    value = "v"
    for i in range(n):
        nodes += [op("Add", f"{value} one", f"a{i}"), op("Mul", f"a{i} {value}", f"m{i}")]
        value = f"m{i}"
    held = {"zero": np.array(0), "one": np.array(1)}
    return Graph((TensorSpec("x", ("time", 2, 4)),), (TensorSpec(value, ()),), tuple(nodes), held)


def sizes_divided(n: int) -> Graph:
    nodes = [op("Shape", "x", "s"), op("Gather", "s zero", "v")]
    value = "v"
    for i in range(n):
        nodes += [op("Div", f"{value} three", f"d{i}"), op("Add", f"d{i} {value}", f"a{i}")]
        value = f"a{i}"
    held = {"zero": np.array(0), "three": np.array(3)}
    return Graph((TensorSpec("x", ("time", 2, 4)),), (TensorSpec(value, ()),), tuple(nodes), held)


def inside_scan(make: Callable[[int], Graph]) -> Callable[[int], Graph]:
    """Return what puts a chain into the body of a Scan, whose state it changes."""

    def built(n: int) -> Graph:
        inner = make(n)
        body = Graph(
            (TensorSpec("x", (2, 4)), TensorSpec("f", (2, 4))),
            (*inner.outputs, TensorSpec("g", (2, 4))),
            (*inner.nodes, op("Add", "x f", "g")),
            inner.constants,
        )
        node = Node("Scan", ("h", "frames"), ("last", "all"), {"body": body, "num_scan_inputs": 1})
        inputs = (TensorSpec("h", (2, 4)), TensorSpec("frames", ("time", 2, 4)))
        return Graph(inputs, (TensorSpec("last", ("...",)), TensorSpec("all", ("...",))), (node,))

    built.__name__ = f"scan_of_{make.__name__}"
    return built


def nested(n: int) -> Graph:
    """Loops inside loops."""
    graph = None
    for level in range(n):
        x, y = f"x{level}", f"y{level}"
        node = op("Tanh", x, y) if graph is None else Node("Loop", (f"trips{level}", "", x), (y,), {"body": graph})
        graph = Graph(
            (TensorSpec(f"i{level}", (), "int64"), TensorSpec(f"go{level}", (), "bool"), TensorSpec(x, (2, 4))),
            (TensorSpec(f"on{level}", (), "bool"), TensorSpec(y, (2, 4))),
            (op("Identity", f"go{level}", f"on{level}"), node),
            {f"trips{level}": np.array(3)},
        )
    assert graph is not None
    outer = Node("Loop", ("trips", "", "x"), ("y",), {"body": graph})
    return Graph((TensorSpec("x", (2, 4)),), (TensorSpec("y", (2, 4)),), (outer,), {"trips": np.array(3)})


def branches(n: int) -> Graph:
    """Branches one behind the other."""

    def link(i: int, x: str) -> list[Node]:
        yes = Graph((), (TensorSpec(f"u{i}", ("...",)),), (op("Neg", x, f"u{i}"),))
        no = Graph((), (TensorSpec(f"v{i}", ("...",)),), (op("Abs", x, f"v{i}"),))
        return [
            op("ReduceMax", x, f"m{i}", keepdims=0), op("Greater", f"m{i} half", f"g{i}"),
            Node("If", (f"g{i}",), (f"y{i}",), {"then_branch": yes, "else_branch": no}),
        ]  # fmt: skip

    return chain(n, link, {"half": np.float32(0.5)})


def work(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count what reading a graph takes: rewrites tried, terms of formulas and of sizes, and all calls of functions."""
    counts = {"rewrites": 0, "terms": 0, "calls": 0}
    place, vector = rewrite._Sweep.first, vectors._vector

    def first(self: Any, node: Node) -> Any:
        counts["rewrites"] += 1
        return place(self, node)

    def collected(width: int, bias: Any, terms: Any) -> Any:
        terms = list(terms)
        counts["terms"] += sum(len(monomial) for monomial, _ in terms)
        return vector(width, bias, terms)

    def count(_frame: Any, event: str, _arg: Any) -> None:
        counts["calls"] += event == "call"

    monkeypatch.setattr(rewrite._Sweep, "first", first)
    monkeypatch.setattr(vectors, "_vector", collected)
    dims._parse.cache_clear()
    sys.setprofile(count)
    try:
        make_plan(passes.optimise(graph), detect())
    finally:
        sys.setprofile(None)
        monkeypatch.undo()
    return counts


CHAINS = [
    squares, sums, cubes, joins, widening, products, matrices, sigmoids, sliced_sigmoids, transposes, reshapes,
    sizes_squared, sizes_divided, branches,
]  # fmt: skip
CASES = [*CHAINS, *map(inside_scan, [squares, sums, cubes, joins, products, matrices, sigmoids])]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_twice_the_nodes_take_less_than_three_times_the_work(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [work(make(n), monkeypatch) for n in (24, 48, 96)]
    for less, more in pairwise(found):
        for what, count in more.items():
            assert count < 3 * less[what] + 100, (what, found)


def test_loops_in_loops_are_not_gone_through_again_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [work(nested(n), monkeypatch) for n in (3, 6, 12)]
    for less, more in pairwise(found):
        assert more["calls"] < 3 * less["calls"], found
