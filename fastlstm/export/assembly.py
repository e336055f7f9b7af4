"""Writing functions in LLVM assembly: lines, names, loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["ELEMENTS", "Writer", "copy_loops"]

ELEMENTS = {"float32": "float", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "i8", "bool": "i8"}
"""The LLVM types of elements in memory."""


class Writer:
    """The body of a function whose integers have `bits` bits."""

    def __init__(self, bits: int) -> None:
        self.word = f"i{bits}"
        self.lines: list[str] = []
        self._count = 0
        self.block = "entry"

    def name(self) -> str:
        """Return an unused name."""
        self._count += 1
        return f"v{self._count}"

    def add(self, line: str) -> None:
        """Add an instruction without a result."""
        self.lines.append(f"  {line}")

    def value(self, line: str) -> str:
        """Add an instruction; return its result."""
        name = self.name()
        self.lines.append(f"  %{name} = {line}")
        return f"%{name}"

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{name}:")
        self.block = name

    def plus(self, a: str, b: str | int) -> str:
        """Return a sum."""
        return a if b in (0, "0") else self.value(f"add {self.word} {a}, {b}")

    def times(self, a: str, b: str | int) -> str:
        """Return a product."""
        return self.value(f"mul {self.word} {a}, {b}")

    def load(self, kind: str, address: str, align: int) -> str:
        """Return the value at an address."""
        at = self.value(f"inttoptr {self.word} {address} to ptr")
        return self.value(f"load {kind}, ptr {at}, align {align}")

    def store(self, kind: str, value: str, address: str, align: int) -> None:
        """Write a value to an address."""
        at = self.value(f"inttoptr {self.word} {address} to ptr")
        self.add(f"store {kind} {value}, ptr {at}, align {align}")

    @contextmanager
    def loop(self, count: str | int) -> Iterator[str]:
        """Loop `count` times over what is written inside; yields the iteration's number, from 0."""
        if count in (1, "1"):
            yield "0"
            return
        stem, before = self.name(), self.block
        self.add(f"br label %{stem}.head")
        self.label(f"{stem}.head")
        # The body's last block is known only once the body is written.
        place = len(self.lines)
        self.lines.append("")
        more = self.value(f"icmp ult {self.word} %{stem}, {count}")
        self.add(f"br i1 {more}, label %{stem}.body, label %{stem}.end")
        self.label(f"{stem}.body")
        yield f"%{stem}"
        self.add(f"%{stem}.next = add {self.word} %{stem}, 1")
        last = self.block
        self.add(f"br label %{stem}.head")
        self.lines[place] = f"  %{stem} = phi {self.word} [ 0, %{before} ], [ %{stem}.next, %{last} ]"
        self.label(f"{stem}.end")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Run what is written inside only if a condition holds."""
        stem = self.name()
        self.add(f"br i1 {condition}, label %{stem}.then, label %{stem}.end")
        self.label(f"{stem}.then")
        yield
        self.add(f"br label %{stem}.end")
        self.label(f"{stem}.end")


def copy_loops(
    out: Writer,
    sizes: Sequence[int | str],
    source: tuple[str, str, Sequence[int | str]],
    target: tuple[str, str, Sequence[int | str]],
) -> None:
    """Copy and convert elements between two arrays, each given by base address, element type and strides in bytes."""
    (x, x_kind, x_steps), (y, y_kind, y_steps) = source, target
    if not sizes:
        out.store(ELEMENTS[y_kind], _converted(out, x, x_kind, y_kind), y, _size(y_kind))
        return
    with out.loop(sizes[0]) as i:
        at = (
            (x, y)
            if i == "0"
            else tuple(out.plus(base, out.times(i, steps[0])) for base, steps in ((x, x_steps), (y, y_steps)))
        )
        copy_loops(out, sizes[1:], (at[0], x_kind, x_steps[1:]), (at[1], y_kind, y_steps[1:]))


def _size(kind: str) -> int:
    return {"float": 4, "i64": 8, "i32": 4, "i8": 1}[ELEMENTS[kind]]


def _converted(out: Writer, address: str, source: str, target: str) -> str:
    """Load the element at an address and convert it to another type."""
    kind, wanted = ELEMENTS[source], ELEMENTS[target]
    if kind != "float" and out.word == "i32" and kind == "i64":
        kind = "i32"  # the lower half: integers have 32 bits here
    value = out.load(kind, address, _size(source))
    if kind == wanted:
        return value
    if wanted == "float":
        return out.value(f"{'uitofp' if source in ('bool', 'uint8') else 'sitofp'} {kind} {value} to float")
    if kind == "float":
        if target == "bool":
            one = out.value(f"fcmp une float {value}, 0.0")
            return out.value(f"zext i1 {one} to i8")
        if wanted == "i64" and out.word == "i32":  # avoids a call of the compiler's runtime library
            return out.value(f"sext i32 {out.value(f'fptosi float {value} to i32')} to i64")
        return out.value(f"fptosi float {value} to {wanted}")
    if target == "bool":
        one = out.value(f"icmp ne {kind} {value}, 0")
        return out.value(f"zext i1 {one} to i8")
    wider = int(wanted[1:]) > int(kind[1:])
    how = ("zext" if source in ("bool", "uint8") else "sext") if wider else "trunc"
    return out.value(f"{how} {kind} {value} to {wanted}")
