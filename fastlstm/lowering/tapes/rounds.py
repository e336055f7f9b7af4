"""Loop and Scan on a tape: the body is recorded once and runs once per iteration, which is called a round here.

The round's number, the states and the slices of scanned values lie in memory of the body's own. A round copies its
slices, runs the body, stores its collected outputs and passes the states on. If all of that is instructions, the whole
loop is one instruction of the tape around it (`fastlstm.kernels.rounds`); otherwise Python runs the recorded steps
round by round.

The number of rounds is found while recording. If the body decides it, every run checks that it is the same; if not,
`SizesChangedError` makes `fastlstm.lowering.tapes.by_shape` record again, this time without the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.graph import Graph, Node
from fastlstm.lowering.tapes.recorder import five, loops
from fastlstm.lowering.tapes.runner import Recordings, Runner
from fastlstm.lowering.tapes.steps import NotLoweredError, Recorded, SizesChangedError, Value
from fastlstm.operators.sizes import checked_rounds
from fastlstm.program.arguments.arrays import Advance, MoveSlice, Run, Verify
from fastlstm.program.memory import aligned_zeros, memory_of
from fastlstm.program.program import Body, Instruction, place
from fastlstm.typing import Array

__all__ = ["record_rounds"]

Values = dict[str, Value]

MOST_NATIVE = 1 << 20
"""Most rounds of one native call, which cannot be interrupted; a file may ask for any number."""


@dataclass
class _Loop:
    """A Loop or Scan during recording.

    Attributes
    ----------
    outer, inner : Recordings
        Of the graph around, and of the body.
    states : list of (Value, Value)
        Initial values, and where the body reads them.
    slices : list of (array, Value)
        Scanned values with the scanned axis first, and where the body reads a slice.
    after, collected : list of Value
        The body's outputs: new states, and values to collect.
    decision : Value or None
        Whether another round follows, if the body decides.
    most : int or None
        Most rounds.
    """

    node: Node
    outer: Recordings
    inner: Recordings
    number: Array
    states: list[tuple[Value, Value]]
    slices: list[tuple[Array, Value]]
    most: int | None
    after: list[Value] = field(default_factory=list)
    collected: list[Value] = field(default_factory=list)
    decision: Value | None = None
    count: int = 0
    stacked: list[Array] = field(default_factory=list)


def record_rounds(
    outer: Recordings, runner: Runner, node: Node, operands: Sequence[Value | None], values: Values
) -> list[Value] | None:
    """Record a Loop or Scan and return its outputs; None if `fastlstm.operators` has to run it."""
    body: Graph = node.attrs["body"]
    if any(c is not None and not isinstance(c.array, np.ndarray) for c in operands):
        return None
    loop = _begun(outer, runner, node, operands)
    if loop is None:
        return None
    inner, inside = loop.inner, dict(values)
    given = [value for _, value in loop.states] + [value for _, value in loop.slices]
    if node.op == "Loop":
        given = [Value(loop.number.reshape(()), fixed=False), Value(np.array(True), fixed=True), *given]
    inside.update((spec.name, value) for spec, value in zip(body.inputs, given, strict=True))
    for _ in range(2):  # a state's memory is never shared with another value: it is written at the end of the round
        inner.hold(given)
    for initial, value in loop.states:
        np.copyto(value.array, initial.array)
    for source, value in loop.slices:
        _move(loop, source, source.strides[0], value.array, 0)
    made = inner.graph(runner.body(body), inside)
    inner.flush()
    if node.op == "Loop":
        loop.decision, *made = made
        if not isinstance(loop.decision.array, np.ndarray) or loop.decision.array.size != 1:
            return None  # with its own message
        if loop.decision.fixed:
            if loop.most is None or not loop.decision.array.reshape(-1)[0]:
                return None
            loop.decision = None
    loop.after, loop.collected = made[: len(loop.states)], made[len(loop.states) :]
    if not all(_fits(a, b) for a, (_, b) in zip(loop.after, loop.states, strict=True)):
        return None
    if not all(isinstance(c.array, np.ndarray) for c in loop.collected):
        return None
    return _finished(loop)


def _begun(outer: Recordings, runner: Runner, node: Node, operands: Sequence[Value | None]) -> _Loop | None:
    """Return the loop with memory for its body's inputs; None if it runs no round or reads what cannot be copied."""
    inner = outer.inner(runner.body(node.attrs["body"]))
    number = aligned_zeros(1, np.int64)
    inner.rec.written.append(number)
    slices: list[tuple[Array, Value]] = []
    if node.op == "Loop":
        trips, going, *initial = operands
        if not all(c is None or (isinstance(c.array, np.ndarray) and c.array.size == 1) for c in (trips, going)):
            return None  # with its own message
        expected = [None if c is None else _expect(outer, node, c) for c in (trips, going)]
        if expected[1] == 0:
            return None
        most = expected[0]
    else:
        scanned = int(node.attrs["num_scan_inputs"])
        initial = list(operands[: len(operands) - scanned])
        axes = node.attrs.get("scan_input_axes") or [0] * scanned
        turns = node.attrs.get("scan_input_directions") or [0] * scanned
        for source, axis, turned in zip(operands[len(operands) - scanned :], axes, turns, strict=True):
            front = None if source is None else _in_front(outer, source, int(axis), bool(turned))
            if front is None:
                return None
            slices.append((front, _room(inner, front.shape[1:], front.dtype)))
        lengths = {len(front) for front, _ in slices}
        if len(lengths) != 1:
            return None  # with its own message
        most = lengths.pop()
    if most is not None and most < 1:
        return None
    if any(c is None or not _movable(c.array) for c in initial):
        return None
    states = [(c, _room(inner, c.array.shape, c.array.dtype)) for c in initial if c is not None]
    return _Loop(node, outer, inner, number, states, slices, most)


def _expect(outer: Recordings, node: Node, value: Value) -> int:
    """Return a value that decides the number of rounds; every run checks that it is the same."""
    if value.fixed:
        return int(value.array.reshape(-1)[0])
    outer.needs_python(f"{node.op} '{node.name or node.output(0)}', whose data decide how often it runs,")
    outer.flush()
    found = int(value.array.reshape(-1)[0])

    def step() -> None:
        if int(value.array.reshape(-1)[0]) != found:
            raise SizesChangedError(id(node))

    outer.tape.steps.append(step)
    return found


def _in_front(outer: Recordings, value: Value, axis: int, turned: bool) -> Array | None:
    """Return a scanned value with the scanned axis first, in permanent memory; None if kernels cannot copy it."""
    if not value.array.ndim or not -value.array.ndim <= axis < value.array.ndim:
        return None
    array = outer.rec.padded(value) if value.is_float else value.array
    front = np.moveaxis(array, axis, 0)
    if turned:
        front = front[::-1]
    return front if len(front) and _movable(front[0, ...]) else None


def _movable(array: Array) -> bool:
    """Whether a value can be copied as 32-bit words."""
    return array.dtype == np.float32 or (array.dtype.itemsize in (4, 8) and array.flags.c_contiguous)


def _words(array: Array) -> Array:
    """Return a value as 32-bit words, to be copied."""
    return array if array.dtype == np.float32 else array.reshape(-1).view(np.float32)


def _room(inner: Recordings, shape: Sequence[int], dtype: Any) -> Value:
    """Return memory of the body's own."""
    if dtype == np.float32:
        return inner.rec.memory(shape)
    array = aligned_zeros(tuple(shape), dtype)
    inner.rec.written.append(memory_of(array))
    return Value(array, fixed=False)


def _fits(after: Value, before: Value) -> bool:
    a, b = after.array, before.array
    return isinstance(a, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype and _movable(a)


def _finished(loop: _Loop) -> list[Value] | None:
    """Count the rounds, allocate memory for what they collect, and add the loop to the tape around it."""
    inner, outer = loop.inner, loop.outer
    body_steps, body_run = list(inner.tape.steps), list(inner.history)
    handed = len(body_run)
    _hand_on(loop)
    inner.flush()
    hand_on = inner.history[handed:]
    loop.count = _counted(loop, [*body_steps, *inner.tape.steps[len(body_steps) :]])
    if not all(_movable(value.array) for value in loop.collected):
        return None
    for value in loop.collected:
        made = _room(outer, (loop.count, *value.array.shape), value.array.dtype)
        loop.stacked.append(made.array)
    placing = _placing(loop)
    inner.tape.watch(outer.tape)
    outer.rec.nbytes += inner.rec.nbytes
    for initial, value in loop.states:
        outer.rec.copy(_steady(outer, initial), _words(value.array))
    if all(isinstance(step, Recorded) for step in body_steps) and loop.count <= MOST_NATIVE:
        _emit(loop, [*body_run, *placing, *hand_on])
    else:
        _call(loop, body_steps, [*placing, *hand_on])
    return [*_finals(loop), *_axes(loop)]


def _steady(outer: Recordings, initial: Value) -> Array:
    """Return an initial value as words in permanent memory."""
    if initial.is_float:
        return outer.rec.padded(initial)
    array = initial.array
    if initial.fixed:
        array = np.ascontiguousarray(array)
    return _words(array)


def _move(loop: _Loop, x: Array, x_step: int, out: Array, out_step: int) -> None:
    """Emit a copy of a slice of x, or into a slice of out, at the round's number; both have the slice's shape.

    The array whose step is not 0 is given whole, with the rounds on its first axis.
    """
    rec = loop.inner.rec
    source = _words(x[0, ...]) if x_step else _words(x)
    target = _words(out[0, ...]) if out_step else _words(out)
    if not target.size:
        return
    sizes, steps = loops(target.shape, source.strides, target.strides)
    words = five(sizes, *steps)
    if words is None:
        raise NotLoweredError("A slice of a loop has more axes than a kernel has loops.")
    args = MoveSlice(place(loop.number), place(source), x_step, place(target), out_step, *words)
    rec.emit("rounds.move", (rec.target.lanes,), args)


def _hand_on(loop: _Loop) -> None:
    """Emit the copies of the new states to the place from which the next round reads them."""
    rec = loop.inner.rec
    pairs = []
    for number, (after, (_, before)) in enumerate(zip(loop.after, loop.states, strict=True)):
        source = _steady(loop.inner, after)
        others = [value.array for i, (_, value) in enumerate(loop.states) if i != number]
        if any(np.may_share_memory(source, other) for other in others):
            aside = rec.memory(source.shape).array
            rec.copy(source, aside)
            source = aside
        pairs.append((source, _words(before.array)))
    for source, target in pairs:
        if place(source) != place(target) or source.strides != target.strides:
            rec.copy(source, target)


def _counted(loop: _Loop, steps: Sequence[Callable[[], None]]) -> int:
    """Run the rounds after the first and return their number; run none if it is known."""
    if loop.decision is None and loop.most is not None:
        return _allowed(loop.most)
    loop.outer.needs_python(f"{loop.node.op} '{loop.node.name}', whose body decides how often it runs,")
    count = 1
    while (loop.decision is None or bool(loop.decision.array.reshape(-1)[0])) and count != loop.most:
        loop.number[0] = count
        for step in steps:
            step()
        count = _allowed(count + 1)
    return count


def _allowed(rounds: int) -> int:
    try:
        return checked_rounds(rounds)
    except ValueError as error:  # run from Python, the operator reports it by name
        raise NotLoweredError(str(error)) from None


def _placing(loop: _Loop) -> list[Instruction]:
    """Return the instructions that store what a round collects and check what it decides."""
    rec = loop.inner.rec
    for value, stacked in zip(loop.collected, loop.stacked, strict=True):
        source = rec.padded(value) if value.is_float else value.array
        _move(loop, source, 0, stacked, stacked.strides[0])
    if loop.decision is not None:
        flag = aligned_zeros(1, np.int64)
        rec.written.append(flag)
        loop.inner.tape.flags.append((flag, id(loop.node)))
        last = int(loop.count == loop.most)
        args = Verify(place(loop.decision.array), place(loop.number), loop.count, last, place(flag))
        rec.emit("rounds.verify", (), args)
    return rec.flushed()


def _emit(loop: _Loop, instructions: list[Instruction]) -> None:
    """Make the loop one instruction of the tape around it."""
    rec, number = loop.outer.rec, place(loop.number)
    advance = Instruction("rounds.advance", (), Advance(number, further=1))
    program = loop.inner.program([advance, *instructions])
    macs = sum(step.macs for step in program.instructions)
    rec.written += program.scratch
    rec.emit("rounds.advance", (), Advance(number, further=0))
    body = Body(program, loop.count, 1, loop.inner.workers(macs))
    rec.emit("rounds.repeat", (), Run(body), loop.count * macs)


def _call(loop: _Loop, body: Sequence[Callable[[], None]], instructions: list[Instruction]) -> None:
    """Make the loop a step in Python: rounds of the body's own steps."""
    outer = loop.outer
    steps = list(body)
    if instructions:
        steps.append(Recorded(loop.inner.bound(instructions)))
    outer.flush()

    def step() -> None:
        for number in range(loop.count):
            loop.number[0] = number
            for each in steps:
                each()

    step()
    outer.tape.steps.append(step)


def _finals(loop: _Loop) -> list[Value]:
    return [Value(value.array, fixed=False, padded=value.padded) for _, value in loop.states]


def _axes(loop: _Loop) -> list[Value]:
    """Return the collected values, with the rounds on the axis and in the order that the node asks for."""
    count = len(loop.stacked)
    axes = loop.node.attrs.get("scan_output_axes") or [0] * count
    turns = loop.node.attrs.get("scan_output_directions") or [0] * count
    found = []
    for array, axis, turned in zip(loop.stacked, axes, turns, strict=True):
        ordered = array[::-1] if turned else array
        found.append(Value(np.moveaxis(ordered, 0, int(axis)), fixed=False, padded=array.dtype == np.float32))
    return found
