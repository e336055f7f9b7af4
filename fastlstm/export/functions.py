"""The functions of the C interface, in LLVM's assembly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fastlstm.export.assembly import Writer, copy_loops
from fastlstm.export.interface import Interface, Port, StateField
from fastlstm.export.lowering import Lowering
from fastlstm.export.source import Beginning, Copy, Routine, Seat, Source
from fastlstm.export.struct import RUNS, STATUS

__all__ = ["Functions"]

FLOAT_MODE = """declare i1 @fl_flushes()
declare i64 @fl_get_float_mode()
declare i64 @fl_set_float_mode(i64)
declare i64 @fl_with_flush_to_zero(i64)
define i64 @fl.enter() {
  %known = call i1 @fl_flushes()
  br i1 %known, label %as.it.is, label %change
change:
  %mode = call i64 @fl_get_float_mode()
  %flush = call i64 @fl_with_flush_to_zero(i64 %mode)
  %set = call i64 @fl_set_float_mode(i64 %flush)
  ret i64 %mode
as.it.is:
  ret i64 -1
}
define void @fl.leave(i64 %mode) {
  %known = icmp eq i64 %mode, -1
  br i1 %known, label %as.it.was, label %change
change:
  %set = call i64 @fl_set_float_mode(i64 %mode)
  br label %as.it.was
as.it.was:
  ret void
}"""
"""Flushing denormals to zero: `fl.leave` takes what `fl.enter` returned, -1 if they are flushed anyway."""

BEGIN = "fl.begin"
"""The internal function of one of a stream's first steps."""


class Functions:
    """Writes the functions of one model for one target; their names begin with `prefix`."""

    def __init__(self, lowering: Lowering, prefix: str) -> None:
        self.lowering, self.prefix = lowering, prefix
        self.source: Source = lowering.source
        self.interface: Interface = lowering.interface
        self.word = f"i{lowering.bits}"
        self.exported: list[str] = []
        self.shared: list[str] = []
        """Internal functions that others call."""

    def write(self) -> list[str]:
        """Write all functions and return their names. Routines come first: they decide the size of the struct."""
        source, beginning = self.source, self.source.beginning
        step = self.lowering.routine(source.step)
        block = None if source.block is None else self.lowering.routine(source.block)
        if self.interface.streams:
            # N_run calls it for whole blocks and for the rest, or step by step as N_step does: one copy of its code.
            self.shared.append(block if block and source.block and source.block.varies else step)
        first = None if beginning is None else self.lowering.routine(beginning.first)
        endings = [None if e.routine is None else self.lowering.routine(e.routine) for e in source.endings]
        self.lowering.main.append(FLOAT_MODE)
        self._init()
        if self.interface.streams:
            if beginning is not None and first is not None:
                self._begin(beginning, first)
            self._step(step)
            self._run(step, block)
            self._finish(endings)
            self._get_state()
            self._set_state()
        else:
            self._call(step)
        self._constant_functions()
        return self.exported

    # ------------------------------------------------------------ functions

    def _init(self) -> None:
        with self._function("init", [], "void") as out:
            with out.loop(self.lowering.struct.size // 4) as i:
                out.store("i32", "0", out.plus("%fl.self", out.times(i, 4)), 4)
            for field in self.source.states:
                if not field.is_zero:
                    self._set_field(out, field, self._seated(out, self.lowering.constant(field.initial)), field.dtype)
            out.add("ret void")

    def _step(self, routine: str) -> None:
        parameters = [f"ptr %{port.parameter}" for port in self.interface.ports]
        with self._function("step", parameters, self.word) as out, self._computing(out):
            beginning = self.source.beginning
            if beginning is None:
                self._once(out, self.source.step, routine, "1")
            else:
                taken = self._taken(out, beginning)
                with out.when(out.value(f"icmp ult {self.word} {taken}, {beginning.steps}")):
                    self._call_begin(out, taken)
                with out.when(out.value(f"icmp uge {self.word} {taken}, {beginning.steps}")):
                    self._once(out, self.source.step, routine, "1")
            self._settle(out, str(self._frames))

    def _call(self, routine: str) -> None:
        parameters = [f"ptr %{port.parameter}" for port in self.interface.ports]
        with self._function("call", parameters, "void") as out, self._computing(out, returns=False):
            self._once(out, self.source.step, routine, str(self.source.step.steps))

    def _run(self, step: str, block: str | None) -> None:
        """Write the function that takes many steps: in blocks if there is code for blocks, else one by one."""
        parameters = [*(f"ptr %{port.parameter}" for port in self.interface.ports), f"{self.word} %n"]
        routine = self.source.step if self.source.block is None else self.source.block
        with self._function("run", parameters, self.word) as out, self._computing(out):
            moving = [(port, f"%fl.{port.parameter}") for port in self.interface.ports if port.moves]

            def at(done: str) -> dict[str, str]:
                return {port.parameter: out.plus(base, out.times(done, 4 * port.elements)) for port, base in moving}

            early = self._run_beginning(out, at)
            left = "%n" if early == "0" else out.value(f"sub {self.word} %n, {early}")
            whole = out.value(f"udiv {self.word} {left}, {routine.steps}")
            rest = out.value(f"urem {self.word} {left}, {routine.steps}")
            with out.loop(whole) as i:
                done = out.plus(out.times(i, routine.steps), early)
                self._once(out, routine, block or step, str(routine.steps), at(done))
            if block:
                done = out.plus(out.times(whole, routine.steps), early)
                if routine.varies:
                    with out.when(out.value(f"icmp ne {self.word} {rest}, 0")):
                        self._once(out, routine, block, rest, at(done))
                else:
                    with out.loop(rest) as i:
                        self._once(out, self.source.step, step, "1", at(out.plus(done, i)))
            self._settle(out, out.times("%n", self._frames) if self._frames > 1 else "%n")

    @property
    def _frames(self) -> int:
        """Output frames of a step."""
        return self.interface.outputs[0].frames

    # ------------------------------------------------------------ look-ahead

    def _run_beginning(self, out: Writer, at: Callable[[str], dict[str, str]]) -> str:
        """Write the steps of a run before the first one that computes anything; return their number."""
        beginning = self.source.beginning
        if beginning is None:
            return "0"
        taken = self._taken(out, beginning)
        word = self.word
        missing = out.value(f"call {word} @llvm.usub.sat.{word}({word} {beginning.steps}, {word} {taken})")
        early = out.value(f"call {word} @llvm.umin.{word}({word} {missing}, {word} %n)")
        with out.loop(early) as i:
            self._call_begin(out, out.plus(taken, i), at(i))
        return early

    def _taken(self, out: Writer, beginning: Beginning) -> str:
        """Return how many of the first steps have been taken so far."""
        low = out.load("i32", out.plus("%fl.self", self._counter(beginning)), 4)
        return low if self.word == "i32" else out.value(f"zext i32 {low} to i64")

    def _counter(self, beginning: Beginning) -> int:
        return self.lowering.struct.states + beginning.counter.offset

    def _call_begin(self, out: Writer, taken: str, places: Mapping[str, str] | None = None) -> None:
        known = {port.parameter: f"%fl.{port.parameter}" for port in self.interface.ports} | dict(places or {})
        given = ["%fl.self", *(["%fl.w"] if self.interface.apart else []), taken, *known.values()]
        out.add(f"call void @{BEGIN}({', '.join(f'{self.word} {value}' for value in given)})")

    def _begin(self, beginning: Beginning, first: str) -> None:
        """Write the function for one of the first steps, which N_step and N_run share."""
        names = ["self", *(["w"] if self.interface.apart else []), "taken"]
        names += [port.parameter for port in self.interface.ports]
        out, word = Writer(self.lowering.bits), self.word
        out.label("entry")
        known = {port.parameter: f"%fl.{port.parameter}" for port in self.interface.ports}
        for port in self.interface.outputs:
            with out.loop(port.elements) as i:
                out.store("i32", "0", out.plus(known[port.parameter], out.times(i, 4)), 4)
        for copy in beginning.always:
            self._copy(out, copy, "1", known)
        with out.when(out.value(f"icmp ne {word} %fl.taken, {beginning.steps - 1}")):
            for copy in beginning.waits:
                self._copy(out, copy, "1", known, "%fl.taken")
        with out.when(out.value(f"icmp eq {word} %fl.taken, {beginning.steps - 1}")):
            self._once(out, beginning.first, first, "1")
        after = out.plus("%fl.taken", 1)
        low = after if word == "i32" else out.value(f"trunc i64 {after} to i32")
        for row in range(beginning.counter.elements):
            out.store("i32", low, out.plus("%fl.self", self._counter(beginning) + 8 * row), 4)
        out.add("ret void")
        parameters = ", ".join(f"{word} %fl.{name}" for name in names)
        self.lowering.main.append("\n".join([f"define void @{BEGIN}({parameters}) #1 {{", *out.lines, "}"]))
        for operation in ("usub.sat", "umin"):
            self.lowering.main.append(f"declare {word} @llvm.{operation}.{word}({word}, {word})")
        self.shared.append(BEGIN)

    def _finish(self, routines: Sequence[str | None]) -> None:
        """Write the function for the end of a sequence; the last ending also serves all longer sequences."""
        outputs = [f"ptr %{port.parameter}" for port in self.interface.outputs]
        if not self.source.tail:
            with self._function("finish", outputs, self.word) as out:
                out.add(f"ret {self.word} 0")
            return
        with self._function("finish", outputs, self.word) as out, self._computing(out, self.interface.outputs):
            nothing = {port.parameter: "0" for port in self.interface.inputs}
            beginning, written, last = self.source.beginning, "0", len(routines) - 1
            taken = "0" if beginning is None else self._taken(out, beginning)
            for number, (ending, name) in enumerate(zip(self.source.endings, routines, strict=True)):
                if ending.routine is None or name is None:
                    continue
                here = out.value(f"icmp {'uge' if number == last else 'eq'} {self.word} {taken}, {number}")
                with out.when(here):
                    self._once(out, ending.routine, name, "1", nothing)
                written = out.value(f"select i1 {here}, {self.word} {ending.frames}, {self.word} {written}")
            self._settle(out, written)

    # ------------------------------------------------------------ states

    def _get_state(self) -> None:
        with self._function("get_state", ["ptr %flat"], "void", weights=False) as out:
            flat, at = out.value(f"ptrtoint ptr %flat to {self.word}"), 0
            for field in self.source.states:
                place = out.plus("%fl.self", self.lowering.struct.states + field.offset)
                copy_loops(
                    out, field.shape, (place, field.dtype, field.strides),
                    (out.plus(flat, at), "float32", _contiguous(field.shape, 4)),
                )  # fmt: skip
                at += 4 * field.elements
            out.add("ret void")

    def _set_state(self) -> None:
        with self._function("set_state", ["ptr %flat"], "void", weights=False) as out:
            flat, at = out.value(f"ptrtoint ptr %flat to {self.word}"), 0
            for field in self.source.states:
                self._set_field(out, field, out.plus(flat, at), "float32")
                at += 4 * field.elements
            out.add("ret void")

    def _set_field(self, out: Writer, field: StateField, source: str, kind: str) -> None:
        place = out.plus("%fl.self", self.lowering.struct.states + field.offset)
        size = 8 if kind == "int64" else 1 if kind in ("bool", "int8", "uint8") else 4
        copy_loops(
            out, field.shape, (source, kind, _contiguous(field.shape, size)), (place, field.dtype, field.strides)
        )

    def _constant_functions(self) -> None:
        text, main = self.interface.model_hash.encode() + b"\0", self.lowering.main
        hash_text = "".join(chr(c) if c else "\\00" for c in text)
        main.append(f'@fl.hash = unnamed_addr constant [{len(text)} x i8] c"{hash_text}"')
        names = [f"{self.prefix}_model_hash", f"{self.prefix}_same_bits"]
        main.append(f"define ptr @{names[0]}() #0 {{\n  ret ptr @fl.hash\n}}")
        main.append(f"define i32 @{names[1]}() #0 {{\n  ret i32 {int(self.lowering.target.fma)}\n}}")
        self.exported += names

    # ------------------------------------------------------------ what they share

    @contextmanager
    def _function(self, name: str, parameters: Sequence[str], returns: str, weights: bool = True) -> Iterator[Writer]:
        """Write a function that takes the state, the weights if they are separate, and `parameters`."""
        out = Writer(self.lowering.bits)
        out.label("entry")
        out.lines.append(f"  %fl.self = ptrtoint ptr %s to {self.word}")
        given = ["ptr %s"]
        if self.interface.apart and weights:
            out.lines.append(f"  %fl.w = ptrtoint ptr %w to {self.word}")
            given.append("ptr %w")
        yield out
        self.exported.append(f"{self.prefix}_{name}")
        head = f"define {returns} @{self.prefix}_{name}({', '.join([*given, *parameters])}) #0 {{"
        self.lowering.main.append("\n".join([head, *out.lines, "}"]))

    @contextmanager
    def _computing(self, out: Writer, ports: Sequence[Port] | None = None, *, returns: bool = True) -> Iterator[None]:
        """Flush denormals to zero inside, as the engine does, and turn the ports' addresses into integers.

        A caller that flushes them anyway, as most audio software does, does not wait for a change of mode: the last
        sums of a step then overlap with the next step.
        """
        for port in self.interface.ports if ports is None else ports:
            out.lines.append(f"  %fl.{port.parameter} = ptrtoint ptr %{port.parameter} to {self.word}")
        out.lines.append("  %fl.mode = call i64 @fl.enter()")
        if self.lowering.complains:
            out.store("i32", "0", out.plus("%fl.self", STATUS), 4)
        yield
        out.add("call void @fl.leave(i64 %fl.mode)")
        out.add(f"ret {self.word} %fl.frames" if returns else "ret void")

    def _settle(self, out: Writer, frames: str) -> None:
        """Say how many frames were written: none, if an index had nothing to point to."""
        if not self.lowering.complains:
            out.add(f"%fl.frames = add {self.word} {frames}, 0")
            return
        status = out.load("i32", out.plus("%fl.self", STATUS), 4)
        fine = out.value(f"icmp eq i32 {status}, 0")
        out.add(f"%fl.frames = select i1 {fine}, {self.word} {frames}, {self.word} 0")

    def _once(
        self, out: Writer, routine: Routine, name: str, steps: str, places: Mapping[str, str] | None = None
    ) -> None:
        """Run a routine over some steps; `places` are the addresses of ports that move."""
        self.lowering.enter(routine)
        known = {port.parameter: f"%fl.{port.parameter}" for port in self.interface.ports} | dict(places or {})
        runs = "0"
        if self.lowering.counts_runs:
            at = out.plus("%fl.self", RUNS)
            now = out.load("i32", at, 4)
            out.store("i32", out.value(f"add i32 {now}, 1"), at, 4)
            runs = now if self.word == "i32" else out.value(f"zext i32 {now} to i64")
        for copy in routine.before:
            self._copy(out, copy, steps, known)
        values = {"self": "%fl.self", "start": "0", "steps": steps, "total": steps, "runs": runs, "w": "%fl.w", **known}
        given = ", ".join(f"{self.word} {values[n]}" for n in self.lowering.context_names)
        out.add(f"call void @{name}({given})")
        for copy in routine.after:
            self._copy(out, copy, steps, known)

    def _copy(self, out: Writer, copy: Copy, steps: str, known: dict[str, str], step: str = "0") -> None:
        """Write a copy; `step` is the number of the step that makes it, where one is made every step."""
        ends = [self._seated(out, seat, known) for seat in (copy.source, copy.target)]
        if step != "0":
            moved = [seat.time and out.times(step, seat.time) for seat in (copy.source, copy.target)]
            ends = [out.plus(end, more) for end, more in zip(ends, moved, strict=True)]
        sizes: list[int | str] = [steps, *copy.shape] if copy.each_step else list(copy.shape)
        strides = [
            [*([seat.time] if copy.each_step else []), *steps_of]
            for seat, steps_of in ((copy.source, copy.source_strides), (copy.target, copy.target_strides))
        ]
        copy_loops(out, sizes, (ends[0], copy.source_kind, strides[0]), (ends[1], copy.target_kind, strides[1]))

    def _seated(self, out: Writer, seat: Seat, known: dict[str, str] | None = None) -> str:
        """Write the address of a seat."""
        if isinstance(seat.base, str) and seat.base in (known or {}):
            return out.plus((known or {})[seat.base], seat.offset)
        text, lines = self.lowering.seated(seat)
        names: list[str] = []
        for line in lines:
            names.append(out.value(line.format(*names, new="").removeprefix(" = ")))
        return text.format(*names)


def _contiguous(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the strides in bytes of a contiguous array."""
    found: list[int] = []
    for length in reversed(shape):
        found.insert(0, size)
        size *= length
    return tuple(found)
