"""Memory for a lowered program, and calls of it, independent of what lowered it.

A `Lowered` is a program for a number of batch rows, in the words that kernels read, with addresses left open.
`Instance` gives it memory in this process, fills in the addresses and runs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.memory import address_of, aligned_zeros
from fastlstm.runtime.busy import Busy, in_use
from fastlstm.runtime.team import WORTH_A_TEAM, WORTH_WAKING, team_of
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Instance", "Lowered", "SlotMemory"]


class SlotMemory(NamedTuple):
    """What `fastlstm.program.program.Slot` says of a slot's memory."""

    kind: str
    stride: int
    local: bool = False
    value: Array | None = None


class Lowered(NamedTuple):
    """A program for `batch` rows, as words.

    Attributes
    ----------
    target : Target
    batch : int
    slots : sequence of SlotMemory
    words : sequence of int
        The instruction table (see `fastlstm.kernels.drive`), with 0 in place of every address.
    kernels : sequence of (int, Kernel)
        The positions of words that hold a kernel's address.
    arrays : sequence of (int, array, int)
        The positions of words that hold an address in an array, that many bytes past its first element.
    block : int
        The most time steps of a block.
    scratch, integers : int
        Bytes of scratch memory per worker, and after them bytes for quantised rows (`fastlstm.program.scratch`).
    macs : int
        Multiply-adds per time step.
    """

    target: Target
    batch: int
    slots: Sequence[SlotMemory]
    words: Sequence[int]
    kernels: Sequence[tuple[int, Kernel]]
    arrays: Sequence[tuple[int, Array, int]]
    block: int
    scratch: int
    integers: int
    macs: int


class Instance:
    """Slots, buffers and instructions for a fixed number of batch rows.

    With more than one of `workers`, a team runs calls that are long enough to gain from it.
    """

    def __init__(self, lowered: Lowered, workers: int = 1, steps: int = 0) -> None:
        self.lowered, self.workers, self.steps = lowered, workers, steps
        self.batch = self.used = lowered.batch  # batch rows that memory is allocated for, and that run
        self.macs = lowered.macs
        self.busy = Busy()
        slots = lowered.slots
        self._table = np.zeros((len(slots), layout.SLOT_WORDS), np.int64)
        self._buffers: list[Array | None] = [None] * len(slots)
        self.frame = np.zeros(layout.FRAME_WORDS, np.int64)
        self._code = np.array(lowered.words, np.int64)
        for at, kernel in lowered.kernels:
            self._code[at] = self._address(*kernel)
        for at, array, offset in lowered.arrays:
            self._code[at] = address_of(array) + offset
        self._scratch = [aligned_zeros(lowered.scratch + lowered.integers, np.uint8) for _ in range(workers)]
        self._frames = [self.frame]
        self._set_frame(self.frame, self._scratch[0])
        self._place_buffers(max(steps, 1))
        self._alone = (self._address("drive.drive"), address_of(self._code), address_of(self.frame))
        if workers > 1:
            self._prepare_team()

    def _address(self, name: str, constants: tuple[Any, ...] = ()) -> int:
        return address(Kernel(name, constants), self.target)

    def _set_frame(self, frame: Array, scratch: Array) -> None:
        for word, value in (
            (layout.SLOTS, address_of(self._table)),
            (layout.ROWS, self.batch),
            (layout.WORKERS, 1),
            (layout.SHARES, 1),
            (layout.SCRATCH, address_of(scratch)),
            (layout.QUANTISED, address_of(scratch) + self.lowered.scratch),
            (layout.CUT_BYTES, self.target.cut_bytes),
            (layout.SLICE_BYTES, self.target.slice_bytes),
        ):
            frame[word] = value

    def _prepare_team(self) -> None:
        """Make a frame for each worker, and the words for the team's call."""
        self._team = team_of(self.workers)
        for worker, scratch in enumerate(self._scratch):
            frame = np.zeros(layout.FRAME_WORDS, np.int64)
            self._set_frame(frame, scratch)
            frame[layout.WORKER], frame[layout.WORKERS] = worker, self.workers
            frame[layout.JOB], frame[layout.FOLLOWING] = self._team.job, self._address("shares.following")
            self._frames.append(frame)
        words = [self._team.job, self._alone[1], self._alone[0], self._alone[2], self.workers]
        self._run_words = np.array([*words, *(address_of(frame) for frame in self._frames[1:])], np.int64)

    @property
    def target(self) -> Target:
        """The target that its kernels are compiled for."""
        return self.lowered.target

    @property
    def code(self) -> int:
        """Address of the instruction table."""
        return address_of(self._code)

    @property
    def frames(self) -> Sequence[Array]:
        """The frame for a run without a team, and those of a team's workers."""
        return self._frames

    def call(self, steps: int) -> tuple[int, int, int]:
        """Return the C function that runs the program over `steps` time steps, and its two arguments."""
        if self.workers == 1 or steps * self.macs < WORTH_A_TEAM:
            return self._alone
        self._team.start()
        light = steps * self.macs < WORTH_WAKING
        return self._address("team.lead"), address_of(self._run_words), int(light)

    def functions(self) -> tuple[tuple[int, int], tuple[int, int, int] | None]:
        """Return what `call` chooses from: function and first argument of a run without a team, and of one with it.

        The team's are followed by the address of the word that says whether it has been started.
        """
        if self.workers == 1:
            return self._alone[:2], None
        return self._alone[:2], (self._address("team.lead"), address_of(self._run_words), self._team.alive)

    def _place_buffers(self, steps: int) -> None:
        """Give every slot memory for `steps` time steps; states and other rows keep theirs."""
        self.steps = steps
        self.frame[layout.ROOM] = steps
        for index, slot in enumerate(self.lowered.slots):
            if slot.kind == "external":
                continue
            if slot.kind == "constant":
                self._buffers[index] = slot.value
                self._table[index] = (address_of(slot.value), 0, 0, 1)
                continue
            held = 1 if slot.kind == "row" else min(self.lowered.block, steps) if slot.local else steps
            needed = held * self.batch * slot.stride + self.target.slack
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
        for index, slot in enumerate(self.lowered.slots):
            if slot.kind == "time":
                self._table[index, layout.SLOT_TIME] = 4 * slot.stride * rows

    def rows(self, index: int) -> Array:
        """Return the buffer of a "row" slot, at least as wide as the slot; writing to it writes the state."""
        buffer = self._buffers[index]
        assert buffer is not None
        stride = self.lowered.slots[index].stride
        return buffer[: self.batch * stride].reshape(self.batch, stride)

    def place(self, index: int, address: int, time: int, row: int) -> None:
        """Point an "external" slot at memory that the caller keeps alive."""
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
        """Run all stages over `steps` time steps; return the frame's status. InputError if it is already running.

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
        """Do what `run` does, for a caller that already owns the program."""
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
        """Allocate memory for `steps` time steps, so that a run over that many allocates nothing."""
        if steps > self.steps:
            self._place_buffers(steps)

    def slot_address(self, index: int) -> int:
        """Return the address of a slot's words."""
        return address_of(self._table) + 8 * layout.SLOT_WORDS * index

    def place_row(self, index: int, address: int) -> None:
        """Point a "row" slot at memory that someone else owns."""
        self._table[index, layout.SLOT_BASE] = address

    def nbytes(self) -> int:
        """Return the number of bytes of working memory."""
        return sum(b.nbytes for b in self._buffers if b is not None) + sum(s.nbytes for s in self._scratch)


@cache
def _function(address: int) -> Any:
    """Return a kernel as a C function that releases the interpreter lock."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
