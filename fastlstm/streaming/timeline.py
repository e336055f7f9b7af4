"""What a stream runs: a graph whose values go on in time, with everything it remembers as inputs and outputs.

`Unroller` follows the time axis from the inputs through every node, by the rules of `timeline_rules.py`. A
node that acts on each time step alone stays as it is. A recurrent layer gets its states as inputs and outputs.
Padding at the beginning of time (that of a causal convolution) becomes a memory of the last frames. Whatever needs
frames that have not come, or mixes time steps in another way, raises `UnsupportedError` with the node's name and the
reason.

A value that goes on in time has one row a frame, and perhaps some more: ``extra`` rows after padding, of which
``ahead`` depend on frames that have not come when the stream computes it. A stream leaves those out. An output
has to have as many rows as there are frames, and none of them ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, outer_values
from fastlstm.passes import shapes
from fastlstm.passes.rewrite import Names, prune

__all__ = [
    "FAR",
    "FRAMES",
    "ROWS",
    "TRACED",
    "Carried",
    "Flow",
    "Flows",
    "Rule",
    "Unrolled",
    "Unroller",
    "looks_ahead",
    "refusal",
]

Array = npt.NDArray[Any]

FRAMES, ROWS = "stream_frames", "stream_rows"
"""Names of the number of time steps and of batch rows in the shapes of a graph that is unrolled."""

FAR = 1 << 40
_SIZES = "Gather Slice Concat Unsqueeze Squeeze Cast Mul Add Sub Div Identity ReduceProd Reshape"
SIZES = frozenset(_SIZES.split())
"""Operators that a shape may go through before it is used as one."""


@dataclass(frozen=True)
class Flow:
    """How a value goes on in time.

    Attributes
    ----------
    axis : int
        Its time axis; -1 for a value of the last time step, which has none.
    extra, ahead : int
        Rows beyond one a frame, and how many of all rows at the end a stream cannot know yet.
    merged : tuple of int or str
        The sizes of the axes that are one axis in it, the time axis last; empty if it is the time axis alone.
    sizes : bool
        It is a shape, or made of one.
    tail : str
        It is the last rows of what stands behind this state, "" if it is not.
    source : str
        What looks ahead.
    """

    axis: int
    extra: int = 0
    ahead: int = 0
    merged: tuple[int | str, ...] = ()
    sizes: bool = False
    tail: str = ""
    source: str = ""

    @property
    def surplus(self) -> int:
        """Rows that a stream has beyond one a frame."""
        return self.extra - self.ahead


@dataclass(frozen=True)
class Carried:
    """What a stream keeps from call to call: the output `shown` is the next call's input `given`.

    `shape` may hold `ROWS`; `initial` is what it starts from, zeros if None. A state that is the model's `own` is shown
    as the model has it, any other as [rows, size].
    """

    name: str
    given: str
    shown: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    initial: Array | None = None
    own: bool = False

    def outside(self, array: Array) -> Array:
        """Return the state as a user sees it."""
        if self.own or self.row_axis is None:
            return array
        return np.moveaxis(array, self.row_axis, 0).reshape(array.shape[self.row_axis], -1)

    def inside(self, array: Array) -> Array:
        """Return the state that a user sees as `array`."""
        if self.own or self.row_axis is None:
            return array
        others = [int(size) for size in self.shape if size != ROWS]
        return np.moveaxis(array.reshape(len(array), *others), 0, self.row_axis)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; an initial state that is a constant may fit another number of rows alone."""
        return np.dtype(self.dtype).itemsize * math.prod(1 if size == ROWS else int(size) for size in self.shape)

    def start(self, batch: int) -> Array:
        """Return the initial state of `batch` rows."""
        shape = tuple(batch if size == ROWS else int(size) for size in self.shape)
        if self.initial is None:
            return np.zeros(shape, self.dtype)
        rows = self.initial.shape[self.shape.index(ROWS)] if ROWS in self.shape else 1
        if rows not in (1, batch) and self.initial.ndim == len(shape):
            raise InputError(
                f"The model holds initial states for {rows} rows; {batch} asked for. "
                f"Open a stream with batch={rows}; a pool's streams have one row each."
            )
        return np.array(np.broadcast_to(self.initial, shape), self.dtype)

    @property
    def row_axis(self) -> int | None:
        """The axis of the batch rows, None if the state has none."""
        return self.shape.index(ROWS) if ROWS in self.shape else None


@dataclass(frozen=True)
class Unrolled:
    """A stream's graph.

    Attributes
    ----------
    graph : Graph
        Its inputs are the frames and then the carried states, its outputs likewise.
    carried : tuple of Carried
    axes : mapping of str to str
        A letter for every axis of the frames and the outputs: T, B for the batch rows, else a dot.
    at_once : bool
        Whether several frames may go through in one call; else they go one by one.
    """

    graph: Graph
    carried: tuple[Carried, ...]
    axes: Mapping[str, str]
    at_once: bool


TRACED = (
    "If it is a loop over time that was traced, export it by torch.jit.script instead, or trace one step with the "
    "states as inputs and outputs and pair them: model.stream(state={'h': 'h_out', 'c': 'c_out'})."
)
"""What to do about a loop whose length the export has fixed."""


def refusal(node: Node, reason: str, hint: str = "Run it on whole sequences.") -> UnsupportedError:
    """Return the error that says why a model cannot stream, and what to do."""
    what = f"The {'layer' if node.op in RECURRENT_OPS else node.op + ' node'} '{node.name or node.output(0)}'"
    return UnsupportedError(f"{what} {reason}, so this model cannot stream. {hint}")


def looks_ahead(flow: Flow) -> UnsupportedError:
    """Return what to say of a value that needs frames which have not come."""
    return UnsupportedError(
        f"{flow.source} looks {flow.ahead} frame(s) ahead, so this model cannot stream: its first output needs "
        "frames that have not come. Run it on whole sequences."
    )


@dataclass
class Unroller:
    """Follows time through a graph; see `timeline_rules.unroll`."""

    graph: Graph
    states: Mapping[str, str]
    rules: Mapping[str, Rule]
    placed: list[Node]
    flows: dict[str, Flow] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    fronts: dict[str, tuple[str, int]] = field(default_factory=dict)  # a state that stands before rows, how many it has
    at_once: bool = True

    def __post_init__(self) -> None:
        self.infos = dict(shapes.infer(self.graph))
        self.constants = dict(self.graph.constants)
        self.names = Names(self.graph)

    def run(self, frames: Mapping[str, int]) -> Unrolled:
        """Return the graph of a step; `frames` are the inputs that have a time axis, and which that is."""
        self.flows.update((name, Flow(axis)) for name, axis in frames.items())
        for node in self.graph.nodes:
            self.place(node)
            self.placed.append(node)
        shown = set(self.states.values())
        own = [spec for spec in self.graph.outputs if spec.name not in shown]
        for spec in own:
            self.check_output(spec.name)
        for given, after in self.states.items():
            self.carry_own(given, after)
        inputs = [spec for spec in self.graph.inputs if spec.name not in self.states]
        inputs += [TensorSpec(c.given, c.shape, c.dtype) for c in self.carried]
        outputs = own + [TensorSpec(c.shown, c.shape, c.dtype) for c in self.carried]
        graph = Graph(tuple(inputs), tuple(outputs), tuple(self.nodes), self.constants, self.graph.name)
        axes = {spec.name: self.letters(spec.name) for spec in (*self.graph.inputs, *own)}
        return Unrolled(prune(graph), tuple(self.carried), axes, self.at_once)

    def check_output(self, name: str) -> None:
        """Refuse an output that has not one row a frame."""
        flow = self.flows.get(name)
        if flow is None or flow.sizes or flow.tail:
            raise UnsupportedError(f"The output '{name}' does not go on in time, so this model cannot stream.")
        self.at_once &= flow.axis >= 0
        if flow.ahead:
            raise looks_ahead(flow)
        if flow.extra or flow.merged:
            raise UnsupportedError(
                f"The output '{name}' has not one row a frame ({flow.extra:+d}), so this model cannot stream."
            )

    def carry_own(self, given: str, after: str) -> None:
        """Keep a state that the model itself has as an input and an output."""
        spec = next(s for s in self.graph.inputs if s.name == given)
        shape = tuple(ROWS if isinstance(size, str) else size for size in spec.shape)
        self.carried.append(Carried(given, given, after, shape, spec.dtype or "float32", own=True))
        flow = self.flows.get(after)
        if flow is not None and flow.tail != given and not self.is_recurrent_state(given, after):
            self.at_once = False  # what it is after several frames is known only of those two kinds

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

    def put(self, node: Node) -> None:
        """Add a node to the graph of a step."""
        self.nodes.append(node)
        for name, info in zip(node.outputs, shapes.infer_node(node, self.infos), strict=True):
            if name:
                self.infos.setdefault(name, info)

    def place(self, node: Node) -> None:
        """Put what a stream runs in the node's place, and say how its outputs go on."""
        flows = [self.flows.get(name) if name else None for name in node.inputs]
        moving = [flow for flow in flows if flow is not None]
        if any(name in self.flows for name in outer_values(node)):
            raise refusal(node, "runs a body of its own on values that change with time")
        if not moving:
            if node.op in RECURRENT_OPS:
                raise refusal(node, "does not run over the frames")
            self.put(node)
            return
        if any(flow.tail for flow in moving) and node.op not in ("Identity", "Squeeze", "Unsqueeze", "Transpose"):
            raise refusal(node, "reads the last frames of a sequence at once")
        if all(flow.sizes for flow in moving):
            self.place_sizes(node)
            return
        rule = self.rules.get(node.op)
        if rule is None:
            raise refusal(node, "is not known to act on one time step at a time")
        rule(self, node, flows)

    def place_sizes(self, node: Node) -> None:
        """Keep a node that computes with sizes, the number of frames among them, where that is harmless."""
        if node.op == "ConstantOfShape":
            axis = self.axis_by_shape(node)
            if axis is not None and self.shape(node.output(0))[axis] != FRAMES:
                raise refusal(node, "depends on how many frames there are")
            self.keep(node, None if axis is None else Flow(axis))
        elif node.op in SIZES:
            self.keep(node, Flow(0, sizes=True))
        else:
            raise refusal(node, "depends on how many frames there are")

    def keep(self, node: Node, *flows: Flow | None) -> None:
        """Put the node as it is; its outputs go on as said (all alike, if one is said)."""
        self.put(node)
        for i, name in enumerate(node.outputs):
            flow = flows[min(i, len(flows) - 1)]
            if name and flow is not None:
                self.flows[name] = flow

    def shape(self, name: str) -> tuple[Any, ...]:
        """Return a value's shape; UnsupportedError if it is not known."""
        shape = self.infos[name].shape if name in self.infos else None
        if shape is None:
            raise UnsupportedError(f"The shape of '{name}' is not known, so this model cannot stream.")
        return shape

    def axis_by_shape(self, node: Node) -> int | None:
        """Return the axis of the node's output on which time goes on, by its size."""
        shape = self.infos[node.output(0)].shape or ()
        found = [i for i, size in enumerate(shape) if isinstance(size, str) and FRAMES in size]
        if len(found) > 1:
            raise refusal(node, "pairs time steps with one another")
        return found[0] if found else None

    def constant(self, hint: str, value: Any) -> str:
        """Add a constant; return its name, which `hint` begins."""
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

    def remembered(self, node: Node, name: str, flow: Flow, count: int, value: Array | float) -> tuple[str, Flow]:
        """Return a value with the `count` rows before its own in front; `value` stands before the first."""
        if flow.surplus < 0:  # rows that lie between two calls would be missing
            raise refusal(node, "puts rows before a value that has fewer than there are frames")
        label = f"{name}.past"
        shape = tuple(
            count if i == flow.axis else ROWS if isinstance(size, str) else size
            for i, size in enumerate(self.shape(name))
        )
        given, joined = self.names.fresh(label), self.names.fresh(label)
        dtype = self.infos[name].dtype or "float32"
        self.infos[given] = shapes.ValueInfo(shape, dtype)
        self.put(Node("Concat", (given, name), (joined,), {"axis": flow.axis}))
        shown = self.cut(joined, flow.axis, -count - flow.surplus, -flow.surplus if flow.surplus else FAR)
        initial = None if np.all(np.equal(value, 0)) else np.asarray(value)
        self.carried.append(Carried(label, given, shown, shape, dtype, initial))
        return joined, replace(flow, extra=flow.extra + count)

    def together(self, node: Node, flows: Sequence[Flow | None]) -> tuple[Node, list[Flow | None]]:
        """Return the node with inputs of as many rows each: those known further ahead are cut."""
        most = max((flow.ahead for flow in flows if flow is not None and flow.axis >= 0), default=0)
        inputs, found = list(node.inputs), list(flows)
        for i, flow in enumerate(flows):
            if flow is not None and flow.axis >= 0 and flow.ahead < most:
                inputs[i] = self.cut(inputs[i], flow.axis, 0, flow.ahead - most)
                found[i] = replace(flow, ahead=most)
        return Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name), found


Flows = Sequence["Flow | None"]
"""How each input of a node goes on in time, None for one that does not."""
Rule = Callable[[Unroller, Node, Flows], None]
