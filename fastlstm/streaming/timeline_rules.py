"""How each operator streams: what replaces a node, or why nothing can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node, Recurrent, RecurrentInputs
from fastlstm.operators import OPERATORS, Stream, dims
from fastlstm.operators.values import normal_axis
from fastlstm.passes import shapes
from fastlstm.streaming import timeline_loops, timeline_windows
from fastlstm.streaming.flow import (
    FRAMES,
    ROWS,
    TRACED,
    Carried,
    Flow,
    LongerHopError,
    Phase,
    Unrolled,
    WrongAxesError,
    refusal,
)
from fastlstm.streaming.timeline import Flows, Rule, Unroller
from fastlstm.streaming.waiting import together

__all__ = ["unroll"]

LONGEST_HOP = 1 << 20


def unroll(
    graph: Graph, frames: Mapping[str, int], states: Mapping[str, str], placed: list[Node] | None = None, hop: int = 1
) -> Unrolled:
    """Return the graphs that a stream of an optimised graph runs.

    Parameters
    ----------
    graph : Graph
        The sizes of its inputs' time axes are `FRAMES`, of their batch axes `ROWS`.
    frames : mapping of str to int
        Inputs with a time axis, and that axis.
    states : mapping of str to str
        Inputs that hold states, and the outputs that return their new values.
    placed : list of Node, optional
        Receives the nodes as they are placed, which tells how far a refused attempt got.
    hop : int
        Frames of a step; a multiple is used if these do not make a whole number of rows.

    Raises
    ------
    UnsupportedError
        If the model cannot stream.
    """
    if hop > LONGEST_HOP:
        raise UnsupportedError(
            f"It takes {hop} frames to give every value a whole number of rows, more than the {LONGEST_HOP} of the "
            "longest hop, so this model cannot stream. Run it on whole sequences."
        )
    try:
        return _with_hop(graph, frames, states, hop, [] if placed is None else placed)
    except LongerHopError as longer:
        more = longer.hop
    return unroll(graph, frames, states, placed, more)


def _with_hop(
    graph: Graph, frames: Mapping[str, int], states: Mapping[str, str], hop: int, placed: list[Node]
) -> Unrolled:
    """Return the graphs of a stream with `hop` frames per step."""
    name = FRAMES if hop == 1 else f"{hop}*{FRAMES}"
    graph = graph.replace(
        inputs=tuple(
            replace(s, shape=tuple(name if size == FRAMES else size for size in s.shape)) for s in graph.inputs
        )
    )
    steady = Unroller(graph=graph, hop=hop, states=states, rules=RULES, placed=placed)
    steady.follow(frames)
    steady.waiting, steady.delay = steady.settle()
    parts = {Phase.STEADY: steady.part()}
    if steady.by_frame and (hop > 1 or steady.waiting):
        raise UnsupportedError(
            "This model carries a state of its own that single frames advance, and looks ahead or takes several frames "
            "at a time, so it cannot stream."
        )
    tails = any(flow.lag + flow.extra for _, flow in steady.shown.values() if flow.axis >= 0)
    needed = {Phase.FIRST: steady.waiting > 0, Phase.LAST: steady.waiting > 0 or tails}
    for phase in (phase for phase, wanted in needed.items() if wanted):
        at = Unroller(
            graph=graph,
            hop=hop,
            phase=phase,
            waiting=steady.waiting,
            delay=steady.delay,
            givens=steady.givens,
            states=states,
            rules=RULES,
            placed=[],
        )
        at.follow(frames)
        parts[phase] = at.part()
    outputs = tuple(steady.own)
    axes = {spec.name: steady.letters(spec.name) for spec in (*graph.inputs, *outputs)}
    return Unrolled(
        steady=parts[Phase.STEADY],
        carried=tuple(steady.carried),
        inputs=tuple(spec for spec in graph.inputs if spec.name not in states),
        outputs=tuple(replace(spec, shape=steady.shape(spec.name)) for spec in outputs),
        axes=axes,
        at_once=steady.at_once,
        hop=hop,
        delay=steady.delay,
        rows={name: flow.rows for name, (_, flow) in steady.shown.items()},
        waiting=steady.waiting,
        first=parts.get(Phase.FIRST),
        last=parts.get(Phase.LAST),
        whole=graph,
        reasons=tuple(steady.reasons),
    )


RULES: dict[Stream, Rule] = {**timeline_windows.RULES, **timeline_loops.RULES}


def _rule(*streams: Stream) -> Callable[[Rule], Rule]:
    def enrol(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(streams, function))
        return function

    return enrol


@_rule(Stream.ELEMENTS)
def _same(at: Unroller, node: Node, flows: Flows) -> None:
    if flows[0] is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has a setting that changes with time")
    at.keep(node, flows[0])


@_rule(Stream.BROADCAST)
def _joined(at: Unroller, node: Node, flows: Flows) -> None:
    """Element by element with broadcasting: the operands' time axes have to be the same axis."""
    node, flows = together(at, node, flows)
    moving = [flow for flow in flows if flow is not None]
    if any(flow.sizes for flow in moving):
        raise refusal(node, "depends on how many frames there are")
    if len({flow.axis < 0 for flow in moving}) > 1:
        raise refusal(node, "combines every time step with the last one")
    if moving[0].axis < 0:
        if len({flow.lag for flow in moving}) > 1:
            raise refusal(node, "combines last time steps of which one comes sooner")
        at.keep(node, moving[0])
        return
    rank = max(len(at.shape(name)) for name in node.inputs)
    axes = {rank - len(at.shape(name)) + flow.axis for name, flow in zip(node.inputs, flows, strict=True) if flow}
    if len(axes) > 1 or len({flow.pace for flow in moving}) > 1:
        raise refusal(node, "combines each time step with others")
    (axis,) = axes
    for name, flow in zip(node.inputs, flows, strict=True):
        place = axis - rank + len(at.shape(name))
        if flow is None and place >= 0 and at.shape(name)[place] != 1:
            raise refusal(node, "combines the frames with a fixed number of rows")
    at.keep(node, replace(moving[0], axis=axis))


@_rule(Stream.FEATURES)
def _dense(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has weights that change with time")
    shape = at.shape(node.input(0))
    if x.axis == len(shape) - 1:
        raise refusal(node, "sums over time")
    if shape[-1] == ROWS:
        raise refusal(node, "sums over batch rows")
    at.keep(node, x)


@_rule(Stream.EINSUM)
def _einsum(at: Unroller, node: Node, flows: Flows) -> None:
    """A product with constant weights along axes other than time."""
    weight, x = at.constants.get(node.inputs[-1]), flows[0]
    given, _, result = str(node.attrs["equation"]).replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    if x is None or len(node.inputs) != 2 or weight is None or weight.dtype != np.float32 or x.merged:
        raise refusal(node, "has weights that change with time")
    shape = at.shape(node.input(0))
    own = [axis for axis, size in zip(first, shape, strict=False) if size == ROWS or axis == first[x.axis : x.axis + 1]]
    if len(first) != len(shape) or any(axis in second or axis not in result for axis in own):
        raise refusal(node, "sums over time or batch rows")
    at.keep(node, x if x.axis < 0 else replace(x, axis=result.index(first[x.axis])))


@_rule(Stream.ALONG_AXIS, Stream.FROM_AXIS)
def _normalised(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has weights that change with time")
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(at.shape(node.input(0))))
    if x.axis == axis or (OPERATORS[node.op].stream is Stream.FROM_AXIS and x.axis > axis):
        raise refusal(node, "normalises over time")
    at.keep(node, x)


@_rule(Stream.EXTREME)
def _extreme(at: Unroller, node: Node, flows: Flows) -> None:
    (x,) = flows
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None or x.axis == axis:
        raise refusal(node, "takes a maximum or minimum over time")
    if not node.attrs.get("keepdims", 1) and x.axis >= 0:
        x = replace(x, axis=x.axis - (axis < x.axis))
    at.keep(node, x)


@_rule(Stream.REDUCTION)
def _reduced(at: Unroller, node: Node, flows: Flows) -> None:
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
    if not node.attrs.get("keepdims", 1) and x.axis >= 0:
        x = replace(x, axis=x.axis - sum(a < x.axis for a in over))
    at.keep(node, x)


@_rule(Stream.CHANNELS)
def _batch_norm(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]) or x.axis == 1:
        raise refusal(node, "normalises over time")
    at.keep(node, x)


@_rule(Stream.REARRANGED)
def _rearranged(at: Unroller, node: Node, flows: Flows) -> None:
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
        timeline_windows.ask_for_whole_rows(at, node, x)
        raise refusal(node, "fixes the number of time steps")
    if node.op in ("Reshape", "Flatten"):
        if timeline_windows.folded(at, node, x, axis):
            return
        behind = dims.product(before[x.axis + 1 :]) == dims.product(after[axis + 1 :])
        apart = dims.product(before[: x.axis]) == dims.product(after[:axis])
        if not behind or not (apart or dims.product(after[:axis]) == 1 or x.merged):
            raise refusal(node, "mixes time steps with other axes")
        if x.merged and not apart and _apart_from_ones(after[: axis + 1]) != x.merged:
            raise refusal(node, "mixes time steps with other axes")
        if not apart:
            x = replace(x, merged=() if x.merged else _apart_from_ones(before[: x.axis + 1]))
        if flows[-1] is not x and len(flows) > 1 and flows[1] is not None:
            node = _without_sizes(at, node, x, flows[1], axis)
    at.keep(node, replace(x, axis=axis))


def _apart_from_ones(sizes: Sequence[int | str]) -> tuple[int | str, ...]:
    return tuple(size for size in sizes if size != 1)


def _without_sizes(at: Unroller, node: Node, x: Flow, sizes: Flow, axis: int) -> Node:
    """Return a Reshape whose target has as many rows as its input, in every call."""
    if sizes.pace == replace(x, merged=()).pace and not x.merged:
        return node
    if x.merged or at.affine(node.output(0), axis) is None:
        if (sizes.rows, sizes.lag, sizes.extra) != (x.rows, x.lag, x.extra):
            raise refusal(node, "depends on how many frames there are")
        return node
    return timeline_windows.reshaped(at, node, node.input(0), axis)


@_rule(Stream.SIZES)
def _sizes(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or x.axis < 0:
        raise refusal(node, "depends on how many frames there are")
    at.keep(node, replace(x, axis=0, merged=(), sizes=True))


@_rule(Stream.REPEATED)
def _repeated(at: Unroller, node: Node, flows: Flows) -> None:
    x, axis = flows[0], at.axis_by_shape(node)
    sizes = flows[1]
    if x is None and axis is not None and sizes and at.affine(node.output(0), axis) == (sizes.rows, sizes.extra):
        before = at.shape(node.input(0))
        place = axis - len(at.shape(node.output(0))) + len(before)
        if place < 0 or before[place] == 1:  # all rows equal
            at.keep(node, replace(sizes, axis=axis, sizes=False))
            return
    if x is None or x.axis < 0 or axis is None or x.sizes:
        raise refusal(node, "repeats a value for every time step")
    if at.shape(node.output(0))[axis] != at.shape(node.input(0))[x.axis]:
        raise refusal(node, "repeats time steps")
    at.keep(node, replace(x, axis=axis))


@_rule(Stream.JOINED)
def _concatenated(at: Unroller, node: Node, flows: Flows) -> None:
    node, flows = together(at, node, flows)
    moving = [flow for flow in flows if flow is not None]
    axis = normal_axis(int(node.attrs["axis"]), len(at.shape(node.inputs[0])))
    if len({(flow.axis, flow.sizes) for flow in moving}) > 1 or moving[0].sizes:
        raise refusal(node, "combines values that do not advance together")
    if moving[0].axis < 0:
        if len({flow.lag for flow in moving}) > 1:
            raise refusal(node, "combines last time steps of which one comes sooner")
        at.keep(node, moving[0])
        return
    if axis != moving[0].axis:
        if len({flow.pace for flow in moving}) > 1 or None in flows:
            raise refusal(node, "combines each time step with others")
        at.keep(node, moving[0])
        return
    timeline_windows.behind(at, node, flows)


@_rule(Stream.TAKEN)
def _gathered(at: Unroller, node: Node, flows: Flows) -> None:
    x, index = flows[0], flows[1]
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None and index is not None and not index.sizes and node.input(0) in at.constants:
        at.keep(node, replace(index, axis=index.axis + axis if index.axis >= 0 else -1))
        return
    if x is None or index is not None:
        raise refusal(node, "takes elements by indices that change with time")
    number = at.constants.get(node.input(1))
    rank = 0 if number is None else number.ndim
    if axis != x.axis:
        moved = x.axis + (rank - 1 if 0 <= axis < x.axis else 0)
        at.keep(node, replace(x, axis=moved if x.axis >= 0 else -1))
    elif number is not None and number.ndim == 0 and number == -1 and not x.overlaps and not x.merged:
        at.keep(node, Flow(-1, lag=max(0, x.lag // x.rows)))
    else:
        raise refusal(node, "takes only some of the time steps", f"Run it on whole sequences. {TRACED}")


@_rule(Stream.PARTED)
def _split(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None or axis == x.axis:
        raise refusal(node, "takes only some of the time steps")
    at.keep(node, x)


@_rule(Stream.RECURRENT)
def _recurrent(at: Unroller, node: Node, flows: Flows) -> None:
    layer = Recurrent.of(node)
    if "reverse" in layer.directions:
        raise refusal(node, "runs backwards in time, and its first output needs the last frame")
    if layer.inputs.lengths:
        raise refusal(node, "takes the lengths of whole sequences")
    if layer.inputs.mask:
        node, flows = together(at, node, flows)
        layer = Recurrent.of(node)
    read, flow = layer.inputs, dict(zip(RecurrentInputs._fields, flows, strict=False))
    mask, x = read.mask, flow["x"]
    if mask and (flow["mask"] is None or x is None or flow["mask"].pace != x.pace or flow["mask"].axis):
        raise refusal(node, "takes a mask that does not advance with its frames")
    if x is None or x.axis != 0 or x.overlaps or x.merged or at.shape(read.x)[2] == ROWS:
        raise WrongAxesError(str(refusal(node, "does not take one row per frame")))
    if any(other is not None for name, other in flow.items() if name not in ("x", "mask")):
        raise refusal(node, "starts from a state, or has weights, computed from the frames")
    outputs = list(node.outputs) + [""] * (3 - len(node.outputs))
    rows = at.shape(read.x)[1]
    for place, letter in ((1, "h"), (2, "c"))[: 2 if layer.op == "LSTM" else 1]:
        given = getattr(read, f"{letter}_0")
        if mask and given and np.any(at.constants.get(given, 1)):
            raise refusal(node, "has a mask and starts from a state that is not zero")
        width = int(at.shape(read.w_hh)[2]) if letter == "h" else layer.hidden_size
        outputs[place] = outputs[place] or at.names.fresh(f"{layer.label}.{letter}")
        at.flows.setdefault(outputs[place], Flow(-1, lag=max(0, x.lag // x.rows)))
        if given and given not in at.constants:
            if not _comes_from_state(at, given):
                raise refusal(node, f"starts from '{given}', which is computed and not a state of the stream")
            continue
        before = at.given(f"{layer.label}.{letter}")
        read = read._replace(**{f"{letter}_0": before})
        shape = (len(layer.directions), ROWS if isinstance(rows, str) else rows, width)
        at.infos[before] = shapes.ValueInfo(shape, "float32")
        initial = at.constants.get(given)
        at.carried.append(Carried(f"{layer.label}.{letter}", before, outputs[place], shape, "float32", initial))
    if node.op != "LSTM":
        outputs = outputs[:2]
    y = outputs[0]
    if y and mask:
        outputs[0] = at.names.fresh(y)
    at.put(Node(node.op, read.given(), tuple(outputs), node.attrs, node.name))
    if y and mask:
        _repeat_last(at, mask, outputs[0], read.h_0, y)
    if y:
        at.flows[y] = x


def _repeat_last(at: Unroller, mask: str, y: str, before: str, out: str) -> None:
    """Before the first valid step of a call, the last output is an earlier call's: the state that the call began with.

    The layer knows only the steps of this call and returns zeros there. Starting from a zero state, output and state
    are the same, even before any step has been valid.
    """
    number, count, seen, wide = (at.names.fresh(mask) for _ in range(4))
    at.put(Node("Cast", (mask,), (number,), {"to": "int32"}))
    at.put(Node("CumSum", (number, at.constant(mask, np.array(0, np.int64))), (count,), {}))
    at.put(Node("Greater", (count, at.constant(mask, np.array(0, np.int32))), (seen,), {}))
    at.put(Node("Unsqueeze", (seen, at.constant(mask, np.array([2], np.int64))), (wide,), {}))
    at.put(Node("Where", (wide, y, before), (out,), {}))


def _comes_from_state(at: Unroller, name: str) -> bool:
    """Whether a value is a state of the stream, or part of one."""
    made = {output: node for node in at.nodes for output in node.outputs}
    while name in made and name not in at.states:
        name = made[name].input(0)
    return name in at.states
