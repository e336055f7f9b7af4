"""Recurrent layers over a block of time steps.

The input projection of every gate, bias included, is already in the slot z (from `fastlstm.kernels.linear`): first for
the active rows of the block's first step, then for those of the next. A step adds the recurrent product, panel by
panel, and turns each panel's sums into new states while they are in the cache. A panel holds all gates of `lanes`
hidden units.

Rows are sorted by length, longest first, so the active rows of a step are a prefix. A row's previous output is
read from y if the row was active in the step before, else from its state; its state is written after its last
step. Every second step visits the panels in reverse order: those used last are still in the cache.

Workers share the panels. A step is a phase (`fastlstm.kernels.shares`), and so is writing the states after it, because
the step reads them.
"""

from __future__ import annotations

from typing import Any

from fastlstm.kernels.activations import bounded
from fastlstm.kernels.frame import (
    active_rows,
    arg,
    bound,
    first_share,
    is_last,
    next_share,
    origin,
    row_stride,
    time_stride,
    word,
)
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lstm_cell import lstm_cells, lstm_share, lstm_tail
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import product
from fastlstm.kernels.simd import load_i64, store_i64
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import LSTM, Projected
from fastlstm.program.layout import ROWS, RUNS, SCRATCH, START, STEPS
from fastlstm.target import FLOAT32, WeightFormat

__all__ = ["lstm"]

PROJECTED = positions(Projected)
A = positions(LSTM)  # whose first words are those of every recurrent kernel

Activation = tuple[str, float | None, float | None]

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
    weight_format: WeightFormat = FLOAT32,
    tail: int = 0,
) -> Compiled:
    """Return the kernel of an LSTM. Arguments: `LSTM`.

    With a `tail` of one or two vectors, the gates of the last units share these instead of filling up a panel with
    padding; `panels` then counts the whole panels before it.
    """
    cells = lstm_cells(lanes, max_sums, activations, clip, coupled, peephole)
    within = bounded(activations[0], activations[2])
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, weight_format, True, within)
    run_share = lstm_share(lanes, cells, group, run)
    _, tail_run = product(lanes, max(tail, 1), max_sums, 1)
    tail_cells = lstm_tail(lanes, max(tail, 1), activations, clip)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards):
        k, weights, extra = arg(args, A.k), arg(args, A.weights), arg(args, A.peepholes)
        last_width, stride = arg(args, A.last_width), panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        panels, spare = arg(args, A.panels), table + 8 * rows
        whole = panels if last_width == lanes else panels - 1
        run_share(
            frame, k, rows, h_rows, weights, stride, z, z_row, c, c_row, extra, y, y_row,
            bound(frame, panels, share), bound(frame, panels, share + 1), backwards, whole, last_width, spare,
        )  # fmt: skip
        if tail > 0 and is_last(frame, share):
            rest, place = z + panels * 4 * width, panels * width
            tail_run(frame, k, rows, h_rows, 1, weights + panels * stride, 0, rest, z_row, rest, z_row)
            tail_cells(rows, rest, z_row, c + place, c_row, y + place, y_row, arg(args, A.tail_width), spare)

    return over_time(lanes, step, masked, cells=True, tail=tail > 0)


def over_time(
    lanes: int,
    step: Any,
    masked: bool,
    before: Any = None,
    between: Any = None,
    cells: bool = False,
    projected: bool = False,
    tail: bool = False,
) -> Compiled:
    """Return the kernel that runs `step` for each time step of the block.

    ``step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, share, backwards)`` does one share of a time step;
    `before` and `between`, with the same arguments, are phases of their own before it. The addresses of the rows'
    previous outputs are at `table`. With `cells` the layer has cell states, written by the last of the phases, or with
    `projected` by the first.
    """
    keeps_before, keeps_cells = masked and cells and projected, masked and cells and not projected

    @inlined
    def own_cells(args, frame, share):
        """Offset in bytes of a share's first cell state in a row."""
        panels = arg(args, PROJECTED.hidden_panels) if projected else arg(args, A.panels)
        return 4 * lanes * bound(frame, panels, share)

    @inlined
    def own_outputs(args, frame, share):
        """Offset in bytes of a share's first output in a row, and the number of its outputs."""
        panels, last_width = arg(args, A.panels), arg(args, A.last_width)
        first, last = bound(frame, panels, share), bound(frame, panels, share + 1)
        units = lanes * (last - first)
        if last == panels and last > first:
            units += last_width - lanes
        if tail and is_last(frame, share):
            units += arg(args, A.tail_units)
        return 4 * lanes * first, units

    @inlined
    def previous_rows(args, frame, table, known, rows, before, h, h_row, y_row):
        """List the addresses of previous outputs: of `known` rows from `before` on, of the others in the state."""
        for b in range(known):
            store_i64(table + 8 * b, before + b * y_row)
        for b in range(known, rows):
            store_i64(table + 8 * b, h + b * h_row)

    @inlined
    def save(args, frame, rows, c, c_row, saved, share):
        """Save a share's cell states."""
        first, end = own_cells(args, frame, share), own_cells(args, frame, share + 1)
        for b in range(rows):
            copy(saved + b * c_row, c + b * c_row + first, (end - first) // 4)

    @inlined
    def restore(args, frame, codes, codes_row, rows, c, c_row, saved, share):
        """Restore a share's cell states for the rows that skip the step."""
        first, end = own_cells(args, frame, share), own_cells(args, frame, share + 1)
        for b in range(rows):
            if load_i64(codes + b * codes_row) != COUNTS:
                copy(c + b * c_row + first, saved + b * c_row, (end - first) // 4)

    @inlined
    def skip(codes, codes_row, rows, y, y_row, h, h_row, mine, units):
        """Repeat the previous output, or zero, for the rows that skip the step."""
        for b in range(rows):
            code = load_i64(codes + b * codes_row)
            if code == SKIP:
                copy(y + b * y_row + mine, h + b * h_row + mine, units)
            elif code != COUNTS:
                clear(y + b * y_row + mine, units)

    def kernel(args: int, frame: int, unused: int) -> int:
        z, z_row = origin(frame, arg(args, A.z)), row_stride(frame, arg(args, A.z))
        y_time, y_row = time_stride(frame, arg(args, A.y)), row_stride(frame, arg(args, A.y))
        y = origin(frame, arg(args, A.y)) + arg(args, A.y_bytes)
        h, h_row = origin(frame, arg(args, A.h)), row_stride(frame, arg(args, A.h))
        c, c_row = origin(frame, arg(args, A.c)), row_stride(frame, arg(args, A.c))
        start, steps, batch = word(frame, START), word(frame, STEPS), word(frame, ROWS)
        table = word(frame, SCRATCH)
        codes, codes_row, saved = 0, 0, table
        if masked:
            table += batch * c_row
        reverse = arg(args, A.reverse) != 0
        behind = 0
        if reverse:
            for t in range(steps):
                behind += active_rows(frame, start + t)
        for i in range(steps):
            t = steps - 1 - i if reverse else i
            earlier = t + 1 if reverse else t - 1
            later = t - 1 if reverse else t + 1
            rows = active_rows(frame, start + t)
            known = 0 if i == 0 or masked else min(rows, active_rows(frame, start + earlier))
            if reverse:
                behind -= rows
            now, previous, sums = y + t * y_time, y + earlier * y_time, z + behind * z_row
            if not reverse:
                behind += rows
            # Every second step visits the panels in reverse order, and so does every second run of one step.
            backwards = (start + t + word(frame, RUNS)) & 1 != 0
            if masked:
                codes = origin(frame, arg(args, A.mask)) + t * time_stride(frame, arg(args, A.mask))
                codes_row = row_stride(frame, arg(args, A.mask))
            if before is not None:
                share = first_share(frame)
                while share >= 0:
                    if keeps_before:
                        save(args, frame, rows, c, c_row, saved, share)
                    previous_rows(args, frame, table, known, rows, previous, h, h_row, y_row)
                    before(args, frame, table, rows, sums, z_row, now, y_row, c, c_row, share, backwards)
                    if keeps_before:
                        restore(args, frame, codes, codes_row, rows, c, c_row, saved, share)
                    share = next_share(frame, share)
            if between is not None:
                share = first_share(frame)
                while share >= 0:
                    between(args, frame, table, rows, sums, z_row, now, y_row, c, c_row, share, backwards)
                    share = next_share(frame, share)
            share = first_share(frame)
            while share >= 0:
                mine, units = own_outputs(args, frame, share)
                if keeps_cells:
                    save(args, frame, rows, c, c_row, saved, share)
                previous_rows(args, frame, table, known, rows, previous, h, h_row, y_row)
                step(args, frame, table, rows, sums, z_row, now, y_row, c, c_row, share, backwards)
                for b in range(rows, batch):
                    clear(now + b * y_row + mine, units)
                if keeps_cells:
                    restore(args, frame, codes, codes_row, rows, c, c_row, saved, share)
                if masked:
                    skip(codes, codes_row, rows, now, y_row, h, h_row, mine, units)
                share = next_share(frame, share)
            # Write the states of rows whose last step in this block this was; with a mask, of those it counts for.
            kept = min(rows, active_rows(frame, start + later)) if i < steps - 1 and not masked else 0
            if kept < rows:
                share = first_share(frame)
                while share >= 0:
                    mine, units = own_outputs(args, frame, share)
                    for b in range(kept, rows):
                        if not masked or load_i64(codes + b * codes_row) == COUNTS:
                            copy(h + b * h_row + mine, now + b * y_row + mine, units)
                    share = next_share(frame, share)
        return 0

    return kernel
