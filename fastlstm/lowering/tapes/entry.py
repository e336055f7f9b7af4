"""A tape as a Python built-in, if all of it is one native call: inputs are copied in, outputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.graph import TensorSpec
from fastlstm.lowering.tapes.steps import Recorded, Tape
from fastlstm.program import layout
from fastlstm.program.memory import address_of
from fastlstm.runtime.native import Call, Copy, Value, Wiring, entry, never
from fastlstm.typing import Array

__all__ = ["as_value", "is_plain", "only_program", "steered_entry", "tape_entry"]


def tape_entry(tape: Tape, inputs: Sequence[str], outputs: Sequence[TensorSpec]) -> Call:
    """Return a built-in that runs a tape for the named inputs; `native.never` if some of it runs in Python."""
    names = [spec.name for spec in outputs]
    program = only_program(tape)
    arrays = [value.array for value in tape.outputs]
    if program is None or len(set(names)) < len(names) or not all(map(is_plain, [*tape.inputs, *arrays])):
        return never
    frames = [frame for watched in tape.watched for frame in watched.frames]
    watched = [address_of(frame) + 8 * layout.STATUS for frame in frames]
    tape.wiring = Wiring(
        [as_value(name, array) for name, array in zip(inputs, tape.inputs, strict=True)],
        [as_value(name, array) for name, array in zip(names, arrays, strict=True)],
        [Copy(number, array) for number, array in enumerate(tape.inputs)],
        [Copy(number, array) for number, array in enumerate(arrays)],
        steps=1,
        watched=[*watched, *(address_of(flag) for flag, _ in tape.flags)],
    )
    return entry(program.program, tape.wiring, tape.busy)


def steered_entry(tape: Tape, inputs: Sequence[TensorSpec], fixed: Mapping[str, Array]) -> Call:
    """Return a built-in for a tape of the model with some inputs as constants, if they have these values."""
    program = only_program(tape)
    if program is None or tape.wiring is None or not all(map(is_plain, fixed.values())):
        return never
    known = {value.name: (number, value) for number, value in enumerate(tape.wiring.inputs)}
    values, places = [], {}
    for number, spec in enumerate(inputs):
        if spec.name in fixed:
            array = np.array(fixed[spec.name], order="C")
            values.append(as_value(spec.name, array)._replace(equal=array))
        else:
            place, value = known[spec.name]
            places[place] = number
            values.append(value)
    before = [copy._replace(value=places[copy.value]) for copy in tape.wiring.before]  # type: ignore[index]
    return entry(program.program, tape.wiring._replace(inputs=values, before=before), tape.busy)


def only_program(tape: Tape) -> Recorded | None:
    """Return the native call that is the whole tape, None if there are more."""
    step = tape.steps[0] if len(tape.steps) == 1 else None
    return step if isinstance(step, Recorded) else None


def is_plain(array: Any) -> bool:
    """Whether an entry can copy a value byte for byte."""
    return isinstance(array, np.ndarray) and array.flags.c_contiguous and array.dtype == np.dtype(array.dtype.char)


def as_value(name: str, array: Array) -> Value:
    """Return an input or output that is copied as a whole."""
    return Value(name, np.dtype(array.dtype.char), array.shape, whole=True)
