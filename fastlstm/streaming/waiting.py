"""Rows that wait: windows over neighbours in time, padding, and values that become known sooner than others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastlstm.errors import counted
from fastlstm.graph import Node
from fastlstm.passes import shapes
from fastlstm.streaming.flow import FAR, ROWS, Carried, Flow, LongerHopError, Padding, Phase, refusal
from fastlstm.streaming.placing import Placement
from fastlstm.typing import Array

__all__ = ["count", "filled", "joined", "together", "wait", "window"]


def wait(at: Placement, rows: int, of: Flow) -> None:
    """Make the first call process enough hops for a value to have `rows` known rows in it."""
    at.waiting = max(at.waiting, -(-(of.lag + rows) // of.rows))


def count(at: Placement, flow: Flow) -> int:
    """Return how many rows a value has in the first or in the last call."""
    return flow.rows * at.waiting - flow.lag if at.phase is Phase.FIRST else flow.lag + flow.extra


def window(
    at: Placement, node: Node, name: str, flow: Flow, span: int = 0, stride: int = 1, least: int | None = None
) -> tuple[str, Flow]:
    """Return the rows that a sliding window needs, and how the window's positions advance in time.

    Parameters
    ----------
    at : Placement
    node : Node
        The node that needs the rows.
    name, flow : str, Flow
        The value; the window slides over its padding too.
    span : int
        Rows that the window covers, less one.
    stride : int
        Rows from one position of the window to the next.
    least : int, optional
        The least lag to wait for.
    """
    padding = flow.padding or Padding()
    if stride > 1:
        at.note(node, f"takes steps of {stride} rows")
    if span > max(0, padding.before):
        at.note(node, f"looks {counted(span - max(0, padding.before), 'row')} ahead")
    if flow.merged or flow.overlaps:
        raise refusal(node, "looks at other time steps of a value whose rows are not only frames")
    if flow.rows % stride:
        raise LongerHopError(at.hop * stride // math.gcd(flow.rows, stride))
    extra = (flow.extra + padding.before + padding.after - span - 1) // stride + 1
    lag = -((padding.before - flow.lag - span - 1) // stride + 1)
    late = max(lag, -extra, lag if least is None else least)  # a row that may never come is not known
    after = Flow(flow.axis, flow.rows // stride, extra, late)
    kept = padding.before - flow.lag + stride * late
    rows = joined(at, node, name, flow, kept, padding)
    wait(at, 0, after)
    unused = kept + stride - 1 - span
    if at.phase is not Phase.STEADY:
        have = count(at, flow) + (padding.before if at.phase is Phase.FIRST else kept + max(0, padding.after))
        unused = have - stride * (count(at, after) - 1) - span - 1
    if at.phase is not Phase.STEADY and not count(at, after):
        at.absent.add(rows := at.names.fresh(name))
    elif unused:
        rows = at.cut(rows, flow.axis, 0, -unused)
    if rows != name:
        at.infos[rows] = at.infos[name]
    return rows, after


def joined(at: Placement, node: Node, name: str, flow: Flow, kept: int, padding: Padding) -> str:
    """Return the rows of a call after those that were kept, or after padding; keep the last ones.

    A negative number is kept if the value's next rows are not read at all.
    """
    phase, axis = at.phase, flow.axis
    if padding.before != kept:
        at.waiting = max(at.waiting, 1)
    if padding.before > 0 and (padding.before != kept or flow.lag > 0):
        wait(at, 1, flow)  # padding needs a row to precede
    known = [] if name in at.absent else [name]
    skipped = max(0, -padding.before if phase is Phase.FIRST else -kept)
    if skipped and known:
        some = phase is Phase.STEADY or count(at, flow) > skipped
        known = [at.cut(name, axis, skipped, FAR)] if some else []
    state = _kept(at, node, name, flow, kept, padding.value) if kept > 0 else None
    if state is not None and phase is not Phase.FIRST:
        known.insert(0, state.given)
    if padding.after > 0 and kept <= 0 and flow.lag + flow.extra <= -kept:
        return _ended(at, node, name, known, flow, kept, padding)
    before = max(0, padding.before) if phase is Phase.FIRST else 0
    after = max(0, padding.after) if phase is Phase.LAST else 0
    rows = _around(at, node, known, axis, before, after, padding.value)
    if state is not None:
        shown = rows
        if phase is Phase.STEADY or count(at, flow) + padding.before > kept:
            shown = at.cut(rows, axis, -kept, FAR)
        at.carried.append(replace(state, shown=shown))
    return rows


def _ended(at: Placement, node: Node, name: str, known: list[str], flow: Flow, kept: int, padding: Padding) -> str:
    """Return the rows of a call that only adds padding: those after the last known row."""
    state = _kept(at, node, name, flow, 1, 0.0)
    if at.phase is not Phase.LAST:
        wait(at, 1 + max(0, -padding.before), flow)
        before = max(0, padding.before) if at.phase is Phase.FIRST else 0
        at.carried.append(replace(state, shown=at.cut(known[0], flow.axis, -1, FAR)))
        return _around(at, node, known, flow.axis, before, 0, padding.value)
    at.carried.append(replace(state, shown=state.given))
    rows = _around(at, node, [state.given], flow.axis, 0, padding.after, padding.value)
    return at.cut(rows, flow.axis, 1 - kept - flow.lag - flow.extra, FAR)


def _kept(at: Placement, node: Node, name: str, flow: Flow, kept: int, value: Array | float) -> Carried:
    """Return the state that holds a value's last rows; initially, the padding before its first row."""
    label = f"{node.output(0)}.past"
    while any(c.name == label for c in at.carried):
        label += "'"
    shape = tuple(
        kept if i == flow.axis else ROWS if isinstance(size, str) else size for i, size in enumerate(at.shape(name))
    )
    dtype = at.infos[name].dtype or "float32"
    given = at.given(label)
    at.infos[given] = shapes.ValueInfo(shape, dtype)
    initial = None if np.all(np.equal(value, 0)) else np.asarray(value)
    return Carried(label, given, "", shape, dtype, initial)


def _around(
    at: Placement, node: Node, known: list[str], axis: int, before: int, after: int, value: Array | float
) -> str:
    """Return values concatenated, with constant rows before and after; absent if there are no rows at all."""
    name = known[0] if known else at.names.fresh(node.output(0))
    if not known:
        if before or after:
            raise refusal(node, "pads a sequence of which no rows are left")
        at.absent.add(name)
        return name
    if np.ndim(value) and (before or after):
        rows = at.constant(name, np.asarray(value))
        known = [rows, *known] if before else [*known, rows]
    if len(known) > 1:
        name = at.names.fresh(name)
        at.put(Node("Concat", tuple(known), (name,), {"axis": axis}))
    if np.ndim(value) or not (before or after):
        return name
    padded, rank = at.names.fresh(name), len(at.shape(name))
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[rank + axis] = before, after
    fill = at.constant(name, np.asarray(value, at.infos[name].dtype or "float32"))
    at.put(Node("Pad", (name, at.constant(name, pads), fill), (padded,)))
    return padded


def filled(at: Placement, node: Node, flows: Sequence[Flow | None]) -> tuple[Node, list[Flow | None]]:
    """Return the node with its inputs' padding applied."""
    inputs, found = list(node.inputs), list(flows)
    for i, flow in enumerate(flows):
        if flow is not None and flow.padding:
            inputs[i], found[i] = window(at, node, inputs[i], flow)
    return Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name), found


def together(at: Placement, node: Node, flows: Sequence[Flow | None]) -> tuple[Node, list[Flow | None]]:
    """Return the node with inputs whose rows correspond: those known sooner wait for the others."""
    moving = [flow for flow in flows if flow is not None and flow.axis >= 0 and not flow.sizes]
    latest = max((flow.lag for flow in moving), default=0)
    inputs, found = list(node.inputs), list(flows)
    for i, flow in enumerate(flows):
        if flow is not None and flow.axis >= 0 and not flow.sizes and flow.lag < latest:
            inputs[i], found[i] = window(at, node, inputs[i], flow, least=latest)
    return Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name), found
