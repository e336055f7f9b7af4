"""How operators that look at neighbours in time stream: convolutions, pooling, padding, slices, Fourier windows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.errors import counted
from fastlstm.graph import Node
from fastlstm.operators import Stream, dims
from fastlstm.operators.movement import slice_bounds
from fastlstm.operators.values import normal_axis
from fastlstm.passes import shapes
from fastlstm.streaming.flow import FAR, FRAMES, ROWS, Flow, LongerHopError, Padding, Phase, refusal
from fastlstm.streaming.waiting import count, filled, joined, wait, window
from fastlstm.typing import Array

if TYPE_CHECKING:
    from fastlstm.streaming.timeline import Flows, Rule, Unroller

__all__ = ["RULES", "behind", "folded"]

END = (1 << 31) - 1  # the end of a Slice that goes to the last row


def behind(at: Unroller, node: Node, flows: Flows) -> None:
    """Place a Concat along time: a state or constant rows before the frames, or constant rows after them."""
    if len(node.inputs) != 2 or (flows[0] is None) == (flows[1] is None):
        raise refusal(node, "joins time steps")
    place = 1 if flows[0] is None else 0
    x, other = flows[place], node.inputs[1 - place]
    rows = None if x is None else at.shape(other)[x.axis]
    if x is None or not isinstance(rows, int) or x.merged:
        raise refusal(node, "joins time steps")
    if other in at.constants:
        array = at.constants[other]
        value = array.reshape(-1)[0] if array.size and np.all(array == array.reshape(-1)[0]) else array
        _around(at, node, node.inputs[place], x, rows if place else 0, 0 if place else rows, value)
        return
    if other not in at.states or not place:
        raise refusal(node, f"puts '{other}' next to the frames, which is not a state of the stream")
    if x.lag or x.extra or x.padding:
        raise refusal(node, f"puts '{other}' before a value whose rows are not frames")
    at.keep(node, replace(x, extra=rows, lag=-rows, overlaps=rows > 0))
    at.fronts[node.output(0)] = (other, rows)


def _around(at: Unroller, node: Node, name: str, x: Flow, before: int, after: int, value: Array | float) -> None:
    """Make a node's output its input with padding around it, for the next node to apply."""
    name, x = _with_padding(at, node, name, x, before, after, value)
    at.put(Node("Identity", (name,), node.outputs, {}, node.name))
    at.flows[node.output(0)] = x


def _with_padding(
    at: Unroller, node: Node, name: str, x: Flow, before: int, after: int, value: Array | float
) -> tuple[str, Flow]:
    """Return a value with more rows around it."""
    old = x.padding
    if old and ((old.before, old.after) != (0, 0)) and not _is_alike(old, before, after, value):
        name, x = window(at, node, name, x)
        old = None
    kept = old.value if old and max(before, after) <= 0 else value
    found = Padding(before + (old.before if old else 0), after + (old.after if old else 0), kept)
    return name, replace(x, padding=found if (found.before, found.after) != (0, 0) else None)


def _is_alike(old: Padding, before: int, after: int, value: Array | float) -> bool:
    """Whether rows may still be added before or after a value, or left out."""
    if np.ndim(old.value) or np.ndim(value):
        return False
    # Rows that were left out cannot return as padding.
    lost = (before > 0 and old.before < 0) or (after > 0 and old.after < 0)
    return not lost and (max(before, after) <= 0 or bool(old.value == value))


def _padded(at: Unroller, node: Node, flows: Flows) -> None:
    x, rank = flows[0], len(at.shape(node.input(0)))
    pads = at.infos[node.input(1)].numbers
    if x is None or pads is None or x.axis < 0:
        raise refusal(node, "pads by amounts that are not known")
    axes = at.infos[node.input(3)].numbers if node.input(3) else list(range(rank))
    axes = [normal_axis(a, rank) for a in axes or []]
    name, pads = node.input(0), list(pads)
    place = axes.index(x.axis) if x.axis in axes else None
    before, after = (0, 0) if place is None else (pads[place], pads[place + len(axes)])
    if before or after:
        if node.attrs.get("mode", "constant") != "constant" or x.merged:
            raise refusal(node, "pads time with values that are not constant")
        pads[axes.index(x.axis)] = pads[axes.index(x.axis) + len(axes)] = 0
    if any(pads):
        (node, (flow,)) = filled(at, Node(node.op, (name,), node.outputs, node.attrs, node.name), [x])
        x = flow or x
        inside = at.names.fresh(name)
        more = [at.constant("axes", np.array(axes, np.int64))]
        value = at.constants.get(node.input(2), np.zeros((), at.infos[name].dtype or "float32"))
        inputs = (node.input(0), at.constant("pads", np.array(pads, np.int64)), at.constant("value", value), *more)
        at.put(Node("Pad", inputs, (inside,), node.attrs, node.name))
        name = inside
    value = at.constants.get(node.input(2), np.zeros(()))
    _around(at, node, name, x, before, after, np.asarray(value).reshape(-1)[0])


def _pads(node: Node, sizes: tuple[Any, ...], kernel: list[int], place: int, x: Flow) -> list[int]:
    """Return the padding of a window over each spatial axis: all paddings before, then all after."""
    n = len(kernel)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return list(node.attrs.get("pads") or [0] * (2 * n)) if auto == "NOTSET" else [0] * (2 * n)
    strides, dilations = (list(node.attrs.get(a) or [1] * n) for a in ("strides", "dilations"))
    before, after = [], []
    for i, (size, k, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        if i == place:
            if x.extra % stride or x.padding:
                raise refusal(node, "pads by the number of frames")
            size = 0  # a multiple of the stride
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return [*before, *after]


def _slid(at: Unroller, node: Node, x: Flow, kernel: list[int], value: float) -> None:
    """Place a window over the spatial axes including time, padded with the given value."""
    place, n = x.axis - 2, len(kernel)
    strides, dilations = (list(node.attrs.get(a) or [1] * n) for a in ("strides", "dilations"))
    span, stride = (kernel[place] - 1) * dilations[place], strides[place]
    pads = _pads(node, at.shape(node.input(0))[2:], kernel, place, x)
    before, after = pads[place], pads[place + n]
    attrs = {**node.attrs, "pads": pads, "auto_pad": "NOTSET"}
    pads[place] = pads[place + n] = 0
    if x.overlaps:
        if before or after or stride != 1 or span > -x.lag:
            raise refusal(node, "reaches over more rows than the model carries for it")
        lag = x.lag + span
        at.keep(replace_node(node, node.input(0), attrs), replace(x, lag=lag, extra=x.extra - span, overlaps=lag < 0))
        return
    name, flow = _with_padding(at, node, node.input(0), x, before, after, value)
    name, flow = window(at, node, name, flow, span, stride)
    at.keep(replace_node(node, name, attrs), flow)


def replace_node(node: Node, name: str, attrs: dict[str, Any]) -> Node:
    """Return the node with another first input and other attributes."""
    return Node(node.op, (name, *node.inputs[1:]), node.outputs, attrs, node.name)


def _convolved(at: Unroller, node: Node, flows: Flows) -> None:
    x, weight = flows[0], at.constants.get(node.input(1))
    if x is None or weight is None or x.axis == 1 or (x.merged and x.axis) or at.shape(node.input(0))[1] == ROWS:
        raise refusal(node, "sums over time")
    if weight.ndim not in (3, 4) or weight.dtype != np.float32 or node.input(2) not in ("", *at.constants):
        raise refusal(node, "has no kernel whose sums are the same for any number of time steps")
    if x.axis < 2:
        node, (flow,) = filled(at, node, [x, *[None] * (len(node.inputs) - 1)][: len(node.inputs)][:1])
        at.keep(node, flow)
        return
    _slid(at, node, x, list(weight.shape[2:]), 0.0)


def _pooled(at: Unroller, node: Node, flows: Flows) -> None:
    x, attrs = flows[0], node.attrs
    kernel = list(attrs["kernel_shape"])
    if x is None or any(node.outputs[1:]) or (x.merged and x.axis > 1):
        raise refusal(node, "tells positions in time")
    if x.axis < 2:
        (node, (flow,)) = filled(at, node, [x])
        at.keep(node, flow)
        return
    place = x.axis - 2
    pads = _pads(node, at.shape(node.input(0))[2:], kernel, place, x)
    around = pads[place] or pads[place + len(kernel)]
    if attrs.get("ceil_mode", 0) and (attrs.get("strides") or [1] * len(kernel))[place] != 1:
        raise refusal(node, "pools a last window that may be cut short (ceil_mode)")
    if node.op == "AveragePool" and around and not attrs.get("count_include_pad", 0):
        raise refusal(node, "takes means over fewer frames at both ends (count_include_pad)")
    _slid(at, node, x, kernel, -math.inf if node.op == "MaxPool" else 0.0)


def _transposed(at: Unroller, node: Node, flows: Flows) -> None:
    """A transposed convolution: each row adds to several rows of the output, where neighbours overlap."""
    x, weight = flows[0], at.constants.get(node.input(1))
    if x is None or weight is None or x.axis == 1 or (x.merged and x.axis) or at.shape(node.input(0))[1] == ROWS:
        raise refusal(node, "sums over time")
    if weight.ndim not in (3, 4) or weight.dtype != np.float32 or node.input(2) not in ("", *at.constants):
        raise refusal(node, "has no kernel whose sums are the same for any number of time steps")
    if x.axis < 2:
        at.keep(node, x)
        return
    if x.overlaps:
        raise refusal(node, "sums over time")
    place, n = x.axis - 2, weight.ndim - 2
    strides, dilations = (list(node.attrs.get(a) or [1] * n) for a in ("strides", "dilations"))
    stride, span = strides[place], (weight.shape[x.axis] - 1) * dilations[place]
    pads, more = list(node.attrs.get("pads") or [0] * (2 * n)), list(node.attrs.get("output_padding") or [0] * n)
    if node.attrs.get("output_shape") or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        raise refusal(node, "pads by the number of frames")
    before, extra = pads[place], stride * (x.extra - 1) + span + 1 + more[place] - pads[place] - pads[place + n]
    lag = max(stride * x.lag + before, -extra)
    flow = Flow(x.axis, stride * x.rows, extra, lag)
    late = lag - stride * x.lag - before  # known rows that wait
    kept = max((span + late) // stride, -(-late // stride))
    if lag + extra > 0 and not x.lag + x.extra:
        kept = max(kept, 1)  # the last rows of the output, even if nothing is added to them, need a row of the input
    wait(at, kept, x)
    wait(at, 0, flow)
    name = joined(at, node, node.input(0), x, kept, Padding())
    start = before if at.phase is Phase.FIRST else stride * kept - late
    end = FAR if at.phase is Phase.STEADY else start + count(at, flow)
    pads[place] = pads[place + n] = 0
    if at.phase is not Phase.LAST:  # rows between others that nothing is added to
        more[place] = max(0, stride - 1 - span - late)
    whole = at.names.fresh(node.output(0))
    attrs = {**node.attrs, "pads": pads, "output_padding": more}
    at.put(Node(node.op, (name, *node.inputs[1:]), (whole,), attrs, node.name))
    if at.phase is Phase.STEADY:  # after the known rows: what the next rows of the input add to
        end = stride - 1 - span - late
        end = end if end < 0 else FAR
    if at.phase is not Phase.STEADY and not count(at, flow):
        at.absent.update(node.outputs)
    else:
        at.put(Node("Identity", (at.cut(whole, x.axis, start, end),), node.outputs))
    at.flows[node.output(0)] = flow


def _sliced(at: Unroller, node: Node, flows: Flows) -> None:
    x = flows[0]
    bounds = slice_bounds(shapes.operands(node, at.infos))
    if x is None or bounds is None or any(flow is not None and not flow.sizes for flow in flows[1:]):
        raise refusal(node, "slices at positions that are not known")
    over = [bound for bound in bounds if bound[0] == x.axis]
    others = [bound for bound in bounds if bound[0] != x.axis]
    if any(isinstance(value, str) for bound in others for value in bound):
        raise refusal(node, "slices at positions that are not known")
    name = node.input(0)
    if others:
        name = at.names.fresh(node.input(0)) if over else node.output(0)
        cuts = [at.constant(name, np.array([b[i] for b in others], np.int64)) for i in (1, 2, 0, 3)]
        (sliced, (flow,)) = filled(at, Node("Slice", (node.input(0),), (name,), {}, node.name), [x])
        x = flow or x
        at.keep(Node("Slice", (sliced.input(0), *cuts), (name,), {}, node.name), x)
    if over:
        _cut(at, node, name, x, *over[0][1:])


def _cut(at: Unroller, node: Node, name: str, x: Flow, start: int, end: int | str, step: int) -> None:
    """Place a Slice along time only, of a value whose name may differ from the node's input."""
    if x.merged:
        raise refusal(node, "takes only some of the time steps")
    dropped = _dropped(at, node, x, start, end, step)
    if dropped is None:
        _last_rows(at, node, name, x, start, end)
        return
    if x.overlaps:
        if dropped or step != 1 or start > -x.lag:
            raise refusal(node, "takes only some of the rows that the model carries")
        at.put(Node("Identity", (at.cut(name, x.axis, start, FAR),), node.outputs, {}, node.name))
        lag = x.lag + start
        at.flows[node.output(0)] = replace(x, lag=lag, extra=x.extra - start, overlaps=lag < 0)
        return
    if start:
        at.note(node, f"begins {counted(start, 'row')} later")
    if step == 1:
        _around(at, node, name, x, -start, -dropped, 0.0)
        return
    name, x = _with_padding(at, node, name, x, -start, -dropped, 0.0)
    name, flow = window(at, node, name, x, 0, step)
    cuts = [at.constant(name, np.array([value], np.int64)) for value in (0, FAR, flow.axis, step)]
    at.keep(Node("Slice", (name, *cuts), node.outputs, {}, node.name), flow)


def _dropped(at: Unroller, node: Node, x: Flow, start: int, end: int | str, step: int) -> int | None:
    """Return how many rows a Slice along time leaves out at the end; None if it takes the last rows."""
    if isinstance(end, str):
        last, whole = dims.linear(end, FRAMES), at.affine(node.input(0), x.axis)
        if last is None or whole is None or last[0] != whole[0] or last[1] > whole[1]:
            raise refusal(node, "slices at positions that are not known")
        end = last[1] - whole[1] or FAR
    if start < 0 and step == 1:
        return None
    if step < 1 or start < 0:
        raise refusal(node, "takes only some of the time steps")
    if 0 <= end < END:
        raise refusal(node, "takes a fixed number of time steps")
    return -end if end < 0 else 0


def _last_rows(at: Unroller, node: Node, name: str, x: Flow, start: int, end: int | str) -> None:
    """Place a Slice of the last rows: the last time step, or a state's new value."""
    front = at.fronts.get(name)
    node = Node("Slice", (name, *node.inputs[1:]), node.outputs, {}, node.name)
    if isinstance(end, str) or end < END or x.padding:
        raise refusal(node, "takes only some of the time steps")
    if front is not None and front[1] == -start == -x.lag:
        at.keep(node, Flow(-1, tail=front[0]))
    elif start == -1 and not x.overlaps:
        at.keep(node, Flow(-1, lag=max(0, x.lag // x.rows)))
    else:
        raise refusal(node, f"takes the last {-start} time steps")


def folded(at: Unroller, node: Node, x: Flow, axis: int) -> bool:
    """Place a Reshape that merges rows or splits them; return whether it does."""
    before, after = at.shape(node.input(0)), at.shape(node.output(0))
    if x.merged or x.overlaps or dims.product(before[: x.axis]) != dims.product(after[:axis]):
        return False
    inside, outside = (dims.product(shape[place + 1 :]) for shape, place in ((before, x.axis), (after, axis)))
    factor, unfolded = dims.divide(outside, inside), dims.divide(inside, outside)
    if isinstance(unfolded, int) and unfolded > 1:
        factor = unfolded
        flow = Flow(axis, x.rows * factor, x.extra * factor, x.lag * factor)
        at.keep(reshaped(at, node, node.input(0), axis), flow)
        return True
    if not isinstance(factor, int) or factor < 2:
        return False
    if x.rows % factor:
        raise LongerHopError(at.hop * factor // math.gcd(x.rows, factor))
    if x.extra % factor:
        return False
    name, flow = window(at, node, node.input(0), x, factor - 1, factor)
    at.keep(reshaped(at, node, name, axis), replace(flow, axis=axis))
    return True


def ask_for_whole_rows(at: Unroller, node: Node, x: Flow) -> None:
    """Ask for a longer hop if a Reshape may merge a number of rows that does not divide the hop."""
    target = at.infos[node.input(1)].numbers if node.op == "Reshape" else None
    before = at.shape(node.input(0))
    if not target or target.count(-1) != 1 or x.merged or ROWS in before[x.axis + 1 :]:
        return
    behind = target[target.index(-1) + 1 :]
    factor = dims.divide(math.prod(behind), dims.product(before[x.axis + 1 :])) if 0 not in behind else None
    if isinstance(factor, int) and factor > 1 and x.rows % factor:
        raise LongerHopError(at.hop * factor // math.gcd(x.rows, factor))


def reshaped(at: Unroller, node: Node, name: str, axis: int) -> Node:
    """Return a Reshape whose target does not contain the number of frames."""
    before, after = at.shape(node.input(0)), at.shape(node.output(0))
    if node.op == "Reshape" and node.input(1) in at.constants:
        return Node(node.op, (name, *node.inputs[1:]), node.outputs, node.attrs, node.name)
    target = []
    for i, size in enumerate(after):
        if i == axis:
            target.append(-1)
        elif isinstance(size, int):
            target.append(size)
        elif i < len(before) and before[i] == size:
            target.append(0)
        else:
            raise refusal(node, "depends on how many frames there are")
    return Node(
        "Reshape", (name, at.constant(name, np.array(target, np.int64))), node.outputs, {"allowzero": 0}, node.name
    )


def _transformed(at: Unroller, node: Node, flows: Flows) -> None:
    """Fourier transforms of windows of a signal."""
    x, step = flows[0], at.infos[node.input(1)].numbers
    size = at.infos[node.input(3)].numbers if node.input(3) else None
    if size is None and node.input(2):
        size = [n for n in at.shape(node.input(2)) if isinstance(n, int)]
    if x is None or any(flow is not None for flow in flows[1:]) or not step or not size or x.axis != 1:
        raise refusal(node, "has windows that are not known")
    name, flow = window(at, node, node.input(0), x, size[0] - 1, step[0])
    at.keep(Node(node.op, (name, *node.inputs[1:]), node.outputs, node.attrs, node.name), flow)


RULES: dict[Stream, Rule] = {
    Stream.PADDED: _padded,
    Stream.CONVOLUTION: _convolved,
    Stream.TRANSPOSED_CONVOLUTION: _transposed,
    Stream.POOLING: _pooled,
    Stream.CUT: _sliced,
    Stream.FOURIER: _transformed,
}
