"""Building a segment's recurrent layers: slots and states of each direction, its projection, its recurrence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Node, Recurrent
from fastlstm.lowering.pack import gate_panels, gate_rows, gate_tail, panels_of
from fastlstm.lowering.segments import small
from fastlstm.lowering.segments.builder import LAST_STAGE, Builder, packed_panels, quantised
from fastlstm.lowering.segments.direction import Direction
from fastlstm.lowering.segments.recurrences import recurrence
from fastlstm.operators.activations import ACTIVATIONS
from fastlstm.program.arguments.rows import Linear
from fastlstm.program.program import Instruction, Slot
from fastlstm.runtime.connections import State
from fastlstm.target import FLOAT32

__all__ = ["recurrent"]

Array = npt.NDArray[np.float32]


def recurrent(build: Builder, node: Node) -> None:
    """Emit every direction of a recurrent layer: its input projection, then its recurrence."""
    constants, lanes = build.graph.constants, build.target.lanes
    layer = Recurrent.of(node)
    read = layer.inputs
    w_ih, w_hh = constants[read.w_ih], constants[read.w_hh]
    size, count = int(w_hh.shape[2]), len(layer.directions)
    bias = _input_bias(layer, constants)
    x, y = read.x, layer.y or f"{layer.h_n or layer.c_n} (y)"
    x_slot, y_slot = build.read(x, int(w_ih.shape[2])), build.buffer(y, count * size)
    if size % lanes == 0:
        build.exact.add(y_slot)
    if build.lengths not in (None, read.lengths):
        raise AssertionError(f"layers that read '{build.lengths}' and '{read.lengths}' as lengths share a segment")
    build.lengths = read.lengths
    stage = build.stage[x]
    rest = size - (panels_of(size, lanes) - 1) * lanes
    gates = panels_of(layer.hidden_size, lanes) * lanes * layer.gates
    for d, name in enumerate(layer.directions):
        # Even stages run forwards in time, odd ones backwards.
        mine = build.stage[x]
        if mine == LAST_STAGE or (mine % 2 == 1) != (name == "reverse"):
            mine += 1
        z_slot = build.slot(Slot(f"{y} gates {d}", "time", gates, local=True))
        h_slot, c_slot = _states(build, layer, d, size)
        one = Direction(
            layer, d, w_ih[d], w_hh[d], bias[d], _activations(layer, d), x_slot, z_slot, y_slot, h_slot, c_slot,
            # A direction's last vector must not overwrite another direction's outputs.
            _mask(build, layer, d), 4 * d * size, rest if count > 1 else lanes,
        )  # fmt: skip
        _emit(build, one, mine)
        stage = max(stage, mine)
    build.made(y, y_slot, count * size, stage)


def _emit(build: Builder, one: Direction, stage: int) -> None:
    """Emit a direction's projection and recurrence, and a small layer's alternative for one row."""
    constants, target = build.graph.constants, build.target
    scale = constants.get(one.layer.inputs.w_ih_scale)
    scales = None if scale is None else gate_rows(scale[one.d], one.gates, target.lanes)
    packed, form = packed_panels(target, one.w_ih, gate_panels(one.w_ih, one.gates, target.lanes), scales)
    label, k = f"{one.layer.op} input", int(one.w_ih.shape[1])
    alone: tuple[Instruction, ...] | None = None
    if small.fits(one.layer, form.bits):
        alone = small.projection(one, target)
    if one.tail(target.lanes):
        parts = [gate_tail(np.asarray(w, np.float32), one.gates, target.lanes) for w in (one.w_ih, one.bias[:, None])]
        (whole, rest), (whole_bias, rest_bias) = parts
        vectors = one.tail(target.lanes)
        behind = Linear(one.x, one.z, k, rest, rest_bias, 1, whole_bias.nbytes, 1)
        shape = (target.lanes, vectors, target.max_sums, FLOAT32)
        nothing = None if alone is None else ()
        step = Instruction("linear.linear", shape, behind, label, rest.size, rest.nbytes, alone=nothing)
        build.emit(stage, step, one.x, one.z)
        packed, offset, panels, macs = whole, whole_bias, one.panels(target.lanes) - 1, whole.size
    else:
        offset, panels = gate_rows(one.bias, one.gates, target.lanes), one.panels(target.lanes)
        macs = int(one.w_ih.size)
    step = Instruction(
        "linear.linear",
        (target.lanes, one.gates, target.max_sums, form),
        Linear(one.x, one.z, k, packed, offset, panels, 0, 1),
        label,
        macs,
        packed.nbytes,
        *quantised(form, k),
        alone=alone,
    )
    build.emit(stage, step, one.x, one.z)
    build.emit(stage, recurrence(build, one, form.bits), one.z, one.y, one.h, one.c)


def _states(build: Builder, layer: Recurrent, d: int, size: int) -> tuple[int, int]:
    """Add the slots of a direction's states."""
    lanes, hidden, read = build.target.lanes, layer.hidden_size, layer.inputs
    label, count = layer.label, len(layer.directions)
    h_slot = build.slot(Slot(f"{label} h {d}", "row", panels_of(size, lanes) * lanes))
    c_slot = build.slot(Slot(f"{label} c {d}", "row", panels_of(hidden, lanes) * lanes))
    build.states.append(State(h_slot, size, d, count, read.h_0, layer.h_n, f"{label}.h{d or ''}"))
    if layer.op == "LSTM":
        build.states.append(State(c_slot, hidden, d, count, read.c_0, layer.c_n, f"{label}.c{d or ''}"))
    return h_slot, c_slot


def _mask(build: Builder, layer: Recurrent, d: int) -> int:
    """Add the slot of a direction's mask, if it has one; return its number or -1."""
    if not layer.inputs.mask:
        return -1
    slot = build.slot(Slot(f"{layer.label} mask {d}", "external", 1))
    build.masks.append((slot, layer.inputs.mask, layer.directions[d] == "reverse"))
    return slot


def _input_bias(layer: Recurrent, constants: Mapping[str, Array]) -> Array:
    """Return the bias of a recurrent layer's input projection, [directions, gates * H].

    A GRU's b_hn is not part of it if the reset gate multiplies it; if the reset comes before the product, b_in and b_hn
    are both added here. Sums that are normalised first have no bias.
    """
    directions, hidden, gates = len(layer.directions), layer.hidden_size, layer.gates
    bias = constants.get(layer.inputs.bias)
    if bias is None:
        return np.zeros((directions, gates * hidden), np.float32)
    inside = np.array(bias[:, : gates * hidden], np.float32)
    if layer.inputs.norm:
        inside[:] = 0.0
    if layer.op == "GRU" and not layer.reset_after:
        inside[:, 2 * hidden :] += bias[:, 3 * hidden :]
    return inside


def _activations(layer: Recurrent, d: int) -> tuple[tuple[str, float | None, float | None], ...]:
    """Return the activations of direction `d` with all their parameters, so that equal functions share a kernel."""
    found = []
    for name, *given in layer.activations[d]:
        alpha, beta = (
            None if default is None else float(default if value is None else value)
            for value, default in zip([*given, None, None][:2], ACTIVATIONS[name].defaults, strict=True)
        )
        found.append((name, alpha, beta))
    return tuple(found)
