"""Building a segment's recurrent layers: input projections, recurrences, weights packed for their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import ACTIVATIONS, RECURRENT_OPS, Node
from fastlstm.memory import aligned
from fastlstm.pack import gate_panels, gate_rows, gate_tail, panels_of, plain_panels, tail_vectors
from fastlstm.segments import small, small_gru
from fastlstm.segments.builder import LAST_STAGE, Builder, packed_panels, quantised
from fastlstm.segments.program import Instruction, Slot, address_of
from fastlstm.segments.segment import State

__all__ = ["recurrent"]

Array = npt.NDArray[Any]


def recurrent(build: Builder, node: Node) -> None:
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
    if size % lanes == 0:
        build.exact.add(y_slot)
    if build.lengths not in (None, node.input(4)):
        raise AssertionError(f"layers that read '{build.lengths}' and '{node.input(4)}' as lengths share a segment")
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
        packed, bits = packed_panels(machine, w_ih, gate_panels(w_ih[d], gates, lanes), scales)
        offset = gate_rows(bias[d], gates, lanes)
        args = (x_slot, z_slot, int(w_ih.shape[2]), packed, offset, panels, 0, 1)
        step = Instruction(
            "linear.linear",
            (lanes, gates, machine.max_sums, bits),
            args,
            f"{node.op} input",
            int(w_ih[d].size),
            packed.nbytes,
            *quantised(bits, int(w_ih.shape[2])),
        )
        tail = _tail(node, hidden, bits, lanes)
        if tail:
            whole, rest = gate_tail(np.asarray(w_ih[d], np.float32), gates, lanes)
            whole_bias, rest_bias = gate_tail(bias[d].reshape(-1, 1), gates, lanes)
            args = (*args[:3], whole, whole_bias, panels - 1, 0, 1)
            step = replace(step, args=args, weight_bytes=whole.nbytes, macs=whole.size)
            args = (*args[:3], rest, rest_bias, 1, whole_bias.nbytes, 1)
            rest_step = Instruction(
                "linear.linear", (lanes, tail, machine.max_sums, 32), args, step.label, rest.size, rest.nbytes
            )
            build.emit(mine, rest_step, x_slot, z_slot)
        build.emit(mine, step, x_slot, z_slot)
        _direction(build, node, d, backwards, mine, z_slot, y_slot, size)
        if small.fits(node, hidden, bits):
            _one_row(build, node, d, bias[d], (x_slot, z_slot, y_slot))
        elif small_gru.fits(node, hidden, bits, machine):
            at, general, slots = build.steps[-1]
            alone, note = small_gru.alone(node, w_hh[d], general, _activations(node, d), machine)
            build.steps[-1] = (at, replace(general, alone=(alone,), note=note), slots)
        stage = max(stage, mine)
    build.made(y, y_slot, len(directions) * size, stage)


def _one_row(build: Builder, node: Node, d: int, bias: Array, slots: tuple[int, int, int]) -> None:
    """Let other kernels run a direction of a small LSTM, which was emitted last, where there is one batch row."""
    constants, machine, (x, z, y) = build.graph.constants, build.machine, slots
    w_ih, w_hh = constants[node.input(1)][d], constants[node.input(2)][d]
    passes = small.passes_of(w_hh.shape[1], machine)
    (stage, product, used), (_, recurrence, also) = build.steps[-2:]
    tail = _tail(node, w_hh.shape[1], 32, machine.lanes)
    last_width = recurrence.args[13 if tail else 6]  # see kernels/recurrent.py
    place = (recurrence.args[2], last_width, node.attrs["directions"][d] == "reverse")
    h, c = (state.slot for state in build.states[-2:])
    mask = build.masks[-1][0] if node.input(5) else -1
    alone = small.recurrence_for((w_ih, bias, w_hh), _activations(node, d), passes, (x, z, y, h, c, mask), place)
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
    build: Builder, node: Node, d: int, backwards: bool, stage: int, z_slot: int, y_slot: int, size: int
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
    build.states.append(
        State(h_slot, size, d, len(attrs["directions"]), node.input(6), node.output(1), f"{label}.h{d or ''}")
    )
    if node.op == "LSTM":
        build.states.append(
            State(c_slot, hidden, d, len(attrs["directions"]), node.input(7), node.output(2), f"{label}.c{d or ''}")
        )
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
        return packed_panels(machine, weight, gate_panels(weight[rows], count, lanes), scales, recurrent=True)

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
            projection, projection_bits = packed_panels(machine, constants[node.input(9)], projected, scales)
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
    values, narrow_note = (0, "") if tail else quantised(min(bits, *more, 32), max(longest, default=0))
    step = Instruction(
        kernel, kernel_constants, args, node.op, macs, packed.nbytes, values, note or narrow_note, panels
    )
    build.emit(stage, step, *used)
