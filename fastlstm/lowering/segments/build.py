"""Building a segment: slots and kernel calls for a group of nodes in order, and their division into stages.

`recurrent.py` adds the recurrent layers, `rows.py` the operators around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, outer_values
from fastlstm.lowering.segments.builder import LAST_STAGE, Builder
from fastlstm.lowering.segments.recurrent import recurrent
from fastlstm.lowering.segments.rows import ROWS, At
from fastlstm.operators.validation import check_weights
from fastlstm.program import layout
from fastlstm.program.arguments.rows import Move
from fastlstm.program.program import Instruction, Program, Slot, Stage
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target

__all__ = ["build_segment"]

MOST_ROWS = 256  # of a block; with 32 rows of 256 units 2 to 5 % faster than 128, otherwise the same


def build_segment(
    nodes: list[Node],
    graph: Graph,
    labels: Mapping[str, str],
    infos: Mapping[str, Any],
    target: Target,
    threads: int = 1,
) -> Segment:
    """Return the segment of `nodes`, which are in order and have the same time steps and batch rows."""
    build = Builder(graph, labels, target)
    for node in nodes:
        before = len(build.steps)
        build.layer = node.name or node.first_output
        check_weights(node, graph.constants)
        if node.op in RECURRENT_OPS:
            recurrent(build, node)
        else:
            ROWS[node.op].emit(build, At(node, graph, labels, infos))
        for _, step, _ in build.steps[before:]:  # the last is the node's own
            build.kernels[node.first_output] = step.kernel
    own = {id(n) for n in nodes}
    wanted = {spec.name for spec in graph.outputs}
    wanted |= {v for n in graph.nodes if id(n) not in own for v in [*n.inputs, *outer_values(n)]}
    # States and lengths are read before the call, so rows of a member that feed them leave the segment too.
    for read in (RecurrentInputs.of(n) for n in nodes if n.op in RECURRENT_OPS):
        wanted |= {read.lengths, read.mask, read.h_0, read.c_0}
    for node in nodes:
        name = node.output(0)
        if name in wanted and name in build.place:
            build.layer = node.name or name
            _show(build, name)
    return replace(_finish(build, nodes), threads=threads)


def _finish(build: Builder, nodes: list[Node]) -> Segment:
    """Sort instructions into stages, and decide which buffers hold only one block."""
    users: dict[int, set[int]] = {}
    for stage, _, used in build.steps:
        for slot in used:
            users.setdefault(slot, set()).add(stage)
    slots = [
        Slot(s.name, s.kind, s.width, True) if s.kind == "time" and len(users.get(i, ())) <= 1 else s
        for i, s in enumerate(build.slots)
    ]
    # Long blocks reuse each weight of a projection; their buffers have to fit into a share of the L3 cache.
    room = max(build.target.l2_bytes, build.target.l3_bytes // 16)
    stages = []
    for number in sorted({stage for stage, _, _ in build.steps}):
        steps = [step for stage, step, _ in build.steps if stage == number]
        local = {i for stage, _, used in build.steps if stage == number for i in used if slots[i].local}
        row_bytes = 4 * sum(slots[i].width for i in local) or 4
        kind = layout.ONCE if number >= LAST_STAGE else (layout.BLOCK, layout.REVERSE)[number % 2]
        block = 1 if kind == layout.ONCE else max(8, min(MOST_ROWS, room // row_bytes))
        stages.append(Stage(kind, tuple(steps), block))
    return Segment(
        Program(build.target, tuple(slots), tuple(stages)), build.inputs, build.outputs, tuple(build.states),
        build.lengths or "", tuple(build.masks), build.needs_step, tuple(n.name or n.output(0) for n in nodes),
        build.kernels,
    )  # fmt: skip


def _show(build: Builder, name: str) -> None:
    """Make a value an output of the segment: written to the caller's array directly, or copied if rows are padded."""
    at, features = build.place[name], build.features[name]
    slot = build.slots[at]
    # A caller's rows of 1,024 features lie 4 KiB apart, in the same sets of the L1 cache: 3 % slower than a copy.
    if at in build.exact and slot.kind == "time" and features % 1024:
        build.slots[at] = Slot(slot.name, "external", features)
        build.outputs[name] = (at, build.labels[name], features)
        return
    out = build.slot(Slot(f"{name} (out)", "external", features))
    build.outputs[name] = (out, build.labels[name], features)
    move = Instruction("movement.move", (), Move(at, out, 0, 0, features), "output")
    build.emit(build.stage[name], move, at, out)
