"""The recurrence of each kind of layer as an instruction: its kernel, its arguments, its packed weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm.lowering.pack import gate_panels, gate_rows, gate_tail, panels_of, plain_panels
from fastlstm.lowering.segments import small, small_gru
from fastlstm.lowering.segments.builder import Builder, packed_panels, quantised
from fastlstm.lowering.segments.direction import Direction
from fastlstm.program.arguments.rows import GRU, LSTM, RNN, Normalised, Projected, ResetBefore
from fastlstm.program.memory import aligned, aligned_zeros
from fastlstm.program.program import Instruction, Slot
from fastlstm.target import WeightFormat
from fastlstm.typing import Array

__all__ = ["recurrence"]


def recurrence(build: Builder, one: Direction, bits: int) -> Instruction:
    """Return the recurrence of a direction whose input weights have `bits` bits."""
    layer, target = one.layer, build.target
    if layer.op == "LSTM":
        kind = _projected if layer.inputs.w_hr else _normalised if layer.inputs.norm else _lstm
        step = kind(build, one)
        if small.fits(layer, bits):
            passes = small.passes_of(one.hidden, target)
            step = replace(step, alone=(small.recurrence(one, passes),), note=passes.note)
        return step
    if layer.op == "GRU" and not layer.reset_after:
        return _reset_before(build, one)
    step, start = _gru(build, one) if layer.op == "GRU" else _rnn(build, one)
    if small_gru.fits(layer, bits, target):
        alone, note = small_gru.alone(one, start, target)
        step = replace(step, alone=(alone,), note=note)
    return step


def _weights(build: Builder, one: Direction, rows: slice, gates: int) -> tuple[Array, WeightFormat]:
    """Return the recurrent weights of some gates as panels, and their format."""
    lanes, scale = build.target.lanes, build.graph.constants.get(one.layer.inputs.w_hh_scale)
    scales = None if scale is None else gate_rows(scale[one.d][rows], gates, lanes)
    weight = one.w_hh[rows]
    return packed_panels(build.target, one.w_hh, gate_panels(weight, gates, lanes), scales, recurrent=True)


def _step(build: Builder, one: Direction, kernel: str, options: tuple[Any, ...], args: Any, **more: Any) -> Instruction:
    """Return the instruction; `more` holds its unusual fields."""
    lanes, target = build.target.lanes, build.target
    usual = {"macs": int(one.w_hh.size), "weight_bytes": args.weights.nbytes, "panels": float(one.panels(lanes))}
    constants = (lanes, target.max_sums, one.activations, one.clip, *options)
    return Instruction(kernel, constants, args, one.layer.op, **{**usual, **more})


def _shared(one: Direction, weights: Array, panels: int, last_width: int) -> tuple[Any, ...]:
    """Return the arguments that all recurrences share."""
    return (
        one.z, one.y, one.y_bytes, one.size, weights, panels, last_width, one.h, one.c, one.reverse, one.mask,
    )  # fmt: skip


def _narrow(form: WeightFormat, k: int) -> dict[str, Any]:
    values, note = quantised(form, k)
    return {"quantised": values, "note": note}


def _lstm(build: Builder, one: Direction) -> Instruction:
    lanes, layer = build.target.lanes, one.layer
    coupled, masked = layer.input_forget, one.mask >= 0
    peephole, tail = build.graph.constants.get(layer.inputs.peephole), one.tail(lanes)
    weights, form = _weights(build, one, slice(None), 4)
    panels = panels_of(one.size, lanes)
    if tail:
        whole, rest = gate_tail(np.asarray(one.w_hh, np.float32), 4, lanes)
        weights = aligned(np.concatenate([whole.reshape(-1), rest.reshape(-1)]))
        units = one.hidden % lanes
        stored = units if len(layer.directions) > 1 else lanes
        args = LSTM._make((*_shared(one, weights, panels - 1, lanes), 0, units, stored))
        note = f"gates of the last {units} units share {tail} vector{'s' * (tail > 1)}"
        return _step(
            build, one, "recurrent.lstm", (False, False, masked, form, tail), args,
            panels=panels - 1 + tail / 4, note=note,
        )  # fmt: skip
    peepholes = 0 if peephole is None else gate_rows(np.asarray(peephole[one.d]), 3, lanes)
    args = LSTM._make((*_shared(one, weights, panels, one.last_width), peepholes, 0, 0))
    options = (coupled, peephole is not None, masked, form)
    return _step(build, one, "recurrent.lstm", options, args, **_narrow(form, one.size))


def _projected(build: Builder, one: Direction) -> Instruction:
    lanes, layer, constants = build.target.lanes, one.layer, build.graph.constants
    peephole, scale = constants.get(layer.inputs.peephole), constants.get(layer.inputs.w_hr_scale)
    weights, form = _weights(build, one, slice(None), 4)
    scales = None if scale is None else plain_panels(scale[one.d].reshape(1, one.size), 1, lanes)
    weight = constants[layer.inputs.w_hr]
    columns = plain_panels(np.asarray(weight[one.d].T, np.float32), 1, lanes)
    projection, projection_form = packed_panels(build.target, weight, columns, scales)
    unprojected = build.slot(Slot(f"{layer.label} unprojected {one.d}", "row", one.panels(lanes) * lanes))
    peepholes = 0 if peephole is None else gate_rows(np.asarray(peephole[one.d]), 3, lanes)
    args = Projected._make((
        *_shared(one, weights, panels_of(one.size, lanes), one.last_width),
        peepholes, unprojected, projection, one.hidden, one.panels(lanes),
    ))  # fmt: skip
    options = (layer.input_forget, peephole is not None, one.mask >= 0, form, projection_form)
    longest = max(one.size if form.bits < 32 else 0, one.hidden if projection_form.bits < 32 else 0)
    macs = int(one.w_hh.size) + one.size * one.hidden
    return _step(build, one, "projected.lstm", options, args, macs=macs, **_narrow(min(form, projection_form), longest))


def _normalised(build: Builder, one: Direction) -> Instruction:
    lanes, layer, constants, H = build.target.lanes, one.layer, build.graph.constants, one.hidden
    bias = constants.get(layer.inputs.bias)
    weights, form = _weights(build, one, slice(None), 4)
    wide = one.panels(lanes) * lanes
    sums = build.slot(Slot(f"{layer.label} recurrent sums {one.d}", "row", 4 * wide))
    cells = build.slot(Slot(f"{layer.label} new cells {one.d}", "row", 2 * wide))
    scale, h_scale, c_scale, c_bias = np.split(
        np.asarray(constants[layer.inputs.norm][one.d], np.float32), (4 * H, 8 * H, 9 * H)
    )
    of_gates = (scale, h_scale, np.zeros(4 * H) if bias is None else np.asarray(bias[one.d]))
    args = Normalised._make((
        *_shared(one, weights, one.panels(lanes), one.last_width), sums, cells, H,
        *(gate_rows(row, 4, lanes) for row in of_gates), *(gate_rows(row, 1, lanes) for row in (c_scale, c_bias)),
    ))  # fmt: skip
    options = (layer.norm_epsilon, one.mask >= 0, form)
    return _step(build, one, "normalised.lstm", options, args, **_narrow(form, one.size))


def _gru(build: Builder, one: Direction) -> tuple[Instruction, Array]:
    lanes, hidden, bias = build.target.lanes, one.hidden, build.graph.constants.get(one.layer.inputs.bias)
    b_hn = np.zeros(hidden) if bias is None else np.asarray(bias[one.d][3 * hidden :])
    start = gate_rows(np.concatenate([np.zeros(2 * hidden), b_hn]), 3, lanes)
    weights, form = _weights(build, one, slice(None), 3)
    args = GRU._make((*_shared(one, weights, one.panels(lanes), one.last_width), start))
    return _step(build, one, "gru.gru", (one.mask >= 0, form), args, **_narrow(form, one.size)), start


def _reset_before(build: Builder, one: Direction) -> Instruction:
    lanes, hidden = build.target.lanes, one.hidden
    wide = one.panels(lanes) * lanes
    weights, form = _weights(build, one, slice(2 * hidden), 2)
    new_weights, _ = _weights(build, one, slice(2 * hidden, None), 1)
    reset = build.slot(Slot(f"{one.layer.label} reset {one.d}", "row", wide))
    shared = _shared(one, weights, one.panels(lanes), one.last_width)
    args = ResetBefore._make((*shared, new_weights, reset, aligned_zeros(2 * wide, np.float32)))
    return _step(build, one, "gru.reset_before", (one.mask >= 0, form), args, **_narrow(form, one.size))


def _rnn(build: Builder, one: Direction) -> tuple[Instruction, Array]:
    lanes = build.target.lanes
    zeros = aligned_zeros(one.panels(lanes) * lanes, np.float32)
    weights, form = _weights(build, one, slice(None), 1)
    args = RNN._make((*_shared(one, weights, one.panels(lanes), one.last_width), zeros))
    return _step(build, one, "rnn.rnn", (one.mask >= 0, form), args, **_narrow(form, one.size)), zeros
