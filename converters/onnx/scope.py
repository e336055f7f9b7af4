"""What the ONNX converter works with: a node with plain attributes, and the graph it is read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastlstm.converters.common.builder import GraphBuilder
from fastlstm.converters.onnx import constants
from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec, outer_values
from fastlstm.typing import Array

__all__ = ["OnnxNode", "Scope"]


@dataclass(frozen=True)
class OnnxNode:
    """A node as the file has it: value names already those of the Graph, attributes as Python data.

    Attributes
    ----------
    op : str
    opset : int
        Version of the operator set that gives the node its meaning.
    inputs, outputs : tuple of str
        ``""`` where absent, and for outputs that nothing reads.
    attrs : mapping
        ints, floats, strings, arrays, `Graph` bodies, and lists of the first three.
    name : str
        What to call the node in messages and after which to name the values made for it.
    """

    op: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def input(self, position: int) -> str:
        """Return the input at `position`, ``""`` if it is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def output(self, position: int) -> str:
        """Return the output at `position`, ``""`` if it is absent or unused."""
        return self.outputs[position] if position < len(self.outputs) else ""

    def unsupported(self, problem: str) -> UnsupportedError:
        """Return the error for this node."""
        return UnsupportedError(f"{self.op} node '{self.name}': {problem}")

    def replace(self, **changes: Any) -> OnnxNode:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def without(self, *attrs: str) -> OnnxNode:
        """Return a copy without some attributes."""
        return self.replace(attrs={k: v for k, v in self.attrs.items() if k not in attrs})


class Scope(GraphBuilder):
    """A graph, or the body of a control-flow node, while it is being read.

    Parameters
    ----------
    name : str
    outer : Scope or None
        The graph around a body: its values can be read here.

    Attributes
    ----------
    specs : dict of str to TensorSpec
        What the file says about values: inputs, outputs and intermediate ones.
    """

    def __init__(self, name: str = "", outer: Scope | None = None) -> None:
        super().__init__(name)
        self.outer = outer
        self.specs: dict[str, TensorSpec] = {}
        self.makers: dict[str, Node] = {}
        self.folded: dict[str, Array] = {}
        if outer is not None:
            self.notes, self._taken = outer.notes, outer._taken
        self.budget: constants.Budget = outer.budget if outer is not None else constants.Budget()

    def reserve(self, names: Sequence[str]) -> None:
        """Keep the file's own names from being given to values made here."""
        self._taken.update(names)

    def define(self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attrs: Any) -> None:
        """Add a node whose outputs have names already."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._add(Node(op, tuple(inputs), tuple(outputs), attrs, name))

    def nodes_out(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> list[str]:
        """Add a node of several outputs with new names made from `outputs`."""
        names = [self.unique(output) if output else "" for output in outputs]
        self._add(Node(op, tuple(inputs), tuple(names), attrs, name=names[0]))
        return names

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        self.makers.update((output, node) for output in node.outputs if output)

    def known(self, value: str) -> Array | None:
        """Return the value if it can be computed from constants alone, else None."""
        return constants.known(self, value)

    def as_constant(self, value: str, hint: str) -> str:
        """Return `value`, or a constant called `hint` in its place if it is computed from constants alone."""
        if value in self.constants or not value:
            return value
        array = self.known(value)
        return value if array is None else self.constant(hint, array)

    def spec(self, value: str) -> TensorSpec | None:
        """Return what the file says about a value, here or in the graphs around."""
        return self.specs.get(value) or (self.outer.spec(value) if self.outer else None)

    def finish(self, outputs: Sequence[TensorSpec]) -> Graph:
        """Return the graph without the nodes and constants that nothing reads."""
        needed = {spec.name for spec in outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(o for o in node.outputs if o):
                kept.append(node)
                needed.update(node.inputs, outer_values(node))
        return Graph(
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            nodes=tuple(reversed(kept)),
            constants={name: array for name, array in self.constants.items() if name in needed},
            name=self.name,
        )
