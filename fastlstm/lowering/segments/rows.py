"""Operators on rows of features: the axes of their values, whether there is a kernel, and their instructions.

`ROWS` has one entry per operator: the planner (`fastlstm.lowering.plan`) asks it which nodes a segment may contain, and
`build.py` uses it to emit them. Recurrent layers are built by `recurrent.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs
from fastlstm.lowering.pack import padded, panels_of, plain_panels
from fastlstm.lowering.segments.builder import LAST_STAGE, Builder, packed_panels, quantised
from fastlstm.operators import ELEMENTWISE, OPERATORS, Function, Operation
from fastlstm.operators.values import ValueInfo
from fastlstm.program.arguments.rows import Binary, Embed, Last, LayerNorm, Linear, Move, Softmax, Unary
from fastlstm.program.program import Instruction
from fastlstm.typing import Array

__all__ = ["BINARY", "ROWS", "UNARY", "At", "Rows", "has_kernel"]

UNARY: Mapping[str, Function] = {
    name: op.lowering for name, op in OPERATORS.items() if isinstance(op.lowering, Function) and op.lowering.rows
}
"""Elementwise functions that segments support."""

BINARY = frozenset(name for name, op in OPERATORS.items() if isinstance(op.lowering, Operation) and op.lowering.rows)
"""Elementwise operations on two values that segments support."""


@dataclass(frozen=True)
class At:
    """A node in its graph: labels hold the axes of values that are rows (``"TBF"``), infos what is known of values."""

    node: Node
    graph: Graph
    labels: Mapping[str, str]
    infos: Mapping[str, ValueInfo]

    @property
    def x(self) -> str:
        """The first input."""
        return self.node.input(0)

    @property
    def y(self) -> str:
        """The first output."""
        return self.node.output(0)

    @property
    def flows(self) -> bool:
        """Whether the first input is rows, and not constant ones."""
        return self.x in self.labels and self.x not in self.graph.constants

    @property
    def keeps_axes(self) -> bool:
        """Whether input and output are rows along the same axes."""
        return self.flows and self.labels[self.x] == self.labels[self.y]

    def width(self, name: str) -> int:
        """Return the features of a value's rows, 0 if they are not known."""
        shape = self.infos[name].shape if name in self.infos else None
        return shape[-1] if shape and isinstance(shape[-1], int) else 0

    def along_features(self, default: int) -> bool:
        """Whether the attribute ``axis`` is the axis of the features."""
        return int(self.node.attrs.get("axis", default)) in (-1, len(self.labels[self.y]) - 1)

    def constant(self, position: int) -> Array | None:
        """Return a constant input."""
        return self.graph.constants.get(self.node.input(position))


@dataclass(frozen=True)
class Rows:
    """How one operator treats rows of features.

    Attributes
    ----------
    labels : callable
        Returns the axes of its values, as far as they follow from known ones.
    fits : callable
        Whether a kernel computes the node, given that its output is rows.
    emit : callable
        Adds the node's instructions.
    """

    labels: Callable[[At], Mapping[str, str]]
    fits: Callable[[At], bool]
    emit: Callable[[Builder, At], None]


def has_kernel(at: At) -> bool:
    """Tell whether the node is computed on rows of float32."""
    rows, y = ROWS.get(at.node.op), at.y
    return rows is not None and y in at.labels and at.infos[y].dtype in (None, "float32") and rows.fits(at)


def _alike(at: At, *names: str) -> dict[str, str]:
    """Return labels that give all values the axes of the first known one."""
    known = next((at.labels[name] for name in names if name in at.labels), None)
    return {name: known for name in names if known and name and name not in at.graph.constants}


def _through(at: At) -> Mapping[str, str]:
    return _alike(at, at.x, at.y)


# -- rows with another order of axes -----------------------------------------------------------------------------------


def _reshaped(build: Builder, at: At) -> None:
    slot = build.read(at.x, _told_width(at))
    build.made(at.y, slot, build.features[at.x], build.stage[at.x])


def _told_width(at: At) -> int:
    """Return the features of rows of which only the axes change, 0 if they are not known."""
    return at.width(at.y) or _consumer_width(at.graph, at.x)


def _consumer_width(graph: Graph, name: str) -> int:
    """Return the features of a value of unknown shape, from the weights of a layer that reads it, or 0."""
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
        rows = ROWS.get(node.op)
        if rows is not None and rows.emit is _reshaped:
            return _consumer_width(graph, node.output(0))
    return 0


def _transposed(at: At) -> Mapping[str, str]:
    flip, found = {"TBF": "BTF", "BTF": "TBF"}, {}
    if list(at.node.attrs.get("perm", ())) == [1, 0, 2]:
        for name, other in ((at.y, at.x), (at.x, at.y)):
            if (label := at.labels.get(other)) in flip:
                found[name] = flip[label]
    return found


def _is_transpose(at: At) -> bool:
    if not at.flows:
        return False
    label = at.labels[at.x]
    perm = at.node.attrs.get("perm") or range(len(label))[::-1]
    moved = "".join(label[axis] for axis in perm) if len(perm) == len(label) else ""
    # Two layers may read one value along different axes, so that its labels differ from the other layer's.
    return moved == at.labels[at.y] != label and _told_width(at) > 0


def _unsqueezed(at: At) -> Mapping[str, str]:
    place, label = _new_axis(at), at.labels.get(at.x, "")
    return {} if place is None else {at.y: label[:place] + "1" + label[place:]}


def _new_axis(at: At) -> int | None:
    """Return where an Unsqueeze inserts one axis of size 1 between labelled ones, None if it does anything else."""
    axes, label = at.constant(1), at.labels.get(at.x)
    if axes is None or axes.size != 1 or axes.dtype.kind != "i" or label not in ("TBF", "BTF", "BF"):
        return None
    place = int(axes.reshape(-1)[0]) % (len(label) + 1)
    return place if place < len(label) else None


# -- elementwise functions and functions of rows -----------------------------------------------------------------------


def _emit_each(
    build: Builder,
    at: At,
    kernel: str,
    constants: tuple[Any, ...],
    arguments: Callable[[int, int, int], Any],
    label: str,
) -> None:
    """Emit a kernel that maps each row of the first input to a row; `arguments` takes their slots and the features."""
    features, stage = at.width(at.y), build.stage
    out, source = build.buffer(at.y, features), build.read_padded(at.x, features)
    build.emit(stage[at.x], Instruction(kernel, constants, arguments(source, out, features), label), source, out)
    build.made(at.y, out, features, stage[at.x])


def _emit_unary(build: Builder, at: At) -> None:
    op, lanes = at.node.op, build.target.lanes
    constants = (lanes, op, *UNARY[op].given(at.node.attrs))
    _emit_each(build, at, "elementwise.unary", constants, lambda x, out, n: Unary(x, out, panels_of(n, lanes)), op)


def _binary_labels(at: At) -> Mapping[str, str]:
    names = (at.x, at.node.input(1), at.y)
    shown = [at.infos[n] for n in names if n in at.infos and n not in at.graph.constants]
    if len({info.rank for info in shown}) != 1:
        return {}
    sizes = [info.shape for info in shown if info.shape is not None]
    # If one has a single element along an axis and another has, or may have, more, they are not the same rows.
    if any(1 in axis and set(axis) != {1} for axis in zip(*sizes, strict=True)):
        return {}
    return _alike(at, at.y, at.x, at.node.input(1))


def _binary_fits(at: At) -> bool:
    """Whether both operands have the output's rows, or one is a constant row."""
    label, width, shape = at.labels[at.y], at.width(at.y), at.infos[at.y].shape
    if at.x not in at.labels or not width or all(name in at.graph.constants for name in at.node.inputs):
        return False
    for name in at.node.inputs:
        constant = at.graph.constants.get(name)
        if constant is not None:
            if constant.dtype.kind != "f" or constant.size not in (1, width) or constant.ndim > len(label):
                return False
            if constant.size == width and width > 1 and (constant.ndim == 0 or constant.shape[-1] != width):
                return False
        elif at.labels.get(name) != label or at.infos[name].shape != shape or at.infos[name].shape is None:
            return False
    return True


def _emit_binary(build: Builder, at: At) -> None:
    node, features, lanes = at.node, at.width(at.y), build.target.lanes
    constants = build.graph.constants
    out = build.buffer(at.y, features)
    stage = max(build.stage.get(n, 0) for n in node.inputs if n not in constants)
    places = []
    for name in node.inputs:
        if name in constants:
            row = np.broadcast_to(constants[name].reshape(-1), (features,))
            places.append(build.constant(padded(np.asarray(row, np.float32), lanes)))
        else:
            places.append(build.read_padded(name, features))
            stage = max(stage, build.stage[name])
    operands = Binary._make((*places, out, panels_of(features, lanes)))
    build.emit(stage, Instruction("elementwise.binary", (lanes, node.op), operands, node.op), *places, out)
    build.made(at.y, out, features, stage)


def _emit_softmax(build: Builder, at: At) -> None:
    op = at.node.op
    _emit_each(build, at, "elementwise.softmax", (build.target.lanes, op == "LogSoftmax"), Softmax, op)


def _layer_norm_fits(at: At) -> bool:
    width, alone = at.width(at.y), not any(at.node.outputs[1:])
    scales = [at.graph.constants.get(name) for name in at.node.inputs[1:] if name]
    known = width > 0 and all(a is not None and a.shape == (width,) for a in scales)
    return at.flows and alone and known and at.along_features(-1)


def _emit_layer_norm(build: Builder, at: At) -> None:
    lanes = build.target.lanes

    def arguments(x: int, out: int, features: int) -> LayerNorm:
        bias = np.zeros(features) if at.constant(2) is None else at.constant(2)
        rows = [build.constant(padded(np.asarray(v, np.float32), lanes)) for v in (at.constant(1), bias)]
        return LayerNorm(x, out, features, *rows)

    constants = (lanes, float(at.node.attrs.get("epsilon", 1e-5)))
    _emit_each(build, at, "elementwise.layer_norm", constants, arguments, "LayerNorm")


def _concat_fits(at: At) -> bool:
    label, constants = at.labels[at.y], at.graph.constants
    parts = (at.labels.get(n) == label and n not in constants and at.width(n) > 0 for n in at.node.inputs)
    return all(parts) and at.along_features(0)


def _emit_concat(build: Builder, at: At) -> None:
    names, features = at.node.inputs, at.width(at.y)
    out = build.buffer(at.y, features)
    places = [build.read(name, at.width(name)) for name in names]
    stage = max(build.stage[name] for name in names)
    offset = 0
    for name, source in zip(names, places, strict=True):
        move = Move(source, out, 0, 4 * offset, at.width(name))
        build.emit(stage, Instruction("movement.move", (), move, "Concat"), source, out)
        offset += at.width(name)
    build.made(at.y, out, features, stage)


# -- products and tables -----------------------------------------------------------------------------------------------


def _dense_fits(at: At) -> bool:
    weight = at.constant(1)
    known = all(not name or name in at.graph.constants for name in at.node.inputs[1:])
    return at.keeps_axes and known and weight is not None and 0 not in weight.shape


def _emit_dense(build: Builder, at: At) -> None:
    """Emit ``out = x @ weight + bias`` for weight [K, columns]; `out` has room for whole panels."""
    weight, scale, bias, lanes = (
        at.graph.constants[at.node.input(1)],
        at.constant(3),
        at.constant(2),
        build.target.lanes,
    )
    k, columns = weight.shape
    source, vectors = build.read(at.x, k), min(4, panels_of(columns, lanes))
    out = build.buffer(at.y, -(-columns // (vectors * lanes)) * vectors * lanes)
    scales = None if scale is None else plain_panels(scale.reshape(1, columns), vectors, lanes)
    panels = plain_panels(np.asarray(weight, np.float32), vectors, lanes)
    packed, form = packed_panels(build.target, weight, panels, scales)
    offset = plain_panels((np.zeros(columns) if bias is None else bias).reshape(1, columns), vectors, lanes)
    whole = (True,) if at.node.attrs.get("integers", 0) else ()
    step = Instruction(
        "linear.linear", (lanes, vectors, build.target.max_sums, form, *whole),
        Linear(source, out, k, packed, offset, packed.shape[0], 0, 0), "Dense", weight.size, packed.nbytes,
        *quantised(form, k),
    )  # fmt: skip
    build.emit(build.stage[at.x], step, source, out)
    build.made(at.y, out, columns, build.stage[at.x])


def _gather_labels(at: At) -> Mapping[str, str]:
    if _is_table(at):
        label = at.labels.get(at.y)
        return {at.node.input(1): label[:2]} if label in ("TBF", "BTF") else {}
    return {at.y: "BF"} if _is_last_step(at) else {}


def _gather_fits(at: At) -> bool:
    if _is_table(at):
        return at.labels.get(at.node.input(1)) == at.labels[at.y][:2]
    return at.flows and _is_last_step(at) and at.labels[at.y] == "BF" and at.width(at.y) > 0


def _is_table(at: At) -> bool:
    table = at.constant(0)
    return table is not None and table.ndim == 2 and table.dtype.kind == "f" and at.node.attrs.get("axis", 0) == 0


def _is_last_step(at: At) -> bool:
    """Whether the node takes the last time step: Gather with the scalar -1 on the time axis."""
    index, label = at.constant(1), at.labels.get(at.x, "")
    if index is None or index.ndim != 0 or index != -1 or len(label) != 3 or "T" not in label:
        return False
    return int(at.node.attrs.get("axis", 0)) % 3 == label.index("T")


def _emit_gather(build: Builder, at: At) -> None:
    if at.x in build.graph.constants:
        table = np.ascontiguousarray(build.graph.constants[at.x], np.float32)
        rows, features = table.shape
        source, out = build.read(at.node.input(1), 0), build.buffer(at.y, features)
        arguments = Embed(source, out, table, rows, features)
        build.emit(0, Instruction("movement.embed", (), arguments, "Embedding", 0, table.nbytes), source, out)
        build.made(at.y, out, features, 0)
        return
    features = at.width(at.y)
    out, source = build.buffer(at.y, features), build.read(at.x, features)
    last = Instruction("movement.last", (), Last(source, out, features), "Last step")
    build.emit(build.stage[at.x], last, source, out)
    build.needs_step = build.needs_step or at.node.name or at.y
    build.made(at.y, out, features, LAST_STAGE)


def _has_width(at: At) -> bool:
    return at.keeps_axes and at.width(at.y) > 0


_SOFTMAX = Rows(_through, lambda at: at.flows and at.along_features(-1) and at.width(at.y) > 0, _emit_softmax)

ROWS: Mapping[str, Rows] = {
    # Labels pass through all elementwise functions, even those that segments have no kernel for.
    **dict.fromkeys(ELEMENTWISE, Rows(_through, lambda _: False, _emit_unary)),
    **dict.fromkeys(UNARY, Rows(_through, _has_width, _emit_unary)),
    **dict.fromkeys(BINARY, Rows(_binary_labels, _binary_fits, _emit_binary)),
    "Concat": Rows(lambda at: _alike(at, at.y, *at.node.inputs), _concat_fits, _emit_concat),
    "Dense": Rows(_through, _dense_fits, _emit_dense),
    "Gather": Rows(_gather_labels, _gather_fits, _emit_gather),
    "Identity": Rows(_through, _has_width, _reshaped),
    "LayerNormalization": Rows(_through, _layer_norm_fits, _emit_layer_norm),
    "LogSoftmax": _SOFTMAX,
    "Softmax": _SOFTMAX,
    "Transpose": Rows(_transposed, _is_transpose, _reshaped),
    "Unsqueeze": Rows(
        _unsqueezed,
        lambda at: at.flows and _new_axis(at) is not None and "1" in at.labels[at.y] and _told_width(at) > 0,
        _reshaped,
    ),
}
"""How each operator treats rows, by its name; operators not listed do not keep rows separate."""
