"""Tapes and their parts: values in memory, steps that run, errors if a run differs from the recording."""

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
    """A value during the recording of a tape.

    Attributes
    ----------
    array : array, or list of arrays for a sequence
        The memory that holds the value in every run, with any strides; it holds the current value once the
        instructions so far have run.
    fixed : bool
        Whether it is the same in every run, because it depends only on sizes and constants.
    padded : bool
        Whether it lies in the tape's memory: it is float32, and whole vectors may be read past its end.
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
    """A value is larger than a tape's memory may be, or has more axes than a kernel has loops: NumPy computes it."""


class SizesChangedError(Exception):
    """A value's shape or type, or a loop's number of rounds, differs from the recording.

    `loop` is the id of that loop's node, 0 if it is not a loop.
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
        if self.program.workers > 1:  # the team may have to be restarted
            self.program.run(1)
        else:
            self._run(self._first, self._second, 0)


class Tape:
    """The steps of a model for inputs of one shape; only one thread may use it at a time.

    Attributes
    ----------
    inputs : list of array
        Memory of the inputs, written before every run.
    outputs : list of Value
    reusable : bool
        Whether running the steps again does what a new recording would do.
    nbytes : int
        Size of the tape's own memory.
    busy : Busy
        The flag that tells whether it is running.
    given : sequence of str
        Names of the inputs.
    entry : Call or None
        A built-in that runs it, `native.never` if some of it runs in Python, None before it is first asked for;
        `wiring` is what it was made from.
    steered : Call or None
        The same for the model around it, some of whose inputs selected this tape's model.
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
        """Run on the contents of `inputs`; the outputs stay in their memory until the next run."""
        for step in self.steps:
            step()
        self.check()

    def watch(self, other: Tape) -> None:
        """Make another tape check what this one watches."""
        other.watched += self.watched
        other.flags += self.flags
        other.reusable &= self.reusable

    def check(self) -> None:
        """Raise an error if a loop's number of rounds differed from the recording, or an index was out of range."""
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
