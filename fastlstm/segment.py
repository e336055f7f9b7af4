"""A segment: recurrent layers and what stands around them, as stages of kernel calls.

A stage passes over the time steps block by block: all its layers for one block, then the next block, so that
what flows between layers stays in the cache. A reverse direction needs a stage of its own; values that cross
stages are held for all time steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import layout, native, small, team
from fastlstm.errors import InputError
from fastlstm.graph import ACTIVATIONS, RECURRENT_OPS, Graph, Node
from fastlstm.kernels.limits import BYTE_OFFSET
from fastlstm.machine import Machine
from fastlstm.memory import aligned
from fastlstm.pack import (
    gate_panels,
    gate_rows,
    gate_tail,
    integer_panels,
    padded,
    panels_of,
    plain_panels,
    tail_vectors,
)
from fastlstm.program import Instruction, Program, Slot, Stage, address_of
from fastlstm.split import SplitProgram, worth_splitting

__all__ = ["COMPLAINT", "Segment", "State", "axes_of", "build_segment", "consumer_width"]

Array = npt.NDArray[Any]
LAST_STAGE = 1 << 30
MOST_ROWS = 256  # of a block; with 32 rows of 256 units 2 to 5 % faster than 128, elsewhere the same
COMPLAINT = (
    "An id lies outside its embedding table. Expected ids from 0 to the number of rows less one "
    "(or negative ids counted from the end); check the vocabulary that the ids were made with."
)
"""What a program's status other than 0 says."""
WORTH_A_WORKER = 25_000  # multiply-adds of a time step, about a microsecond: a phase of shares costs a third of that


@dataclass(frozen=True)
class State:
    """A state of one direction of a layer: where it lives and which values set and show it."""

    slot: int
    width: int
    direction: int
    given: str  # value name of the initial state, "" for zero
    shown: str  # value name of the final state, "" if nobody asks
    name: str


@dataclass(frozen=True)
class Segment:
    """Stages, slots, and how the outside connects to them."""

    slots: tuple[Slot, ...]
    stages: tuple[Stage, ...]
    inputs: Mapping[str, tuple[int, str, int]]  # value -> slot, axes, features (0: ids)
    outputs: Mapping[str, tuple[int, str, int]]
    states: tuple[State, ...]
    lengths: str
    masks: tuple[tuple[int, str, bool], ...]  # slot, value, backwards
    needs_step: str  # name of a layer that needs at least one time step, "" if none
    names: tuple[str, ...]
    threads: int = 1  # as many as the caller allows
    flat: bool = False  # one input and one output, all whose axes but the last are rows alike
    _idle: dict[int, list[Program]] = field(default_factory=dict, repr=False, compare=False)

    def program(self, batch: int, before: Sequence[Stage] = (), after: Sequence[Stage] = ()) -> Program:
        """Return a program of one's own for `batch` rows, with more stages before and after the segment's."""
        return Program(self.slots, (*before, *self.stages, *after), batch, self.workers(batch))

    def sequence_program(self, batch: int) -> Program:
        """Return a program for whole sequences of `batch` rows, divided among workers as they divide best."""
        workers = self.workers(batch)
        recurrent = [i for s in self.stages for i in s.instructions if i.label in RECURRENT_OPS]
        panels = max(recurrent, key=lambda i: i.macs).panels if recurrent else 1
        if not self.lengths and worth_splitting(batch, panels, workers):
            return SplitProgram(self.slots, self.stages, batch, workers)
        return Program(self.slots, self.stages, batch, workers)

    def workers(self, batch: int) -> int:
        """Return how many threads pay off: every time step is a phase that takes all of them."""
        if not team.available():
            return 1
        # What a multiply-add takes goes down with the bytes of its weight.
        recurrent = [
            min(i.macs, i.weight_bytes // 4) for s in self.stages for i in s.instructions if i.label in RECURRENT_OPS
        ]
        return max(1, min(self.threads, batch * min(recurrent, default=0) // WORTH_A_WORKER))

    def run(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run over whole sequences; `values` holds at least the segment's inputs."""
        if self.flat:
            return self._run_flat(values)
        arrays = {
            name: _rows_array(values[name], axes, features, name) for name, (_, axes, features) in self.inputs.items()
        }
        steps, batch = self.sizes(arrays)
        lengths = self._lengths(values, steps, batch)
        order = None if lengths is None else np.argsort(-lengths, kind="stable")
        idle = self._idle.setdefault(batch, [])
        try:
            program = idle.pop()  # another thread may have taken the last one since we looked
        except IndexError:
            program = self.sequence_program(batch)
        self._set_states(program, values, batch, order)
        self._set_masks(program, values, steps, batch, lengths, order)
        active = None
        if lengths is not None and order is not None:
            active = np.array([np.count_nonzero(lengths > t) for t in range(steps)] + [0], np.int64)
        result = self.advance(program, arrays, steps, batch, active, order)
        for state in self.states:
            if state.shown:
                part = program.rows(state.slot)[:, : state.width]
                whole = result.setdefault(
                    state.shown, np.empty((self.directions(state.shown), batch, state.width), np.float32)
                )
                whole[state.direction] = part if order is None else part[np.argsort(order)]
        idle.append(program)
        return result

    def _run_flat(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run over all rows of one value as if they were time steps: their number may be any."""
        ((name, (_, axes, features)),) = self.inputs.items()
        ((shown, _),) = self.outputs.items()
        array = np.asarray(values[name])
        rows = _rows_array(array.reshape(-1, 1, array.shape[-1] if array.ndim else 1), axes, features, name)
        idle = self._idle.setdefault(1, [])
        try:
            program = idle.pop()
        except IndexError:
            program = self.program(1)
        result = self.advance(program, {name: rows}, len(rows), 1)[shown]
        idle.append(program)
        return {shown: result.reshape(*array.shape[:-1], result.shape[-1])}

    def advance(
        self,
        program: Program,
        arrays: Mapping[str, Array],
        steps: int,
        batch: int,
        active: Array | None = None,
        order: Array | None = None,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run `program` over `steps` time steps from the states it holds; return the outputs."""
        result: dict[str, Array] = {}
        held = []  # the arrays that slots point to while the program runs
        for name, (slot, axes, _) in self.inputs.items():
            array = arrays[name]
            if order is not None:
                array = np.ascontiguousarray(np.take(array, order, axis=axes.index("B")))
            held.append(array)
            program.bind(slot, array, *axes_of(axes))
        sizes = {"T": steps, "B": batch, "1": 1}
        for name, (slot, axes, features) in self.outputs.items():
            shape = [sizes.get(axis, features) for axis in axes]
            target = np.empty(shape, np.float32) if out is None else out[name]
            result[name] = target
            program.bind(slot, target, *axes_of(axes))
        if batch and (steps or not self.needs_step):
            status = program.run(steps, active)
            if status:
                raise InputError(COMPLAINT)
        elif batch and self.needs_step:
            raise InputError(
                f"The layer '{self.needs_step}' takes the last time step, and the sequence has none. "
                "Give at least one time step."
            )
        if order is not None:
            back = np.argsort(order)
            result = {
                name: np.take(value, back, axis=self.outputs[name][1].index("B")) for name, value in result.items()
            }
        return result

    @property
    def is_plain(self) -> bool:
        """Whether one input goes in and one output comes out, from zero states, for all rows alike."""
        asked = any(state.given or state.shown for state in self.states)
        one = len(self.inputs) == len(self.outputs) == 1 and not self.flat
        return one and not (asked or self.lengths or self.masks)

    def entry(
        self, program: Program, steps: int, keep: bool = False, time_axis: bool = True, batch_axis: bool = True
    ) -> native.Call:
        """Return a built-in that runs `program` over arrays of one shape; see `fastlstm.native.entry`.

        Only for one float input and one output (`is_plain`, or a stream's segment). With `keep` the states go on
        from call to call; a time or batch axis of size 1 may be left out of the arrays.
        """
        sizes = {"T": steps, "B": program.used, "1": 1}
        (x,), (y,) = self.inputs.values(), self.outputs.values()
        dropped = ("" if time_axis else "T1") + ("" if batch_axis else "B1")

        def place(value: tuple[int, str, int]) -> tuple[int, str, list[int]]:
            slot, axes, features = value
            return slot, axes, [features if axis == "F" else sizes[axis] for axis in axes if axis not in dropped]

        clear = [] if keep else [program.rows(state.slot) for state in self.states]
        return native.entry(program, steps, place(x), place(y), clear)

    def directions(self, shown: str) -> int:
        """Return how many directions a final state has."""
        return 1 + max(s.direction for s in self.states if s.shown == shown)

    def sizes(self, arrays: Mapping[str, Array]) -> tuple[int, int]:
        """Return the time steps and batch rows of the inputs; InputError if they do not agree."""
        found: dict[str, tuple[int, str]] = {}
        for name, (_, axes, _features) in self.inputs.items():
            for axis in ("T", "B"):
                if axis not in axes:
                    continue
                size = arrays[name].shape[axes.index(axis)]
                known = found.setdefault(axis, (size, name))
                if known[0] != size:
                    what = "time steps" if axis == "T" else "batch rows"
                    raise InputError(
                        f"'{name}' has {size} {what} where '{known[1]}' has {known[0]}: they have to agree."
                    )
        return found.get("T", (1, ""))[0], found["B"][0]

    def _lengths(self, values: Mapping[str, Any], steps: int, batch: int) -> Array | None:
        if not self.lengths:
            return None
        lengths = np.asarray(values[self.lengths])
        if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
            raise InputError(
                f"'{self.lengths}' should hold one whole number a batch row, shape [{batch}]; "
                f"got {lengths.dtype}{list(lengths.shape)}."
            )
        if batch and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
            raise InputError(
                f"'{self.lengths}' should lie between 0 and the {steps} time steps given; "
                f"got {int(lengths.min())} to {int(lengths.max())}."
            )
        return lengths.astype(np.int64)

    def _set_states(self, program: Program, values: Mapping[str, Any], batch: int, order: Array | None) -> None:
        for state in self.states:
            rows = program.rows(state.slot)
            rows[:] = 0
            if not state.given:
                continue
            given = np.asarray(values[state.given], np.float32)
            self.check_state(state, given, batch)
            part = np.broadcast_to(given[state.direction], (batch, state.width))
            rows[:, : state.width] = part if order is None else part[order]

    def check_state(self, state: State, given: Array, batch: int) -> None:
        """Raise InputError unless an initial state has the shape that it should have."""
        directions = 1 + max(s.direction for s in self.states if s.given == state.given)
        if (
            given.ndim != 3
            or given.shape[0] != directions
            or given.shape[2] != state.width
            or given.shape[1] not in (1, batch)
        ):
            raise InputError(
                f"The initial state '{state.given}' should have the shape "
                f"[{directions}, {batch}, {state.width}]; got {list(given.shape)}."
            )

    def _set_masks(
        self,
        program: Program,
        values: Mapping[str, Any],
        steps: int,
        batch: int,
        lengths: Array | None,
        order: Array | None,
    ) -> None:
        for slot, name, backwards in self.masks:
            mask = np.asarray(values[name], bool)
            if mask.shape != (steps, batch):
                raise InputError(f"The mask '{name}' should have the shape [{steps}, {batch}]; got {list(mask.shape)}.")
            if lengths is not None and order is not None:
                # No step past a row's end counts: a backward direction would have seen it first.
                mask = (mask & (np.arange(steps)[:, None] < lengths))[:, order]
            seen = np.logical_or.accumulate(mask[::-1] if backwards else mask, axis=0) if steps else mask
            codes = np.where(mask, 1, np.where(seen[::-1] if backwards else seen, 2, 0)).astype(np.int64)
            program.bind(slot, codes, 0, 1)
            program.keep(slot, codes)

    def as_data(self) -> list[dict[str, Any]]:
        """Return one dict an instruction that does arithmetic or moves data."""
        names = {layout.BLOCK: "", layout.REVERSE: "backwards", layout.ONCE: "once"}
        return [
            {
                "step": step.label,
                "kernel": step.kernel,
                "macs": step.macs,
                "bytes": step.weight_bytes,
                "tile": f"{stage.rows} rows a block",
                "note": " ".join(filter(None, (names[stage.kind], step.note))),
            }
            for stage in self.stages
            for step in stage.instructions
        ]


def axes_of(axes: str) -> tuple[int | None, int | None]:
    """Return where time and batch stand in a value's axes, None where they do not."""
    return (axes.index("T") if "T" in axes else None), (axes.index("B") if "B" in axes else None)


def _rows_array(value: Any, axes: str, features: int, name: str) -> Array:
    """Return the value as a contiguous array of the kernels' dtype, its rank and features checked."""
    array = np.ascontiguousarray(value, np.float32 if features else np.int64)
    if array.ndim != len(axes) or (features and array.shape[-1] != features):
        wanted = ", ".join({"T": "time", "B": "batch", "F": str(features)}[axis] for axis in axes)
        raise InputError(f"'{name}' should have the shape [{wanted}]; got {list(np.shape(value))}.")
    return array


@dataclass
class _Builder:
    """Collects slots and instructions while the nodes of a segment are walked in order."""

    graph: Graph
    labels: Mapping[str, str]
    machine: Machine
    slots: list[Slot] = field(default_factory=list)
    steps: list[tuple[int, Instruction, tuple[int, ...]]] = field(default_factory=list)  # stage, what, slots used
    place: dict[str, int] = field(default_factory=dict)  # value -> slot
    stage: dict[str, int] = field(default_factory=dict)  # value -> stage that makes it
    features: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    masks: list[tuple[int, str, bool]] = field(default_factory=list)
    lengths: str = ""
    needs_step: str = ""

    def slot(self, slot: Slot) -> int:
        self.slots.append(slot)
        return len(self.slots) - 1

    def buffer(self, name: str, width: int) -> int:
        """Add a slot for a value's rows, padded to whole vectors."""
        lanes = self.machine.lanes
        kind = "time" if "T" in self.labels.get(name, "T") else "row"
        return self.slot(Slot(name, kind, panels_of(width, lanes) * lanes))

    def emit(self, stage: int, instruction: Instruction, *used: int) -> None:
        self.steps.append((stage, instruction, used))

    def read(self, name: str, features: int) -> int:
        """Return the slot of a value, made an input of the segment if no node before makes it."""
        if name not in self.place:
            self.place[name] = self.slot(Slot(name, "external", features or 1))
            self.stage[name] = 0 if "T" in self.labels[name] else LAST_STAGE
            self.features[name] = features
            self.inputs[name] = (self.place[name], self.labels[name], features)
        return self.place[name]

    def read_padded(self, name: str, features: int) -> int:
        """Return a slot whose rows whole vectors may be read from: the caller's arrays are copied."""
        at = self.read(name, features)
        if self.slots[at].kind != "external":
            return at
        key = f"{name} (copied)"
        if key not in self.place:
            kind = "time" if "T" in self.labels[name] else "row"
            lanes = self.machine.lanes
            self.place[key] = self.slot(Slot(key, kind, panels_of(features, lanes) * lanes))
            move = Instruction("movement.move", (), (at, self.place[key], 0, 0, features), "copy")
            self.emit(self.stage[name], move, at, self.place[key])
        return self.place[key]

    def constant(self, row: Array) -> int:
        return self.slot(Slot("constant", "constant", row.size, value=row))

    def made(self, name: str, slot: int, features: int, stage: int) -> None:
        self.place[name], self.features[name], self.stage[name] = slot, features, stage


def build_segment(
    nodes: list[Node],
    graph: Graph,
    labels: Mapping[str, str],
    infos: Mapping[str, Any],
    machine: Machine,
    threads: int = 1,
) -> Segment:
    """Return the segment of `nodes`, which are in order and share time steps and batch rows."""
    build = _Builder(graph, labels, machine)
    for node in nodes:
        if node.op in RECURRENT_OPS:
            _recurrent(build, node)
        else:
            _around(build, node, infos)
    own = {id(n) for n in nodes}
    wanted = {spec.name for spec in graph.outputs}
    wanted |= {v for n in graph.nodes if id(n) not in own for v in [*n.inputs, *_outer(n)]}
    # States and lengths are read before the call: a member's rows that feed them leave the segment too.
    wanted |= {v for n in nodes if n.op in RECURRENT_OPS for v in n.inputs[4:]}
    for node in nodes:
        name = node.output(0)
        if name in wanted and name in build.place:
            _show(build, name)
    return replace(_finish(build, nodes), threads=threads)


def _outer(node: Node) -> list[str]:
    from fastlstm.graph import outer_values

    return outer_values(node)


def _show(build: _Builder, name: str) -> None:
    """Make a value an output of the segment: copied into the caller's array."""
    at, features = build.place[name], build.features[name]
    target = build.slot(Slot(f"{name} (out)", "external", features))
    build.outputs[name] = (target, build.labels[name], features)
    move = Instruction("movement.move", (), (at, target, 0, 0, features), "output")
    build.emit(build.stage[name], move, at, target)


def _packed(
    machine: Machine, weight: Array, panels: Array, scales: Array | None, recurrent: bool = False
) -> tuple[Array, int]:
    """Return a weight's panels as the kernels read them, and the bits of each value.

    `recurrent` weights meet a layer's own outputs: where both have 8 bits, four are multiplied together.
    """
    if scales is None:
        return panels, 32
    bits = 8 * weight.dtype.itemsize
    together = machine.together(recurrent and bits == 8)
    offset = BYTE_OFFSET if together == 4 and machine.unsigned_bytes else 0
    return integer_panels(panels, scales, bits, together, offset), bits


def _linear(
    build: _Builder, label: str, weight: Array, scale: Array | None, bias: Array | None, x: int, out: int, stage: int
) -> None:
    """Emit ``out = x @ weight + bias`` for weight [K, columns]; `out` has room for whole panels."""
    lanes = build.machine.lanes
    columns = weight.shape[1]
    vectors = min(4, panels_of(columns, lanes))
    scales = None if scale is None else plain_panels(scale.reshape(1, columns), vectors, lanes)
    packed, bits = _packed(build.machine, weight, plain_panels(np.asarray(weight, np.float32), vectors, lanes), scales)
    offset = plain_panels((np.zeros(columns) if bias is None else bias).reshape(1, columns), vectors, lanes)
    args = (x, out, weight.shape[0], packed, offset, packed.shape[0], 0)
    constants = (lanes, vectors, build.machine.max_sums, bits)
    step = Instruction(
        "linear.linear", constants, args, label, weight.size, packed.nbytes, *_quantised(bits, len(weight))
    )
    build.emit(stage, step, x, out)


def _around(build: _Builder, node: Node, infos: Mapping[str, Any]) -> None:
    """Emit a node that is not a recurrent layer."""
    from fastlstm.plan import BINARY, UNARY

    constants, lanes = build.graph.constants, build.machine.lanes
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
        table_args = (at, out, table, table.shape[0], table.shape[1])
        build.emit(0, Instruction("movement.embed", (), table_args, "Embedding", 0, table.nbytes), at, out)
        build.made(y, out, table.shape[1], 0)
        return
    features = width(y)
    out = build.buffer(y, features)
    vectors = panels_of(features, lanes)
    if node.op in UNARY:
        at = build.read_padded(x, features)
        params = [node.attrs.get(name, default) for name, default in UNARY[node.op]]
        kernel = ("elementwise.unary", (lanes, node.op, *[*params, None, None][:2]))
        build.emit(build.stage[x], Instruction(*kernel, (at, out, vectors), node.op), at, out)
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
        operands = (*places, out, vectors)
        build.emit(stage, Instruction("elementwise.binary", (lanes, node.op), operands, node.op), *places, out)
    elif node.op in ("Softmax", "LogSoftmax"):
        at, stage = build.read_padded(x, features), build.stage[x]
        kernel = ("elementwise.softmax", (lanes, node.op == "LogSoftmax"))
        build.emit(stage, Instruction(*kernel, (at, out, features), node.op), at, out)
    elif node.op == "LayerNormalization":
        at, stage = build.read_padded(x, features), build.stage[x]
        bias = constants[node.input(2)] if node.input(2) else np.zeros(features)
        rows = [build.constant(padded(np.asarray(v, np.float32), lanes)) for v in (constants[node.input(1)], bias)]
        kernel = ("elementwise.layer_norm", (lanes, float(node.attrs.get("epsilon", 1e-5))))
        build.emit(stage, Instruction(*kernel, (at, out, features, *rows), "LayerNorm"), at, out)
    elif node.op == "Concat":
        places = [build.read(n, width(n)) for n in node.inputs]
        stage = max(build.stage[n] for n in node.inputs)
        offset = 0
        for name, at in zip(node.inputs, places, strict=True):
            move = (at, out, 0, 4 * offset, width(name))
            build.emit(stage, Instruction("movement.move", (), move, "Concat"), at, out)
            offset += width(name)
    else:  # the last time step
        at = build.read(x, features)
        build.emit(build.stage[x], Instruction("movement.last", (), (at, out, features), "Last step"), at, out)
        stage = LAST_STAGE
        build.needs_step = build.needs_step or node.name or y
    build.made(y, out, features, stage)


def consumer_width(graph: Graph, name: str) -> int | None:
    """Return the features of a value of unknown shape, from the constant weights of a layer that reads it."""
    for node in graph.nodes:
        if name not in node.inputs:
            continue
        weight = graph.constants.get(node.input(1))
        if node.op in RECURRENT_OPS and node.input(0) == name and weight is not None:
            return int(weight.shape[2])
        if node.op == "Dense" and weight is not None:
            return int(weight.shape[0])
        if node.op in ("Transpose", "Identity", "Unsqueeze"):
            return consumer_width(graph, node.output(0))
    return None


def _recurrent(build: _Builder, node: Node) -> None:
    """Emit every direction of a recurrent layer: its input projection, then its recurrence."""
    constants, machine = build.graph.constants, build.machine
    lanes, attrs = machine.lanes, node.attrs
    w_ih, w_hh = constants[node.input(1)], constants[node.input(2)]
    hidden, size = int(attrs["hidden_size"]), int(w_hh.shape[2])
    gates, directions = RECURRENT_OPS[node.op], attrs["directions"]
    bias = _input_bias(node, constants, gates)
    x, y = node.input(0), node.output(0) or f"{node.output(1) or node.output(2)} (y)"
    x_slot = build.read(x, int(w_ih.shape[2]))
    y_slot = build.buffer(y, len(directions) * size)
    if node.input(4):
        build.lengths = node.input(4)
    stage = build.stage[x]
    for d, direction in enumerate(directions):
        backwards = direction == "reverse"
        # Even stages run onwards, odd ones backwards.
        mine = build.stage[x]
        if mine == LAST_STAGE or (mine % 2 == 1) != backwards:
            mine += 1
        panels = panels_of(hidden, lanes)
        z_slot = build.slot(Slot(f"{y} gates {d}", "time", panels * lanes * gates, local=True))
        scale = constants.get(node.input(10))
        scales = None if scale is None else gate_rows(scale[d], gates, lanes)
        packed, bits = _packed(machine, w_ih, gate_panels(w_ih[d], gates, lanes), scales)
        offset = gate_rows(bias[d], gates, lanes)
        args = (x_slot, z_slot, int(w_ih.shape[2]), packed, offset, panels, 0)
        step = Instruction(
            "linear.linear",
            (lanes, gates, machine.max_sums, bits),
            args,
            f"{node.op} input",
            int(w_ih[d].size),
            packed.nbytes,
            *_quantised(bits, int(w_ih.shape[2])),
        )
        tail = _tail(node, hidden, bits, lanes)
        if tail:
            whole, rest = gate_tail(np.asarray(w_ih[d], np.float32), gates, lanes)
            whole_bias, rest_bias = gate_tail(bias[d].reshape(-1, 1), gates, lanes)
            args = (*args[:3], whole, whole_bias, panels - 1, 0)
            step = replace(step, args=args, weight_bytes=whole.nbytes, macs=whole.size)
            args = (*args[:3], rest, rest_bias, 1, whole_bias.nbytes)
            rest_step = Instruction(
                "linear.linear", (lanes, tail, machine.max_sums, 32), args, step.label, rest.size, rest.nbytes
            )
            build.emit(mine, rest_step, x_slot, z_slot)
        build.emit(mine, step, x_slot, z_slot)
        _direction(build, node, d, backwards, mine, z_slot, y_slot, size)
        if small.fits(node, hidden, bits):
            _one_row(build, node, d, bias[d], (x_slot, z_slot, y_slot))
        stage = max(stage, mine)
    build.made(y, y_slot, len(directions) * size, stage)


def _one_row(build: _Builder, node: Node, d: int, bias: Array, slots: tuple[int, int, int]) -> None:
    """Let other kernels run a direction of a small LSTM, which was emitted last, where there is one batch row."""
    constants, machine, (x, z, y) = build.graph.constants, build.machine, slots
    w_ih, w_hh = constants[node.input(1)][d], constants[node.input(2)][d]
    passes = small.passes_of(w_hh.shape[1], machine)
    (stage, product, used), (_, recurrence, also) = build.steps[-2:]
    tail = _tail(node, w_hh.shape[1], 32, machine.lanes)
    last_width = recurrence.args[13 if tail else 6]  # see kernels/recurrent.py
    place = (recurrence.args[2], last_width, node.attrs["directions"][d] == "reverse")
    h, c = (state.slot for state in build.states[-2:])
    alone = small.recurrence_for((w_ih, bias, w_hh), _activations(node, d), passes, (x, z, y, h, c), place)
    product = replace(product, alone=small.linear_for(w_ih, bias, passes, x, z, machine))
    if tail:
        before, rest, slots_used = build.steps[-3]
        build.steps[-3] = (before, replace(rest, alone=()), slots_used)
    build.steps[-2:] = [
        (stage, product, used),
        (stage, replace(recurrence, alone=(alone,), note=passes.note), also),
    ]


def _tail(node: Node, hidden: int, bits: int, lanes: int) -> int:
    """Return the vectors that hold the last units' gates, 0 for layers whose last panel is padded."""
    plain = not any(node.input(i) for i in (5, 8, 9)) and not node.attrs.get("input_forget")
    return tail_vectors(hidden, 4, lanes) if node.op == "LSTM" and bits == 32 and plain else 0


def _input_bias(node: Node, constants: Mapping[str, Array], gates: int) -> Array:
    """Return what a recurrent layer adds to its input projection, [directions, gates * H].

    A GRU's b_hn is not part of it where the reset gate multiplies it; where the reset comes before the product,
    b_in and b_hn are added alike.
    """
    directions, hidden = len(node.attrs["directions"]), int(node.attrs["hidden_size"])
    bias = constants.get(node.input(3))
    if bias is None:
        return np.zeros((directions, gates * hidden), np.float32)
    inside = np.array(bias[:, : gates * hidden], np.float32)
    if node.op == "GRU" and not node.attrs["reset_after"]:
        inside[:, 2 * hidden :] += bias[:, 3 * hidden :]
    return inside


def _activations(node: Node, d: int) -> tuple[tuple[str, float | None, float | None], ...]:
    """Return the activations of direction `d` with every parameter they take: one kernel for one meaning."""
    found = []
    for name, *given in node.attrs["activations"][d]:
        parameters = [
            None if default is None else float(default if value is None else value)
            for value, default in zip([*given, None, None][:2], ACTIVATIONS[name], strict=True)
        ]
        found.append((name, *parameters))
    return tuple(found)


def _direction(
    build: _Builder, node: Node, d: int, backwards: bool, stage: int, z_slot: int, y_slot: int, size: int
) -> None:
    """Emit the recurrence of one direction."""
    constants, machine, attrs = build.graph.constants, build.machine, node.attrs
    lanes, hidden, gates = machine.lanes, int(attrs["hidden_size"]), RECURRENT_OPS[node.op]
    w_hh = constants[node.input(2)][d]
    scale = constants.get(node.input(11))
    label = node.name or node.output(0) or node.op
    wide = panels_of(hidden, lanes) * lanes
    h_slot = build.slot(Slot(f"{label} h {d}", "row", panels_of(size, lanes) * lanes))
    c_slot = build.slot(Slot(f"{label} c {d}", "row", wide))
    build.states.append(State(h_slot, size, d, node.input(6), node.output(1), f"{label}.h{d or ''}"))
    if node.op == "LSTM":
        build.states.append(State(c_slot, hidden, d, node.input(7), node.output(2), f"{label}.c{d or ''}"))
    masked = bool(node.input(5))
    mask_slot = -1
    if masked:
        mask_slot = build.slot(Slot(f"{label} mask {d}", "external", 1))
        build.masks.append((mask_slot, node.input(5), backwards))
    activations = _activations(node, d)
    clip = attrs.get("clip")
    clip = None if clip is None else float(clip)
    columns = panels_of(size, lanes)
    # One direction's last vector may spill only where no other direction's outputs stand.
    last_width = size - (columns - 1) * lanes if len(attrs["directions"]) > 1 else lanes
    options: tuple[Any, ...] = (activations, clip)
    extra: list[int | Array] = [0, 0, 0]
    used = [z_slot, y_slot, h_slot, c_slot]
    longest = [size] if scale is not None else []

    def gate_weights(weight: Array, rows: slice, count: int) -> tuple[Array, int]:
        scales = None if scale is None else gate_rows(scale[d][rows], count, lanes)
        return _packed(machine, weight, gate_panels(weight[rows], count, lanes), scales, recurrent=True)

    packed, bits = gate_weights(w_hh, slice(None), gates)
    more: tuple[int, ...] = ()
    if node.op == "LSTM":
        peephole = constants.get(node.input(8))
        if peephole is not None:
            extra[0] = gate_rows(np.asarray(peephole[d]), 3, lanes)
        options += (bool(attrs.get("input_forget")), peephole is not None)
        kernel = "recurrent.lstm"
        if node.input(9):
            kernel = "projected.lstm"
            narrow = constants.get(node.input(12))
            scales = None if narrow is None else plain_panels(narrow[d].reshape(1, size), 1, lanes)
            columns_first = np.asarray(constants[node.input(9)][d].T, np.float32)
            projected = plain_panels(columns_first, 1, lanes)
            projection, projection_bits = _packed(machine, constants[node.input(9)], projected, scales)
            projection = aligned(projection)
            more = (projection_bits,)
            longest += [hidden] if narrow is not None else []
            extra[1] = build.slot(Slot(f"{label} unprojected {d}", "row", wide))
            extra[2] = np.array([address_of(projection), hidden, panels_of(hidden, lanes)], np.int64)
            build.constant(projection.reshape(-1))  # keeps the memory that the table points to
    elif node.op == "GRU":
        bias = constants.get(node.input(3))
        b_hn = np.zeros(hidden) if bias is None else np.asarray(bias[d][3 * hidden :])
        kernel = "gru.gru" if attrs["reset_after"] else "gru.reset_before"
        if attrs["reset_after"]:
            extra[0] = gate_rows(np.concatenate([np.zeros(2 * hidden), b_hn]), gates, lanes)
        else:
            packed, bits = gate_weights(w_hh, slice(2 * hidden), 2)
            extra[0], _ = gate_weights(w_hh, slice(2 * hidden, None), 1)
            extra[1] = build.slot(Slot(f"{label} reset {d}", "row", wide))
            extra[2] = np.zeros(2 * wide, np.float32)
    else:
        kernel = "rnn.rnn"
        extra[0] = np.zeros(wide, np.float32)
    args = (
        z_slot, y_slot, 4 * d * size, size, packed, columns, last_width, h_slot, c_slot, int(backwards), mask_slot,
        *extra,
    )  # fmt: skip
    tail, panels, note = _tail(node, hidden, bits, lanes), float(panels_of(hidden, lanes)), ""
    if tail:
        whole, rest = gate_tail(np.asarray(w_hh, np.float32), gates, lanes)
        packed = aligned(np.concatenate([whole.reshape(-1), rest.reshape(-1)]))
        units = hidden % lanes
        stored = units if len(attrs["directions"]) > 1 else lanes
        args = (*args[:4], packed, columns - 1, lanes, *args[7:11], 0, units, stored)
        more, panels = (tail,), columns - 1 + tail / 4
        note = f"gates of the last {units} units share {tail} vector{'s' * (tail > 1)}"
    macs = int(w_hh.size) + (size * hidden if node.input(9) else 0)
    kernel_constants = (lanes, machine.max_sums, *options, masked, bits, *more)
    values, narrow_note = (0, "") if tail else _quantised(min(bits, *more, 32), max(longest, default=0))
    step = Instruction(
        kernel, kernel_constants, args, node.op, macs, packed.nbytes, values, note or narrow_note, panels
    )
    build.emit(stage, step, *used)


def _quantised(bits: int, k: int) -> tuple[int, str]:
    """Return what an instruction says of its weights: the values of a row that it quantises, and a note."""
    return (0, "") if bits == 32 else (k, f"int{bits}")


def _finish(build: _Builder, nodes: list[Node]) -> Segment:
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
    room = max(build.machine.l2_bytes, build.machine.l3_bytes // 16)
    stages = []
    for number in sorted({stage for stage, _, _ in build.steps}):
        steps = [step for stage, step, _ in build.steps if stage == number]
        local = {i for stage, _, used in build.steps if stage == number for i in used if slots[i].local}
        row_bytes = 4 * sum(slots[i].width for i in local) or 4
        kind = layout.ONCE if number >= LAST_STAGE else (layout.BLOCK, layout.REVERSE)[number % 2]
        block = 1 if kind == layout.ONCE else max(8, min(MOST_ROWS, room // row_bytes))
        stages.append(Stage(kind, tuple(steps), block))
    return Segment(
        tuple(slots), tuple(stages), build.inputs, build.outputs, tuple(build.states), build.lengths,
        tuple(build.masks), build.needs_step, tuple(n.name or n.output(0) for n in nodes),
    )  # fmt: skip
