"""A segment: recurrent layers and the operators around them, as stages of kernel calls.

A stage processes the time steps block by block: all its layers for one block, then the next block, so that values
passed between layers stay in the cache. A reverse direction needs a stage of its own; values that cross stages are
stored for all time steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError, counted
from fastlstm.program import layout
from fastlstm.program.memory import guarded
from fastlstm.program.program import Program, Stage
from fastlstm.runtime import team
from fastlstm.runtime.connections import Connections, State, axes_of, check_state
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.split import SplitProgram, worth_splitting

__all__ = ["COMPLAINT", "Segment"]

Array = npt.NDArray[Any]
COMPLAINT = (
    "An id lies outside its embedding table. Expected ids from 0 to the number of rows less one "
    "(or negative ids counted from the end); check the vocabulary that the ids were made with."
)
"""What a program's nonzero status means."""
MOST_SIZES = 16  # most batch sizes with programs of their own
MOST_MET = 256  # most batch sizes remembered as seen
WORTH_A_WORKER = 25_000  # multiply-adds per time step, about a microsecond: a phase of shares costs a third of that


@dataclass(frozen=True)
class Segment:
    """Stages, slots, and how a model's values connect to them."""

    program: Program
    inputs: Mapping[str, tuple[int, str, int]]  # value -> slot, axes, features (0: ids)
    outputs: Mapping[str, tuple[int, str, int]]
    states: tuple[State, ...]
    lengths: str
    masks: tuple[tuple[int, str, bool], ...]  # slot, value, backwards
    needs_step: str  # name of a layer that needs at least one time step, "" if none
    names: tuple[str, ...]
    kernels: Mapping[str, str]  # first output of a node -> the kernel that computes it, if one does
    threads: int = 1  # the most that the caller allows
    flat: bool = False  # one input and one output, whose axes are all rows except the last
    _programs: dict[int, list[BoundProgram]] = field(default_factory=dict, repr=False, compare=False)  # by rows
    _shared: dict[int, list[BoundProgram]] = field(default_factory=dict, repr=False, compare=False)  # for up to so many
    _met: set[int] = field(default_factory=set, repr=False, compare=False)  # numbers of rows seen once

    def __repr__(self) -> str:
        steps = list(self.program.instructions)
        layers = sum(step.recurrent for step in steps)
        return (
            f"<Segment ({', '.join(self.inputs)}) -> ({', '.join(self.outputs)}): {len(steps)} instructions, "
            f"{layers} of them recurrent, {sum(step.macs for step in steps):,} multiply-adds a time step, "
            f"{counted(self.threads, 'thread')} at most>"
        )

    def connections(self) -> Connections:
        """Return how its slots connect to values."""
        tables: dict[int, int] = {}
        for step in self.program.instructions:
            if step.kernel == "movement.embed":
                ids, rows = step.args.ids, step.args.rows  # type: ignore[attr-defined]
                tables[ids] = min(rows, tables.get(ids, rows))
        return Connections(self.inputs, self.outputs, self.states, self.lengths, self.masks, self.flat, tables)

    def bound(self, batch: int, before: Sequence[Stage] = (), after: Sequence[Stage] = ()) -> BoundProgram:
        """Return a new bound program for `batch` rows, with more stages before and after the segment's."""
        stages = (*before, *self.program.stages, *after)
        return BoundProgram(replace(self.program, stages=stages), batch, self.workers(batch))

    def least_bytes(self, batch: int) -> int:
        """Return the least memory that a program for `batch` rows takes: one time step of each buffer, and scratch."""
        strides = [slot.stride for slot in self.program.slots if slot.kind in ("time", "row")]
        return batch * (4 * sum(strides) + 8 * 6 * max(strides, default=1))

    def bound_for_sequences(self, batch: int) -> BoundProgram:
        """Return a program for whole sequences of `batch` rows, divided among workers in the better way."""
        kind = SplitProgram if self.splits(batch) else BoundProgram
        return kind(self.program, batch, self.workers(batch))

    def programs(self, batch: int) -> Sequence[BoundProgram]:
        """Return the programs that run whole sequences of `batch` rows from now on, each for one call at a time.

        They include programs for other numbers of rows only if this number gets none because too many others have some.
        """
        if batch in self._programs or len(self._programs) < MOST_SIZES:
            return self._programs.get(batch, ())
        return self._shared.get(_room(batch), ())

    def _take(self, batch: int) -> BoundProgram:
        """Return a program whose busy flag has been set; the caller clears it."""
        exact = self.flat or self.splits(batch) or _room(batch) == batch or self._comes_again(batch)
        rows = batch if exact else _room(batch)
        kept = (self._programs if exact else self._shared).setdefault(rows, [])
        for program in kept:
            try:
                del program.busy.free
            except AttributeError:
                continue
            break
        else:
            program = self.bound(rows) if self.flat or not exact else self.bound_for_sequences(rows)
            del program.busy.free
            kept.append(program)
        if not exact and program.used != batch:
            program.use(batch)
        return program

    def _comes_again(self, batch: int) -> bool:
        """Whether a number of rows gets programs of its own: when seen again, unless too many others have some."""
        if batch in self._programs:
            return True
        if batch in self._met and len(self._programs) < MOST_SIZES:
            return True
        if len(self._met) >= MOST_MET:
            self._met.clear()
        self._met.add(batch)
        return False

    def splits(self, batch: int) -> bool:
        """Whether workers divide the batch's rows instead of the hidden units of every step."""
        recurrent = [i for i in self.program.instructions if i.recurrent]
        largest = max(recurrent, key=lambda i: i.macs, default=None)
        if largest is None or self.lengths:
            return False
        return worth_splitting(batch, largest.panels, self.workers(batch), largest.quantised > 0, largest.work)

    def workers(self, batch: int) -> int:
        """Return how many threads are worth using: they synchronise at every time step."""
        if not team.available():
            return 1
        recurrent = [i.work for i in self.program.instructions if i.recurrent]
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
        program = self._take(batch)
        try:
            self._set_states(program, values, batch, order)
            self._set_masks(program, values, steps, batch, lengths, order)
            active = None
            if lengths is not None and order is not None:
                ended = np.searchsorted(lengths[order[::-1]], np.arange(steps), side="right")
                active = np.append(batch - ended, 0)
            result = self.advance(program, arrays, steps, batch, active, order)
            for state in self.states:
                if state.shown:
                    part = program.rows(state.slot)[:batch, : state.width]
                    whole = result.setdefault(state.shown, np.empty((state.directions, batch, state.width), np.float32))
                    whole[state.direction] = part if order is None else part[np.argsort(order)]
        finally:
            program.busy.free = None
        return result

    def _run_flat(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run over all rows of the only value as if they were time steps."""
        ((name, (_, axes, features)),) = self.inputs.items()
        ((shown, _),) = self.outputs.items()
        array = np.asarray(values[name])
        width = array.shape[-1] if array.ndim else 1
        rows = _rows_array(array.reshape(math.prod(array.shape[:-1]), 1, width), axes, features, name)
        program = self._take(1)
        try:
            result = self.advance(program, {name: rows}, len(rows), 1)[shown]
        finally:
            program.busy.free = None
        return {shown: result.reshape(*array.shape[:-1], result.shape[-1])}

    def advance(
        self,
        program: BoundProgram,
        arrays: Mapping[str, Array],
        steps: int,
        batch: int,
        active: Array | None = None,
        order: Array | None = None,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run `program`, which the caller owns, from the states it holds; return the outputs."""
        result: dict[str, Array] = {}
        held = []  # keeps the arrays that slots point to alive
        for name, (slot, axes, _) in self.inputs.items():
            array = arrays[name]
            if order is not None:
                array = np.ascontiguousarray(np.take(array, order, axis=axes.index("B")))
            array = guarded(array)
            held.append(array)
            program.bind(slot, array, *axes_of(axes))
        sizes = {"T": steps, "B": batch, "1": 1}
        for name, (slot, axes, features) in self.outputs.items():
            shape = [sizes.get(axis, features) for axis in axes]
            target = guarded(np.empty(shape, np.float32)) if out is None else out[name]
            result[name] = target
            program.bind(slot, target, *axes_of(axes))
        if batch and (steps or not self.needs_step):
            status = program.drive(steps, active)
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
                f"'{self.lengths}' should hold one integer a batch row, shape [{batch}]; "
                f"got {lengths.dtype}{list(lengths.shape)}."
            )
        if batch and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
            raise InputError(
                f"'{self.lengths}' should lie between 0 and the {steps} time steps given; "
                f"got {int(lengths.min())} to {int(lengths.max())}."
            )
        return lengths.astype(np.int64)

    def _set_states(self, program: BoundProgram, values: Mapping[str, Any], batch: int, order: Array | None) -> None:
        for state in self.states:
            rows = program.rows(state.slot)[:batch]
            rows[:] = 0
            if not state.given:
                continue
            given = np.asarray(values[state.given], np.float32)
            check_state(state, given, batch)
            part = np.broadcast_to(given[state.direction], (batch, state.width))
            rows[:, : state.width] = part if order is None else part[order]

    def _set_masks(
        self,
        program: BoundProgram,
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
                # Steps past a row's end do not count: a backward direction would see them first.
                mask = (mask & (np.arange(steps)[:, None] < lengths))[:, order]
            seen = np.logical_or.accumulate(mask[::-1] if backwards else mask, axis=0) if steps else mask
            codes = np.where(mask, 1, np.where(seen[::-1] if backwards else seen, 2, 0)).astype(np.int64)
            program.bind(slot, codes, 0, 1)
            program.keep(slot, codes)

    def as_data(self) -> list[dict[str, Any]]:
        """Return one dict for each instruction that does arithmetic or moves data."""
        names = {layout.BLOCK: "", layout.REVERSE: "backwards", layout.ONCE: "once"}
        return [
            {
                "name": step.layer,
                "step": step.label,
                "kernel": step.kernel,
                "macs": step.macs,
                "bytes": step.weight_bytes,
                "tile": f"{stage.rows} rows a block",
                "note": " ".join(filter(None, (names[stage.kind], step.note))),
            }
            for stage in self.program.stages
            for step in stage.instructions
        ]


def _room(batch: int) -> int:
    """Return how many rows a program for `batch` rows allocates: few different numbers, so that few programs are kept.

    Up to an eighth more than `batch`; below 16, where the number decides which kernels run, exactly `batch`.
    """
    step = 1 << max(0, batch.bit_length() - 4)
    return -(-batch // step) * step


def _rows_array(value: Any, axes: str, features: int, name: str) -> Array:
    """Return the value as a contiguous array of the kernels' dtype, its rank and features checked."""
    if isinstance(value, list):
        raise InputError(f"'{name}' is a sequence of {len(value)} arrays where one array was expected.")
    array = np.ascontiguousarray(value, np.float32 if features else np.int64)
    if array.ndim != len(axes) or (features and array.shape[-1] != features):
        wanted = ", ".join({"T": "time", "B": "batch", "F": str(features)}[axis] for axis in axes)
        raise InputError(f"'{name}' should have the shape [{wanted}]; got {list(np.shape(value))}.")
    return array
