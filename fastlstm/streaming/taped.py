"""A pool's step with a tape: states go from their stores into its inputs, and from its outputs back into the stores.

If the tape is one native call, a program around it gathers the states, runs it and scatters them, so that the step is
one native call too. Any other tape runs from Python, with NumPy moving its states.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from fastlstm.lowering.tapes.by_shape import Tapes, give, lend
from fastlstm.lowering.tapes.entry import is_plain, only_program
from fastlstm.lowering.tapes.recorder import Recorder
from fastlstm.lowering.tapes.steps import SizesChangedError, Tape
from fastlstm.program import layout
from fastlstm.program.arguments.rows import Pooled, PooledState
from fastlstm.program.memory import address_of, aligned_zeros
from fastlstm.program.program import Argument, Instruction, Program, Slot, Stage, Table, place
from fastlstm.program.protected import CHECKING
from fastlstm.runtime.native import Call, Copy, Value, Wiring, entry, never
from fastlstm.runtime.program import BoundProgram
from fastlstm.streaming.layouts import Layout
from fastlstm.streaming.stores import Store
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Step", "TapedStep"]


class Step(NamedTuple):
    """A step as the caller of a pool sees it, whose arrays have the streams first.

    Attributes
    ----------
    frames : mapping of str to array
        The frames of a call.
    shown : mapping of str to array
        Its outputs, in the model's order.
    states : sequence of str
        The states that it returns after them, by their inputs.
    layouts : mapping of str to Layout
        Layouts of frames and outputs.
    """

    frames: Mapping[str, Array]
    shown: Mapping[str, Array]
    states: Sequence[str]
    layouts: Mapping[str, Layout]


class TapedStep:
    """One call of the model for a number of streams.

    Parameters
    ----------
    found : tuple
        What `Tapes.find` returns for the call's inputs.
    step : Step
        An example of the call; calls whose frames choose another tape do not use this one.
    stores : mapping of str to Store
        The states by the names of their inputs.
    rows : array
        The list of rows that the pool's programs gather and scatter.
    target : Target

    Attributes
    ----------
    call : Call
        A built-in that does the step for the streams in `rows`; `native.never` if there is none, or not yet.
    """

    def __init__(
        self,
        found: tuple[Tapes, Hashable, tuple[str, ...]],
        step: Step,
        stores: Mapping[str, Store],
        rows: Array,
        target: Target,
    ) -> None:
        self._tapes, self._key, self._names = found
        self._stores, self._rows, self._target = stores, rows, target
        self._states, self._layouts = step.states, step.layouts
        # Values that are not copied into the tape have selected it.
        self._frames = [
            Value(name, array.dtype, array.shape, whole=True, equal=None if name in self._names else np.array(array))
            for name, array in step.frames.items()
        ]
        self._made = [Value(name, array.dtype, array.shape, whole=True) for name, array in step.shown.items()]
        self._known: Tape | None = None
        self.call: Call = never

    @contextmanager
    def withheld(self) -> Iterator[None]:
        """Keep other calls from taking the tape that this one uses."""
        tape = self._known
        if tape is None or not lend(tape):
            yield
            return
        try:
            yield
        finally:
            give(tape)

    def run(self, numbers: Array, frames: Mapping[str, Array]) -> dict[str, Array] | None:
        """Advance streams by the caller's frames; return the outputs, or None if there is no tape for them.

        States change once everything has been computed.
        """
        self._rows[0] = len(numbers)
        self._rows[1 : 1 + len(numbers)] = numbers
        done = self.call(frames)
        if done is not None:
            return done if len(self._made) > 1 else {self._made[0].name: done}
        tape = self._tapes.take(self._key)
        if tape is None:
            return None
        try:
            return self._played(tape, numbers, frames)
        except SizesChangedError as changed:
            self._tapes.forget(self._key, tape, changed)  # it is recorded anew
            return None
        finally:
            give(tape)

    def _played(self, tape: Tape, numbers: Array, frames: Mapping[str, Array]) -> dict[str, Array]:
        if tape is not self._known:
            self._look_at(tape)
        for target, name in self._given:
            np.copyto(target, self._layouts[name].as_model(frames[name]))
        for target, store in self._taken:
            store.take(numbers, target)
        tape.play()
        shown = {name: np.array(self._layouts[name].as_rows(a), order="C") for name, a in self._shown.items()}
        for store, array, cells in self._put:
            if cells is None:
                store.put(numbers, store.fitting(array, len(numbers)))
            else:
                store.put_cells(numbers, cells)
        return shown

    def _look_at(self, tape: Tape) -> None:
        """Record where a tape's inputs and outputs lie, and make a native call of the tape if it is the first."""
        places = dict(zip(self._names, tape.inputs, strict=True))
        self._given = [(place, name) for name, place in places.items() if name not in self._stores]
        self._taken = [(place, self._stores[name]) for name, place in places.items() if name in self._stores]
        arrays = [cell.array for cell in tape.outputs]
        self._shown = {value.name: array for value, array in zip(self._made, arrays, strict=False)}
        after = zip(self._states, arrays[len(self._made) :], strict=True)
        self._put = [(self._stores[name], array, self._stores[name].cells(array)) for name, array in after]
        if self._known is None:
            self.call = self._native(tape)
        self._known = tape

    def _native(self, tape: Tape) -> Call:
        """Return the built-in that does the step with this tape, `native.never` if part of it needs Python.

        Anything that may be refused after states have moved needs Python too: an index out of range, another number of
        iterations.
        """
        recorded = only_program(tape)
        gathered, scattered = [(s, a) for a, s in self._taken], [(s, a) for s, a, _ in self._put]
        arrays = [*(array for array, _ in self._given), *self._shown.values()]
        if CHECKING or recorded is None or tape.flags or tape.watched or not all(map(is_plain, arrays)):
            return never
        if not all(store.moves(array) for store, array in (*gathered, *scattered)):
            return never
        values = {value.name: value for value in (*self._frames, *self._made)}
        into, out_of = (Recorder(self._target, 1, {}) for _ in range(2))
        before, after = [], []
        for array, name in self._given:
            there = self._beside(name, values[name], array)
            if there is None:
                return never
            if there is not array:
                into.copy(self._layouts[name].as_model(there), array)
            before.append(Copy([value.name for value in self._frames].index(name), there))
        for number, (name, array) in enumerate(self._shown.items()):
            there = self._beside(name, values[name], array)
            if there is None:
                return never
            if there is not array:
                out_of.copy(self._layouts[name].as_rows(array), there)
            after.append(Copy(number, there))
        program = self._around(recorded.program, gathered, scattered, into.flushed(), out_of.flushed())
        return entry(program, Wiring(self._frames, self._made, before, after, steps=1, bare=True), tape.busy)

    def _beside(self, name: str, value: Value, array: Array) -> Array | None:
        """Return memory for a value in the caller's layout: the tape's own if the bytes are the same.

        None if it would have to be transposed, which no kernel does.
        """
        shape = tuple(size or 0 for size in value.shape)
        turned = self._layouts[name].as_model(np.empty(shape, value.dtype))
        if turned.flags.c_contiguous:
            return array
        return aligned_zeros(shape, value.dtype) if value.dtype == np.float32 else None

    def _around(
        self,
        inside: BoundProgram,
        gathered: Sequence[tuple[Store, Array]],
        scattered: Sequence[tuple[Store, Array]],
        into: Sequence[Instruction],
        out_of: Sequence[Instruction],
    ) -> BoundProgram:
        """Return a tape's program with moves of states and frames into it before, and out of it after."""
        places: list[Array] = []

        def moving(kernel: str, states: Sequence[tuple[Store, Array]]) -> Instruction:
            words: list[Argument] = []
            for whole, part in (pair for store, array in states for pair in store.pieces_of(array)):
                words += PooledState(len(places), place(whole), whole.strides[0], whole.strides[0] // 4)
                places.append(part)
            return Instruction(kernel, (self._target.lanes,), Pooled(place(self._rows), len(words) // 4, Table(words)))

        first, last = moving("gather.gather", gathered), moving("gather.scatter", scattered)
        slots = tuple(Slot("state", "external", part.strides[0] // 4) for part in places)
        stages = (
            Stage(layout.ONCE, (first, *into)), *inside.program.stages, Stage(layout.ONCE, (*out_of, last))
        )  # fmt: skip
        program = BoundProgram(Program(self._target, slots, stages, inside.program.scratch), 1, inside.workers)
        for slot, part in enumerate(places):
            program.place(slot, address_of(part), 0, part.strides[0])
        return program
