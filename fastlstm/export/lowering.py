"""From a source to the text of an LLVM module: constant data, kernels, the functions of the C interface."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastlstm.export.assembly import Writer
from fastlstm.export.interface import Interface
from fastlstm.export.sharing import MOST_TEXT, SharedKernel
from fastlstm.export.source import STATES, Region, Routine, Seat, Source
from fastlstm.export.specialise import Answer, context, specialised
from fastlstm.export.struct import STATUS, Struct
from fastlstm.export.unit import Unit
from fastlstm.kernels.compiler import Kernel
from fastlstm.kernels.simplified import simplified
from fastlstm.program.program import Body, Instruction, Place, Program
from fastlstm.program.scratch import integer_bytes, scratch_bytes
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Lowering", "word_bits"]

NARROW = ("arm", "thumb", "riscv32", "wasm32", "i386", "i586", "i686", "mips", "powerpc-")


def word_bits(target: Target) -> int:
    """Return the width of an address in bits."""
    return 32 if target.triple.startswith(NARROW) and not target.triple.startswith("arm64") else 64


class Lowering:
    """Collects the parts of a module."""

    def __init__(self, source: Source, interface: Interface, target: Target) -> None:
        self.source, self.interface, self.target = source, interface, target
        self.bits = word_bits(target)
        self.struct = Struct(target, source.state_bytes)
        self.context_names = [p.split("%fl.")[1] for p in self._context()]
        self.main: list[str] = []
        self.parts: list[str] = []
        self.weights = bytearray()
        self.complains = self.counts_runs = False
        self._names = 0
        self._constants: dict[bytes, Seat] = {}
        self._symbols: dict[int, tuple[Seat, Array]] = {}
        self._routine: Routine | None = None
        self._scratch: set[int] = set()
        self._templates: dict[Kernel, str] = {}
        self._uses = Counter(Kernel(*k) for r in source.routines for k in r.program.kernels(r.batch))
        self.shared: dict[Kernel, SharedKernel] = {}
        self.scratch_bytes = self.integer_bytes = 0

    def _context(self) -> tuple[str, ...]:
        ports = [port.parameter for port in self.interface.ports]
        return context(f"i{self.bits}", [*ports, "w"] if self.interface.apart else ports)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters of every internal function."""
        return self._context()

    def new_name(self, stem: str) -> str:
        """Return a new symbol."""
        self._names += 1
        return f"fl.{stem}.{self._names}"

    def define(self, name: str, out: Writer) -> None:
        """Add an internal function."""
        head = f"define void @{name}({', '.join(self.parameters)}) #0 {{"
        self.main.append("\n".join([head, *out.lines, "}"]))

    def routine(self, routine: Routine) -> str:
        """Add the function of a routine; return its name."""
        self.enter(routine)
        steps = routine.steps if routine.program.slots else 1  # a tape runs once for all of them
        needs = list(_needs(routine.program, routine.batch, steps))
        self.scratch_bytes = max((a for a, _ in needs), default=0)
        self.integer_bytes = max((b for _, b in needs), default=0)
        for region, size in routine.regions.items():
            self.struct.room(region, size)
        return Unit(self, routine.program, routine.batch, steps, routine.varies, routine.slots).write()

    def enter(self, routine: Routine) -> None:
        """Resolve places as those of `routine` from now on."""
        self.struct.begin(id(routine))
        self._routine = routine
        self._scratch = {id(array) for program in _programs(routine.program) for array in program.scratch}

    def kernel(self, kernel: Kernel, name: str, answer: Callable[[str, int | None, str], Answer]) -> None:
        """Add a kernel for one instruction."""
        self._add(kernel, name, self.parameters, answer)

    def shared_kernel(self, kernel: Kernel) -> SharedKernel | None:
        """Return the function that serves all instructions of a kernel, None if each has its own."""
        uses = self._uses[kernel]
        if uses == 1 or uses * len(self._template(kernel)) <= MOST_TEXT:
            return None
        if kernel not in self.shared:
            one = SharedKernel(self.new_name("shared"), f"i{self.bits}", self.parameters, self.complaint)
            self._add(kernel, one.name, one.parameters, one.answer, 'noinline "warn-stack-size"="0" ')
            self.shared[kernel] = one
        return self.shared[kernel]

    def _template(self, kernel: Kernel) -> str:
        if kernel not in self._templates:
            text = simplified(kernel)
            text = rolled(text) if self.target.lanes > 1 else text
            self._templates[kernel] = narrowed(text) if self.bits == 32 else text
        return self._templates[kernel]

    def _add(
        self,
        kernel: Kernel,
        name: str,
        parameters: Sequence[str],
        answer: Callable[[str, int | None, str], Answer],
        attributes: str = "",
    ) -> None:
        text = specialised(self._template(kernel), name, parameters, answer, self.bits, attributes)
        read = sorted(set(re.findall(r"@fl\.data\.\d+", text)))
        self.parts.append("".join(f"{data} = external constant [0 x i8]\n" for data in read) + text)
        word = f"i{self.bits}"
        self.main.append(f"declare {word} @{name}({', '.join([word] * len(parameters))})")

    # ------------------------------------------------------------ places

    def seat(self, at: Place) -> Seat:
        """Return where the memory lies that a program's place refers to."""
        assert self._routine is not None
        known = self._routine.memory.get(id(at.memory))
        if known is not None:
            return Seat(known.base, known.offset + at.offset)
        if id(at.memory) in self._scratch:
            region = Region(f"memory {id(at.memory)}")
            self.struct.room(region, at.memory.nbytes)
            return Seat(region, at.offset)
        data = self.constant(at.memory)
        return Seat(data.base, data.offset + at.offset)

    def seated(self, seat: Seat) -> Answer:
        """Return the address of a seat."""
        if isinstance(seat.base, np.ndarray):
            seat = self.seat(Place(seat.base, seat.offset))
            assert isinstance(seat.base, (Region, str))
        if isinstance(seat.base, Region):
            start = self.struct.states if seat.base == STATES else self.struct.room(seat.base, 0)
            return self.place("%fl.self", start + seat.offset)
        if not seat.base.startswith(("ptrtoint", "%")):
            return self.place(f"%fl.{seat.base}", seat.offset)
        return self.place(seat.base, seat.offset)

    def place(self, base: str, offset: int) -> Answer:
        """Return the address `offset` bytes after `base`."""
        if not offset:
            return base, ()
        return "{0}", (f"{{new}} = add i{self.bits} {base}, {offset}",)

    def constant(self, array: Array) -> Seat:
        """Return where constant data lies; equal arrays share it."""
        if id(array) not in self._symbols:
            content = array.ravel(order="K").tobytes() or bytes(4)  # as it lies in memory
            if content not in self._constants:
                self._constants[content] = self._emitted(content)
            self._symbols[id(array)] = (self._constants[content], array)  # kept, so that its id stays its own
        return self._symbols[id(array)][0]

    def _emitted(self, content: bytes) -> Seat:
        # LLVM turns adding 16 to an address that it knows to be a multiple of 64 into "or 16", and its NEON code then
        # steps from the wrong address (22.1): there it may know of the alignment of a vector only.
        align = self.struct.align if self.bits == 64 else max(8, 4 * self.target.lanes)
        self.weights += bytes(-len(self.weights) % align)
        at = len(self.weights)
        self.weights += content
        if self.interface.apart:
            return Seat("%fl.w", at)
        name = f"fl.data.{at}"
        self.main.append(f'@{name} = unnamed_addr constant [{len(content)} x i8] c"{_escaped(content)}", align {align}')
        return Seat(f"ptrtoint (ptr @{name} to i{self.bits})")

    def complaint(self) -> Answer:
        """Return what records that an index is out of range."""
        self.complains = True
        word = f"i{self.bits}"
        return "0", (
            f"{{new}} = add {word} %fl.self, {STATUS}",
            f"{{new}} = inttoptr {word} {{0}} to ptr",
            "store i32 1, ptr {1}, align 4",
        )


def _programs(program: Program) -> Iterator[Program]:
    yield program
    for step in _steps(program):
        for value in step.args:
            if isinstance(value, Body):
                yield from _programs(value.program)


def _steps(program: Program) -> Iterator[Instruction]:
    for step in program.instructions:
        yield step
        yield from step.alone or ()


def _needs(program: Program, batch: int, steps: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes of scratch and of integer memory that each instruction needs."""
    block = min(steps, max((stage.block(batch) for stage in program.stages), default=1))
    for step in _steps(program):
        yield scratch_bytes(step, program, batch, block), integer_bytes(step, program, batch, block)
        for value in step.args:
            if isinstance(value, Body):
                yield from _needs(value.program, value.batch, value.count if step.kernel == "nested.nested" else 1)


_ESCAPED = [chr(i) if 32 <= i < 127 and chr(i) not in '"\\' else f"\\{i:02X}" for i in range(256)]


def _escaped(content: bytes) -> str:
    return "".join(map(_ESCAPED.__getitem__, content))


def rolled(template: str) -> str:
    """Return a template in which LLVM does not unroll the loops of `fastlstm.kernels.one_row.register_chains`.

    It would where k is known, up to 24 or so: then it puts the chains one after another, and constants of the cells
    spill. With AVX-512 a step of 24 units took 23 % more time and twice the code.
    """
    text, count = re.subn(r"^(  br label %\"?chains\.head\S*)$", r"\1, !llvm.loop !0", template, flags=re.M)
    return f'{text}\n!0 = distinct !{{!0, !1}}\n!1 = !{{!"llvm.loop.unroll.disable"}}\n' if count else text


def narrowed(template: str) -> str:
    """Return a template with 32-bit integers: nearly all of them are sizes and addresses.

    With 64-bit integers, a 32-bit processor ran 5 to 56 % more instructions.
    """
    text = re.sub(
        r"= (?:zext|sext|trunc)(?: nneg| nuw| nsw)* i(?:32|64) ([^ ]+) to i(?:32|64)\b", r"= add i32 \1, 0", template
    )
    # Shifts by 32 and more: LLVM tests a sign so.
    text = re.sub(
        r"(= (?:a|l)shr(?: exact)? i64 [^,]+), (3[2-9]|[4-6]\d)\b", lambda m: f"{m[1]}, {int(m[2]) - 32}", text
    )
    text = text.replace("i64 -9223372036854775808", "i64 -2147483648")
    text = re.sub(r"\bi64 (-?\d{10,})\b", lambda m: f"i64 {_wrapped(int(m[1]))}", text)
    text = re.sub(r"\b(add|sub|mul|shl|trunc)((?: nsw| nuw)+) ", r"\1 ", text)
    return re.sub(r"\bi64\b", "i32", text)


def _wrapped(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
