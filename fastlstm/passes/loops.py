"""Analysis of Loop and Scan: loop invariants, counters, slices of sequences. An iteration is called a round.

`refuse_endless` refuses loops that cannot end. `invariants` is a rewrite that moves values that no round changes out of
the body. `read_loop` and `read_scan` find how many rounds a node runs, which values of its body are frames (a sequence
at the round's position), which are carried, and which are collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph, Node
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim
from fastlstm.operators.sizes import MAX_ROUNDS, integer
from fastlstm.operators.values import UNKNOWN, ValueInfo, normal_axis
from fastlstm.passes import shapes
from fastlstm.passes.rewrite import Scope, renamed_body

__all__ = ["Collected", "Frame", "Rounds", "State", "invariants", "read_loop", "read_scan", "refuse_endless"]


def refuse_endless(graph: Graph, outer: Mapping[str, Any] | None = None) -> None:
    """Raise `UnsupportedError` if a Loop has no useful bound on its rounds and no way to stop."""
    constants = {**(outer or {}), **graph.constants}
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, Graph):
                refuse_endless(body, constants)
        if node.op != "Loop":
            continue
        body, trips, going = node.attrs["body"], constants.get(node.input(0)), constants.get(node.input(1))
        decides = shapes.condition_of(body)
        stays = {**constants, **body.constants}.get(decides)
        if node.input(0) and (trips is None or trips.size != 1 or integer(trips) <= MAX_ROUNDS):
            continue
        if (bool(stays.all()) if stays is not None else decides == body.inputs[1].name) and (
            not node.input(1) or (going is not None and bool(going.all()))
        ):
            rounds = f"has {integer(trips):,} rounds" if trips is not None else "has no number of rounds"
            raise UnsupportedError(
                f"The loop '{node.name or node.output(0)}' {rounds} and no condition that could end it; at most "
                f"{MAX_ROUNDS:,} rounds are run. Give it a number of rounds, or a condition."
            )


def invariants(_: Scope, node: Node) -> list[Node] | None:
    """``Loop(…, w) {w' = w}``  →  the body reads w from around it."""
    body: Graph = node.attrs["body"]
    ahead = 2 if node.op == "Loop" else 0
    carried = len(node.inputs) - ahead if node.op == "Loop" else len(node.inputs) - int(node.attrs["num_scan_inputs"])
    sources = {n.outputs[0]: n.inputs[0] for n in body.nodes if n.op == "Identity"}
    kept, names, own = [], {}, _defined(body)
    for i in range(carried):
        before, after = body.inputs[ahead + i].name, body.outputs[i + ahead // 2].name
        if sources.get(after, after) == before and node.inputs[ahead + i] not in own:
            names[before] = node.inputs[ahead + i]
        else:
            kept.append(i)
    if not names:
        return None
    first, last = ahead // 2, ahead // 2 + carried
    slim = body.replace(
        inputs=(*body.inputs[:ahead], *(body.inputs[ahead + i] for i in kept), *body.inputs[ahead + carried :]),
        outputs=(*body.outputs[:first], *(body.outputs[first + i] for i in kept), *body.outputs[last:]),
    )
    inputs = (*node.inputs[:ahead], *(node.inputs[ahead + i] for i in kept), *node.inputs[ahead + carried :])
    outputs = (*(node.outputs[i] for i in kept), *node.outputs[carried:])
    passed = [
        Node("Identity", (node.inputs[ahead + i],), (node.outputs[i],))
        for i in range(carried)
        if i not in kept and node.outputs[i]
    ]
    attrs = {**node.attrs, "body": renamed_body(slim, names)}
    return [*passed, Node(node.op, inputs, outputs, attrs, node.name)]


def _defined(body: Graph) -> set[str]:
    """Return the names of all values that a body, or a body inside it, defines."""
    names = {spec.name for spec in body.inputs} | set(body.constants) | set(body.producers())
    return names.union(*map(_defined, body.subgraphs()))


@dataclass(frozen=True)
class Frame:
    """A value of the body that is the outer value `source` at the round's position of its axis `axis`."""

    source: str
    axis: int
    backwards: bool


@dataclass(frozen=True)
class State:
    """A loop-carried value: its names before and after a round, and before and after the loop."""

    before: str
    after: str
    initial: str
    final: str


@dataclass(frozen=True)
class Collected:
    """A value of the body that is stacked over the rounds, as the outer value `into`."""

    value: str
    into: str
    axis: int
    backwards: bool


@dataclass(eq=False)
class Rounds:
    """A Loop or Scan as analysed."""

    body: Graph
    infos: Mapping[str, ValueInfo]
    trips: Dim
    states: list[State]
    collected: list[Collected]
    frames: dict[str, Frame]
    counters: list[State] = field(default_factory=list)


def read_loop(graph: Graph, node: Node, infos: Mapping[str, ValueInfo]) -> Rounds | None:
    body: Graph = node.attrs["body"]
    carried = len(node.inputs) - 2
    count = infos.get(node.input(0), UNKNOWN).const
    if not node.input(0) or count is None or len(count) != 1 or count[0] is None:
        return None
    trips, position = count[0], dims.opaque(body.inputs[0].name, 0)
    given = shapes.body_inputs(node, infos)
    given[0] = ValueInfo.of_content((position,), (), "int64")
    # A counter is an integer to which every round adds the same number, so it is a function of the round.
    guessed = list(given)
    for i in range(2, len(given)):
        if given[i].shape == () and (given[i].dtype or "").startswith("int"):
            guessed[i] = ValueInfo.of_content((dims.opaque(body.inputs[i].name, 0),), (), given[i].dtype)
    inside = shapes.infer(body, infos, guessed)
    counters = set()
    for i, name in enumerate(node.inputs[2:], start=2):
        start, after = infos.get(name, UNKNOWN).const, inside.get(body.outputs[i - 1].name, UNKNOWN).const
        if guessed[i] is given[i] or not start or start[0] is None or not after or after[0] is None:
            continue
        step = dims.subtract(after[0], dims.opaque(body.inputs[i].name, 0))
        if isinstance(step, int):
            given[i] = ValueInfo.of_content((dims.add(start[0], dims.multiply(step, position)),), (), given[i].dtype)
            counters.add(i)
    inside = {**infos, **shapes.infer(body, infos, given)}
    states = [
        State(body.inputs[i + 2].name, body.outputs[i + 1].name, node.inputs[i + 2], node.output(i))
        for i in range(carried)
    ]
    rounds = Rounds(
        body,
        inside,
        trips,
        [s for i, s in enumerate(states) if i + 2 not in counters],
        [
            Collected(spec.name, node.output(carried + i), 0, False)
            for i, spec in enumerate(body.outputs[1 + carried :])
            if node.output(carried + i)
        ],
        {},
        [s for i, s in enumerate(states) if i + 2 in counters],
    )
    if not _runs_through(graph, node, infos, rounds, position):
        return None
    own = {spec.name for spec in body.inputs} | set(body.producers())
    for inner in body.nodes:
        frame = _frame(inner, rounds, position, own)
        if frame is not None:
            rounds.frames[inner.outputs[0]] = frame
    return rounds


def _frame(node: Node, rounds: Rounds, position: Dim, own: set[str]) -> Frame | None:
    """Return the frame that a Gather in the body takes from an outer value."""
    if node.op != "Gather" or node.inputs[0] in own:
        return None
    info, index = rounds.infos.get(node.inputs[0], UNKNOWN), rounds.infos.get(node.inputs[1], UNKNOWN)
    if info.shape is None or index.shape != () or index.const is None:
        return None
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(info.shape))
    if info.shape[axis] != rounds.trips:
        return None
    backwards = dims.subtract(dims.subtract(rounds.trips, 1), position)
    if index.const[0] not in (position, backwards):
        return None
    return Frame(node.inputs[0], axis, index.const[0] != position)


def _runs_through(graph: Graph, node: Node, infos: Mapping[str, ValueInfo], rounds: Rounds, position: Dim) -> bool:
    """Tell whether the loop always runs the maximum number of rounds."""
    body, trips = rounds.body, rounds.trips
    # The first condition matters if there is at least one round, one in the body if there is another after it:
    # position <= trips - 2. The numbers it compares, as floats too, are exact up to 2**24 rounds.
    before = _Condition(graph.producers(), infos, [dims.subtract(trips, 1)], None)
    if node.input(1) and not before.holds(node.input(1)):
        return False
    condition = shapes.condition_of(body)
    if condition == body.inputs[1].name:
        return True
    ahead = dims.subtract(trips, 2)
    return _Condition(body.producers(), rounds.infos, [ahead, dims.subtract(ahead, position)], position).holds(
        condition
    )


@dataclass(frozen=True)
class _Condition:
    """Proves conditions: comparisons of dimensions, combined by And and Not.

    `known` holds dimensions that are known to be non-negative.
    """

    makers: Mapping[str, Node]
    infos: Mapping[str, ValueInfo]
    known: Sequence[Dim]
    position: Dim | None

    def holds(self, name: str) -> bool:
        """Tell whether the condition is always true."""
        info, node = self.infos.get(name, UNKNOWN), self.makers.get(name)
        if info.fill == 1:
            return True
        if node is None:
            return False
        if node.op in ("Identity", "Cast"):
            return self.holds(node.inputs[0])
        if node.op == "And":
            return self.holds(node.inputs[0]) and self.holds(node.inputs[1])
        if node.op not in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
            return False
        small, large = node.inputs if node.op.startswith("Less") else node.inputs[::-1]
        a, b = (self.infos.get(value, UNKNOWN).const for value in (small, large))
        if not a or not b or a[0] is None or b[0] is None or len(a) != 1 or len(b) != 1:
            return False
        margin = dims.subtract(b[0], a[0])
        if not node.op.endswith("Equal"):
            margin = dims.subtract(margin, 1)
        return dims.at_least(margin, 0) or any(dims.at_least(margin, dim) for dim in self.known)


def read_scan(node: Node, infos: Mapping[str, ValueInfo]) -> Rounds | None:
    body: Graph = node.attrs["body"]
    scanned = int(node.attrs["num_scan_inputs"])
    carried = len(node.inputs) - scanned
    inside = {**infos, **shapes.infer(body, infos, shapes.body_inputs(node, infos))}
    frames, trips = {}, None
    axes = node.attrs.get("scan_input_axes") or [0] * scanned
    turns = node.attrs.get("scan_input_directions") or [0] * scanned
    for spec, name, axis, turn in zip(body.inputs[carried:], node.inputs[carried:], axes, turns, strict=True):
        shape = infos.get(name, UNKNOWN).shape
        if shape is None:
            return None
        axis = normal_axis(int(axis), len(shape))
        if trips not in (None, shape[axis]):
            return None
        trips = shape[axis]
        frames[spec.name] = Frame(name, axis, bool(turn))
    if trips is None:
        return None
    count = len(body.outputs) - carried
    out_axes = node.attrs.get("scan_output_axes") or [0] * count
    out_turns = node.attrs.get("scan_output_directions") or [0] * count
    collected = []
    for i, spec in enumerate(body.outputs[carried:]):
        rank = inside.get(spec.name, UNKNOWN).rank
        if rank is None:
            return None
        if node.output(carried + i):
            axis = normal_axis(int(out_axes[i]), rank + 1)
            collected.append(Collected(spec.name, node.output(carried + i), axis, bool(out_turns[i])))
    states = [State(body.inputs[i].name, body.outputs[i].name, node.inputs[i], node.output(i)) for i in range(carried)]
    return Rounds(body, inside, trips, states, collected, frames)
