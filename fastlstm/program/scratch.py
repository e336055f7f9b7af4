"""How much scratch memory instructions need: what each worker has of its own while it runs one.

The engine and the exported code both reserve what these two functions say, so a kernel's needs are stated once.
"""

from __future__ import annotations

from fastlstm.program.layout import LINE
from fastlstm.program.program import Instruction, Program

__all__ = ["integer_bytes", "scratch_bytes"]


def scratch_bytes(step: Instruction, program: Program, batch: int, block: int) -> int:
    """Return the bytes that an instruction needs at most at `layout.SCRATCH`, for blocks of so many time steps."""
    target = program.target
    vector = 4 * target.lanes
    if not program.slots or step.kernel.startswith("lines."):
        return 2 * vector + LINE  # a vector that is stored in part, and a number behind it
    rows = _rows(step, batch, block)
    widest = max(slot.stride for slot in program.slots)
    saved = 4 * batch * widest if step.recurrent else 0  # cell states, where a mask may skip the step
    addresses = 16 * rows  # of rows, twice
    sums = batch * max(target.max_sums, 8) * vector  # of one group of panels
    return saved + addresses + sums + 2 * vector


def integer_bytes(step: Instruction, program: Program, batch: int, block: int) -> int:
    """Return the bytes that an instruction needs at `layout.QUANTISED`, see `fastlstm.kernels.integer_rows`."""
    if not step.quantised:
        return 0
    rows = _rows(step, batch, block)
    row = -(-2 * (step.quantised + program.target.lanes) // LINE) * LINE | LINE
    return LINE + -(-4 * rows // LINE) * LINE + rows * row


def _rows(step: Instruction, batch: int, block: int) -> int:
    """Return how many rows an instruction works on at once: those of a block, or of a time step."""
    return batch * (block if step.kernel == "linear.linear" else 1)
