"""From a graph to a plan: which nodes run natively, in which order, on which buffers.

Values around recurrent layers are rows of features, one for each time step and batch row. The planner labels them with
their axes (``"TBF"``, ``"BTF"``, ``"BF"``, ids without ``F``), starting at the recurrent layers and passing through
every operator that keeps rows separate. A connected group of labelled nodes becomes a `Segment`, which is one native
call. Inside it a transpose between time-major and batch-first costs nothing, because buffers are always time-major and
only the caller's arrays are read and written with their own strides. All other nodes run as kernels on a tape
(`fastlstm.lowering.tapes`) or through `fastlstm.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastlstm.errors import UnsupportedError, counted
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, outer_values
from fastlstm.lowering import explain
from fastlstm.lowering.segments.build import build_segment
from fastlstm.lowering.segments.rows import ROWS, At, has_kernel
from fastlstm.operators import misfit
from fastlstm.operators.onnx_reference import REFERENCE
from fastlstm.passes import shapes
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target

__all__ = ["REFERENCE_KERNEL", "Plan", "make_plan", "operator", "row_labels"]

REFERENCE_KERNEL = "ONNX reference"
"""Name that `inspect` shows as the kernel of operators that run through ONNX's reference implementation."""


@dataclass(frozen=True)
class Plan:
    """The parts of a model in the order they run: native segments, and nodes that run through NumPy."""

    graph: Graph
    target: Target
    parts: tuple[Segment | Node, ...]
    labels: Mapping[str, str] = field(repr=False)

    def as_data(self, batch: int = 1) -> list[dict[str, Any]]:
        """Return the plan as plain data, a dict for each step, with the bounds for a batch of `rows` rows."""
        from fastlstm.lowering.tapes import EMITTERS  # models of recurrent layers alone have none

        rows: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, Segment):
                rows += explain.as_data(part, batch, self.target)
            else:
                kernel, note = ("NumPy", "")
                if part.op == REFERENCE:
                    kernel, note = REFERENCE_KERNEL, "runs through ONNX's reference implementation (slow)"
                elif part.op in RECURRENT_OPS:  # its weights are computed: see Executor.repacked
                    kernel, note = "recurrent", "packed at each call"
                elif part.op in EMITTERS:
                    kernel, note = "tape", "for the sizes of each call"
                elif part.op in ("Loop", "Scan"):
                    kernel, note = "tape", "no known cell: runs round by round, as written"
                rows.append(
                    {"name": part.name or part.output(0), "step": operator(part), "kernel": kernel, "note": note}
                )
        total = sum(row.get("macs", 0) for row in rows) or 1
        for row in rows:
            row["share"] = round(row.get("macs", 0) / total, 4)
        return rows

    def __repr__(self) -> str:
        rows = self.as_data()
        macs, nbytes = (sum(row.get(key, 0) for row in rows) for key in ("macs", "bytes"))
        native = sum(isinstance(part, Segment) for part in self.parts)
        return (
            f"<Plan for {self.target.name}: {counted(len(rows), 'step')} in {counted(len(self.parts), 'part')}, "
            f"{counted(native, 'segment')} among them; "
            f"{macs:,} multiply-adds a time step, {nbytes:,} bytes of weights; print it for the table>"
        )

    def _repr_html_(self) -> str:
        from fastlstm.reporting.tables import table_html  # for notebooks

        rows = [{**row, "layer": row["name"], "share": f"{100 * row['share']:.1f} %"} for row in self.as_data()]
        title = f"plan for {self.target.isa}, vectors of {self.target.lanes}"
        return table_html(rows, ["layer", "step", "kernel", "macs", "bytes", "share", "note"], title)

    def __str__(self) -> str:
        lines = [f"plan for {self.target.isa}, {self.target.lanes} lanes"]
        lines += [
            f"  {row['step']:<12} {row['kernel']:<28} {row.get('macs', 0):>12,} multiply-adds "
            f"{row.get('bytes', 0):>12,} bytes {100 * row['share']:5.1f} %  {row.get('note', '')}"
            for row in self.as_data()
        ]
        return "\n".join(lines)


def operator(node: Node) -> str:
    """Return the name of a node's operator, even if ONNX's reference implementation runs it."""
    return str(node.attrs["operator"]) if node.op == REFERENCE else node.op


def make_plan(graph: Graph, target: Target, threads: int = 1) -> Plan:
    """Return the plan of an optimised graph; its segments use up to `threads` threads.

    Raises
    ------
    UnsupportedError
        If a node cannot run on its inputs (see `fastlstm.operators.misfit`).
    """
    infos = shapes.infer(graph)
    for node in graph.nodes:
        if problem := misfit(shapes.operands(node, infos)):
            raise UnsupportedError(problem)
    labels = row_labels(graph, infos)
    native = {id(node) for node in graph.nodes if _is_native(At(node, graph, labels, infos))}
    groups = _group(graph, native)
    parts: list[Segment | Node] = []
    done: set[int] = set()
    for node in _ordered(graph, native, groups):
        if id(node) not in native:
            parts.append(_rows_of(node, graph, infos, target, threads) or node)
        elif groups[id(node)] not in done:
            done.add(groups[id(node)])
            members = [n for n in graph.nodes if id(n) in native and groups[id(n)] == groups[id(node)]]
            parts.append(build_segment(members, graph, labels, infos, target, threads))
    return Plan(graph, target, tuple(parts), labels)


def _rows_of(
    node: Node, graph: Graph, infos: Mapping[str, shapes.ValueInfo], target: Target, threads: int
) -> Segment | None:
    """Return the segment of a dense layer away from recurrent ones, whose rows may lie along any axes."""
    x, y = node.input(0), node.output(0)
    known = x in infos and x not in graph.constants and infos[x].dtype == "float32" and node.op == "Dense"
    if not known or any(name and name not in graph.constants for name in node.inputs[1:]):
        return None
    weight = graph.constants[node.input(1)]
    if weight.ndim != 2 or weight.dtype not in ("float32", "int16", "int8") or 0 in weight.shape:
        return None
    alone = graph.replace(nodes=(node,), inputs=(TensorSpec(x, ("", "", "")),), outputs=(TensorSpec(y, ("", "", "")),))
    return replace(build_segment([node], alone, {x: "TBF", y: "TBF"}, infos, target, threads), flat=True)


def row_labels(graph: Graph, infos: Mapping[str, shapes.ValueInfo]) -> dict[str, str]:
    """Return the axes of every value around recurrent layers that consists of rows of features."""
    labels: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in RECURRENT_OPS:
            labels[RecurrentInputs.of(node).x] = "TBF"
            if node.output(0):
                labels[node.output(0)] = "TBF"
    known = 0
    while known != len(labels):
        known = len(labels)
        for node in graph.nodes:
            if node.op in ROWS:
                found = ROWS[node.op].labels(At(node, graph, labels, infos))
                labels.update((n, at) for n, at in found.items() if n not in labels and _is_true(at, infos.get(n)))
    return labels


def _is_true(label: str, info: shapes.ValueInfo | None) -> bool:
    """Whether a value has one element along each axis of which its label says so: others may be joined along it."""
    shape = None if info is None else info.shape
    if shape is None:
        return "1" not in label
    return len(shape) == len(label) and all(size == 1 for axis, size in zip(label, shape, strict=True) if axis == "1")


def _is_native(at: At) -> bool:
    """Whether a node can be in a segment: a recurrent layer with constant weights, or one with a kernel for rows."""
    if at.node.op not in RECURRENT_OPS:
        return has_kernel(at)
    read, constants = RecurrentInputs.of(at.node), at.graph.constants
    weights = (read.w_ih, read.w_hh, read.bias, read.peephole, read.w_hr, read.norm)
    return all(not name or name in constants for name in weights) and at.x not in constants


def _group(graph: Graph, native: set[int]) -> dict[int, int]:
    """Return a group number for every native node; a group's nodes share rows and can run in one call.

    A call has one set of lengths, which decides the order of rows and how many are active. So either all recurrent
    layers of a group read the same lengths, or none reads any.
    """
    producer = {value: node for node in graph.nodes for value in node.outputs if value}
    level: dict[int, int] = {}
    parent: dict[int, int] = {}
    lengths: dict[int, str] = {}  # of a group's recurrent layers, by its root; "" if they take whole sequences

    def root(key: int) -> int:
        while parent[key] != key:
            key = parent[key]
        return key

    for node in graph.nodes:
        key, at = id(node), 0
        friends: list[int] = []
        is_native = key in native
        for position, value in enumerate([*node.inputs, *outer_values(node)]):
            source = producer.get(value)
            if source is None:
                continue
            # Inside a call, rows are passed on step by step; states and lengths must be complete before it starts.
            flows = _carries_rows(node, position) and source.output(0) == value
            together = is_native and id(source) in native and flows
            at = max(at, level[id(source)] + (0 if together else 1))
            if together:
                friends.append(id(source))
        roots = {root(friend) for friend in friends if level[friend] == at}
        read = {lengths[group] for group in roots if group in lengths}
        if is_native and node.op in RECURRENT_OPS:
            read.add(RecurrentInputs.of(node).lengths)
        if len(read) > 1:  # rows of layers with other lengths have to be complete before this call starts
            at, roots = at + 1, set()
            read = {RecurrentInputs.of(node).lengths} if node.op in RECURRENT_OPS else set()
        level[key], parent[key] = at, key
        for group in roots:
            parent[group] = key
        if read:
            lengths[key] = read.pop()
    return {key: root(key) for key in native}


def _carries_rows(node: Node, position: int) -> bool:
    return position == RecurrentInputs.position("x") if node.op in RECURRENT_OPS else True


def _ordered(graph: Graph, native: set[int], groups: Mapping[int, int]) -> list[Node]:
    """Return the nodes in an order in which a whole group can run in place of its first node."""
    producer = {value: node for node in graph.nodes for value in node.outputs if value}
    members: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if id(node) in native:
            members.setdefault(groups[id(node)], []).append(node)
    order: list[Node] = []
    placed: set[int] = set()

    def place(node: Node) -> None:
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            current, ready = stack.pop()
            together = members[groups[id(current)]] if id(current) in native else [current]
            if id(together[0]) in placed:
                continue
            if ready:
                placed.update(id(n) for n in together)
                order.extend(together)
                continue
            stack.append((current, True))
            own = {id(n) for n in together}
            for member in together:
                for value in [*member.inputs, *outer_values(member)]:
                    source = producer.get(value)
                    if source is not None and id(source) not in own and id(source) not in placed:
                        stack.append((source, False))

    for node in graph.nodes:
        place(node)
    return order
