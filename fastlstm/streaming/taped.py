"""A pool's step by a tape: states go from their stores into its inputs, and from its outputs back into the stores.

Where a tape is one native call, a program around it gathers the states, runs it and scatters them, so that a step is
one native call too. Any other is played from Python, its states moved by NumPy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.arguments.rows import Pooled, PooledState
from fastlstm.memory import address_of
from fastlstm.native import Call, Copy, Value, Wiring, entry, never
from fastlstm.program import Argument, Instruction, Program, Slot, Stage, Table, place
from fastlstm.protected import CHECKING
from fastlstm.segments.program import BoundProgram
from fastlstm.streaming.stores import Store
from fastlstm.tapes.by_shape import Tapes, give
from fastlstm.tapes.entry import as_value, is_plain, only_program
from fastlstm.tapes.steps import SizesChangedError, Tape

__all__ = ["TapedStep"]

Array = npt.NDArray[Any]


class TapedStep:
    """One call of the model for so many streams.

    Parameters
    ----------
    found : tuple
        What `Tapes.find` says of the call's inputs.
    stores : mapping of str to Store
        The states by the names of their inputs, as they follow the frames and, among the results, the outputs.
    frames : mapping of str to array
        Those of a call; calls with others that choose another tape are not for this step.
    taken : mapping of str to tuple of int
        The shapes in which the model takes them.
    shown : mapping of str to tuple of int
        The shapes of the outputs, in the model's order.
    rows : array
        The list of rows that the pool's programs gather and scatter.

    Attributes
    ----------
    call : Call
        A built-in that does the step for the streams in `rows`; `native.never` if there is none, or not yet.
    """

    def __init__(
        self,
        found: tuple[Tapes, Hashable, tuple[str, ...]],
        stores: Mapping[str, Store],
        frames: Mapping[str, Array],
        taken: Mapping[str, tuple[int, ...]],
        shown: Mapping[str, tuple[int, ...]],
        rows: Array,
    ) -> None:
        self._tapes, self._key, self._names = found
        self._stores, self._taken_as, self._shown_as, self._rows = stores, taken, shown, rows
        # What is not copied into the tape has chosen it.
        self._frames = [
            Value(name, array.dtype, array.shape, whole=True, equal=None if name in self._names else np.array(array))
            for name, array in frames.items()
        ]
        self._known: Tape | None = None
        self.call: Call = never

    def run(self, numbers: Array, frames: Mapping[str, Array]) -> dict[str, Array] | None:
        """Advance streams by frames as the caller gives them; return the outputs, or None if there is no tape for it.

        States change once everything has been computed.
        """
        self._rows[0] = len(numbers)
        self._rows[1 : 1 + len(numbers)] = numbers
        done = self.call(frames)
        if done is not None:
            return done if len(self._shown_as) > 1 else dict.fromkeys(self._shown_as, done)
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
            np.copyto(target, frames[name].reshape(self._taken_as[name]))
        for target, store in self._taken:
            store.take(numbers, target)
        tape.play()
        shown = {name: np.array(a).reshape(self._shown_as[name]) for name, a in self._shown.items()}
        for store, array, cells in self._put:
            if cells is None:
                store.put(numbers, store.fitting(array, len(numbers)))
            else:
                store.put_cells(numbers, cells)
        return shown

    def _look_at(self, tape: Tape) -> None:
        """Note where a tape has what goes in and what comes out, and make a native call of it if it is the first."""
        places = dict(zip(self._names, tape.inputs, strict=True))
        self._given = [(place, name) for name, place in places.items() if name not in self._stores]
        self._taken = [(places[name], store) for name, store in self._stores.items()]
        arrays = [cell.array for cell in tape.outputs]
        self._shown = dict(zip(self._shown_as, arrays, strict=False))
        after = arrays[len(self._shown) :]
        self._put = [(s, a, s.cells(a)) for s, a in zip(self._stores.values(), after, strict=True)]
        if self._known is None:
            self.call = self._native(tape)
        self._known = tape

    def _native(self, tape: Tape) -> Call:
        """Return the built-in that does the step by this tape, `native.never` if some of it needs Python.

        So does what may be refused once states have moved: an index without anything to point to, another number of
        rounds.
        """
        recorded = only_program(tape)
        moved = [(store, array) for array, store in self._taken] + [(store, array) for store, array, _ in self._put]
        arrays = [*(array for array, _ in self._given), *self._shown.values()]
        if CHECKING or recorded is None or tape.flags or tape.watched or not all(map(is_plain, arrays)):
            return never
        if not all(store.moves(array) for store, array in moved):
            return never
        program = self._around(recorded.program, moved)
        numbers = {value.name: number for number, value in enumerate(self._frames)}
        wiring = Wiring(
            self._frames,
            [as_value(name, array)._replace(shape=self._shown_as[name]) for name, array in self._shown.items()],
            [Copy(numbers[name], array) for array, name in self._given],
            [Copy(number, array) for number, array in enumerate(self._shown.values())],
            steps=1,
            bare=True,
        )
        return entry(program, wiring, tape.busy)

    def _around(self, inside: BoundProgram, moved: Sequence[tuple[Store, Array]]) -> BoundProgram:
        """Return a tape's program between one instruction that gathers states and one that scatters them."""
        places = [(whole, part) for store, array in moved for whole, part in store.pieces_of(array)]
        target, half = inside.program.target, len(places) // 2

        def moving(kernel: str, slots: range) -> Stage:
            words: list[Argument] = []
            for slot in slots:
                whole, _ = places[slot]
                words += PooledState(slot, place(whole), whole.strides[0], whole.strides[0] // 4)
            given = Pooled(place(self._rows), len(slots), Table(words))
            return Stage(layout.ONCE, (Instruction(kernel, (target.lanes,), given),))

        slots = tuple(Slot("state", "external", part.strides[0] // 4) for _, part in places)
        before, after = moving("gather.gather", range(half)), moving("gather.scatter", range(half, len(places)))
        stages = (before, *inside.program.stages, after)
        program = BoundProgram(Program(target, slots, stages, inside.program.scratch), 1, inside.workers)
        for slot, (_, part) in enumerate(places):
            program.place(slot, address_of(part), 0, part.strides[0])
        return program
