"""What a stream runs: a graph whose values go on in time, with everything it remembers as inputs and outputs.

`unroll` follows the time axis from the inputs through every node. A node that acts on each time step alone stays
as it is. A recurrent layer gets its states as inputs and outputs. Padding at the beginning of time (that of a
causal convolution) becomes a memory of the last frames. Whatever needs frames that have not come, or mixes time
steps in another way, raises `UnsupportedError` with the node's name and the reason.

A value that goes on in time has one row a frame, and perhaps some more: ``extra`` rows after padding, of which
``ahead`` depend on frames that have not come when the stream computes it. A stream leaves those out. An output
has to have as many rows as there are frames, and none of them ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, outer_values
from fastlstm.passes import dims, shapes
from fastlstm.passes.infer_compute import ELEMENTWISE, REDUCTIONS
from fastlstm.passes.rewrite import Names, prune
from fastlstm.passes.values import normal_axis

__all__ = ["FRAMES", "ROWS", "Carried", "Flow", "Unrolled", "unroll"]

Array = npt.NDArray[Any]

FRAMES, ROWS = "stream_frames", "stream_rows"
"""Names of the number of time steps and of batch rows in the shapes of a graph that is unrolled."""

FAR = 1 << 40
SIZES = frozenset("Gather Slice Concat Unsqueeze Squeeze Cast Mul Add Sub Div Identity ReduceProd Reshape".split())
"""Operators that a shape may go through before it is used as one."""
BROADCASTING = frozenset(
    "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Mod And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual "
    "BitwiseAnd BitwiseOr BitwiseXor BitShift".split()
)


@dataclass(frozen=True)
class Flow:
    """How a value goes on in time.

    Attributes
    ----------
    axis : int
        Its time axis; -1 for a value of the last time step, which has none.
    extra, ahead : int
        Rows beyond one a frame, and how many of all rows at the end a stream cannot know yet.
    merged : bool
        The axis holds the batch rows too.
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
    merged: bool = False
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

    `shape` may hold `ROWS`; `initial` is what it starts from, zeros if None.
    """

    name: str
    given: str
    shown: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    initial: Array | None = None

    def start(self, batch: int) -> Array:
        """Return the initial state of `batch` rows."""
        shape = tuple(batch if size == ROWS else int(size) for size in self.shape)
        if self.initial is None:
            return np.zeros(shape, self.dtype)
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


def unroll(
    graph: Graph, frames: Mapping[str, int], states: Mapping[str, str], placed: list[Node] | None = None
) -> Unrolled:
    """Return the stream's graph of an optimised one.

    Parameters
    ----------
    graph : Graph
        The sizes of its inputs' time axes are `FRAMES`, of their batch axes `ROWS`.
    frames : mapping of str to int
        Inputs that go on in time, and their time axes.
    states : mapping of str to str
        Inputs that hold states, and the outputs that show what they are after the call.
    placed : list of Node, optional
        Gets the nodes as they are placed: how far an attempt came that was refused.

    Raises
    ------
    UnsupportedError
        If the model cannot stream.
    """
    return _Unroller(graph, states, [] if placed is None else placed).run(frames)


def refusal(node: Node, reason: str) -> UnsupportedError:
    """Return the error that says why a model cannot stream."""
    what = f"The {'layer' if node.op in RECURRENT_OPS else node.op + ' node'} '{node.name or node.output(0)}'"
    return UnsupportedError(f"{what} {reason}, so this model cannot stream. Run it on whole sequences.")


def _looks_ahead(flow: Flow) -> UnsupportedError:
    return UnsupportedError(
        f"{flow.source} looks {flow.ahead} frame(s) ahead, so this model cannot stream: its first output needs "
        "frames that have not come. Run it on whole sequences."
    )


@dataclass
class _Unroller:
    graph: Graph
    states: Mapping[str, str]
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
            raise _looks_ahead(flow)
        if flow.extra or flow.merged:
            raise UnsupportedError(
                f"The output '{name}' has not one row a frame ({flow.extra:+d}), so this model cannot stream."
            )

    def carry_own(self, given: str, after: str) -> None:
        """Keep a state that the model itself has as an input and an output."""
        spec = next(s for s in self.graph.inputs if s.name == given)
        shape = tuple(ROWS if isinstance(size, str) else size for size in spec.shape)
        self.carried.append(Carried(given, given, after, shape, spec.dtype or "float32"))
        flow = self.flows.get(after)
        if flow is not None and flow.tail != given and not self.is_recurrent_state(given, after):
            self.at_once = False  # what it is after several frames is known only of those two kinds

    def is_recurrent_state(self, given: str, after: str) -> bool:
        """Whether the two are initial and final states of the same recurrent layers."""
        from fastlstm.pairs import final_states, initial_states

        found = initial_states(self.graph, given)
        return bool(found) and found == final_states(self.graph, after)

    def letters(self, name: str) -> str:
        """Return T, B or a dot for every axis of a value."""
        at = self.flows[name].axis if name in self.flows else -1
        return "".join("T" if i == at else "B" if size == ROWS else "." for i, size in enumerate(self.shape(name)))

    # ------------------------------------------------------------ placing nodes

    def put(self, node: Node) -> None:
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
        rule = _RULES.get(node.op)
        if rule is None:
            raise refusal(node, "is not known to act on one time step at a time")
        rule(self, node, flows)

    def place_sizes(self, node: Node) -> None:
        if node.op in ("ConstantOfShape", "Expand") and self.infos[node.output(0)].fill is not None:
            axis = self.axis_by_shape(node)
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

    def remembered(self, name: str, flow: Flow, count: int, value: Array | float) -> tuple[str, Flow]:
        """Return a value with the `count` rows before its own in front; `value` stands before the first."""
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


# ---------------------------------------------------------------- rules, by operator

Flows = Sequence["Flow | None"]
_Rule = Callable[[_Unroller, Node, Flows], None]
_RULES: dict[str, _Rule] = {}


def _rule(*ops: str) -> Callable[[_Rule], _Rule]:
    def enrol(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(ops, function))
        return function

    return enrol


@_rule(*ELEMENTWISE, "Identity", "Dropout")
def _same(at: _Unroller, node: Node, flows: Flows) -> None:
    if flows[0] is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has a setting that changes with time")
    at.keep(node, flows[0])


@_rule(*BROADCASTING)
def _joined(at: _Unroller, node: Node, flows: Flows) -> None:
    """Element by element over broadcast operands: their time axes have to be one and the same."""
    node, flows = at.together(node, flows)
    moving = [flow for flow in flows if flow is not None]
    if any(flow.sizes for flow in moving):
        raise refusal(node, "depends on how many frames there are")
    if len({flow.axis < 0 for flow in moving}) > 1:
        raise refusal(node, "joins every time step with the last one")
    if moving[0].axis < 0:
        at.keep(node, Flow(-1))
        return
    rank = max(len(at.shape(name)) for name in node.inputs)
    axes = {
        rank - len(at.shape(name)) + flow.axis for name, flow in zip(node.inputs, flows, strict=True) if flow
    }
    if len(axes) > 1 or len({(flow.extra, flow.ahead, flow.merged) for flow in moving}) > 1:
        raise refusal(node, "joins each time step with other ones")
    (axis,) = axes
    for name, flow in zip(node.inputs, flows, strict=True):
        place = axis - rank + len(at.shape(name))
        if flow is None and place >= 0 and at.shape(name)[place] != 1:
            raise refusal(node, "joins the frames with a fixed number of rows")
    at.keep(node, replace(moving[0], axis=axis))


@_rule("Dense")
def _dense(at: _Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has weights that change with time")
    shape = at.shape(node.input(0))
    if x.axis == len(shape) - 1:
        raise refusal(node, "sums over time")
    if shape[-1] == ROWS:
        raise refusal(node, "sums over batch rows")
    at.keep(node, x)


@_rule("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "LpNormalization", "ArgMax")
def _over_last_axis(at: _Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has weights that change with time")
    rank = len(at.shape(node.input(0)))
    axis = normal_axis(int(node.attrs.get("axis", 0 if node.op == "ArgMax" else -1)), rank)
    if x.axis == axis or ("Normalization" in node.op and x.axis > axis):
        raise refusal(node, "normalises over time" if node.op != "ArgMax" else "looks for an extreme over time")
    if axis != rank - 1 and x.axis > axis:
        raise refusal(node, "works across the rows of several time steps in memory; put the features last")
    if node.op == "ArgMax" and not node.attrs.get("keepdims", 1):
        x = replace(x, axis=x.axis - (axis < x.axis)) if x.axis >= 0 else x
    at.keep(node, x)


@_rule(*REDUCTIONS)
def _reduced(at: _Unroller, node: Node, flows: Flows) -> None:
    x, rank = flows[0], len(at.shape(node.input(0)))
    axes = at.infos[node.input(1)].numbers if node.input(1) else None
    if x is None or (node.input(1) and axes is None):
        raise refusal(node, "reduces over axes that are not known")
    if not axes and node.attrs.get("noop_with_empty_axes"):
        at.keep(node, x)
        return
    over = sorted(normal_axis(a, rank) for a in axes or range(rank))
    if x.axis in over:
        raise refusal(node, "reduces over time")
    if x.axis > over[0]:
        raise refusal(node, "works across the rows of several time steps in memory; put the features last")
    at.keep(node, x)


@_rule("BatchNormalization")
def _batch_norm(at: _Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]) or x.axis == 1:
        raise refusal(node, "normalises over time")
    at.keep(node, x)


@_rule("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
def _rearranged(at: _Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None:
        if node.op == "Reshape" and flows[1] is not None:
            raise refusal(node, "depends on how many frames there are")
        raise refusal(node, "has axes that change with time")
    if x.axis < 0 or x.sizes:
        at.keep(node, x)
        return
    before, after = at.shape(node.input(0)), at.shape(node.output(0))
    axis = at.axis_by_shape(node)
    if axis is None:
        raise refusal(node, "fixes the number of time steps")
    if node.op in ("Reshape", "Flatten"):
        behind = dims.product(before[x.axis + 1 :]) == dims.product(after[axis + 1 :])
        apart = dims.product(before[: x.axis]) == dims.product(after[:axis])
        if not behind or not (apart or axis == 0 or x.merged):
            raise refusal(node, "mixes time steps with other axes")
        x = replace(x, merged=x.merged and apart if apart else axis == 0)
    at.keep(node, replace(x, axis=axis))


@_rule("Shape", "Size")
def _sizes(at: _Unroller, node: Node, flows: Flows) -> None:
    if flows[0] is None or flows[0].ahead:
        raise refusal(node, "depends on how many frames there are")
    at.keep(node, Flow(0, sizes=True))


@_rule("Expand", "Tile")
def _repeated(at: _Unroller, node: Node, flows: Flows) -> None:
    x, axis = flows[0], at.axis_by_shape(node)
    if x is None or x.axis < 0 or axis is None or x.sizes:
        raise refusal(node, "repeats a value for every time step")
    if at.shape(node.output(0))[axis] != at.shape(node.input(0))[x.axis]:
        raise refusal(node, "repeats time steps")
    at.keep(node, replace(x, axis=axis))


@_rule("Concat")
def _concatenated(at: _Unroller, node: Node, flows: Flows) -> None:
    node, flows = at.together(node, flows)
    moving = [flow for flow in flows if flow is not None]
    axis = normal_axis(int(node.attrs["axis"]), len(at.shape(node.inputs[0])))
    if len({(flow.axis, flow.sizes) for flow in moving}) > 1 or moving[0].sizes:
        raise refusal(node, "joins values that do not go on together")
    if moving[0].axis < 0:
        at.keep(node, moving[0])
        return
    if axis != moving[0].axis:
        if len({(flow.extra, flow.ahead, flow.merged) for flow in moving}) > 1 or None in flows:
            raise refusal(node, "joins each time step with other ones")
        at.keep(node, moving[0])
        return
    _behind(at, node, flows)


def _behind(at: _Unroller, node: Node, flows: Flows) -> None:
    """Place a Concat over time: a state, or constant rows, in front of the frames."""
    first, x = node.inputs[0], flows[-1]
    count = at.shape(first)[x.axis] if x is not None and flows[0] is None else None
    if len(node.inputs) != 2 or x is None or not isinstance(count, int) or x.merged:
        raise refusal(node, "joins time steps")
    if first in at.constants:
        joined, flow = at.remembered(node.inputs[1], x, count, at.constants[first])
        at.put(Node("Identity", (joined,), node.outputs, {}, node.name))
        at.flows[node.output(0)] = flow
        return
    if first not in at.states:
        raise refusal(node, f"puts '{first}' before the first frame, which is no state of the stream")
    at.keep(node, replace(x, extra=x.extra + count))
    at.fronts[node.output(0)] = (first, count)


@_rule("Pad")
def _padded(at: _Unroller, node: Node, flows: Flows) -> None:
    x, rank = flows[0], len(at.shape(node.input(0)))
    pads = at.infos[node.input(1)].numbers
    if x is None or pads is None or x.axis < 0:
        raise refusal(node, "pads by numbers that are not known")
    axes = at.infos[node.input(3)].numbers if node.input(3) else list(range(rank))
    axes = [normal_axis(a, rank) for a in axes or []]
    if x.axis not in axes:
        at.keep(node, x)
        return
    place = axes.index(x.axis)
    before, after = pads[place], pads[place + len(axes)]
    value = at.constants.get(node.input(2), np.zeros(()))
    if before < 0 or after < 0 or x.merged or node.attrs.get("mode", "constant") != "constant":
        raise refusal(node, "pads time with other than constants")
    pads[place] = pads[place + len(axes)] = 0
    name = node.input(0)
    if any(pads):
        inside = at.names.fresh(name)
        inputs = (name, at.constant("pads", np.array(pads, np.int64)), *node.inputs[2:])
        at.put(Node("Pad", inputs, (inside,), node.attrs, node.name))
        name = inside
    flow = x
    if before:
        name, flow = at.remembered(name, flow, before, value)
    at.put(Node("Identity", (name,), node.outputs, {}, node.name))
    at.flows[node.output(0)] = _further(node, flow, after, after)


def _further(node: Node, flow: Flow, extra: int, ahead: int) -> Flow:
    """Return the flow behind a node that adds rows, some of them ahead."""
    source = f"The {node.op} node '{node.name or node.output(0)}'" if ahead else flow.source
    return replace(flow, extra=flow.extra + extra, ahead=flow.ahead + ahead, source=source)


@_rule("Conv")
def _convolved(at: _Unroller, node: Node, flows: Flows) -> None:
    """A convolution in groups; others are Dense already."""
    x, weight = flows[0], at.constants.get(node.input(1))
    if x is None or weight is None or x.axis == 1 or x.merged or at.shape(node.input(0))[1] == ROWS:
        raise refusal(node, "sums over time")
    if x.axis < 2:
        at.keep(node, x)
        return
    if int(node.attrs.get("group", 1)) == 1:
        raise refusal(node, "has no kernel whose sums are the same for any number of time steps")
    spatial, count = x.axis - 2, weight.ndim - 2
    strides, dilations = (list(node.attrs.get(a) or [1] * count) for a in ("strides", "dilations"))
    span = (weight.shape[x.axis] - 1) * dilations[spatial]
    pads = list(node.attrs.get("pads") or [0] * (2 * count))
    if strides[spatial] != 1 or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise refusal(node, "takes strides over time" if strides[spatial] != 1 else "pads by the number of frames")
    before, after = pads[spatial], pads[spatial + count]
    pads[spatial] = pads[spatial + count] = 0
    name, flow = node.input(0), x
    if before:
        name, flow = at.remembered(name, flow, before, 0.0)
    attrs = {**node.attrs, "pads": pads}
    at.put(Node("Conv", (name, *node.inputs[1:]), node.outputs, attrs, node.name))
    at.flows[node.output(0)] = _further(node, flow, after - span, after)


@_rule("Slice")
def _sliced(at: _Unroller, node: Node, flows: Flows) -> None:
    from fastlstm.passes.infer_movement import slice_bounds
    from fastlstm.passes.values import Operands

    x = flows[0]
    operands = Operands(node, tuple(at.infos.get(name, shapes.ValueInfo()) for name in node.inputs))
    bounds = slice_bounds(operands)
    if x is None or bounds is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "cuts at places that are not known")
    over = [bound for bound in bounds if bound[0] == x.axis]
    if not over:
        at.keep(node, x)
        return
    if len(bounds) > 1 or x.merged:
        raise refusal(node, "cuts time and another axis at once")
    _, start, end, step = over[0]
    if step != 1 or not isinstance(end, int):
        raise refusal(node, "takes some of the time steps")
    if start < 0:
        _last_rows(at, node, x, start, end)
        return
    if 0 <= end < FAR // 2 and end < (1 << 31) - 1:
        raise refusal(node, "takes a fixed number of time steps")
    dropped = -end if end < 0 else 0
    left = max(0, dropped - x.ahead)
    name = at.cut(node.input(0), x.axis, start, -left if left else FAR) if start or left else node.input(0)
    at.put(Node("Identity", (name,), node.outputs, {}, node.name))
    ahead = max(0, x.ahead - dropped)
    at.flows[node.output(0)] = replace(x, extra=x.extra - start - dropped, ahead=ahead)


def _last_rows(at: _Unroller, node: Node, x: Flow, start: int, end: int) -> None:
    """Place a Slice of the last rows: of the last time step alone, or what a state will be."""
    front = at.fronts.get(node.input(0))
    if x.ahead or end < (1 << 31) - 1:
        raise refusal(node, "takes some of the time steps")
    if front is not None and front[1] == -start == x.extra:
        at.keep(node, Flow(-1, tail=front[0]))
    elif start == -1 and x.extra == 0:
        at.keep(node, Flow(-1))
    else:
        raise refusal(node, f"takes the last {-start} time steps")


@_rule("Gather")
def _gathered(at: _Unroller, node: Node, flows: Flows) -> None:
    x, index = flows[0], flows[1]
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None and index is not None and not index.sizes and node.input(0) in at.constants:
        at.keep(node, replace(index, axis=index.axis + axis if index.axis >= 0 else -1))
        return
    if x is None or index is not None:
        raise refusal(node, "takes elements by numbers that change with time")
    number = at.constants.get(node.input(1))
    rank = 0 if number is None else number.ndim
    if axis != x.axis:
        moved = x.axis + (rank - 1 if 0 <= axis < x.axis else 0)
        at.keep(node, replace(x, axis=moved if x.axis >= 0 else -1))
    elif number is not None and number.ndim == 0 and int(number) == -1 and not x.extra and not x.ahead:
        at.keep(node, Flow(-1))
    else:
        raise refusal(node, "takes some of the time steps")


@_rule("Split")
def _split(at: _Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None or axis == x.axis:
        raise refusal(node, "takes some of the time steps")
    at.keep(node, x)


@_rule(*RECURRENT_OPS)
def _recurrent(at: _Unroller, node: Node, flows: Flows) -> None:
    x, label = flows[0], node.name or node.output(0) or node.op
    if "reverse" in node.attrs["directions"]:
        raise refusal(node, "runs backwards in time, and its first output needs the last frame")
    if node.input(4) or node.input(5):
        raise refusal(node, "takes lengths or a mask")
    if x is not None and x.ahead:
        raise _looks_ahead(x)
    if x is None or x.axis != 0 or x.surplus or x.merged or at.shape(node.input(0))[2] == ROWS:
        raise refusal(node, "does not take one row a frame")
    if any(flow is not None for flow in flows[1:]):
        raise refusal(node, "starts from a state, or has weights, computed from the frames")
    hidden = int(node.attrs["hidden_size"])
    inputs = list(node.inputs) + [""] * (8 - len(node.inputs))
    outputs = list(node.outputs) + [""] * (3 - len(node.outputs))
    rows = at.shape(node.input(0))[1]
    for position, letter in ((6, "h"), (7, "c"))[: 2 if node.op == "LSTM" else 1]:
        given, place = inputs[position], position - 5
        width = int(at.shape(node.input(2))[2]) if letter == "h" else hidden
        outputs[place] = outputs[place] or at.names.fresh(f"{label}.{letter}")
        at.flows.setdefault(outputs[place], Flow(-1))
        if given and given not in at.constants:
            if not _comes_from_state(at, given):
                raise refusal(node, f"starts from '{given}', which is computed and not a state of the stream")
            continue
        inputs[position] = at.names.fresh(f"{label}.{letter}.before")
        shape = (len(node.attrs["directions"]), ROWS if isinstance(rows, str) else rows, width)
        at.infos[inputs[position]] = shapes.ValueInfo(shape, "float32")
        initial = at.constants.get(given)
        at.carried.append(Carried(f"{label}.{letter}", inputs[position], outputs[place], shape, "float32", initial))
    if node.op != "LSTM":
        outputs = outputs[:2]
    at.put(Node(node.op, tuple(inputs), tuple(outputs), node.attrs, node.name))
    if outputs[0]:
        at.flows[outputs[0]] = x


def _comes_from_state(at: _Unroller, name: str) -> bool:
    """Whether a value is a state of the stream, or cut out of one."""
    made = {output: node for node in at.nodes for output in node.outputs}
    while name in made and name not in at.states:
        name = made[name].input(0)
    return name in at.states
