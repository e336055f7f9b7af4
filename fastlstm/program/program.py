"""Programs as values: stages of kernel calls over numbered memory, without an address or an object of this process.

What segments and tapes are lowered to. `fastlstm.runtime.program` binds a program to memory and runs it;
`to_bytes` and `from_bytes` carry it elsewhere. An argument of an instruction is one of

    int     a size, an offset, the number of a slot
    array   constant data: it stands for its first element, which begins on a cache line
    tuple   integers that belong together: they stand for themselves, one behind the other
    Place   some bytes behind the start of memory that a run writes, or of constant data that is seen as a view
    Table   words of which some are places: their first
    Body    a program inside this one
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastlstm.errors import FileFormatError
from fastlstm.program import layout
from fastlstm.program.arguments import ARGUMENTS
from fastlstm.program.memory import aligned, aligned_zeros, memory_of
from fastlstm.target import Target, WeightFormat
from fastlstm.typing import Array

__all__ = ["Argument", "Body", "Instruction", "Place", "Program", "Slot", "Stage", "Table", "place"]

FEWEST_ROWS = 24
# Multiply-adds, about a microsecond: half of that cost five rows of 100 units 8 %. With one processor slowed by another
# program, 8 rows of 128 units took 0.84 of the time of one share a worker.
WORTH_A_SHARE = 32_000


@dataclass(frozen=True, eq=False)
class Place:
    """`offset` bytes behind the first element of `memory`, an array that owns its data."""

    memory: Array
    offset: int

    def __add__(self, more: int) -> Place:
        return Place(self.memory, self.offset + int(more))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.memory is other.memory and self.offset == other.offset

    def __hash__(self) -> int:
        return hash((id(self.memory), self.offset))


def place(array: Array) -> Place:
    """Return where an array's first element lies, a view's in the memory that it looks at."""
    memory = memory_of(array)
    start, at = (int(a.__array_interface__["data"][0]) for a in (memory, array))
    return Place(memory, at - start)


@dataclass(frozen=True, eq=False)
class Table:
    """Words in memory; those that several instructions share may be changed until a program is bound."""

    words: list[Argument]


@dataclass(frozen=True, eq=False)
class Body:
    """A program that runs inside another: a segment over its time steps, or a loop's body round by round.

    Attributes
    ----------
    program : Program
    count : int
        Time steps, or rounds.
    batch : int
        Rows of the batch.
    workers : int
    places : mapping
        Where slots lie: their place, bytes from one time step and from one row to the next.
    """

    program: Program
    count: int
    batch: int = 1
    workers: int = 1
    places: Mapping[int, tuple[Place, int, int]] = field(default_factory=dict)


Argument = int | Array | Place | Table | Body | tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """Where a value lies.

    Attributes
    ----------
    name : str
    kind : str
        "time": one row a time step and batch row; "row": one a batch row; "external": the caller's array;
        "constant": one row for all.
    width : int
        float32 elements of a row, padding included (int64 elements for ids).
    local : bool
        For "time": holds one block of time steps only.
    value : array or None
        For "constant": the row.
    """

    name: str
    kind: str
    width: int
    local: bool = False
    value: Array | None = None

    @property
    def stride(self) -> int:
        """Elements from one row of a buffer to the next.

        Long rows take an odd number of cache lines: rows a power of two apart would share a few sets of the cache.
        """
        line = layout.LINE // 4
        return self.width if self.width < 8 * line else -(-self.width // line) // 2 * 2 * line + line


@dataclass(frozen=True)
class Instruction:
    """One call of a kernel; its arguments are of the kernel's class in `fastlstm.program.arguments.ARGUMENTS`."""

    kernel: str
    constants: tuple[Any, ...]
    args: tuple[Argument, ...]
    label: str = ""
    macs: int = 0  # multiply-adds a time step and batch row
    weight_bytes: int = 0
    quantised: int = 0  # values of a row that it turns into integers
    note: str = ""
    panels: float = 0  # of hidden units, for a recurrent layer; a tail is a fraction of one
    alone: tuple[Instruction, ...] | None = None  # what runs instead where there is one batch row, if anything does
    layer: str = ""  # the name of the node that it is part of, for people

    def __post_init__(self) -> None:
        made = [aligned(value) if isinstance(value, np.ndarray) else value for value in self.args]
        object.__setattr__(self, "args", ARGUMENTS[self.kernel]._make(made))

    @property
    def recurrent(self) -> bool:
        """Whether it is the recurrence of a layer: each of its time steps is a phase of the workers."""
        return self.panels > 0

    @property
    def work(self) -> int:
        """Multiply-adds a time step and batch row, fewer where narrow weights make them cheaper."""
        return min(self.macs, self.weight_bytes // 4) if self.recurrent else self.macs

    def shares(self, batch: int, block: int) -> int:
        """Return into how many shares its work for so many rows is worth dividing, over blocks of so many steps."""
        return max(1, self.work * batch * (1 if self.recurrent else block) // WORTH_A_SHARE)


@dataclass(frozen=True)
class Stage:
    """Instructions that pass over the time steps together, block by block.

    `rows` is how many rows (time steps times batch rows) of a block stay in the cache.
    """

    kind: int
    instructions: tuple[Instruction, ...]
    rows: int = 1

    def block(self, batch: int) -> int:
        """Return the time steps of a block: enough rows to use each weight of a projection often."""
        batch = max(batch, 1)
        return 1 if self.kind == layout.ONCE else max(1, -(-FEWEST_ROWS // batch), self.rows // batch)

    def chosen(self, batch: int) -> tuple[Instruction, ...]:
        """Return the instructions that run for so many batch rows."""
        if batch != 1:
            return self.instructions
        return tuple(s for step in self.instructions for s in ((step,) if step.alone is None else step.alone))


@dataclass(frozen=True, eq=False)
class Program:
    """Slots and stages for a target. Programs that do the same compare equal, wherever their memory lies.

    Attributes
    ----------
    target : Target
    slots : tuple of Slot
    stages : tuple of Stage
    scratch : tuple of array
        Memory behind places that a run writes, of programs inside too; whatever else instructions refer to is
        constant.
    """

    target: Target
    slots: tuple[Slot, ...]
    stages: tuple[Stage, ...]
    scratch: tuple[Array, ...] = ()

    def kernels(self, batch: int) -> Iterator[tuple[str, tuple[Hashable, ...]]]:
        """Yield the name and the constants of each kernel that runs for so many batch rows, repeated ones too."""
        yield "drive.drive", ()
        for stage in self.stages:
            for step in stage.chosen(batch):
                yield step.kernel, step.constants
                for value in step.args:
                    if isinstance(value, Body):
                        yield from value.program.kernels(value.batch)

    @property
    def instructions(self) -> Iterator[Instruction]:
        """All instructions, stage by stage; not those of programs inside, nor those for one row."""
        return (step for stage in self.stages for step in stage.instructions)

    def bodies(self) -> Iterator[Body]:
        """Return the programs inside this one."""
        return (value for step in self.instructions for value in step.args if isinstance(value, Body))

    def to_bytes(self) -> bytes:
        """Return the program in a form that another process, or another machine, reads."""
        return _Writer().written(self)

    @staticmethod
    def from_bytes(content: bytes) -> Program:
        """Return the program that `to_bytes` wrote. Like machine code, read it from nobody that you do not trust.

        Raises
        ------
        FileFormatError
            If it is damaged or of another version.
        """
        return _read(content)

    @cached_property
    def _identity(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and (self is other or self._identity == other._identity)

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        count = sum(1 for _ in self.instructions)
        return f"<Program for {self.target.name}: {len(self.stages)} stages, {count} instructions>"

    def __str__(self) -> str:
        """Return the program line by line."""
        lines = [f"program for {self.target.name}"]
        lines += [f"  slot {i}: {s.name}, {s.kind}, {s.width} wide" for i, s in enumerate(self.slots)]
        for number, stage in enumerate(self.stages):
            kind = {layout.BLOCK: "onwards", layout.REVERSE: "backwards"}.get(stage.kind, "once")
            lines.append(f"  stage {number}, {kind}")
            lines += [f"    {step.kernel}({_listed(step.args)})" for step in stage.instructions]
        return "\n".join(lines)


def _listed(args: tuple[Argument, ...]) -> str:
    """Return the arguments of an instruction by name."""
    return ", ".join(f"{name}={_shown(value)}" for name, value in args._asdict().items())  # type: ignore[attr-defined]


def _shown(value: Argument) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Place):
        return f"@{value.offset}"
    if isinstance(value, Table):
        return f"[{', '.join(map(_shown, value.words))}]"
    if isinstance(value, Body):
        return f"{value.program!r} x {value.count}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


# ---------------------------------------------------------------- bytes

VERSION = 3
MAGIC = b"fastlstm program"
ALIGN = 64


class _Writer:
    """Numbers the memory that a program refers to, in the order in which it is met."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.memory: list[tuple[Array, bool]] = []  # and whether it is scratch
        self.tables: dict[int, int] = {}
        self.table_words: list[Any] = []
        self.scratch: set[int] = set()

    def written(self, program: Program) -> bytes:
        whole = self.program(program)
        entries, parts, at = [], [], 0
        for array, scratch in self.memory:
            flat = np.ascontiguousarray(array)
            entries.append([str(array.dtype), list(array.shape), scratch, at])
            if not scratch:
                content = flat.tobytes()
                parts.append(content + bytes(-len(content) % ALIGN))
                at += len(parts[-1])
        head = {"version": VERSION, "program": whole, "memory": entries, "tables": self.table_words}
        text = json.dumps(head, separators=(",", ":")).encode()
        return b"".join((MAGIC, len(text).to_bytes(8, "little"), text, *parts))

    def program(self, program: Program) -> Any:
        self.scratch |= {id(array) for array in program.scratch}
        return {
            "target": _plain(program.target),
            "slots": [[s.name, s.kind, s.width, s.local, self.array(s.value)] for s in program.slots],
            "scratch": [self.array(array) for array in program.scratch],
            "stages": [[s.kind, s.rows, [self.instruction(i) for i in s.instructions]] for s in program.stages],
        }

    def instruction(self, step: Instruction) -> Any:
        alone = None if step.alone is None else [self.instruction(other) for other in step.alone]
        numbers = [step.label, step.macs, step.weight_bytes, step.quantised, step.note, step.panels]
        return [
            step.kernel,
            _coded(step.constants),
            [self.word(value) for value in step.args],
            *numbers,
            alone,
            step.layer,
        ]

    def array(self, array: Array | None) -> int | None:
        if array is None:
            return None
        if id(array) not in self.numbers:
            self.numbers[id(array)] = len(self.memory)
            self.memory.append((array, id(array) in self.scratch))
        return self.numbers[id(array)]

    def word(self, value: Argument) -> Any:
        if isinstance(value, np.ndarray):
            return ["array", self.array(value)]
        if isinstance(value, Place):
            return ["place", self.array(value.memory), value.offset]
        if isinstance(value, Table):
            if id(value) not in self.tables:
                self.tables[id(value)] = len(self.table_words)
                self.table_words.append([self.word(word) for word in value.words])
            return ["table", self.tables[id(value)]]
        if isinstance(value, Body):
            places = [[slot, self.word(at), *steps] for slot, (at, *steps) in value.places.items()]
            return ["body", self.program(value.program), value.count, value.batch, value.workers, places]
        return ["numbers", *map(int, value)] if isinstance(value, tuple) else int(value)


def _plain(target: Target) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(target).items()}


def _coded(value: Any) -> Any:
    """Return constants of a kernel as JSON has them: tuples as lists, formats by name."""
    if isinstance(value, WeightFormat):
        return {"weights": list(value)}
    return [_coded(item) for item in value] if isinstance(value, tuple) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return WeightFormat(*value["weights"])
    return tuple(_decoded(item) for item in value) if isinstance(value, list) else value


def _read(content: bytes) -> Program:
    head = len(MAGIC) + 8
    try:
        if content[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin as one")
        size = int.from_bytes(content[len(MAGIC) : head], "little")
        data = json.loads(content[head : head + size])
        if data["version"] != VERSION:
            raise ValueError(f"its version is {data['version']}, this one reads {VERSION}")
        reader = _Reader(data, memoryview(content)[head + size :])
        return reader.program(data["program"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"Expected a program that Program.to_bytes wrote; {error}.") from error


class _Reader:
    def __init__(self, data: Mapping[str, Any], content: memoryview) -> None:
        self.memory = [self._memory(entry, content) for entry in data["memory"]]
        self.words: Sequence[Any] = data["tables"]
        self.tables: dict[int, Table] = {}

    @staticmethod
    def _memory(entry: Sequence[Any], content: memoryview) -> Array:
        name, shape, scratch, at = entry
        dtype = np.dtype(str(name))
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not scratch and at + count > len(content):
            raise ValueError("data is missing at its end")
        array = aligned_zeros(tuple(shape), dtype)
        if not scratch:
            array[...] = np.frombuffer(content[at : at + count], dtype).reshape(shape)
        return array

    def program(self, data: Mapping[str, Any]) -> Program:
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data["target"].items()}
        slots = tuple(Slot(name, kind, width, local, self.array(n)) for name, kind, width, local, n in data["slots"])
        stages = tuple(
            Stage(kind, tuple(self.instruction(step) for step in steps), rows) for kind, rows, steps in data["stages"]
        )
        return Program(Target(**given), slots, stages, tuple(self.memory[n] for n in data["scratch"]))

    def array(self, number: int | None) -> Array | None:
        return None if number is None else self.memory[number]

    def instruction(self, data: Sequence[Any]) -> Instruction:
        kernel, constants, args, label, macs, weight_bytes, quantised, note, panels, alone, layer = data
        others = None if alone is None else tuple(self.instruction(step) for step in alone)
        words = tuple(self.word(value) for value in args)
        return Instruction(
            kernel, _decoded(constants), words, label, macs, weight_bytes, quantised, note, panels, others, layer
        )

    def word(self, value: Any) -> Argument:
        if isinstance(value, int):
            return value
        kind, *rest = value
        if kind == "numbers":
            return tuple(int(number) for number in rest)
        if kind == "array":
            constant: Array = self.memory[rest[0]]
            return constant
        if kind == "place":
            return Place(self.memory[rest[0]], rest[1])
        if kind == "table":
            if rest[0] not in self.tables:
                self.tables[rest[0]] = Table([self.word(word) for word in self.words[rest[0]]])
            return self.tables[rest[0]]
        program, count, batch, workers, places = rest
        found: dict[int, tuple[Place, int, int]] = {}
        for slot, at, time, row in places:
            where = self.word(at)
            if not isinstance(where, Place):
                raise ValueError("a slot's place is none")
            found[slot] = (where, time, row)
        return Body(self.program(program), count, batch, workers, found)
