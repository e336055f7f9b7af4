"""Following time through a graph: what a stream runs, node by node.

`Unroller` follows the time axis from the inputs through every node, by the rules of `timeline_rules.py` and
`timeline_windows.py`. A node that acts on each time step independently stays as it is. A recurrent layer gets its
states as inputs and outputs. A node that looks at neighbours in time keeps the last rows of its input for the next
call (`waiting.py`). A node that mixes time steps in any other way raises `UnsupportedError`, which names it and the
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, outer_values
from fastlstm.operators import OPERATORS, Stream
from fastlstm.passes.rewrite import prune
from fastlstm.streaming import waiting
from fastlstm.streaming.flow import ROWS, Carried, Flow, Part, Phase, WrongAxesError, refusal
from fastlstm.streaming.placing import Placement

__all__ = ["Flows", "Rule", "Unroller"]

_TAKES_PADDING = "Identity Transpose Squeeze Unsqueeze Conv MaxPool AveragePool Slice Pad"
TAKES_PADDING = frozenset(_TAKES_PADDING.split())
"""Operators that accept a value whose padding is yet to be added."""

_SIZES = "Gather Slice Concat Unsqueeze Squeeze Cast Mul Add Sub Div Identity ReduceProd Reshape"
SIZES = frozenset(_SIZES.split())
"""Operators that may be applied to a shape before it is used as one."""


@dataclass(kw_only=True)
class Unroller(Placement):
    """Follows time through a graph; see `timeline_rules.unroll`."""

    states: Mapping[str, str]
    rules: Mapping[Stream, Rule]
    placed: list[Node]
    flows: dict[str, Flow] = field(default_factory=dict)
    fronts: dict[str, tuple[str, int]] = field(default_factory=dict)  # the number of rows of a state that precedes rows
    shown: dict[str, tuple[str, Flow]] = field(default_factory=dict)  # what each output depends on
    at_once: bool = True
    by_frame: bool = False  # one of the model's own states can only be followed frame by frame

    def follow(self, frames: Mapping[str, int]) -> None:
        """Place every node; `frames` has the inputs with a time axis, and that axis."""
        for name, axis in frames.items():
            self.flows[name] = Flow(axis, self.hop)
            if self.phase is Phase.LAST:
                self.absent.add(name)
        for node in self.graph.nodes:
            self.place(node)
            self.placed.append(node)
        for given, after in self.states.items():
            self.carry_own(given, after)
        for spec in self.own:
            self.check_output(spec.name)

    @property
    def own(self) -> list[TensorSpec]:
        """The model's outputs without its states."""
        shown = set(self.states.values())
        return [spec for spec in self.graph.outputs if spec.name not in shown]

    def settle(self) -> tuple[int, int]:
        """Return how many hops wait for the first call, and the delay in output frames."""
        flows = [flow for _, flow in self.shown.values()]
        waits = [max(flow.lag, flow.rows * (self.waiting - 1)) for flow in flows]
        delay = max([0, *waits])
        early = any(flow.axis < 0 and wait < delay for flow, wait in zip(flows, waits, strict=True))
        if delay and (early or len({flow.rows for flow in flows}) > 1):
            raise UnsupportedError(
                "The outputs of this model look ahead and advance at different rates, so it cannot stream. "
                "Make a model of each output."
            )
        return self.waiting, delay

    def part(self) -> Part:
        """Return the graph of this phase, once every node has been placed."""
        shown = []
        for spec in self.own:
            name = self.delayed(spec.name)
            if name not in self.absent:
                shown.append((spec, name))
        states = [c for c in self.carried if c.shown not in self.absent and self.phase is not Phase.LAST]
        outputs = [TensorSpec(name, spec.shape, spec.dtype) for spec, name in shown]
        outputs += [TensorSpec(c.shown, c.shape, c.dtype) for c in states]
        inputs = [spec for spec in self.graph.inputs if spec.name not in self.states]
        inputs += [TensorSpec(c.given, c.shape, c.dtype) for c in self.carried]
        graph = prune(Graph(tuple(inputs), tuple(outputs), tuple(self.nodes), self.constants, self.graph.name))
        if self.phase is not Phase.STEADY:
            read = {name for node in graph.nodes for name in (*node.inputs, *outer_values(node))}
            read.update(spec.name for spec in outputs)
            graph = graph.replace(inputs=tuple(spec for spec in graph.inputs if spec.name in read))
        return Part(graph, tuple(spec.name for spec, _ in shown), tuple(c.given for c in states))

    def check_output(self, name: str) -> None:
        """Refuse an output that does not advance in time."""
        flow = self.flows.get(name)
        if flow is None or flow.sizes or flow.tail:
            raise UnsupportedError(f"The output '{name}' has no time axis, so this model cannot stream.")
        self.at_once &= flow.axis >= 0
        if flow.merged or flow.overlaps:
            raise WrongAxesError(f"The output '{name}' does not have one row per frame, so this model cannot stream.")
        self.shown[name] = name, flow
        if flow.padding:
            self.shown[name] = waiting.window(self, Node("", (), (name,)), name, flow)

    def delayed(self, name: str) -> str:
        """Return an output delayed by the stream's delay."""
        found, flow = self.shown[name]
        if flow.axis < 0 or flow.lag == self.delay:
            return found
        return waiting.window(self, Node("", (), (name,)), found, flow, least=self.delay)[0]

    def carry_own(self, given: str, after: str) -> None:
        """Keep a state that is an input and an output of the model itself."""
        spec = next(s for s in self.graph.inputs if s.name == given)
        shape = tuple(ROWS if isinstance(size, str) else size for size in spec.shape)
        self.carried.append(Carried(given, given, after, shape, spec.dtype or "float32", own=True))
        flow = self.flows.get(after)
        if flow is not None and flow.tail != given and not self.is_recurrent_state(given, after):
            # Its value after several frames is known for these two kinds only.
            self.at_once, self.by_frame = False, True

    def is_recurrent_state(self, given: str, after: str) -> bool:
        """Whether the two are initial and final states of the same recurrent layers."""
        from fastlstm.streaming.pairs import final_states, initial_states

        found = initial_states(self.graph, given)
        return bool(found) and found == final_states(self.graph, after)

    def letters(self, name: str) -> str:
        """Return T, B or a dot for every axis of a value."""
        at = self.flows[name].axis if name in self.flows else -1
        return "".join("T" if i == at else "B" if size == ROWS else "." for i, size in enumerate(self.shape(name)))

    # ------------------------------------------------------------ placing nodes

    def place(self, node: Node) -> None:
        """Replace the node by what a stream runs, and record how its outputs advance in time."""
        flows = [self.flows.get(name) if name else None for name in node.inputs]
        if any(name in self.flows for name in outer_values(node)):
            self.by_rule(node, flows)
            return
        if any(flow is not None and flow.padding for flow in flows) and node.op not in TAKES_PADDING:
            node, flows = waiting.filled(self, node, flows)
        moving = [flow for flow in flows if flow is not None]
        if not moving:
            if node.op in RECURRENT_OPS:
                raise refusal(node, "does not run over the frames")
            self.put(node)
            return
        if any(flow.tail for flow in moving) and node.op not in ("Identity", "Squeeze", "Unsqueeze", "Transpose"):
            raise refusal(node, "reads the last frames of a sequence at once")
        if all(flow.sizes for flow in moving):
            self.place_sizes(node, moving)
            return
        self.by_rule(node, flows)

    def by_rule(self, node: Node, flows: Flows) -> None:
        """Replace the node according to its operator's rule."""
        stream = OPERATORS[node.op].stream
        if isinstance(stream, str):
            raise refusal(node, stream)
        self.rules[stream](self, node, flows)
        for name in node.outputs:
            self.check_rows(node, name)

    def check_rows(self, node: Node, name: str) -> None:
        """Refuse a node whose output's shape contradicts the number of rows worked out here."""
        flow = self.flows.get(name)
        if flow is None or flow.axis < 0 or flow.sizes or flow.merged:
            return
        known = self.affine(name, flow.axis)
        around = 0 if flow.padding is None else flow.padding.before + flow.padding.after
        if known is not None and known != (flow.rows, flow.extra + around):
            raise refusal(node, "returns a number of rows that is not understood")

    def place_sizes(self, node: Node, moving: list[Flow]) -> None:
        """Keep a node that computes with sizes, including the number of frames, if that is harmless."""
        flow = moving[0] if len({each.pace for each in moving}) == 1 else replace(moving[0], rows=0)
        if node.op == "ConstantOfShape":
            axis = self.axis_by_shape(node)
            if axis is not None and self.affine(node.output(0), axis) != (flow.rows, flow.extra):
                raise refusal(node, "depends on how many frames there are")
            self.keep(node, None if axis is None else replace(flow, axis=axis, sizes=False))
        elif node.op in SIZES or self.begins_loops(node):
            self.keep(node, flow)
        else:
            raise refusal(node, "depends on how many frames there are")

    def begins_loops(self, node: Node) -> bool:
        """Whether a value only decides whether loops start, which loops over the frames ignore."""
        readers = self.graph.consumers().get(node.output(0), [])
        return bool(readers) and all(
            reader.op == "Loop" and node.output(0) not in (reader.input(0), *reader.inputs[2:], *outer_values(reader))
            for reader in readers
        )

    def keep(self, node: Node, *flows: Flow | None) -> None:
        """Place the node unchanged; `flows` says how its outputs advance in time (a single one holds for all)."""
        self.put(node)
        for i, name in enumerate(node.outputs):
            flow = flows[min(i, len(flows) - 1)]
            if name and flow is not None:
                self.flows[name] = flow


Flows = Sequence["Flow | None"]
"""How each input of a node advances in time, None for one that does not."""
Rule = Callable[[Unroller, Node, Flows], None]
