"""A segment's program as a Python built-in: how inputs and outputs connect to its slots and states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.program.memory import aligned_zeros
from fastlstm.runtime.bound import Instance
from fastlstm.runtime.connections import Connections, Port, axes_of, check_state
from fastlstm.runtime.native import Call, Copy, Lengths, Mask, Value, Wiring, entry, never
from fastlstm.typing import Array

__all__ = ["sequence_wiring", "stream_entry"]

Place = tuple[int, str, int]  # slot, axes, features (0: ids)

FLOAT, FLAG, LONG = np.dtype(np.float32), np.dtype(np.bool_), np.dtype(np.int64)
WHOLE_NUMBERS: Mapping[str, np.dtype[Any]] = {"int32": np.dtype(np.int32), "int64": LONG}
MOST_STAGED = 1 << 22  # most elements of staging memory, for values whose rows are sorted or whose ids are widened


def stream_entry(
    connections: Connections, program: Instance, outputs: Sequence[str], steps: int, time_axis: bool, batch_axis: bool
) -> Call:
    """Return a built-in that continues from the states in `program`.

    Parameters
    ----------
    outputs : sequence of str
        In the order in which they are returned.
    steps : int
        Time steps of a call; 0 for any number.
    time_axis, batch_axis : bool
        Whether arrays have a time axis and a batch axis; an axis of size 1 may be left out.
    """
    sizes = {"T": steps or None, "B": program.used, "1": 1}
    dropped = ("" if time_axis else "T1") + ("" if batch_axis else "B1")
    tables = connections.tables
    if connections.masks or connections.lengths or connections.flat or not outputs:
        return never
    if any(not place[2] and place[0] not in tables for place in connections.inputs.values()):
        return never
    inputs = [_value(program, name, place, sizes, tables, dropped) for name, place in connections.inputs.items()]
    made = [_value(program, name, connections.outputs[name], sizes, {}, dropped) for name in outputs]
    in_place = len(inputs) == len(made) == 1
    return entry(program, Wiring(inputs, made, steps=steps, bare=True, in_place=in_place))


def sequence_wiring(
    connections: Connections,
    program: Instance,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    constants: Mapping[str, Array],
    steps: int,
) -> Wiring | None:
    """Return how a model's values connect to a program for whole sequences; None if some cannot be connected.

    If rows have to be sorted or ids widened, the staging memory is for `steps` time steps.
    """
    dtypes = {spec.name: spec.dtype for spec in inputs}
    given = {state.given for state in connections.states if state.given and state.given not in constants}
    roles = [
        *connections.inputs,
        *given,
        *filter(None, [connections.lengths]),
        *{name for _, name, _ in connections.masks},
    ]
    shown = {state.shown for state in connections.states if state.shown}
    asked = [spec.name for spec in outputs]
    if connections.flat or sorted(roles) != sorted(dtypes) or len(set(asked)) < len(asked) or not asked:
        return None
    if not all(name in connections.outputs or name in shown for name in asked):
        return None
    sizes = {"T": None, "B": program.used, "1": 1}
    tables = connections.tables
    named = {name: _value(program, name, place, sizes, tables) for name, place in connections.inputs.items()}
    for state in connections.states:
        if state.given in given:
            named[state.given] = _state(state.given, state.directions, program.used, state.width)
    if connections.lengths:
        dtype = WHOLE_NUMBERS.get(dtypes[connections.lengths], FLOAT)
        named[connections.lengths] = Value(connections.lengths, dtype, (program.used,), axes=(None, 0))
    for _, name, _ in connections.masks:
        named[name] = Value(name, FLAG, (None, program.used), axes=(0, 1))
    values = [_as_declared(named[spec.name], spec) for spec in inputs]
    known = [value for value in values if value is not None]
    fixed = _steps_of(inputs, known) if len(known) == len(values) else None
    if fixed is None or any(not value.ids and value.slot and value.dtype != FLOAT for value in known):
        return None
    made = [
        _value(program, name, connections.outputs[name], sizes, {})
        if name in connections.outputs
        else next(_state(name, s.directions, program.used, s.width) for s in connections.states if s.shown == name)
        for name in asked
    ]
    wiring = Wiring(known, made, steps=fixed, **_copies(connections, program, known, made, constants))
    return _with_memory(connections, program, wiring, max(steps, fixed))


def _value(
    program: Instance,
    name: str,
    place: Place,
    sizes: Mapping[str, int | None],
    tables: Mapping[int, int],
    dropped: str = "",
) -> Value:
    """Return an input or output whose rows the program reads or writes in place."""
    slot, axes, features = place
    kept = "".join(axis for axis in axes if axis not in dropped)
    shape = tuple(features if axis == "F" else sizes[axis] for axis in kept)
    return Value(
        name,
        FLOAT if features else LONG,
        shape,
        program.slot_address(slot),
        axes_of(kept),
        dense=features > 0,
        row_bytes=4 * features if features else 8,
        ids=0 if features else tables.get(slot, 0),
    )


def _state(name: str, directions: int, batch: int, width: int) -> Value:
    return Value(name, FLOAT, (directions, batch, width), dense=True)


def _as_declared(value: Value, spec: Port) -> Value | None:
    """Return the value with the dtype that the model declares, None if the entry does not read it."""
    if value.ids and spec.dtype in WHOLE_NUMBERS:
        return value._replace(dtype=WHOLE_NUMBERS[spec.dtype])
    return value if value.dtype == spec.dtype and len(value.shape) == len(spec.shape) else None


def _steps_of(inputs: Sequence[Port], values: Sequence[Value]) -> int | None:
    """Return the time steps if the model fixes them, 0 if not; None if an entry cannot check them."""
    meaning: dict[str, int | None] = {}
    steps = 0 if any(None in value.shape for value in values) else 1
    for spec, value in zip(inputs, values, strict=True):
        if len(spec.shape) != len(value.shape) or "..." in spec.shape:
            return None
        for dim, size in zip(spec.shape, value.shape, strict=True):
            if isinstance(dim, int):
                if size is None and steps in (0, dim) and dim > 0:
                    steps = dim
                elif size != dim:
                    return None
            elif dim and meaning.setdefault(dim, size) != size:
                return None
    return steps


def _copies(
    connections: Connections,
    program: Instance,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, Array],
) -> dict[str, Any]:
    """Return the copies that set the states before a run, and those that return them afterwards."""
    number = {value.name: i for i, value in enumerate(inputs)}
    place = {value.name: i for i, value in enumerate(outputs)}
    before, after = [], []
    for state in connections.states:
        rows, nbytes = program.rows(state.slot)[: program.used], 4 * state.width
        if not state.given:
            before.append(Copy(-1, rows, 0))
        elif state.given in number:
            before.append(Copy(number[state.given], rows, state.direction, nbytes))
        else:
            start = np.asarray(constants[state.given], np.float32)
            check_state(state, start, program.used)
            start = np.broadcast_to(start[state.direction], (program.used, state.width))
            before.append(Copy(np.ascontiguousarray(start), rows, 0, nbytes))
        if state.shown in place:
            after.append(Copy(place[state.shown], rows, state.direction, nbytes))
    return {"before": before, "after": after}


def _with_memory(connections: Connections, program: Instance, wiring: Wiring, steps: int) -> Wiring | None:
    """Return the wiring with the memory that lengths, masks and 32-bit ids need; None if that is too much."""
    rows = program.used
    number = {value.name: i for i, value in enumerate(wiring.inputs)}

    def moves(value: Value) -> bool:
        return value.slot != 0 and bool(connections.lengths or (value.ids and value.dtype != LONG))

    def staged(values: Sequence[Value]) -> Iterator[Value]:
        for value in values:
            words = steps * rows * value.row_bytes // 4
            yield value._replace(stage=aligned_zeros(words, np.int32)) if moves(value) else value

    widest = max((value.row_bytes for value in (*wiring.inputs, *wiring.outputs) if moves(value)), default=0)
    if not (widest or connections.masks):
        return wiring
    if steps * rows * max(widest, 8) > 4 * MOST_STAGED:
        return None
    masks = [
        Mask(number[name], program.slot_address(slot), aligned_zeros((steps, rows), np.int64), backwards)
        for slot, name, backwards in connections.masks
    ]
    lengths = None
    if connections.lengths:
        memory = [aligned_zeros(size, np.int64) for size in (steps + 1, steps + 1, rows)]
        lengths = Lengths(number[connections.lengths], *memory)
    inputs, outputs = tuple(staged(wiring.inputs)), tuple(staged(wiring.outputs))
    return wiring._replace(inputs=inputs, outputs=outputs, masks=masks, lengths=lengths, room=steps)
