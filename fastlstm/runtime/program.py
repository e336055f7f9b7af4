"""Programs bound to memory in this process.

`BoundProgram` owns the memory of one run at a time: the slots, the buffers behind them, the instruction table and
the frame. It is bound to a batch size and grows with the number of time steps. A model keeps a pool of them, one per
running call; a stream owns one for its whole life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fastlstm.errors import counted
from fastlstm.kernels.compiler import prepare
from fastlstm.kernels.kernel import Kernel
from fastlstm.program.layout import LINE
from fastlstm.program.memory import address_of
from fastlstm.program.program import Argument, Body, Instruction, Place, Program, Table
from fastlstm.program.protected import CHECKING
from fastlstm.program.scratch import integer_bytes, scratch_bytes
from fastlstm.runtime.bound import Instance, Lowered, SlotMemory
from fastlstm.typing import Array

__all__ = ["BoundProgram"]

Word = int | Kernel | tuple[Array, int]
"""A word of the instruction table; a kernel, or a position in an array, stands for its address."""


class BoundProgram(Instance):
    """A program for a fixed number of batch rows; see `Instance`."""

    def __init__(self, program: Program, batch: int, workers: int = 1, steps: int = 0) -> None:
        self.program = program
        self.bodies: list[BoundProgram] = []  # programs inside this one
        self._tables: dict[int, Array] = {}
        self._kept: list[Array] = []  # kept alive for words that are not lowered
        prepare((Kernel(*one) for one in program.kernels(batch)), program.target)
        super().__init__(self._lower(batch), workers, steps)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.program!r}, bound to {counted(self.batch, 'row')}, "
            f"{counted(self.workers, 'worker')} and {counted(self.steps, 'time step')}: {self.nbytes():,} bytes>"
        )

    def _lower(self, batch: int) -> Lowered:
        program = self.program
        words: list[Word] = [len(program.stages)]
        for stage in program.stages:
            steps, block = stage.chosen(batch), stage.block(batch)
            words += [stage.kind, block, len(steps)]
            for step in steps:
                if CHECKING and program.slots:
                    from fastlstm.runtime import bounds

                    bounds.check(program.slots, step)
                args = [word for value in step.args for word in self._words(value)]
                words += [Kernel(step.kernel, step.constants), step.shares(batch, block), len(args), *args]
        longest = max((stage.block(batch) for stage in program.stages), default=1)
        return Lowered(
            program.target,
            batch,
            [SlotMemory(slot.kind, slot.stride, slot.local, slot.value) for slot in program.slots],
            [word if isinstance(word, int) else 0 for word in words],
            [(at, word) for at, word in enumerate(words) if isinstance(word, Kernel)],
            [(at, *word) for at, word in enumerate(words) if not isinstance(word, int | Kernel)],
            longest,
            _most(scratch_bytes, program, batch, longest),
            _most(integer_bytes, program, batch, longest),
            batch * sum(step.macs for step in program.instructions),
        )

    def _words(self, value: Argument) -> list[Word]:
        """Return an argument as the words that kernels read."""
        if isinstance(value, np.ndarray):
            return [(value, 0)]
        if isinstance(value, Place):
            return [(value.memory, value.offset)]
        if isinstance(value, Table):
            if id(value) not in self._tables:
                words = [self._here(word) for inner in value.words for word in self._words(inner)]
                self._tables[id(value)] = np.array(words, np.int64)
            return [(self._tables[id(value)], 0)]
        if isinstance(value, Body):
            return self._body(value)
        return list(map(int, value)) if isinstance(value, tuple) else [int(value)]

    def _here(self, word: Word) -> int:
        """Return a word of a table, with an address in this process if it stands for one."""
        if isinstance(word, Kernel):
            raise AssertionError("no table has kernels")
        if isinstance(word, int):
            return word
        self._kept.append(word[0])
        return address_of(word[0]) + word[1]

    def _body(self, body: Body) -> list[Word]:
        """Bind a program inside this one, and return its words."""
        bound = BoundProgram(body.program, body.batch, body.workers, body.count if body.program.slots else 1)
        self.bodies.append(bound)
        for slot, (at, time, row) in body.places.items():
            self._kept.append(at.memory)
            bound.place(slot, address_of(at.memory) + at.offset, time, row)
        code, frames = (bound._code, 0), [(frame, 0) for frame in (bound.frames if body.workers > 1 else [])][1:]
        return [Kernel("drive.drive"), code, body.count, body.workers, (bound.frame, 0), *frames]

    @property
    def relocatable(self) -> bool:
        """Whether the program consists of words and constant data alone."""
        return type(self) is BoundProgram and not (self.bodies or self._tables or self.program.scratch)

    def family(self) -> Iterator[BoundProgram]:
        """Return this program and those inside it."""
        yield self
        for body in self.bodies:
            yield from body.family()

    @property
    def complains(self) -> bool:
        """Whether it has instructions that may find an index out of range."""
        return any(step.kernel in ("movement.embed", "integers.gather") for step in self.program.instructions)

    def buffers(self) -> Mapping[str, Array]:
        """Return the buffers by slot name, for debugging."""
        return {s.name: b for s, b in zip(self.program.slots, self._buffers, strict=True) if b is not None}


def _most(rule: Callable[[Instruction, Program, int, int], int], program: Program, batch: int, block: int) -> int:
    """Return the most bytes that any instruction needs by a rule of `fastlstm.program.scratch`, as whole lines."""
    steps = (s for step in program.instructions for s in (step, *(step.alone or ())))
    most = max((rule(step, program, batch, block) for step in steps), default=0)
    return -(-most // LINE) * LINE
