"""A stream's graph under construction: nodes, constants, states, and what is known of values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node
from fastlstm.operators import dims
from fastlstm.passes import shapes
from fastlstm.passes.rewrite import Names
from fastlstm.streaming.flow import FRAMES, Carried, Phase, refusal

__all__ = ["Placement"]


@dataclass(kw_only=True)
class Placement:
    """A stream's graph under construction.

    Attributes
    ----------
    graph : Graph
        The model, its inputs' time axes in units of hops.
    hop, phase : int, Phase
    waiting, delay : int
        Hops that the first call processes, and output frames before the first computed one; found in the steady phase.
    """

    graph: Graph
    hop: int
    phase: Phase = Phase.STEADY
    waiting: int = 0
    delay: int = 0
    givens: dict[str, str] = field(default_factory=dict)  # the input that takes each state, the same in all phases
    nodes: list[Node] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)  # values that have no rows in this phase
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.infos = dict(shapes.infer(self.graph))
        self.constants = dict(self.graph.constants)
        self.names = Names(self.graph)

    def note(self, node: Node, reason: str) -> None:
        """Record what a node adds to the hop or the delay."""
        self.reasons.append(f"{node.op} '{node.name or node.output(0)}' {reason}")

    def put(self, node: Node) -> None:
        """Add a node to the graph, unless a value it reads has no rows: its outputs have none either then."""
        if self.absent.isdisjoint(node.inputs):
            self.nodes.append(node)
        else:
            self.absent.update(filter(None, node.outputs))
        for name, info in zip(node.outputs, shapes.infer_node(node, self.infos), strict=True):
            if name:
                self.infos.setdefault(name, info)

    def shape(self, name: str) -> tuple[Any, ...]:
        """Return a value's shape; UnsupportedError if it is not known."""
        shape = self.infos[name].shape if name in self.infos else None
        if shape is None:
            raise UnsupportedError(f"The shape of '{name}' is not known, so this model cannot stream.")
        return shape

    def axis_by_shape(self, node: Node) -> int | None:
        """Return the time axis of the node's output, recognised by its size."""
        shape = self.infos[node.output(0)].shape or ()
        found = [i for i, size in enumerate(shape) if isinstance(size, str) and FRAMES in size]
        if len(found) > 1:
            raise refusal(node, "combines different time steps")
        return found[0] if found else None

    def affine(self, name: str, axis: int) -> tuple[int, int] | None:
        """Return the rows per hop and the extra rows that an axis's size stands for, None if it is not of that form."""
        return dims.linear(self.shape(name)[axis], FRAMES)

    def constant(self, hint: str, value: Any) -> str:
        """Add a constant; return its name, which begins with `hint`."""
        name, array = self.names.fresh(hint), np.asarray(value)
        self.constants[name] = array
        self.infos[name] = shapes.ValueInfo.of_array(array)
        return name

    def cut(self, name: str, axis: int, start: int, end: int) -> str:
        """Return the rows from `start` to `end` of a value."""
        out = self.names.fresh(name)
        bounds = [self.constant(name, np.array([value], np.int64)) for value in (start, end, axis)]
        self.put(Node("Slice", (name, *bounds), (out,)))
        return out

    def given(self, label: str) -> str:
        """Return the input that takes a state: the same in all phases."""
        if label not in self.givens:
            self.givens[label] = self.names.fresh(f"{label}.before")
        return self.givens[label]
