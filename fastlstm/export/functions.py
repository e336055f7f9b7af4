"""The functions of the C interface, in LLVM's assembly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastlstm.export.assembly import Writer, copy_loops
from fastlstm.export.interface import Interface, StateField
from fastlstm.export.lowering import Lowering
from fastlstm.export.source import Copy, Routine, Seat, Source
from fastlstm.export.struct import RUNS, STATUS

__all__ = ["Functions"]

FLOAT_MODE = """declare i64 @fl_get_float_mode()
declare i64 @fl_set_float_mode(i64)
declare i64 @fl_with_flush_to_zero(i64)"""


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
        """Write all of them; return their names. Routines first: then the struct has its size."""
        step = self.lowering.routine(self.source.step)
        block = None if self.source.block is None else self.lowering.routine(self.source.block)
        if self.interface.streams:
            # A run calls it for whole blocks and for what is left, or for steps as N_step does: its code is there once.
            self.shared.append(block if block and self.source.block and self.source.block.varies else step)
        self.lowering.main.append(FLOAT_MODE)
        self._init()
        if self.interface.streams:
            self._step(step)
            self._run(step, block)
            self._finish()
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
            self._once(out, self.source.step, routine, "1")
            self._settle(out, str(self.interface.hop))

    def _call(self, routine: str) -> None:
        parameters = [f"ptr %{port.parameter}" for port in self.interface.ports]
        with self._function("call", parameters, "void") as out, self._computing(out, returns=False):
            self._once(out, self.source.step, routine, str(self.source.step.steps))

    def _run(self, step: str, block: str | None) -> None:
        """Write the function of many steps: blocks where there is a form for them, else step by step."""
        parameters = [*(f"ptr %{port.parameter}" for port in self.interface.ports), f"{self.word} %n"]
        routine = self.source.step if self.source.block is None else self.source.block
        with self._function("run", parameters, self.word) as out, self._computing(out):
            moving = [(port, f"%fl.{port.parameter}") for port in self.interface.ports if port.moves]
            whole = out.value(f"udiv {self.word} %n, {routine.steps}")
            rest = out.value(f"urem {self.word} %n, {routine.steps}")

            def at(done: str) -> dict[str, str]:
                return {port.parameter: out.plus(base, out.times(done, 4 * port.elements)) for port, base in moving}

            with out.loop(whole) as i:
                self._once(out, routine, block or step, str(routine.steps), at(out.times(i, routine.steps)))
            if block:
                done = out.times(whole, routine.steps)
                if routine.varies:
                    some = out.value(f"icmp ne {self.word} {rest}, 0")
                    with out.loop(out.value(f"zext i1 {some} to {self.word}")):
                        self._once(out, routine, block, rest, at(done))
                else:
                    with out.loop(rest) as i:
                        self._once(out, self.source.step, step, "1", at(out.plus(done, i)))
            self._settle(out, out.times("%n", self.interface.hop) if self.interface.hop > 1 else "%n")

    def _finish(self) -> None:
        with self._function("finish", [f"ptr %{p.parameter}" for p in self.interface.outputs], self.word) as out:
            out.add(f"ret {self.word} 0")

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
        """Write a function whose parameters are the state, the weights if they are apart, and those given."""
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
    def _computing(self, out: Writer, returns: bool = True) -> Iterator[None]:
        """Let denormals be zero inside, as the engine does, and make integers of the ports' addresses.

        A caller for whom they are zero already (most audio software) is not made to wait for the change of mode: the
        last sums of a step then overlap with the next one (LSTM of 20 units: 192 to 161 ns).
        """
        for port in self.interface.ports:
            out.lines.append(f"  %fl.{port.parameter} = ptrtoint ptr %{port.parameter} to {self.word}")
        out.lines.append("  %fl.mode = call i64 @fl_get_float_mode()")
        out.lines.append("  %fl.flush = call i64 @fl_with_flush_to_zero(i64 %fl.mode)")
        changes = "%fl.changes"
        out.add(f"{changes} = icmp ne i64 %fl.mode, %fl.flush")
        with out.when(changes):
            out.add("%fl.set = call i64 @fl_set_float_mode(i64 %fl.flush)")
        if self.lowering.complains:
            out.store("i32", "0", out.plus("%fl.self", STATUS), 4)
        yield
        with out.when(changes):
            out.add("%fl.reset = call i64 @fl_set_float_mode(i64 %fl.mode)")
        out.add(f"ret {self.word} %fl.frames" if returns else "ret void")

    def _settle(self, out: Writer, frames: str) -> None:
        """Say how many frames were written: none, if an index had nothing to point to."""
        if not self.lowering.complains:
            out.add(f"%fl.frames = add {self.word} {frames}, 0")
            return
        status = out.load("i32", out.plus("%fl.self", STATUS), 4)
        fine = out.value(f"icmp eq i32 {status}, 0")
        out.add(f"%fl.frames = select i1 {fine}, {self.word} {frames}, {self.word} 0")

    def _once(self, out: Writer, routine: Routine, name: str, steps: str, places: dict[str, str] | None = None) -> None:
        """Run a routine over some steps; `places` are the addresses of ports that move."""
        self.lowering.enter(routine)
        known = {port.parameter: f"%fl.{port.parameter}" for port in self.interface.ports} | (places or {})
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

    def _copy(self, out: Writer, copy: Copy, steps: str, known: dict[str, str]) -> None:
        ends = [self._seated(out, seat, known) for seat in (copy.source, copy.target)]
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
    """Return the strides in bytes of an array without gaps."""
    found: list[int] = []
    for length in reversed(shape):
        found.insert(0, size)
        size *= length
    return tuple(found)
