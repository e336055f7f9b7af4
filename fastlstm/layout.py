"""The words that Python and compiled code share: all of them are int64, all addresses are absolute.

A *program* is a table of stages and instructions, a *slot* says where a value lies, and a *frame* is what one
worker needs to run a program once. `fastlstm.program` writes them, `fastlstm.kernels` reads them.

    program   n_stages, then a stage: kind, block, n_instructions, then an instruction: kernel address, words of
              arguments, the arguments
"""

from __future__ import annotations

__all__ = [
    "ACTIVE", "BARRIER", "BLOCK", "FRAME_WORDS", "ONCE", "QUANTISED", "REVERSE", "ROWS", "SCRATCH", "SLOTS",
    "SLOT_BASE", "SLOT_BLOCK", "SLOT_ROW", "SLOT_TIME", "SLOT_WORDS", "START", "STATUS", "STEPS", "TOTAL", "WORKER",
    "WORKERS",
]  # fmt: skip

# kinds of stage
BLOCK, REVERSE, ONCE = 0, 1, 2  # blocks of time steps onwards, backwards; a single step without time

# words of a slot
SLOT_BASE = 0  # address of the first element
SLOT_TIME = 1  # bytes from one time step to the next
SLOT_ROW = 2  # bytes from one batch row to the next
SLOT_BLOCK = 3  # 1 if the slot holds one block of time steps, 0 if it holds them all
SLOT_WORDS = 4

# words of a frame
SLOTS = 0  # address of the slots
START = 1  # first time step of the block that is running
STEPS = 2  # time steps in that block
ROWS = 3  # batch rows
WORKER = 4  # this worker's number
WORKERS = 5  # workers that share the program's buffers
BARRIER = 6  # address of their barrier
SCRATCH = 7  # address of this worker's scratch memory
ACTIVE = 8  # 0, or address of the number of rows that are active at each time step, and a 0 after the last
TOTAL = 9  # time steps altogether
STATUS = 10  # written by kernels: 0 or the first complaint about the data
QUANTISED = 11  # address of this worker's memory for quantised rows
FRAME_WORDS = 16
