"""Tapes: a model of more than recurrent layers as a list of kernel calls, for inputs of one shape.

Once the sizes of all inputs are known, so are all other sizes, and whatever depends only on sizes is a constant. A
`Tape` is recorded while the model runs for the first time on inputs of a shape: operators that have kernels
(`EMITTERS`) become instructions with fixed addresses, a segment becomes one instruction, everything else becomes a
call of `fastlstm.operators`. Running a tape does nothing else. Consecutive instructions are one native call.

Whether a tape is kept or recorded for every call, the kernels and their order are the same, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm import operators
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Node, outer_values
from fastlstm.lowering.tapes import EMITTERS
from fastlstm.lowering.tapes.recorder import FINE, Recorder
from fastlstm.lowering.tapes.rounds import record_rounds
from fastlstm.lowering.tapes.runner import Runner
from fastlstm.lowering.tapes.steps import NotLoweredError, Recorded, SizesChangedError, Tape, Value
from fastlstm.program import layout
from fastlstm.program.arguments.arrays import MaskCodes, Run
from fastlstm.program.memory import aligned_zeros, memory_of
from fastlstm.program.program import Body, Instruction, Place, Program, Stage, place
from fastlstm.runtime.clock import marked
from fastlstm.runtime.connections import axes_of, check_state
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.segment import Segment
from fastlstm.typing import Array

__all__ = ["Recording", "record", "record_program"]

WORTH_WORKERS = 200_000  # multiply-adds of a tape that several threads may run


class Recording:
    """Follows a runner's plan for inputs of known shapes.

    A recording that is not `live` computes nothing: it is for another machine, and refuses what has no kernel.
    """

    def __init__(self, runner: Runner, packed: dict[Hashable, Any], live: bool = True) -> None:
        self.tape = Tape()
        self.packed = packed
        self.live = live
        self.history: list[Instruction] = []  # instructions that are part of a step already
        self.clock = runner.clock
        self.rec = Recorder(runner.plan.target, runner.threads, packed)
        if not live:
            self.rec.grain = FINE  # an exported model may take any amount of memory, whatever this machine has
        self.readers: dict[int, int] = {}  # memory -> the named values in it
        self.owned: dict[int, Array] = {}

    def inner(self, runner: Runner) -> Recording:
        """Return a recording for the body of a loop, with memory of its own."""
        return Recording(runner, self.packed, self.live)

    def input(self, array: Array) -> Value:
        """Return the value of an input, in memory that every run writes first."""
        if array.dtype == np.float32:
            value = self.rec.memory(array.shape)
        else:
            value = self._integers(array.shape, array.dtype)
        np.copyto(value.array, array)
        self.tape.inputs.append(value.array)
        return value

    def _integers(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Value:
        """Return memory for an array of another type than float32."""
        array = aligned_zeros(shape, dtype)
        self.rec.written.append(memory_of(array))
        return Value(array, fixed=False)

    def graph(self, runner: Runner, values: dict[str, Value]) -> list[Value]:
        """Follow a graph's parts; `values` holds its inputs and the outer values it reads, and receives its values."""
        for name, array in runner.graph.constants.items():
            values[name] = Value(array, fixed=True, shared=True)
        own = {spec.name for spec in runner.graph.inputs}
        for number, part in enumerate(runner.plan.parts):
            self.rec.layer = part.names[0] if isinstance(part, Segment) else part.name or part.first_output
            try:
                made = self._segment(part, values) if isinstance(part, Segment) else self._node(runner, part, values)
            except MemoryError as error:
                raise InputError(f"There is not enough memory for the values of '{self.rec.layer}': {error}") from error
            for name, value in made.items():
                if name:
                    value.sole = runner.reads[name] == 1
                    self._name(name, value, values)
            own.update(made)
            for name in own.intersection(runner.last_use.get(number, ())):
                self._forget(values.pop(name, None))
            self._reclaim()
        return [values[spec.name] for spec in runner.graph.outputs]

    def _name(self, name: str, value: Value, values: dict[str, Value]) -> None:
        values[name] = value
        if value.padded:
            base = memory_of(value.array)
            self.readers[id(base)] = self.readers.get(id(base), 0) + 1

    def _forget(self, value: Value | None) -> None:
        if value is None or not value.padded:
            return
        key = id(memory_of(value.array))
        self.readers[key] -= 1
        if not self.readers[key] and key in self.owned:
            self.rec.release(self.owned.pop(key))

    def _reclaim(self) -> None:
        """Release the values that only the last part used."""
        for flat in self.rec.taken():
            if self.readers.get(id(flat)):
                self.owned[id(flat)] = flat
            else:
                self.rec.release(flat)
        self.rec.node_done()

    def whole(self, value: Value) -> Value:
        """Return an output in contiguous memory."""
        if not value.is_float or not value.padded or value.array.flags.c_contiguous:
            return value
        return Value(self.rec.contiguous(value), fixed=value.fixed, padded=True)

    def hold(self, operands: Sequence[Value]) -> None:
        """Keep the memory of values for the tape's lifetime."""
        for value in operands:
            if value.padded:
                base = memory_of(value.array)
                self.readers[id(base)] = self.readers.get(id(base), 0) + 1
        self._reclaim()

    def _node(self, runner: Runner, node: Node, values: dict[str, Value]) -> dict[str, Value]:
        operands = [values[name] if name else None for name in node.inputs]
        around = [values[name] for name in outer_values(node) if name in values]
        fixed = all(c is None or c.fixed for c in [*operands, *around])
        if node.op == "If" and operands[0] is not None and operands[0].fixed:
            return self._branch(runner, node, values, bool(np.asarray(operands[0].array).reshape(-1)[0]))
        if node.op in ("Shape", "Size") or fixed:
            results = self._evaluate(runner, node, operands, values)
            return {n: Value(v, fixed=True) for n, v in zip(node.outputs, results, strict=False)}
        if node.op in ("Loop", "Scan") and id(node) not in self.packed:
            rounds = self._rounds(runner, node, operands, values)
            if rounds is not None:
                return dict(zip(node.outputs, rounds, strict=False))
        made = self._emitted(node, operands)
        return self._called(runner, node, operands, values) if made is None else made

    def _rounds(
        self, runner: Runner, node: Node, operands: Sequence[Value | None], values: dict[str, Value]
    ) -> list[Value] | None:
        """Return the outputs of a loop that was recorded, None if it cannot be."""
        try:
            return record_rounds(self, runner, node, operands, values)
        except (InputError, NotLoweredError, SizesChangedError):
            return None  # errors of a body that has not yet run on real values mean nothing

    def _emitted(self, node: Node, operands: Sequence[Value | None]) -> dict[str, Value] | None:
        """Return the outputs of a node whose instructions were added, None if it has none."""
        emitter = EMITTERS.get(node.op)
        if emitter is None or any(c is not None and isinstance(c.array, list) for c in operands):
            return None  # a sequence cannot be an operand of a kernel
        before = len(self.rec.pending)
        try:
            made = emitter(self.rec, node, operands)
        except NotLoweredError:
            made = None
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # Sizes that do not fit one another: the operator says it in a sentence. If it does not, the mistake is
            # ours, and is raised as it is.
            operators.evaluate(node, [None if c is None else c.array for c in operands])
            raise
        if made is None or any(node.outputs[len(made) :]):  # evaluating it says what is wrong with so many outputs
            del self.rec.pending[before:]
            return None
        return dict(zip(node.outputs, made, strict=False))

    def _branch(self, runner: Runner, node: Node, values: dict[str, Value], condition: bool) -> dict[str, Value]:
        """Follow the body selected by a condition that is known already."""
        body = runner.body(node.attrs["then_branch" if condition else "else_branch"])
        inner = dict(values)
        outputs = self.graph(body, inner)
        return dict(zip(node.outputs, outputs, strict=False))

    def _evaluate(
        self, runner: Runner, node: Node, operands: Sequence[Value | None], values: Mapping[str, Value]
    ) -> Sequence[Any]:
        given = [None if c is None else c.array for c in operands]
        if node.op in RECURRENT_OPS:
            self.needs_python(f"{node.op} '{node.name or node.output(0)}', whose weights are computed,")
            named = {name: c.array for name, c in zip(node.inputs, operands, strict=True) if c is not None}
            made = runner.repacked(node, named)
            return [made.get(name) for name in node.outputs]
        outer = {name: values[name].array for name in outer_values(node) if name in values}
        return operators.evaluate(node, given, lambda body, bound: runner.body(body).run(bound, outer=outer))

    def _called(
        self, runner: Runner, node: Node, operands: Sequence[Value | None], values: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Run a node through NumPy, now and in every run."""
        self.needs_python(f"{node.op} '{node.name or node.output(0)}'")
        self.flush()
        around = {name: values[name] for name in outer_values(node) if name in values}
        results = self._evaluate(runner, node, operands, around)
        made = {name: self._kept(v) for name, v in zip(node.outputs, results, strict=False) if name}
        targets = [made.get(name) for name in node.outputs]

        def step() -> None:
            for target, array in zip(targets, self._evaluate(runner, node, operands, around), strict=False):
                if target is not None:
                    _put(target.array, array)

        self._add(step, node.op)
        return made

    def _add(self, step: Callable[[], None], what: str) -> None:
        """Add a step that runs in Python."""
        clock, layer = self.clock, self.rec.layer

        def timed() -> None:
            step()
            if clock is not None:
                clock.note(layer, what)

        self.tape.steps.append(step if clock is None else timed)

    def _kept(self, result: Any) -> Value:
        """Return a value that holds a NumPy result in permanent memory."""
        if not isinstance(result, np.ndarray):  # a sequence: its arrays may lie in memory that is released before it
            self.tape.reusable = False
            return Value([np.array(item) for item in result], fixed=False)
        shape, dtype = result.shape, result.dtype
        made = self.rec.memory(shape) if dtype == np.float32 else self._integers(shape, dtype)
        np.copyto(made.array, result)
        return made

    def _segment(self, segment: Segment, values: Mapping[str, Value]) -> dict[str, Value]:
        if segment.flat:
            return self._flat(segment, values)
        operands = {name: values[name] for name in segment.inputs}
        arrays = {name: value.array for name, value in operands.items()}
        given = [values[s.given].array for s in segment.states if s.given]
        usual = all(
            isinstance(a, np.ndarray) and a.ndim == len(axes) and a.dtype == (np.float32 if features else np.int64)
            and (not features or a.shape[-1] == features)
            for a, (_, axes, features) in zip(arrays.values(), segment.inputs.values(), strict=True)
        )  # fmt: skip
        usual = usual and all(a.dtype == np.float32 and a.ndim == 3 for a in given)
        if not usual or segment.lengths:
            return self._whole(segment, values)
        steps, batch = segment.sizes(arrays)
        masks = [values[name].array for _, name, _ in segment.masks]
        if not steps or not batch or not all(m.dtype == np.bool_ and m.shape == (steps, batch) for m in masks):
            return self._whole(segment, values)
        return self._instruction(segment, values, steps, batch)

    def _flat(self, segment: Segment, values: Mapping[str, Value]) -> dict[str, Value]:
        """Run a dense layer whose rows lie along any axes, as if all of them were time steps."""
        ((name, (_, _, features)),) = segment.inputs.items()
        ((shown, (_, _, width)),) = segment.outputs.items()
        value = values[name]
        if not value.is_float or not value.array.size or value.array.shape[-1:] != (features,):
            return self._whole(segment, values)
        rows = self.rec.contiguous(value).reshape(-1, 1, features)
        made = self._instruction(segment, {name: Value(rows, fixed=False, padded=True)}, len(rows), 1)[shown]
        return {shown: Value(made.array.reshape(*value.array.shape[:-1], width), fixed=False, padded=True)}

    def _whole(self, segment: Segment, values: Mapping[str, Value]) -> dict[str, Value]:
        """Run a segment by a call from Python, now and in every run."""
        self.needs_python(f"'{', '.join(segment.names)}'")
        self.flush()
        names = [*segment.inputs, *(s.given for s in segment.states), segment.lengths, *(m[1] for m in segment.masks)]
        used = {name: values[name] for name in names if name}
        results = segment.run({name: value.array for name, value in used.items()})
        made = {name: self._kept(v) for name, v in results.items()}

        def step() -> None:
            for name, array in segment.run({name: value.array for name, value in used.items()}).items():
                _put(made[name].array, array)

        self._add(step, "segment")
        return made

    def _instruction(self, segment: Segment, values: Mapping[str, Value], steps: int, batch: int) -> dict[str, Value]:
        """Make a segment's program an instruction; its arrays and states are copied if they are not in place."""
        rec = self.rec
        workers = rec.workers if segment.workers(batch) == rec.workers else 1
        places = {}
        for name, (slot, axes, features) in segment.inputs.items():
            array = rec.contiguous(values[name]) if features else np.ascontiguousarray(values[name].array)
            if not features and array is not values[name].array:
                return self._whole(segment, values)
            places[slot] = _placed(array, axes)
        made = {}
        for name, (slot, axes, features) in segment.outputs.items():
            shape = tuple({"T": steps, "B": batch, "F": features, "1": 1}[axis] for axis in axes)
            made[name] = rec.memory(shape)
            places[slot] = _placed(made[name].array, axes)
        states = {}
        for state in segment.states:
            width = segment.program.slots[state.slot].stride
            states[state.slot] = rows = rec.memory((batch, width)).array
            places[state.slot] = (place(rows), 0, rows.strides[0])
            rec.fill(rows, 0.0)
            if state.given:
                array = rec.padded(values[state.given])
                check_state(state, array, batch)
                rec.copy(array[state.direction], rows[:, : state.width])
        for slot, name, backwards in segment.masks:
            mask, codes = values[name].array, aligned_zeros((steps, batch), np.int64)
            places[slot] = (place(codes), codes.strides[0], codes.strides[1])
            rec.written.append(memory_of(codes))
            rec.nbytes += codes.nbytes
            args = MaskCodes(place(mask), place(codes), steps, batch, mask.strides[0], mask.strides[1], int(backwards))
            rec.emit("integers.mask_codes", (), args)
        body = Body(_external(segment.program, states), steps, batch, workers, places)
        macs = steps * batch * sum(step.macs for step in segment.program.instructions)
        rec.emit("nested.nested", (), Run(body), macs)
        for state in segment.states:
            if state.shown:
                if state.shown not in made:
                    made[state.shown] = rec.memory((state.directions, batch, state.width))
                rec.copy(states[state.slot][:, : state.width], made[state.shown].array[state.direction])
        return made

    def needs_python(self, what: str) -> None:
        """Refuse what runs in Python if there is no Python at run time.

        Raises
        ------
        UnsupportedError
            If the recording is not `live`.
        """
        if not self.live:
            raise UnsupportedError(
                f"{what} has no native code for these shapes and types: it runs in Python, so the model cannot be "
                "exported."
            )

    def flush(self) -> None:
        """Run the pending instructions and make them a step."""
        if not self.rec.pending:
            return
        instructions = self.rec.flushed()
        self.history += instructions
        if not self.live:
            return
        step = Recorded(self.bound(instructions))
        self.tape.steps.append(step)
        step()

    def program(self, instructions: Sequence[Instruction]) -> Program:
        """Return the program of instructions that run once each."""
        return Program(self.rec.target, (), (Stage(layout.ONCE, tuple(instructions)),), tuple(self.rec.written))

    def workers(self, macs: int) -> int:
        """Return how many threads may run `macs` multiply-adds."""
        return self.rec.workers if macs >= WORTH_WORKERS else 1

    def bound(self, instructions: Sequence[Instruction]) -> BoundProgram:
        """Return instructions bound to the memory they were recorded with, watched by the tape."""
        macs = sum(i.macs for i in instructions)
        program = self.program(instructions)
        bound = BoundProgram(program if self.clock is None else marked(program, self.clock), 1, self.workers(macs))
        bound.macs = macs
        self.rec.nbytes += bound.nbytes()
        self.tape.watched += [program for program in bound.family() if program.complains]
        return bound


def _placed(array: Array, axes: str) -> tuple[Place, int, int]:
    """Return where an array lies, and the bytes from one time step and from one row to the next."""
    time, row = (0 if axis is None else array.strides[axis] for axis in axes_of(axes))
    return place(array), time, row


def _external(program: Program, slots: Container[int]) -> Program:
    """Return a program whose states lie in the memory of the one around it."""
    moved = tuple(replace(slot, kind="external") if i in slots else slot for i, slot in enumerate(program.slots))
    return replace(program, slots=moved)


def record(runner: Runner, inputs: Mapping[str, Array], packed: dict[Hashable, Any]) -> tuple[Tape, list[Any]]:
    """Run a runner's graph and return its tape and the outputs; a model's tapes share `packed`."""
    recording = Recording(runner, packed)
    values = {name: recording.input(array) for name, array in inputs.items()}
    recording.hold(list(values.values()))
    outputs = recording.graph(runner, values)
    tape = recording.tape
    tape.outputs = [recording.whole(value) for value in outputs]
    recording.flush()
    tape.nbytes = recording.rec.nbytes
    tape.check()
    return tape, tape.results()


def record_program(
    runner: Runner, inputs: Mapping[str, Array], packed: dict[Hashable, Any]
) -> tuple[Program, list[Array], list[Any]]:
    """Return the whole graph as one program for the plan's target, and where its inputs and outputs lie.

    Nothing is computed: the target may be another machine.

    Raises
    ------
    UnsupportedError
        If a node has no kernel, or decides by its data what is computed; the message names it.
    """
    recording = Recording(runner, packed, live=False)
    values = {name: recording.input(array) for name, array in inputs.items()}
    for _ in range(2):  # an input's memory is never reused for another value: it may be a state
        recording.hold(list(values.values()))
    outputs = recording.graph(runner, values)
    recording.hold(outputs)
    recording.flush()
    return recording.program(recording.history), recording.tape.inputs, [value.array for value in outputs]


def _put(target: Any, value: Any) -> None:
    if not isinstance(value, np.ndarray) or value.shape != target.shape or value.dtype != target.dtype:
        raise SizesChangedError
    np.copyto(target, value)
