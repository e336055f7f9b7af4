"""Loops over the frames: a stream runs one iteration for each of its frames, and keeps the loop-carried values.

A loop can stream if it provably runs once for every frame, forwards, and its body reads sequences only at the current
iteration's position (`fastlstm.passes.loops` analyses it). The body is unchanged, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fastlstm.graph import Graph, Node, TensorSpec, outer_values
from fastlstm.operators import Stream
from fastlstm.passes.loops import Frame, Rounds, State, read_loop, read_scan
from fastlstm.streaming.flow import ROWS, Carried, Flow, WrongAxesError, refusal

if TYPE_CHECKING:
    from fastlstm.streaming.timeline import Flows, Rule, Unroller

__all__ = ["RULES"]


def _loop(at: Unroller, node: Node, _: Flows) -> None:
    rounds = read_loop(at.graph, node, at.infos) if node.op == "Loop" else read_scan(node, at.infos)
    if rounds is None or not rounds.frames:
        raise refusal(node, "is not known to run once for each frame")
    _check_body(at, node, rounds)
    flow = _pace(at, node, list(rounds.frames.values()))
    inputs, outputs = list(node.inputs), [name or at.names.fresh(f"{_label(node)}.out") for name in node.outputs]
    first = 2 if node.op == "Loop" else 0
    for place, (before, name) in enumerate(zip(node.inputs[first : first + _carried(node)], outputs, strict=False)):
        state = next((s for s in rounds.states if s.before == rounds.body.inputs[first + place].name), None)
        if state is not None:  # else a counter, which restarts in every call
            inputs[first + place] = _kept(at, node, state, before, name)
            at.flows[name] = Flow(-1, lag=max(0, flow.lag // flow.rows))
    for collected in rounds.collected:
        at.flows[collected.into] = replace(flow, axis=collected.axis)
    at.put(_of_this_call(at, node, rounds, inputs, outputs))


def _check_body(at: Unroller, node: Node, rounds: Rounds) -> None:
    """Refuse a loop whose iterations read other frames than their own, or use their number otherwise."""
    body, makers = rounds.body, rounds.body.producers()
    counts = {state.before for state in rounds.counters}
    if node.op == "Loop":
        counts |= {body.inputs[0].name}
    waiting = [state.after for state in rounds.states] + [collected.value for collected in rounds.collected]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name in rounds.frames:
            continue
        seen.add(name)
        if name in counts:
            raise refusal(node, "computes with the frame's number")
        if name in at.flows:
            raise refusal(node, f"reads '{name}' at other positions than the iteration's own frame")
        if name in makers:
            waiting += [value for value in (*makers[name].inputs, *outer_values(makers[name])) if value]
    if any(frame.backwards for frame in rounds.frames.values()) or any(c.backwards for c in rounds.collected):
        raise refusal(node, "runs backwards in time, and its first output needs the last frame")
    readers, shown = at.graph.consumers(), {spec.name for spec in at.graph.outputs}
    if any(state.final in readers or state.final in shown for state in rounds.counters):
        raise refusal(node, "counts the frames")


def _pace(at: Unroller, node: Node, frames: Sequence[Frame]) -> Flow:
    """Return how the frames advance in time, which has to be the same for all."""
    flows = [at.flows.get(frame.source) for frame in frames]
    flow = flows[0]
    if flow is None or any(other is None or other.pace != flow.pace for other in flows):
        raise refusal(node, "reads sequences that do not advance with its frames")
    if any(other is not None and other.axis != frame.axis for other, frame in zip(flows, frames, strict=True)):
        raise WrongAxesError(str(refusal(node, "does not take one row per frame")))
    if flow.merged or flow.overlaps or flow.padding or flow.sizes or flow.tail:
        raise refusal(node, "reads frames together with their neighbours")
    return flow


def _kept(at: Unroller, node: Node, state: State, initial: str, after: str) -> str:
    """Return the loop's initial value: a state that the stream keeps, or one of the model's own."""
    if initial in at.flows:
        raise refusal(node, "starts from a state computed from the frames")
    made = {output: maker for maker in at.nodes for output in maker.outputs}
    source = initial
    while source in made and made[source].op != "ConstantOfShape" and source not in at.states:
        source = made[source].input(0)
    if source in at.states:
        return initial
    info, constant = at.infos[initial], at.constants.get(initial)
    if constant is None and not isinstance(info.fill, float | int):
        raise refusal(node, f"starts from '{initial}', which is computed and not a state of the stream")
    shape = at.shape(initial)
    if any(isinstance(size, str) and size != ROWS for size in shape):
        raise refusal(node, f"has the state '{initial}', whose size depends on the frames")
    if constant is None and info.fill:
        constant = np.full((1,) * len(shape), info.fill)
    label = f"{_label(node)}.{state.before}"
    before = at.given(label)
    at.infos[before] = info.but(const=None, fill=None)
    at.carried.append(Carried(label, before, after, shape, info.dtype or "float32", constant))
    return before


def _of_this_call(at: Unroller, node: Node, rounds: Rounds, inputs: list[str], outputs: Sequence[str]) -> Node:
    """Return the loop over the frames of one call, whose number is the length of the first sequence it reads."""
    body: Graph = rounds.body
    if node.op == "Loop":
        frame = next(iter(rounds.frames.values()))
        size, count = at.names.fresh(f"{frame.source}.size"), at.names.fresh(f"{frame.source}.count")
        at.put(Node("Shape", (frame.source,), (size,), {"start": frame.axis, "end": frame.axis + 1}))
        at.put(Node("Squeeze", (size, at.constant(f"{size}.axes", np.array([0], np.int64))), (count,), {}))
        inputs[:2] = [count, at.constant(f"{count}.going", np.array(True))]
        going = TensorSpec(body.inputs[1].name, (), "bool")
        body = body.replace(outputs=(going, *body.outputs[1:]))
    return Node(node.op, tuple(inputs), tuple(outputs), {**node.attrs, "body": body}, node.name)


def _carried(node: Node) -> int:
    """Return the number of loop-carried values."""
    return len(node.inputs) - (2 if node.op == "Loop" else int(node.attrs["num_scan_inputs"]))


def _label(node: Node) -> str:
    return node.name or next(name for name in node.outputs if name)


RULES: dict[Stream, Rule] = {Stream.LOOP: _loop}
