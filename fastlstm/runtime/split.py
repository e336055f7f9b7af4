"""A program whose batch is divided among workers.

Workers usually share the hidden units of every layer. If those do not divide evenly (seven panels among two workers)
and there are enough rows, each worker runs the whole program for some of the batch's rows instead: rows are independent
of each other, so workers need not wait for each other, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.program.arguments.rows import Part, Split, SplitTable
from fastlstm.program.memory import address_of
from fastlstm.program.program import Instruction, Program, Stage
from fastlstm.runtime.program import BoundProgram

__all__ = ["SplitProgram", "worth_splitting"]

FEWEST_ROWS = 4  # per worker: with fewer, weights are loaded as often as they are multiplied
SHORT_TILES = 1.03  # cost factor of tiles with fewer rows
QUANTISED_TWICE = 1.04  # cost factor of every worker quantising all rows
SHORT_STEP = 600_000
"""Multiply-adds of a layer's time step, up to which meeting at its end costs more than tiles with fewer rows: with two
workers 8 rows of 128 units took 7 to 13 % less time divided by rows, 5 rows of 100 units 0 to 15 %."""
SMALL_LAYER = 1 << 16  # multiply-adds per row: every worker reads all weights, which fit half of an L2 cache
MANY_ROWS = 16  # per worker: with fewer, layers of 512 units lost time, as every worker reads all weights


def worth_splitting(batch: int, panels: float, workers: int, narrow: bool = False, row: float = math.inf) -> bool:
    """Return whether a batch divides better among workers than the panels of hidden units do.

    A fraction of a panel is a tail, part of the last share (see kernels/recurrent.py). Workers that share the units of
    a layer with `narrow` weights each quantise all rows; 32 rows of 128 and of 256 units took 4 to 11 % less time
    divided by rows. `row` is how many multiply-adds a time step of the layer takes for one row.
    """
    short = not narrow and row <= SMALL_LAYER and batch * row <= SHORT_STEP
    if workers > 1 and batch >= 2 * workers and short:
        return True
    if workers == 1 or batch < FEWEST_ROWS * workers:
        return False

    def longest(count: float) -> float:
        whole = int(count)
        first, last = -(-whole // workers), whole // workers + count - whole
        return max(first, last) * workers / count

    repeated = QUANTISED_TWICE if narrow and batch >= MANY_ROWS * workers else 1.0
    return longest(batch) * SHORT_TILES < longest(panels) * repeated


class SplitProgram(BoundProgram):
    """A `BoundProgram` of one instruction, which runs a program of its own for each worker's rows.

    The parts have their own buffers for values with a time axis. States and other values without one are in this
    program's buffers, and external arrays are bound here: each part sees its own rows of them.
    """

    def __init__(self, program: Program, batch: int, workers: int) -> None:
        bounds = [batch * i // workers for i in range(workers + 1)]
        self._starts = bounds[:-1]
        self._parts = [BoundProgram(program, end - start) for start, end in itertools.pairwise(bounds)]
        self._inner = program.slots
        external = [i for i, slot in enumerate(program.slots) if slot.kind == "external"]
        words: list[int] = [*SplitTable(workers, address(Kernel("drive.drive"), program.target), len(external))]
        for part, start in zip(self._parts, self._starts, strict=True):
            words += Part(part.code, address_of(part.frame), part.slot_address(0), start)
        table = np.array([*words, *external], np.int64)
        # Values with a time axis have no memory here.
        outer = tuple(replace(slot, kind="external") if slot.kind == "time" else slot for slot in program.slots)
        step = Instruction("split.split", (), Split(table))
        super().__init__(Program(program.target, outer, (Stage(layout.ONCE, (step,)),)), batch, workers)
        self.macs = sum(part.macs for part in self._parts)

    def _place_buffers(self, steps: int) -> None:
        super()._place_buffers(steps)
        for part, start in zip(self._parts, self._starts, strict=True):
            part.reserve(steps)
            for index, slot in enumerate(self._inner):
                if slot.kind == "row":
                    part.place_row(index, address_of(self.rows(index)[start:]))

    def nbytes(self) -> int:
        """Return the number of bytes of working memory."""
        return super().nbytes() + sum(part.nbytes() for part in self._parts)
