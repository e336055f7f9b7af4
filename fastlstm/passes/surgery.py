"""Replacing the nodes that spell out a recurrent layer by the layer, and checking that it computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError
from fastlstm.graph import Graph, Node, RecurrentInputs, TensorSpec, outer_values
from fastlstm.operators import reference
from fastlstm.operators.sizes import is_small
from fastlstm.operators.values import UNKNOWN, ValueInfo
from fastlstm.passes.cells import Cell, Weights
from fastlstm.typing import Array

__all__ = ["ROWS", "STEPS", "Additions", "agree", "depends_on", "ordered", "replaced"]

STEPS, ROWS = 3, 2
"""Time steps and batch rows of a check, unless they are fixed."""

MOST_ELEMENTS = 1 << 24
"""Most elements of an input of a check."""

TOLERANCE = 1e-5
"""Both sides of a check are computed in float64 from the same float32 weights. They differ in the order of sums and in
what an exporter rounded (a sixth, 6e-8; two biases added), which a few steps of a recurrence may amplify."""


class Additions:
    """Nodes and constants to be added to a graph.

    Parameters
    ----------
    fresh : callable
        Makes a name that is new in the model.
    """

    def __init__(self, fresh: Callable[[str], str]) -> None:
        self.fresh = fresh
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}

    def constant(self, hint: str, value: Any) -> str:
        """Add a constant; return its name."""
        name = self.fresh(hint)
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: Sequence[str], hint: str, attrs: Mapping[str, Any] | None = None) -> str:
        """Add a node with one output; return the output's name."""
        name = self.fresh(hint)
        self.nodes.append(Node(op, tuple(inputs), (name,), dict(attrs or {})))
        return name

    def named(self, op: str, inputs: Sequence[str], output: str, attrs: Mapping[str, Any] | None = None) -> None:
        """Add a node that defines the value `output`."""
        self.nodes.append(Node(op, tuple(inputs), (output,), dict(attrs or {})))

    def unsqueezed(self, value: str, axis: int = 0) -> str:
        """Return the value with one more axis."""
        return self.node("Unsqueeze", (value, self.constant(f"{value}.axes", [axis])), value)

    def layer(
        self,
        name: str,
        cell: Cell,
        weights: Weights,
        x: str,
        states: Sequence[str] = ("", ""),
        *,
        mask: str = "",
        direction: str = "forward",
    ) -> tuple[str, str, str]:
        """Add the recurrent layer of a cell over x [T, B, I]; return the names of y, h_n and c_n ("" if none).

        `states` are h_0 and c_0, [1, B, H] each, or "".
        """
        attrs: dict[str, Any] = {
            "hidden_size": cell.size,
            "directions": [direction],
            "activations": [[list(function) for function in cell.functions]],
            "clip": None,
        }
        if cell.op == "LSTM":
            attrs["input_forget"] = int(cell.coupled)
        if cell.op == "GRU":
            attrs["reset_after"] = weights.reset_after
        arrays = {"w_ih": weights.w_ih, "w_hh": weights.w_hh, "bias": weights.bias, "peephole": weights.peephole}
        if weights.norm is not None:
            arrays["norm"], attrs["norm_epsilon"] = weights.norm, weights.epsilon
        given = {
            what: self.constant(f"{name}.{what}", array[None]) for what, array in arrays.items() if array is not None
        }
        read = RecurrentInputs(x, mask=mask, h_0=states[0], c_0=states[1] if cell.op == "LSTM" else "", **given)
        outputs = [self.fresh(f"{name}.{what}") for what in ("y", "h_n", "c_n")[: 3 if cell.op == "LSTM" else 2]]
        self.nodes.append(Node(cell.op, read.given(), tuple(outputs), attrs, name))
        return outputs[0], outputs[1], outputs[2] if len(outputs) == 3 else ""


def replaced(graph: Graph, additions: Additions) -> Graph | None:
    """Return the graph with the additions in place of the nodes that define the same values; None if circular."""
    new = {value for node in additions.nodes for value in node.outputs}
    kept = [node for node in graph.nodes if new.isdisjoint(node.outputs)]
    nodes = ordered([*kept, *additions.nodes], [*graph.nodes, *additions.nodes])
    if nodes is None:
        return None
    return graph.replace(nodes=nodes, constants={**graph.constants, **additions.constants})


def ordered(nodes: Sequence[Node], all_nodes: Iterable[Node]) -> tuple[Node, ...] | None:
    """Return the nodes in an order in which each comes after what it reads, None if there is none.

    Values of `all_nodes` that none of `nodes` defines any more must not be read.
    """
    makers = {value: node for node in nodes for value in node.outputs if value}
    gone = {value for node in all_nodes for value in node.outputs if value} - set(makers)
    done: set[int] = set()
    open_: set[int] = set()
    order: list[Node] = []
    for first in nodes:
        stack = [(first, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                open_.discard(id(node))
                done.add(id(node))
                order.append(node)
                continue
            if id(node) in open_:
                return None
            open_.add(id(node))
            stack.append((node, True))
            for value in (*node.inputs, *outer_values(node)):
                if value in gone:
                    return None
                maker = makers.get(value)
                if maker is not None and id(maker) not in done:
                    if id(maker) in open_:
                        return None
                    stack.append((maker, False))
    return tuple(order)


def depends_on(graph: Graph, values: Iterable[str], on: set[str]) -> bool:
    """Tell whether any of `values` is computed from any of `on`."""
    makers = graph.producers()
    seen: set[str] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value in on:
            return True
        if value in seen or value not in makers:
            continue
        seen.add(value)
        waiting += [v for v in (*makers[value].inputs, *outer_values(makers[value])) if v]
    return False


def agree(
    before: Graph,
    after: Graph,
    infos: Mapping[str, ValueInfo],
    given: Sequence[str],
    wanted: Sequence[str],
    sizes: Mapping[str, int],
) -> bool:
    """Tell whether two graphs compute the same values `wanted` from random values `given`, in float64.

    This is insurance: a graph that fails stays as it was. `sizes` holds those of named dimensions that have to match;
    others are chosen.
    """
    parts = [_part(graph, set(given), wanted) for graph in (before, after)]
    names = {spec.name for part in parts for spec in part.inputs}
    for seed, scale in enumerate((0.5, 2.0)):
        feeds = _feeds(sorted(names), infos, np.random.default_rng(seed), scale, dict(sizes))
        if feeds is None:
            return False
        try:
            results = [reference.run(p, {spec.name: feeds[spec.name] for spec in p.inputs}) for p in parts]
        except FastLSTMError:
            return False
        for name in wanted:
            a, b = (np.asarray(result[name]) for result in results)
            if a.shape != b.shape or not np.allclose(a, b, TOLERANCE, TOLERANCE, equal_nan=True):
                return False
    return True


def _part(graph: Graph, given: set[str], wanted: Sequence[str]) -> Graph:
    """Return the part of the graph that computes `wanted`, with what it needs of `given` as its inputs."""
    needed, nodes = set(wanted), []
    for node in reversed(graph.nodes):
        made = needed.intersection(node.outputs) - given
        if not made:
            continue
        nodes.append(node)
        needed.update(v for v in (*node.inputs, *outer_values(node)) if v)
    made = {value for node in nodes for value in node.outputs}
    constants = {name: array for name, array in graph.constants.items() if name in needed and name not in given}
    inputs = sorted(needed - set(constants) - (made - given))
    # A node that computes a given value besides another one must not define it again.
    free = {value: f"{value}#unread" for value in made & given}
    renamed = [Node(n.op, n.inputs, tuple(free.get(v, v) for v in n.outputs), n.attrs, n.name) for n in nodes]
    specs = tuple(TensorSpec(name, ("...",), "") for name in inputs)
    outputs = tuple(TensorSpec(name, ("...",), "") for name in wanted)
    return Graph(specs, outputs, tuple(reversed(renamed)), constants)


def _feeds(
    names: Sequence[str],
    infos: Mapping[str, ValueInfo],
    random: np.random.Generator,
    scale: float,
    sizes: dict[str, int],
) -> dict[str, Array] | None:
    """Return random values for `names`; None if one of them has no known shape or kind, or is too large."""
    feeds: dict[str, Array] = {}
    for name in names:
        info = infos.get(name, UNKNOWN)
        if info.shape is None or info.dtype not in ("float32", "float64", "bool", "int32", "int64"):
            return None
        shape = [d if isinstance(d, int) else sizes.setdefault(d, ROWS) for d in info.shape]
        if not is_small(shape, MOST_ELEMENTS):
            return None
        array = random.standard_normal(shape) * scale
        # Integers are mostly indices into a table, which has at least two rows.
        feeds[name] = array if info.dtype.startswith("float") else (array > 0).astype(info.dtype)
    return feeds
