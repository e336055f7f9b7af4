"""How each operator goes on in time: what a stream puts in a node's place, or why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import RECURRENT_OPS, Graph, Node, Recurrent, RecurrentInputs
from fastlstm.passes import dims, shapes
from fastlstm.passes.infer_compute import ELEMENTWISE, REDUCTIONS
from fastlstm.passes.infer_movement import slice_bounds
from fastlstm.passes.values import Operands, normal_axis
from fastlstm.streaming.timeline import (
    FAR,
    FRAMES,
    ROWS,
    TRACED,
    Carried,
    Flow,
    Flows,
    Rule,
    Unrolled,
    Unroller,
    looks_ahead,
    refusal,
)

__all__ = ["unroll"]

Array = npt.NDArray[Any]

_BROADCASTING = (
    "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Mod And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual "
    "BitwiseAnd BitwiseOr BitwiseXor BitShift"
)
BROADCASTING = frozenset(_BROADCASTING.split())


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
    return Unroller(graph, states, RULES, [] if placed is None else placed).run(frames)


RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def enrol(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return enrol


@_rule(*ELEMENTWISE, "Identity", "Dropout")
def _same(at: Unroller, node: Node, flows: Flows) -> None:
    if flows[0] is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has a setting that changes with time")
    at.keep(node, flows[0])


@_rule(*BROADCASTING)
def _joined(at: Unroller, node: Node, flows: Flows) -> None:
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
    axes = {rank - len(at.shape(name)) + flow.axis for name, flow in zip(node.inputs, flows, strict=True) if flow}
    if len(axes) > 1 or len({(flow.extra, flow.ahead, flow.merged) for flow in moving}) > 1:
        raise refusal(node, "joins each time step with other ones")
    (axis,) = axes
    for name, flow in zip(node.inputs, flows, strict=True):
        place = axis - rank + len(at.shape(name))
        if flow is None and place >= 0 and at.shape(name)[place] != 1:
            raise refusal(node, "joins the frames with a fixed number of rows")
    at.keep(node, replace(moving[0], axis=axis))


@_rule("Dense")
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


@_rule("Einsum")
def _einsum(at: Unroller, node: Node, flows: Flows) -> None:
    """A product with constant weights, along axes that are not time."""
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


@_rule("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "ArgMax")
def _over_last_axis(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "has weights that change with time")
    rank = len(at.shape(node.input(0)))
    axis = normal_axis(int(node.attrs.get("axis", 0 if node.op == "ArgMax" else -1)), rank)
    if x.axis == axis or ("Normalization" in node.op and x.axis > axis):
        raise refusal(node, "normalises over time" if node.op != "ArgMax" else "looks for an extreme over time")
    if node.op == "ArgMax" and not node.attrs.get("keepdims", 1):
        x = replace(x, axis=x.axis - (axis < x.axis)) if x.axis >= 0 else x
    at.keep(node, x)


@_rule(*REDUCTIONS)
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


@_rule("BatchNormalization")
def _batch_norm(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    if x is None or any(flow is not None for flow in flows[1:]) or x.axis == 1:
        raise refusal(node, "normalises over time")
    at.keep(node, x)


@_rule("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
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
        raise refusal(node, "fixes the number of time steps")
    if node.op in ("Reshape", "Flatten"):
        behind = dims.product(before[x.axis + 1 :]) == dims.product(after[axis + 1 :])
        apart = dims.product(before[: x.axis]) == dims.product(after[:axis])
        if not behind or not (apart or axis == 0 or x.merged):
            raise refusal(node, "mixes time steps with other axes")
        if x.merged and not apart and tuple(after[: axis + 1]) != x.merged:
            raise refusal(node, "mixes time steps with other axes")
        if not apart:
            x = replace(x, merged=() if x.merged else tuple(before[: x.axis + 1]))
    at.keep(node, replace(x, axis=axis))


@_rule("Shape", "Size")
def _sizes(at: Unroller, node: Node, flows: Flows) -> None:
    if flows[0] is None or flows[0].ahead:
        raise refusal(node, "depends on how many frames there are")
    at.keep(node, Flow(0, sizes=True))


@_rule("Expand", "Tile")
def _repeated(at: Unroller, node: Node, flows: Flows) -> None:
    x, axis = flows[0], at.axis_by_shape(node)
    if x is None and axis is not None and at.shape(node.output(0))[axis] == FRAMES:
        before = at.shape(node.input(0))
        place = axis - len(at.shape(node.output(0))) + len(before)
        if place < 0 or before[place] == 1:  # every row alike
            at.keep(node, Flow(axis))
            return
    if x is None or x.axis < 0 or axis is None or x.sizes:
        raise refusal(node, "repeats a value for every time step")
    if at.shape(node.output(0))[axis] != at.shape(node.input(0))[x.axis]:
        raise refusal(node, "repeats time steps")
    at.keep(node, replace(x, axis=axis))


@_rule("Concat")
def _concatenated(at: Unroller, node: Node, flows: Flows) -> None:
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


def _behind(at: Unroller, node: Node, flows: Flows) -> None:
    """Place a Concat over time: a state, or constant rows, in front of the frames."""
    first, x = node.inputs[0], flows[-1]
    count = at.shape(first)[x.axis] if x is not None and flows[0] is None else None
    if len(node.inputs) != 2 or x is None or not isinstance(count, int) or x.merged:
        raise refusal(node, "joins time steps")
    if first in at.constants:
        joined, flow = at.remembered(node, node.inputs[1], x, count, at.constants[first])
        at.put(Node("Identity", (joined,), node.outputs, {}, node.name))
        at.flows[node.output(0)] = flow
        return
    if first not in at.states:
        raise refusal(node, f"puts '{first}' before the first frame, which is no state of the stream")
    at.keep(node, replace(x, extra=x.extra + count))
    at.fronts[node.output(0)] = (first, count)


@_rule("Pad")
def _padded(at: Unroller, node: Node, flows: Flows) -> None:
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
        name, flow = at.remembered(node, name, flow, before, value)
    at.put(Node("Identity", (name,), node.outputs, {}, node.name))
    at.flows[node.output(0)] = _further(node, flow, after, after)


def _further(node: Node, flow: Flow, extra: int, ahead: int) -> Flow:
    """Return the flow behind a node that adds rows, some of them ahead."""
    source = f"The {node.op} node '{node.name or node.output(0)}'" if ahead else flow.source
    return replace(flow, extra=flow.extra + extra, ahead=flow.ahead + ahead, source=source)


@_rule("Conv")
def _convolved(at: Unroller, node: Node, flows: Flows) -> None:
    """Sums over the frames before each: padding in front of the first becomes a memory of the last frames."""
    x, weight = flows[0], at.constants.get(node.input(1))
    if x is None or weight is None or x.axis == 1 or x.merged or at.shape(node.input(0))[1] == ROWS:
        raise refusal(node, "sums over time")
    if weight.ndim not in (3, 4) or weight.dtype != np.float32 or node.input(2) not in ("", *at.constants):
        raise refusal(node, "has no kernel whose sums are the same for any number of time steps")
    if x.axis < 2:
        at.keep(node, x)
        return
    spatial, count = x.axis - 2, weight.ndim - 2
    strides, dilations = (list(node.attrs.get(a) or [1] * count) for a in ("strides", "dilations"))
    span = (weight.shape[x.axis] - 1) * dilations[spatial]
    pads = list(node.attrs.get("pads") or [0] * (2 * count))
    if strides[spatial] != 1 or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        raise refusal(node, "takes strides over time" if strides[spatial] != 1 else "pads by the number of frames")
    before, after = pads[spatial], pads[spatial + count]
    pads[spatial] = pads[spatial + count] = 0
    name, flow = node.input(0), x
    if before:
        name, flow = at.remembered(node, name, flow, before, 0.0)
    attrs = {**node.attrs, "pads": pads}
    at.put(Node("Conv", (name, *node.inputs[1:]), node.outputs, attrs, node.name))
    at.flows[node.output(0)] = _further(node, flow, after - span, after)


@_rule("MaxPool", "AveragePool")
def _pooled(at: Unroller, node: Node, flows: Flows) -> None:
    """Over other axes than time."""
    x, attrs = flows[0], node.attrs
    count = len(attrs["kernel_shape"])
    if x is None or any(node.outputs[1:]) or x.merged:
        raise refusal(node, "tells positions in time")
    if x.axis >= 2:
        place, pads = x.axis - 2, attrs.get("pads") or [0] * (2 * count)
        window = (attrs["kernel_shape"][place], (attrs.get("strides") or [1] * count)[place])
        if window != (1, 1) or pads[place] or pads[place + count]:
            raise refusal(node, "pools over time")
    at.keep(node, x)


@_rule("Slice")
def _sliced(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    operands = Operands(node, tuple(at.infos.get(name, shapes.ValueInfo()) for name in node.inputs))
    bounds = slice_bounds(operands)
    if x is None or bounds is None or any(flow is not None for flow in flows[1:]):
        raise refusal(node, "cuts at places that are not known")
    over = [bound for bound in bounds if bound[0] == x.axis]
    if not over:
        at.keep(node, x)
        return
    if x.merged:
        raise refusal(node, "takes some of the time steps")
    if len(bounds) > 1:  # the other axes first, then time
        inside = at.names.fresh(node.input(0))
        others = [bound for bound in bounds if bound[0] != x.axis]
        columns = [[bound[i] for bound in others] for i in (1, 2, 0, 3)]
        if any(isinstance(value, str) for column in columns for value in column):
            raise refusal(node, "cuts at places that are not known")
        cuts = [at.constant(inside, np.array(column, np.int64)) for column in columns]
        at.keep(Node("Slice", (node.input(0), *cuts), (inside,), {}, node.name), x)
        node = Node("Slice", (inside,), node.outputs, {}, node.name)
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


def _last_rows(at: Unroller, node: Node, x: Flow, start: int, end: int) -> None:
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
def _gathered(at: Unroller, node: Node, flows: Flows) -> None:
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
        raise refusal(node, "takes some of the time steps", f"Run it on whole sequences. {TRACED}")


@_rule("Split")
def _split(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(at.shape(node.input(0))))
    if x is None or axis == x.axis:
        raise refusal(node, "takes some of the time steps")
    at.keep(node, x)


@_rule(*RECURRENT_OPS)
def _recurrent(at: Unroller, node: Node, flows: Flows) -> None:
    layer, flow = Recurrent.of(node), dict(zip(RecurrentInputs._fields, flows, strict=False))
    read, mask, x = layer.inputs, layer.inputs.mask, flow["x"]
    if "reverse" in layer.directions:
        raise refusal(node, "runs backwards in time, and its first output needs the last frame")
    if read.lengths:
        raise refusal(node, "takes the lengths of whole sequences")
    if mask and flow["mask"] != Flow(0):
        raise refusal(node, "takes a mask that does not go on with its frames")
    if x is not None and x.ahead:
        raise looks_ahead(x)
    if x is None or x.axis != 0 or x.surplus or x.merged or at.shape(read.x)[2] == ROWS:
        raise refusal(node, "does not take one row a frame")
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
        at.flows.setdefault(outputs[place], Flow(-1))
        if given and given not in at.constants:
            if not _comes_from_state(at, given):
                raise refusal(node, f"starts from '{given}', which is computed and not a state of the stream")
            continue
        before = at.names.fresh(f"{layer.label}.{letter}.before")
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
    """Before the first valid step of a call the last output is that of an earlier call: the state it began with.

    The layer knows the steps of this call alone and gives zeros there. From a state of zeros, output and state are
    the same, also before any step has been valid.
    """
    number, count, seen, wide = (at.names.fresh(mask) for _ in range(4))
    at.put(Node("Cast", (mask,), (number,), {"to": "int32"}))
    at.put(Node("CumSum", (number, at.constant(mask, np.array(0, np.int64))), (count,), {}))
    at.put(Node("Greater", (count, at.constant(mask, np.array(0, np.int32))), (seen,), {}))
    at.put(Node("Unsqueeze", (seen, at.constant(mask, np.array([2], np.int64))), (wide,), {}))
    at.put(Node("Where", (wide, y, before), (out,), {}))


def _comes_from_state(at: Unroller, name: str) -> bool:
    """Whether a value is a state of the stream, or cut out of one."""
    made = {output: node for node in at.nodes for output in node.outputs}
    while name in made and name not in at.states:
        name = made[name].input(0)
    return name in at.states
