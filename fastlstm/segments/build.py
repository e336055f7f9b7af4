"""Building a segment: slots and kernel calls for a group of nodes, in order.

`recurrent.py` does the recurrent layers; here is what stands around them, and how stages come about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.arguments.rows import Binary, Embed, Last, LayerNorm, Linear, Move, Softmax, Unary
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, outer_values
from fastlstm.operators import OPERATORS, Function, Operation
from fastlstm.pack import padded, panels_of, plain_panels
from fastlstm.program import Instruction, Program, Slot, Stage
from fastlstm.segments.builder import LAST_STAGE, Builder, packed_panels, quantised
from fastlstm.segments.recurrent import recurrent
from fastlstm.segments.segment import Segment
from fastlstm.target import Target
from fastlstm.validation import check_weights

__all__ = ["BINARY", "UNARY", "build_segment", "consumer_width"]

Array = npt.NDArray[Any]
UNARY: Mapping[str, Function] = {
    name: op.lowering for name, op in OPERATORS.items() if isinstance(op.lowering, Function) and op.lowering.rows
}
"""Functions of an element that segments have."""

BINARY = frozenset(name for name, op in OPERATORS.items() if isinstance(op.lowering, Operation) and op.lowering.rows)
"""Operations on two values that segments have."""

MOST_ROWS = 256  # of a block; with 32 rows of 256 units 2 to 5 % faster than 128, elsewhere the same


def build_segment(
    nodes: list[Node],
    graph: Graph,
    labels: Mapping[str, str],
    infos: Mapping[str, Any],
    target: Target,
    threads: int = 1,
) -> Segment:
    """Return the segment of `nodes`, which are in order and share time steps and batch rows."""
    build = Builder(graph, labels, target)
    for node in nodes:
        before = len(build.steps)
        build.layer = node.name or node.first_output
        check_weights(node, graph.constants)
        if node.op in RECURRENT_OPS:
            recurrent(build, node)
        else:
            _around(build, node, infos)
        for _, step, _ in build.steps[before:]:  # the last is the node's own
            build.kernels[node.first_output] = step.kernel
    own = {id(n) for n in nodes}
    wanted = {spec.name for spec in graph.outputs}
    wanted |= {v for n in graph.nodes if id(n) not in own for v in [*n.inputs, *outer_values(n)]}
    # States and lengths are read before the call: a member's rows that feed them leave the segment too.
    for read in (RecurrentInputs.of(n) for n in nodes if n.op in RECURRENT_OPS):
        wanted |= {read.lengths, read.mask, read.h_0, read.c_0}
    for node in nodes:
        name = node.output(0)
        if name in wanted and name in build.place:
            build.layer = node.name or name
            _show(build, name)
    return replace(_finish(build, nodes), threads=threads)


def _finish(build: Builder, nodes: list[Node]) -> Segment:
    """Sort instructions into stages and decide which buffers hold one block only."""
    users: dict[int, set[int]] = {}
    for stage, _, used in build.steps:
        for slot in used:
            users.setdefault(slot, set()).add(stage)
    slots = [
        Slot(s.name, s.kind, s.width, True) if s.kind == "time" and len(users.get(i, ())) <= 1 else s
        for i, s in enumerate(build.slots)
    ]
    # Long blocks use each weight of a projection often; what stands in them need only come back from the L3 cache.
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
    """Make a value an output of the segment: written into the caller's array, or copied where rows are padded."""
    at, features = build.place[name], build.features[name]
    slot = build.slots[at]
    # The caller's rows of 1,024 features lie 4 KiB apart, all in the same sets of the L1 cache: 3 % slower than a copy.
    if at in build.exact and slot.kind == "time" and features % 1024:
        build.slots[at] = Slot(slot.name, "external", features)
        build.outputs[name] = (at, build.labels[name], features)
        return
    out = build.slot(Slot(f"{name} (out)", "external", features))
    build.outputs[name] = (out, build.labels[name], features)
    move = Instruction("movement.move", (), Move(at, out, 0, 0, features), "output")
    build.emit(build.stage[name], move, at, out)


def _around(build: Builder, node: Node, infos: Mapping[str, Any]) -> None:
    """Emit a node that is not a recurrent layer."""
    constants, lanes = build.graph.constants, build.target.lanes
    x, y = node.input(0), node.output(0)

    def width(name: str) -> int:
        return int(infos[name].shape[-1])

    if node.op in ("Transpose", "Identity", "Unsqueeze"):
        # The same rows under another order of axes.
        shape = infos[y].shape
        known = shape[-1] if shape and isinstance(shape[-1], int) else consumer_width(build.graph, x)
        at = build.read(x, int(known or 0))
        build.made(y, at, build.features[x], build.stage[x])
        return
    if node.op == "Dense":
        weight = constants[node.input(1)]
        at, columns = build.read(x, weight.shape[0]), weight.shape[1]
        vectors = min(4, panels_of(columns, lanes))
        room = -(-columns // (vectors * lanes)) * vectors * lanes
        out = build.buffer(y, room)
        scale, bias = constants.get(node.input(3)), constants.get(node.input(2))
        _linear(build, "Dense", weight, scale, bias, at, out, build.stage[x])
        build.made(y, out, columns, build.stage[x])
        return
    if node.op == "Gather" and x in constants:
        table = np.ascontiguousarray(constants[x], np.float32)
        at, out = build.read(node.input(1), 0), build.buffer(y, table.shape[1])
        table_args = Embed(at, out, table, table.shape[0], table.shape[1])
        build.emit(0, Instruction("movement.embed", (), table_args, "Embedding", 0, table.nbytes), at, out)
        build.made(y, out, table.shape[1], 0)
        return
    features = width(y)
    out = build.buffer(y, features)
    vectors = panels_of(features, lanes)
    if node.op in UNARY:
        at = build.read_padded(x, features)
        kernel: tuple[str, tuple[Any, ...]] = ("elementwise.unary", (lanes, node.op, *UNARY[node.op].given(node.attrs)))
        build.emit(build.stage[x], Instruction(*kernel, Unary(at, out, vectors), node.op), at, out)
        stage = build.stage[x]
    elif node.op in BINARY:
        stage = max(build.stage.get(n, 0) for n in node.inputs if n not in constants)
        places = []
        for name in node.inputs:
            if name in constants:
                row = np.broadcast_to(constants[name].reshape(-1), (features,))
                places.append(build.constant(padded(np.asarray(row, np.float32), lanes)))
            else:
                places.append(build.read_padded(name, features))
                stage = max(stage, build.stage[name])
        operands = Binary._make((*places, out, vectors))
        build.emit(stage, Instruction("elementwise.binary", (lanes, node.op), operands, node.op), *places, out)
    elif node.op in ("Softmax", "LogSoftmax"):
        at, stage = build.read_padded(x, features), build.stage[x]
        kernel = ("elementwise.softmax", (lanes, node.op == "LogSoftmax"))
        build.emit(stage, Instruction(*kernel, Softmax(at, out, features), node.op), at, out)
    elif node.op == "LayerNormalization":
        at, stage = build.read_padded(x, features), build.stage[x]
        bias = constants[node.input(2)] if node.input(2) else np.zeros(features)
        rows = [build.constant(padded(np.asarray(v, np.float32), lanes)) for v in (constants[node.input(1)], bias)]
        kernel = ("elementwise.layer_norm", (lanes, float(node.attrs.get("epsilon", 1e-5))))
        build.emit(stage, Instruction(*kernel, LayerNorm(at, out, features, *rows), "LayerNorm"), at, out)
    elif node.op == "Concat":
        places = [build.read(n, width(n)) for n in node.inputs]
        stage = max(build.stage[n] for n in node.inputs)
        offset = 0
        for name, at in zip(node.inputs, places, strict=True):
            move = Move(at, out, 0, 4 * offset, width(name))
            build.emit(stage, Instruction("movement.move", (), move, "Concat"), at, out)
            offset += width(name)
    else:  # the last time step
        at = build.read(x, features)
        build.emit(build.stage[x], Instruction("movement.last", (), Last(at, out, features), "Last step"), at, out)
        stage = LAST_STAGE
        build.needs_step = build.needs_step or node.name or y
    build.made(y, out, features, stage)


def _linear(
    build: Builder, label: str, weight: Array, scale: Array | None, bias: Array | None, x: int, out: int, stage: int
) -> None:
    """Emit ``out = x @ weight + bias`` for weight [K, columns]; `out` has room for whole panels."""
    lanes = build.target.lanes
    columns = weight.shape[1]
    vectors = min(4, panels_of(columns, lanes))
    scales = None if scale is None else plain_panels(scale.reshape(1, columns), vectors, lanes)
    packed, form = packed_panels(
        build.target, weight, plain_panels(np.asarray(weight, np.float32), vectors, lanes), scales
    )
    offset = plain_panels((np.zeros(columns) if bias is None else bias).reshape(1, columns), vectors, lanes)
    args = Linear(x, out, weight.shape[0], packed, offset, packed.shape[0], 0, 0)
    constants = (lanes, vectors, build.target.max_sums, form)
    step = Instruction(
        "linear.linear", constants, args, label, weight.size, packed.nbytes, *quantised(form, len(weight))
    )
    build.emit(stage, step, x, out)


def consumer_width(graph: Graph, name: str) -> int | None:
    """Return the features of a value of unknown shape, from the constant weights of a layer that reads it."""
    for node in graph.nodes:
        if name not in node.inputs:
            continue
        if node.op in RECURRENT_OPS:
            read = RecurrentInputs.of(node)
            if read.x == name and read.w_ih in graph.constants:
                return int(graph.constants[read.w_ih].shape[2])
            continue
        weight = graph.constants.get(node.input(1))
        if node.op == "Dense" and weight is not None:
            return int(weight.shape[0])
        if node.op in ("Transpose", "Identity", "Unsqueeze"):
            return consumer_width(graph, node.output(0))
    return None
