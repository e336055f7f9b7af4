"""A program bound to memory in this process.

`BoundProgram` owns the memory of one run at a time: the slots, the buffers behind them, the instruction table and
the frame. It is bound to a batch size and grows with the number of time steps. A model keeps some in a pool, one a
running call; a stream owns one for its whole life.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import layout
from fastlstm.arguments.arrays import Bound
from fastlstm.busy import Busy, in_use
from fastlstm.kernels.compiler import Kernel, address, prepare
from fastlstm.memory import address_of, aligned_zeros
from fastlstm.program import Argument, Body, Instruction, Place, Program, Table
from fastlstm.protected import CHECKING
from fastlstm.scratch import integer_bytes, scratch_bytes
from fastlstm.target import Target
from fastlstm.team import WORTH_A_TEAM, WORTH_WAKING, team_of

__all__ = ["BoundProgram"]

Array = npt.NDArray[Any]


@dataclass
class BoundProgram:
    """Slots, buffers and instructions for a fixed number of batch rows.

    With `workers` over 1 a team runs what is long enough for that to pay.
    """

    program: Program
    batch: int
    workers: int = 1
    steps: int = 0
    frame: Array = field(init=False)
    used: int = field(init=False)  # rows of the batch that run
    busy: Busy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.used = self.batch
        self.busy = Busy()
        self._table = np.zeros((len(self.program.slots), layout.SLOT_WORDS), np.int64)
        self._buffers: list[Array | None] = [None] * len(self.program.slots)
        self._arrays: list[Array] = []  # what the instruction table points to
        self._tables: dict[int, Array] = {}
        self.bodies: list[BoundProgram] = []  # programs inside this one
        self.frame = np.zeros(layout.FRAME_WORDS, np.int64)
        self._code = self._assemble()
        self._block = max((stage.block(self.batch) for stage in self.program.stages), default=1)
        scratch, integers = self._needed(scratch_bytes), self._needed(integer_bytes)
        self._scratch = [aligned_zeros((scratch + integers) // 8, np.int64) for _ in range(self.workers)]
        self.macs = self.batch * sum(step.macs for step in self.program.instructions)
        self._frames = [self.frame]
        self._set_frame(self.frame, self._scratch[0], scratch)
        self._place_buffers(max(self.steps, 1))
        self._alone = (self._address("drive.drive"), address_of(self._code), address_of(self.frame))
        if self.workers > 1:
            self._hire(scratch)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.program!r}, bound to {self.batch} rows, {self.workers} worker(s) and "
            f"{self.steps} time steps: {self.nbytes():,} bytes>"
        )

    def _address(self, name: str) -> int:
        return address(Kernel(name), self.program.target)

    def _needed(self, rule: Callable[[Instruction, Program, int, int], int]) -> int:
        """Return the bytes that a worker needs by a rule of `fastlstm.scratch`, in whole cache lines."""
        steps = (s for step in self.program.instructions for s in (step, *(step.alone or ())))
        most = max((rule(step, self.program, self.batch, self._block) for step in steps), default=0)
        return -(-most // layout.LINE) * layout.LINE

    def _set_frame(self, frame: Array, scratch: Array, integers: int) -> None:
        for word, value in (
            (layout.SLOTS, address_of(self._table)),
            (layout.ROWS, self.batch),
            (layout.WORKERS, 1),
            (layout.SCRATCH, address_of(scratch)),
            (layout.QUANTISED, address_of(scratch) + integers),
            (layout.CUT_BYTES, self.program.target.cut_bytes),
            (layout.SLICE_BYTES, self.program.target.slice_bytes),
        ):
            frame[word] = value

    def _hire(self, integers: int) -> None:
        """Make a frame for each worker, and the crew's words."""
        self._team = team_of(self.workers)
        for worker, scratch in enumerate(self._scratch):
            frame = np.zeros(layout.FRAME_WORDS, np.int64)
            self._set_frame(frame, scratch, integers)
            frame[layout.WORKER], frame[layout.WORKERS] = worker, self.workers
            frame[layout.SHARES], frame[layout.FOLLOWING] = self._team.job, self._address("shares.following")
            self._frames.append(frame)
        crew = [self._team.job, self._alone[1], self._alone[0], self._alone[2], self.workers]
        self._crew = np.array([*crew, *(address_of(frame) for frame in self._frames[1:])], np.int64)

    @property
    def target(self) -> Target:
        """What its kernels are made for."""
        return self.program.target

    @property
    def code(self) -> int:
        """Address of the instruction table."""
        return address_of(self._code)

    @property
    def frames(self) -> Sequence[Array]:
        """The frame for one worker alone, and those of a crew's workers."""
        return self._frames

    def call(self, steps: int) -> tuple[int, int, int]:
        """Return the C function that runs the program over `steps` time steps, and its two arguments."""
        if self.workers == 1 or steps * self.macs < WORTH_A_TEAM:
            return self._alone
        self._team.start()
        light = steps * self.macs < WORTH_WAKING
        return self._address("team.lead"), address_of(self._crew), int(light)

    def functions(self) -> tuple[tuple[int, int], tuple[int, int, int] | None]:
        """Return what `call` chooses from: the function and the first argument that run it alone, and with a team.

        Behind those of the team is the address of the word that says whether it has been started.
        """
        crew = (self._address("team.lead"), address_of(self._crew), self._team.alive) if self.workers > 1 else None
        return self._alone[:2], crew

    def _assemble(self) -> Array:
        prepare((Kernel(*one) for one in self.program.kernels(self.batch)), self.program.target)
        words: list[int] = [len(self.program.stages)]
        for stage in self.program.stages:
            steps = stage.chosen(self.batch)
            words += [stage.kind, stage.block(self.batch), len(steps)]
            for step in steps:
                if CHECKING and self.program.slots:
                    from fastlstm.segments import bounds

                    bounds.check(self.program.slots, step)
                args = [word for value in step.args for word in self._words(value)]
                words += [address(Kernel(step.kernel, step.constants), self.program.target), len(args), *args]
        return np.array(words, np.int64)

    def _words(self, value: Argument) -> list[int]:
        """Return an argument as kernels read it; what it points to is kept."""
        if isinstance(value, np.ndarray):
            self._arrays.append(value)
            return [address_of(value)]
        if isinstance(value, Place):
            self._arrays.append(value.memory)
            return [address_of(value.memory) + value.offset]
        if isinstance(value, Table):
            if id(value) not in self._tables:
                self._tables[id(value)] = np.array([w for v in value.words for w in self._words(v)], np.int64)
                self._arrays.append(self._tables[id(value)])
            return [address_of(self._tables[id(value)])]
        if isinstance(value, Body):
            return self._body(value)
        return list(value) if isinstance(value, tuple) else [value]

    def _body(self, body: Body) -> list[int]:
        """Bind a program inside this one, and return its words."""
        bound = BoundProgram(body.program, body.batch, body.workers, body.count if body.program.slots else 1)
        self.bodies.append(bound)
        for slot, (at, time, row) in body.places.items():
            self._arrays.append(at.memory)
            bound.place(slot, address_of(at.memory) + at.offset, time, row)
        frames = [address_of(frame) for frame in (bound.frames if body.workers > 1 else [])][1:]
        words = Bound(self._address("drive.drive"), bound.code, body.count, body.workers, address_of(bound.frame))
        return [*words, *frames]

    def _place_buffers(self, steps: int) -> None:
        """Give every slot its memory for `steps` time steps; states and other rows keep theirs."""
        self.steps = steps
        self.frame[layout.ROOM] = steps
        for index, slot in enumerate(self.program.slots):
            if slot.kind == "external":
                continue
            if slot.kind == "constant":
                self._buffers[index] = slot.value
                self._table[index] = (address_of(slot.value), 0, 0, 1)
                continue
            held = 1 if slot.kind == "row" else min(self._block, steps) if slot.local else steps
            needed = held * self.batch * slot.stride + self.program.target.slack
            buffer = self._buffers[index]
            if buffer is None or buffer.size < needed:
                buffer = self._buffers[index] = aligned_zeros(needed, np.float32)
            row = 4 * slot.stride
            time = 0 if slot.kind == "row" else row * self.used
            self._table[index] = (address_of(buffer), time, row, int(slot.local or slot.kind == "row"))

    def use(self, rows: int) -> None:
        """Run only the first `rows` rows from now on."""
        self.used = rows
        for frame in self._frames:
            frame[layout.ROWS] = rows
        for index, slot in enumerate(self.program.slots):
            if slot.kind == "time":
                self._table[index, layout.SLOT_TIME] = 4 * slot.stride * rows

    def rows(self, index: int) -> Array:
        """Return the buffer of a "row" slot, at least its width wide; writing to it writes the state."""
        buffer = self._buffers[index]
        assert buffer is not None
        stride = self.program.slots[index].stride
        return buffer[: self.batch * stride].reshape(self.batch, stride)

    def place(self, index: int, address: int, time: int, row: int) -> None:
        """Point an "external" slot at memory that somebody else keeps."""
        self._table[index] = (address, time, row, 0)

    def bind(self, index: int, array: Array, time_axis: int | None, row_axis: int | None) -> None:
        """Point an "external" slot at an array whose last axis is contiguous."""
        time = 0 if time_axis is None else array.strides[time_axis]
        row = 0 if row_axis is None else array.strides[row_axis]
        self._table[index] = (address_of(array), time, row, 0)

    def keep(self, index: int, array: Array) -> None:
        """Keep the array that an "external" slot points to."""
        self._buffers[index] = array

    def run(self, steps: int, active: Array | None = None) -> int:
        """Run all stages over `steps` time steps; return the frame's status. InputError if a run is under way.

        `active` holds, for rows sorted by length, the number of rows active at each step.
        """
        busy = self.busy
        try:
            del busy.free
        except AttributeError:
            raise in_use("program") from None
        try:
            return self.drive(steps, active)
        finally:
            busy.free = None

    def drive(self, steps: int, active: Array | None = None) -> int:
        """Run as `run` does; for callers that have the program to themselves."""
        if steps > self.steps:
            self._place_buffers(max(steps, min(2 * self.steps, 4096)))
        frame = self.frame
        frame[layout.TOTAL] = steps
        frame[layout.ACTIVE] = 0 if active is None else address_of(active)
        frame[layout.STATUS] = 0
        function, *arguments = self.call(steps)
        _function(function)(*arguments, 0)
        return int(frame[layout.STATUS])

    def reserve(self, steps: int) -> None:
        """Make room for `steps` time steps, so that a run over so many allocates nothing."""
        if steps > self.steps:
            self._place_buffers(steps)

    def slot_address(self, index: int) -> int:
        """Return the address of a slot's words."""
        return address_of(self._table) + 8 * layout.SLOT_WORDS * index

    def place_row(self, index: int, address: int) -> None:
        """Point a "row" slot at memory that belongs to somebody else."""
        self._table[index, layout.SLOT_BASE] = address

    def family(self) -> Iterator[BoundProgram]:
        """Return this program and those inside it."""
        yield self
        for body in self.bodies:
            yield from body.family()

    @property
    def complains(self) -> bool:
        """Whether it has instructions that may find an index without anything to point to."""
        return any(step.kernel in ("movement.embed", "whole.gather") for step in self.program.instructions)

    def nbytes(self) -> int:
        """Return the bytes of working memory."""
        return sum(b.nbytes for b in self._buffers if b is not None) + sum(s.nbytes for s in self._scratch)

    def buffers(self) -> Mapping[str, Array]:
        """Return the buffers by slot name, for debugging."""
        return {s.name: b for s, b in zip(self.program.slots, self._buffers, strict=True) if b is not None}


@cache
def _function(address: int) -> Any:
    """Return a kernel as a C function that releases the interpreter lock."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
