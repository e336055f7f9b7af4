"""A program as one function: its stages over blocks of time steps, its instructions as calls of specialised kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.export.assembly import Writer
from fastlstm.export.sharing import SharedKernel
from fastlstm.export.source import Region, Seat
from fastlstm.export.specialise import Answer
from fastlstm.export.struct import Struct
from fastlstm.kernels.compiler import Kernel
from fastlstm.program import layout
from fastlstm.program.program import Argument, Body, Instruction, Place, Program, Stage, Table
from fastlstm.typing import Array

__all__ = ["Unit"]


class Parts(Protocol):
    """What a unit needs from the module it is part of: `fastlstm.export.lowering.Lowering`."""

    bits: int
    struct: Struct
    context_names: list[str]
    scratch_bytes: int
    integer_bytes: int
    counts_runs: bool

    def new_name(self, stem: str) -> str: ...
    def define(self, name: str, out: Writer) -> None: ...
    def kernel(self, kernel: Kernel, name: str, answer: Callable[[str, int | None, str], Answer]) -> None: ...
    def shared_kernel(self, kernel: Kernel) -> SharedKernel | None: ...
    def constant(self, array: Array) -> Seat: ...
    def seat(self, at: Place) -> Seat: ...
    def seated(self, seat: Seat) -> Answer: ...
    def place(self, base: str, offset: int) -> Answer: ...
    def complaint(self) -> Answer: ...


class Unit:
    """A program that runs over `steps` time steps; at most that many if it `varies` from call to call."""

    def __init__(
        self, lowering: Parts, program: Program, batch: int, steps: int, varies: bool, slots: Mapping[int, Seat]
    ) -> None:
        self.lowering, self.program, self.batch, self.steps, self.varies = lowering, program, batch, steps, varies
        self.name = lowering.new_name("unit")
        self.block = min(steps, max((stage.block(batch) for stage in program.stages), default=1))
        self._seats = dict(slots)

    def write(self) -> str:
        """Write the function and those it calls; return its name."""
        out = Writer(self.lowering.bits)
        out.label("entry")
        for stage in self.program.stages:
            self._stage(out, stage)
        out.add("ret void")
        self.lowering.define(self.name, out)
        return self.name

    # ------------------------------------------------------------ control

    def _stage(self, out: Writer, stage: Stage) -> None:
        steps = [self._called(step) for step in stage.chosen(self.batch)]
        block = stage.block(self.batch)
        if stage.kind == layout.ONCE:
            self._block(out, steps, "0", "1")
        elif block >= self.steps:
            self._block(out, steps, "0", self._total)
        else:
            self._blocks(out, stage, steps, block)

    @property
    def _total(self) -> str:
        return "%fl.total" if self.varies else str(self.steps)

    def _blocks(self, out: Writer, stage: Stage, steps: list[Callable[[Writer, str, str], None]], block: int) -> None:
        """Run a stage block by block, forwards or backwards."""
        word, total = out.word, self._total
        whole = out.value(f"add {word} {total}, {block - 1}")
        count = out.value(f"udiv {word} {whole}, {block}")
        with out.loop(count) as i:
            done = out.times(i, block)
            left = out.value(f"sub {word} {total}, {done}")
            less = out.value(f"icmp ult {word} {left}, {block}")
            size = out.value(f"select i1 {less}, {word} {left}, {word} {block}")
            start = done if stage.kind != layout.REVERSE else out.value(f"sub {word} {left}, {size}")
            self._block(out, steps, start, size)

    @staticmethod
    def _block(out: Writer, steps: list[Callable[[Writer, str, str], None]], start: str, count: str) -> None:
        for step in steps:
            step(out, start, count)

    def _call(
        self, out: Writer, name: str, start: str, count: str, total: str, returns: str = "", more: Sequence[str] = ()
    ) -> None:
        known = {"start": start, "steps": count, "total": total}
        words = [*(known.get(n, f"%fl.{n}") for n in self.lowering.context_names), *more]
        out.add(f"call {returns or 'void'} @{name}({', '.join(f'{out.word} {w}' for w in words)})")

    def _called(self, step: Instruction) -> Callable[[Writer, str, str], None]:
        """Return a function that writes the call of an instruction for a range of steps."""
        if step.kernel in ("nested.nested", "rounds.repeat"):
            return self._body(step)
        tables, frame = self._tables(step), _Frame(self, step)
        kernel = Kernel(step.kernel, step.constants)
        shared = self.lowering.shared_kernel(kernel)
        if shared is None:
            name = self.lowering.new_name("kernel")
            self.lowering.kernel(kernel, name, frame.answer)
        else:
            name = shared.name

        def call(out: Writer, start: str, count: str) -> None:
            for fill in tables:
                fill(out)
            passed = [] if shared is None else shared.passed(frame.answer, frame.number)
            # Names of an unshared function's own parameters become the values that this call passes.
            known = {"%fl.start": start, "%fl.steps": count, "%fl.total": self._total}
            more = [self._written(out, answer, known) for answer in passed]
            self._call(out, name, start, count, self._total, out.word, more)

        return call

    def _body(self, step: Instruction) -> Callable[[Writer, str, str], None]:
        """Return a function that writes the calls of a nested program, over its steps or once per iteration."""
        body = next(value for value in step.args if isinstance(value, Body))
        rounds = step.kernel == "rounds.repeat"
        seats = {slot: self._seat_of(at, time, row) for slot, (at, time, row) in body.places.items()}
        inner = Unit(self.lowering, body.program, body.batch, 1 if rounds else body.count, False, seats)
        inner.write()

        def call(out: Writer, start: str, count: str) -> None:  # noqa: ARG001
            if not rounds:
                self._call(out, inner.name, "0", str(body.count), str(body.count))
                return
            with out.loop(body.count):
                self._call(out, inner.name, "0", "1", "1")

        return call

    def _tables(self, step: Instruction) -> list[Callable[[Writer], None]]:
        """Return what fills the tables of addresses that an instruction reads; tables of numbers are constants."""
        found: list[Callable[[Writer], None]] = []
        for value in step.args:
            if isinstance(value, Table) and any(not isinstance(word, int) for word in value.words):
                at = self.lowering.struct.room(("table", id(value)), 8 * len(value.words))

                def fill(out: Writer, value: Table = value, at: int = at) -> None:
                    for i, word in enumerate(value.words):
                        operand = self.operand(out, word)
                        out.store(out.word, operand, out.plus("%fl.self", at + 8 * i), 8)

                found.append(fill)
        return found

    # ------------------------------------------------------------ places

    def _seat_of(self, at: Place, time: int, row: int) -> Seat:
        seat = self.lowering.seat(at)
        return Seat(seat.base, seat.offset, time, row)

    def operand(self, out: Writer, value: Argument) -> str:
        """Write an argument and return its operand."""
        return self._written(out, self.answer_for(value))

    @staticmethod
    def _written(out: Writer, answer: Answer, known: Mapping[str, str] | None = None) -> str:
        """Write an answer's lines with the `known` values filled in; return its operand."""
        text, *lines = (_with(known or {}, part) for part in (answer[0], *answer[1]))
        names: list[str] = []
        for line in lines:
            names.append(out.value(line.format(*names, new="").removeprefix(" = ")))
        return text.format(*names)

    def answer_for(self, value: Argument) -> Answer:
        """Return the word that an argument becomes."""
        if isinstance(value, Table):
            if all(isinstance(word, int) for word in value.words):
                return self.lowering.seated(self.lowering.constant(np.array(value.words, np.int64)))
            return self.lowering.place(
                "%fl.self", self.lowering.struct.room(("table", id(value)), 8 * len(value.words))
            )
        if isinstance(value, np.ndarray):
            return self.lowering.seated(self.lowering.constant(value))
        if isinstance(value, Place):
            return self.lowering.seated(self.lowering.seat(value))
        if isinstance(value, Body):
            raise UnsupportedError("A program inside an instruction has no address in an exported model.")
        if isinstance(value, tuple):
            raise UnsupportedError("A tuple of words is no word; an instruction's arguments take them apart.")
        return str(int(value)), ()

    def origin(self, slot: int) -> Answer:
        """Return where a slot's rows begin in the running block."""
        seat = self._seat(slot)
        if seat is None:
            return "0", ()
        base, lines = self.lowering.seated(seat)
        if not seat.time or self.program.slots[slot].local:
            return base, lines
        word, n = f"i{self.lowering.bits}", len(lines)
        moved = (f"{{new}} = mul {word} %fl.start, {seat.time}", f"{{new}} = add {word} {base}, {{{n}}}")
        return f"{{{n + 1}}}", (*lines, *moved)

    def time(self, slot: int) -> int:
        """Return the bytes from one time step to the next."""
        seat = self._seat(slot)
        return 0 if seat is None else seat.time

    def row(self, slot: int) -> int:
        """Return the bytes from one row to the next."""
        seat = self._seat(slot)
        return 0 if seat is None else seat.row

    def _seat(self, slot: int) -> Seat | None:
        """Return where a slot lies, reserving memory on first use; None if nothing reads it."""
        if slot < 0 or slot in self._seats:
            return self._seats.get(slot)
        one = self.program.slots[slot]
        if one.kind not in ("time", "row"):
            return None if one.value is None else self.lowering.constant(one.value)
        held = 1 if one.kind == "row" else self.block if one.local else self.steps
        row, region = 4 * one.stride, Region(f"{self.name} slot {slot}")
        self.lowering.struct.room(region, held * self.batch * row)
        self._seats[slot] = Seat(region, 0, 0 if one.kind == "row" else row * self.batch, row)
        return self._seats[slot]


def _with(values: Mapping[str, str], text: str) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


class _Frame:
    """Answers the primitives of one instruction's kernel."""

    def __init__(self, unit: Unit, step: Instruction) -> None:
        self.unit, self.step, self.lowering = unit, step, unit.lowering
        self.words = [w for value in step.args for w in (value if isinstance(value, tuple) else (value,))]

    def number(self, word: int) -> int:
        """Return one of the instruction's words that is an integer, such as a slot."""
        value = self.words[word]
        assert isinstance(value, int)
        return value

    def answer(self, primitive: str, number: int | None, operand: str) -> Answer:
        if primitive == "complain":
            return self.lowering.complaint()
        if primitive == "active_rows":
            return str(self.unit.batch), ()
        if number is None:
            raise UnsupportedError(
                f"The kernel {self.step.kernel} asks for {primitive} {operand}, which only a run knows: "
                "it cannot be exported."
            )
        if primitive == "arg":
            return self.unit.answer_for(self.words[number])
        if primitive == "word":
            return self._word(number)
        if primitive == "origin":
            return self.unit.origin(number)
        return str(self.unit.time(number) if primitive == "time_stride" else self.unit.row(number)), ()

    def _word(self, number: int) -> Answer:
        target, unit, room = self.unit.program.target, self.unit, self.lowering.struct.room
        fixed = {
            layout.ROWS: str(unit.batch),
            layout.WORKER: "0",
            layout.WORKERS: "1",
            layout.SHARES: "1",
            layout.FOLLOWING: "0",
            layout.START: "%fl.start",
            layout.STEPS: "%fl.steps",
            layout.TOTAL: "%fl.total",
            layout.CUT_BYTES: str(target.cut_bytes),
            layout.SLICE_BYTES: str(target.slice_bytes),
        }
        if number in fixed:
            return fixed[number], ()
        if number == layout.RUNS:
            # Every second step runs in the opposite direction if that finds weights still in the cache.
            large = self.step.weight_bytes > target.l1_bytes
            self.lowering.counts_runs |= large
            return "%fl.runs" if large else "0", ()
        if number == layout.SCRATCH:
            return self.lowering.place("%fl.self", room("scratch", self.lowering.scratch_bytes))
        if number == layout.QUANTISED:
            return self.lowering.place("%fl.self", room("integers", self.lowering.integer_bytes))
        raise UnsupportedError(f"The kernel {self.step.kernel} reads the frame's word {number}: it cannot be exported.")
