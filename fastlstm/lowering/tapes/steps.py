"""Tapes and what they are made of: values in memory, steps that run, errors where a run differs from the recording."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import InputError, UnsupportedError
from fastlstm.program import layout
from fastlstm.runtime.busy import Busy
from fastlstm.runtime.native import Call, Wiring
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.segment import COMPLAINT
from fastlstm.typing import Array

__all__ = ["NotLoweredError", "Recorded", "SizesChangedError", "Tape", "Value"]


@dataclass
class Value:
    """A value while a tape is recorded.

    Attributes
    ----------
    array : array, or list of arrays for a sequence
        The memory where the value lies in every run, with any strides; and now the value itself, once the
        instructions so far have run.
    fixed : bool
        Whether it is the same in every run: it depends on sizes, constants and nothing else.
    padded : bool
        Whether it lies in memory of the tape: float32, whole vectors may be read past its end.
    shared : bool
        Whether it is a constant of the graph, whose packed forms serve all tapes.
    sole : bool
        Whether a single node reads it, and nothing else.
    """

    array: Any
    fixed: bool
    padded: bool = False
    shared: bool = False
    sole: bool = False

    @property
    def is_float(self) -> bool:
        """Whether it is a float32 array."""
        return isinstance(self.array, np.ndarray) and self.array.dtype == np.float32


class NotLoweredError(UnsupportedError):
    """A value is larger than a tape's memory may be, or has more axes than a kernel has loops: NumPy takes it."""


class SizesChangedError(Exception):
    """A value has another shape or type than when the tape was recorded, or a loop another number of rounds.

    `loop` is the id of that loop's node, 0 if it is no loop.
    """

    def __init__(self, loop: int = 0) -> None:
        super().__init__(loop)
        self.loop = loop


class Recorded:
    """A step that runs a program of instructions."""

    def __init__(self, program: BoundProgram) -> None:
        program.frame[layout.TOTAL] = 1
        self.program = program
        function, *arguments = program.call(1)
        self._run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(function)
        self._first, self._second = arguments

    def __call__(self) -> None:
        if self.program.workers > 1:  # the team may have to be started anew
            self.program.run(1)
        else:
            self._run(self._first, self._second, 0)


class Tape:
    """The steps of a model for inputs of one shape; not for two threads at a time.

    Attributes
    ----------
    inputs : list of array
        Where the inputs lie: written before every run.
    outputs : list of Value
    reusable : bool
        Whether running the steps again does what a new recording would do.
    nbytes : int
        Memory of the tape's own.
    busy : Busy
        The flag of who runs it.
    given : sequence of str
        Names of the inputs.
    entry : Call or None
        A built-in that runs it, `native.never` if some of it runs in Python, None before it was asked for; and
        `wiring`, what that was made of.
    steered : Call or None
        The same for the model around it, some of whose inputs chose this one.
    """

    def __init__(self) -> None:
        self.busy = Busy()
        self.given: Sequence[str] = ()
        self.entry: Call | None = None
        self.steered: Call | None = None
        self.wiring: Wiring | None = None
        self.inputs: list[Array] = []
        self.outputs: list[Value] = []
        self.steps: list[Callable[[], None]] = []
        self.watched: list[BoundProgram] = []
        self.flags: list[tuple[Array, int]] = []
        self.reusable = True
        self.nbytes = 0

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run for inputs of the recorded shape; SizesChangedError if sizes inside differ from those recorded."""
        for target, array in zip(self.inputs, inputs, strict=True):
            np.copyto(target, array)
        self.play()
        return self.results()

    def play(self) -> None:
        """Run on what `inputs` hold; the outputs stay in their memory until the tape runs again."""
        for step in self.steps:
            step()
        self.check()

    def watch(self, other: Tape) -> None:
        """Have another tape check what this one watches."""
        other.watched += self.watched
        other.flags += self.flags
        other.reusable &= self.reusable

    def check(self) -> None:
        """Raise an error if a loop ran another number of rounds than recorded, or an index was out of range."""
        for flag, loop in self.flags:
            if flag[0]:
                for other, _ in self.flags:
                    other[0] = 0
                raise SizesChangedError(loop)
        frames = [frame for program in self.watched for frame in program.frames]
        if any(frame[layout.STATUS] for frame in frames):
            for frame in frames:
                frame[layout.STATUS] = 0
            raise InputError(COMPLAINT)

    def results(self) -> list[Any]:
        """Return copies of the outputs."""
        return [
            [np.array(a) for a in value.array] if isinstance(value.array, list) else np.array(value.array)
            for value in self.outputs
        ]
