"""Recurrent layers over a block of time steps.

The input's part of every gate's sum stands in the slot z already (`fastlstm.kernels.linear` puts it there, bias
included). A step adds the recurrent part, panel by panel, and turns each panel's sums into new states while
they are in the cache. A panel holds all gates of `lanes` hidden units.

Rows are sorted by length, longest first, so the active rows of a step are a prefix. A row's previous output is
read from y where it was active the step before, else from its state; its state is written when its last step
is done. Every second step walks the panels backwards: the ones used last are still in the cache.

Workers share the panels. They meet at a barrier when a step's outputs are complete, and once more where the
next step could read a state that another worker has still to write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastlstm.kernels.frame import active_rows, arg, meet, origin, row_stride, share, time_stride, word
from fastlstm.kernels.lstm_cell import lstm_cells
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import ROWS, SCRATCH, START, STEPS
from fastlstm.simd import load_i64, store_i64

__all__ = ["lstm"]

# Argument words of every kernel here. Z, Y, H, C and MASK are slots; H and C hold the states. EXTRA and the words
# after it depend on the kernel; each factory's docstring says what they are.
Z, Y, Y_OFFSET, K, WEIGHTS, PANELS, LAST_WIDTH, H, C, REVERSED, MASK, EXTRA, EXTRA_2, EXTRA_3 = range(14)

Activation = tuple[str, float | None, float | None]
Compiled = Callable[[int, int, int], int]

# The mask's codes: a step that counts; one to skip before any that counted; one to skip after.
COUNTS, SKIP_FIRST, SKIP = 1, 0, 2


def lstm(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None = None,
    coupled: bool = False,
    peephole: bool = False,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """LSTM. EXTRA is the address of the peepholes, packed ``[panel][i, f, o][lane]``."""
    cells = lstm_cells(lanes, max_sums, activations, clip, coupled, peephole)
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, bits)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, first, last, backwards):
        k, weights, extra = arg(args, K), arg(args, WEIGHTS), arg(args, EXTRA)
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            sums = z + panel * 4 * width
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, z_row, sums, z_row)
            whole = n if last_width == lanes else end - panel
            cells(
                rows, n, sums, z_row, c + panel * width, c_row, extra + panel * 3 * width, y + panel * width, y_row,
                whole, last_width, table + 8 * rows,
            )  # fmt: skip
            left -= n

    return over_time(lanes, step, masked)


def over_time(lanes: int, step: Any, masked: bool, projected: bool = False) -> Compiled:
    """Return the kernel that runs `step` for each time step of the block.

    With a mask every worker keeps aside what it owns of the cell states, so that a step can be undone.
    """

    @inlined
    def own_cells(args, frame, end):
        """Offset in bytes of this worker's first cell state in a row, or of the first behind its last (end=1)."""
        panels = load_i64(arg(args, EXTRA_3) + 16) if projected else arg(args, PANELS)
        return 4 * lanes * share(frame, panels, end)

    @inlined
    def keep_states(args, frame, t, rows, y, y_row, h, h_row, c, c_row, saved, mine, units, after):
        """Undo the step for the rows that skip it, and write the states of those that do not."""
        codes = origin(frame, arg(args, MASK)) + t * time_stride(frame, arg(args, MASK))
        codes_row = row_stride(frame, arg(args, MASK))
        cells, width = own_cells(args, frame, 0), own_cells(args, frame, 1) - own_cells(args, frame, 0)
        for b in range(rows):
            code = load_i64(codes + b * codes_row)
            here = b * h_row + mine
            if not after and code != COUNTS:
                copy(c + b * c_row + cells, saved + b * c_row, width // 4)
                clear(y + b * y_row + mine, units)
                if code == SKIP:
                    copy(y + b * y_row + mine, h + here, units)
            if after and code == COUNTS:
                copy(h + here, y + b * y_row + mine, units)

    def kernel(args: int, frame: int, unused: int) -> int:
        z, z_time, z_row = (
            origin(frame, arg(args, Z)),
            time_stride(frame, arg(args, Z)),
            row_stride(frame, arg(args, Z)),
        )
        y_time, y_row = time_stride(frame, arg(args, Y)), row_stride(frame, arg(args, Y))
        y = origin(frame, arg(args, Y)) + arg(args, Y_OFFSET)
        h, h_row = origin(frame, arg(args, H)), row_stride(frame, arg(args, H))
        c, c_row = origin(frame, arg(args, C)), row_stride(frame, arg(args, C))
        start, steps, batch = word(frame, START), word(frame, STEPS), word(frame, ROWS)
        table = word(frame, SCRATCH)
        if masked:
            saved, table = table, table + batch * c_row
        panels = arg(args, PANELS)
        first, last = share(frame, panels, 0), share(frame, panels, 1)
        mine, units = 4 * lanes * first, lanes * (last - first)
        if last == panels and last > first:
            units += arg(args, LAST_WIDTH) - lanes
        backwards = arg(args, REVERSED) != 0
        for i in range(steps):
            t = steps - 1 - i if backwards else i
            before = t + 1 if backwards else t - 1
            after = t - 1 if backwards else t + 1
            rows = active_rows(frame, start + t)
            known = 0 if i == 0 or masked else min(rows, active_rows(frame, start + before))
            for b in range(known):
                store_i64(table + 8 * b, y + before * y_time + b * y_row)
            for b in range(known, rows):
                store_i64(table + 8 * b, h + b * h_row)
            if masked:
                cells, width = own_cells(args, frame, 0), own_cells(args, frame, 1) - own_cells(args, frame, 0)
                for b in range(rows):
                    copy(saved + b * c_row, c + b * c_row + cells, width // 4)
            now = y + t * y_time
            step(
                args,
                frame,
                table,
                rows,
                z + t * z_time,
                z_row,
                now,
                y_row,
                c,
                c_row,
                first,
                last,
                (start + t) & 1 != 0,
            )
            for b in range(rows, batch):
                clear(now + b * y_row + mine, units)
            if masked:
                keep_states(args, frame, t, rows, now, y_row, h, h_row, c, c_row, saved, mine, units, False)
            meet(frame)
            if masked:
                keep_states(args, frame, t, rows, now, y_row, h, h_row, c, c_row, saved, mine, units, True)
                meet(frame)
            else:
                # The states of the rows whose last step in this block this was.
                kept = 0 if i == steps - 1 else min(rows, active_rows(frame, start + after))
                for b in range(kept, rows):
                    copy(h + b * h_row + mine, now + b * y_row + mine, units)
        meet(frame)
        return 0

    return kernel
