"""Timing single instructions: programs that read a clock after each of theirs.

`marked` inserts an instruction after every instruction of a program; it adds the ticks since the previous reading to a
word of the clock's table. Time spent in Python is added by the same kernel, so the words sum to the elapsed time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.arguments.arrays import Mark
from fastlstm.program.memory import address_of, aligned_zeros
from fastlstm.program.program import Argument, Body, Instruction, Program, Stage, place
from fastlstm.target import Target

__all__ = ["OUTSIDE", "Clock", "marked"]

KERNEL = "profile.mark"
WORDS = 1 << 14
OUTSIDE = ("", "between kernels")
"""Time between the end of one program and the start of the next: Python, checks, copies."""
OTHERS = ("", "others")  # once the table is full


class Clock:
    """Ticks by layer and kernel, for one thread at a time."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.table = aligned_zeros(WORDS, np.int64)
        self._words = {OUTSIDE: 1, OTHERS: 2}
        self._function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(address(Kernel(KERNEL), target))
        self._arguments = np.array([address_of(self.table), 0], np.int64)
        self._frame = np.zeros(layout.FRAME_WORDS, np.int64)

    def mark(self, layer: str, what: str) -> Instruction:
        """Return the instruction that adds the time since the last mark to a layer's kernel."""
        return Instruction(KERNEL, (), Mark(place(self.table), self._word(layer, what)), KERNEL, layer=layer)

    def note(self, layer: str, what: str) -> None:
        """Add the time since the last mark, from Python."""
        self._arguments[1] = self._word(layer, what)
        self._function(address_of(self._arguments), address_of(self._frame), 0)

    def _word(self, layer: str, what: str) -> int:
        key = (layer, what)
        if key not in self._words and len(self._words) >= WORDS - 1:
            key = OTHERS
        return self._words.setdefault(key, len(self._words) + 1)

    def start(self) -> None:
        """Start counting from zero now."""
        self.note(*OUTSIDE)
        self.table[1:] = 0

    def ticks(self) -> Mapping[tuple[str, str], int]:
        """Return the ticks since `start` by layer and kernel, in the order the programs were made."""
        return {key: int(self.table[word]) for key, word in self._words.items()}


def marked(program: Program, clock: Clock) -> Program:
    """Return the program with a mark after each instruction, including those in the bodies of loops."""
    first = Stage(layout.ONCE, (clock.mark(*OUTSIDE),))
    within = _within(program, clock)
    return replace(within, stages=(first, *within.stages))


def _within(program: Program, clock: Clock) -> Program:
    if any(array is clock.table for array in program.scratch):
        return program
    stages = tuple(replace(stage, instructions=tuple(_marked(stage, clock))) for stage in program.stages)
    return replace(program, stages=stages, scratch=(*program.scratch, clock.table))


def _marked(stage: Stage, clock: Clock) -> Iterator[Instruction]:
    for step in stage.instructions:
        if any(isinstance(value, Body) for value in step.args):
            yield replace(step, args=tuple(_inside(value, clock) for value in step.args))
        else:
            yield step
        yield clock.mark(step.layer, step.label or step.kernel)


def _inside(value: Argument, clock: Clock) -> Argument:
    return replace(value, program=_within(value.program, clock)) if isinstance(value, Body) else value
