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

from fastlstm.kernels.activations import activation
from fastlstm.kernels.frame import active_rows, arg, meet, origin, row_stride, share, time_stride, word
from fastlstm.kernels.memory import clear, copy, partial_store
from fastlstm.kernels.operand import operand
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import ROWS, SCRATCH, START, STEPS
from fastlstm.simd import fma, load_i64, splat, store_i64, vload, vmax, vmin, vstore

__all__ = ["gru", "gru_reset_before", "lstm", "lstm_projected", "rnn"]

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
    gates, update, output = _lstm_cell(lanes, activations, clip, coupled, peephole)
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, bits)
    put = partial_store(lanes)
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
            for b in range(rows):
                for p in range(panel, panel + n):
                    gates(z + b * z_row + p * 4 * width, c + b * c_row, extra, p * width)
            for b in range(rows):
                for p in range(panel, panel + n):
                    update(z + b * z_row + p * 4 * width, c + b * c_row, extra, p * width)
            for b in range(rows):
                for p in range(panel, panel + n):
                    h = output(z + b * z_row + p * 4 * width, c + b * c_row + p * width)
                    put(y + b * y_row + p * width, h, last_width if p == end else lanes, table + 8 * rows)
            left -= n

    return _over_time(lanes, step, masked)


def lstm_projected(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None = None,
    coupled: bool = False,
    peephole: bool = False,
    masked: bool = False,
    bits: int = 32,
    projection_bits: int = 32,
) -> Compiled:
    """LSTM whose output is projected. EXTRA: peepholes; EXTRA_2: slot of the unprojected output, one step;
    EXTRA_3: address of a table: packed projection ``[panel][k][lane]``, its k, and the hidden units' panels.

    PANELS and LAST_WIDTH are those of the output.
    """
    gates, update, output = _lstm_cell(lanes, activations, clip, coupled, peephole)
    group, run, panel_bytes, prepared = operand(lanes, 4, max_sums, bits)
    project_group, project, projection_bytes, projected = operand(lanes, 1, max_sums, projection_bits)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, first, last, backwards):
        k, weights, extra, more = arg(args, K), arg(args, WEIGHTS), arg(args, EXTRA), arg(args, EXTRA_3)
        full, full_row = origin(frame, arg(args, EXTRA_2)), row_stride(frame, arg(args, EXTRA_2))
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        hidden_k, hidden_panels = load_i64(more + 8), load_i64(more + 16)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        panel, stop = share(frame, hidden_panels, 0), share(frame, hidden_panels, 1)
        while panel < stop:
            n = group(rows, stop - panel)
            sums = z + panel * 4 * width
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, z_row, sums, z_row)
            for b in range(rows):
                for p in range(panel, panel + n):
                    gates(z + b * z_row + p * 4 * width, c + b * c_row, extra, p * width)
            for b in range(rows):
                for p in range(panel, panel + n):
                    update(z + b * z_row + p * 4 * width, c + b * c_row, extra, p * width)
            for b in range(rows):
                for p in range(panel, panel + n):
                    h = output(z + b * z_row + p * 4 * width, c + b * c_row + p * width)
                    vstore(full + b * full_row + p * width, h)
            panel += n
        meet(frame)
        for b in range(rows):
            store_i64(table + 8 * b, full + b * full_row)
        # The sums of one group of panels, row by row, behind the table of rows.
        sums = table + 8 * rows + width
        full_rows = projected(frame, rows, table, hidden_k)
        stride = projection_bytes(hidden_k)
        panel = first
        while panel < last:
            n = project_group(rows, last - panel)
            clear(sums, rows * n * lanes)
            run_at = load_i64(more) + panel * stride
            project(hidden_k, rows, full_rows, n, run_at, stride, sums, n * width, sums, n * width)
            for p in range(n):
                for b in range(rows):
                    value = vload(lanes, sums + (b * n + p) * width)
                    count = last_width if panel + p == end else lanes
                    put(y + b * y_row + (panel + p) * width, value, count, table + 8 * rows)
            panel += n

    return _over_time(lanes, step, masked, projected=True)


def gru(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """GRU with the reset gate applied after the product. EXTRA: address of b_hn, padded to whole panels."""
    gate, candidate = (activation(*a) for a in activations)
    clipped = _clip(clip)
    group, run, panel_bytes, prepared = operand(lanes, 3, max_sums, bits)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, first, last, backwards):
        k, weights, bias = arg(args, K), arg(args, WEIGHTS), arg(args, EXTRA)
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        spare = table + 8 * rows
        sums = spare + width
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            for b in range(rows):
                for p in range(n):
                    at = sums + (b * n + p) * 3 * width
                    z_at = z + b * z_row + (panel + p) * 3 * width
                    vstore(at, vload(lanes, z_at))
                    vstore(at + width, vload(lanes, z_at + width))
                    vstore(at + 2 * width, vload(lanes, bias + (panel + p) * width))
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, 3 * n * width, sums, 3 * n * width)
            for p in range(n):
                for b in range(rows):
                    at = sums + (b * n + p) * 3 * width
                    place = (panel + p) * width
                    r = gate(clipped(vload(lanes, at)))
                    u = gate(clipped(vload(lanes, at + width)))
                    x_part = vload(lanes, z + b * z_row + 3 * place + 2 * width)
                    new = candidate(clipped(fma(r, vload(lanes, at + 2 * width), x_part)))
                    old = vload(lanes, load_i64(table + 8 * b) + place)
                    h = fma(u, old - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            left -= n

    return _over_time(lanes, step, masked)


def gru_reset_before(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """GRU with the reset gate applied to h before the product.

    WEIGHTS holds r and z, ``[panel][k][2][lane]``; EXTRA is the address of n's, ``[panel][k][lane]``; EXTRA_2 a
    slot for r * h, one step.
    """
    gate, candidate = (activation(*a) for a in activations)
    clipped = _clip(clip)
    group, run, panel_bytes, prepared = operand(lanes, 2, max_sums, bits)
    new_group, new_run, new_bytes, _ = operand(lanes, 1, max_sums, bits)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, first, last, backwards):
        k, weights, new_weights = arg(args, K), arg(args, WEIGHTS), arg(args, EXTRA)
        reset, reset_row = origin(frame, arg(args, EXTRA_2)), row_stride(frame, arg(args, EXTRA_2))
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        spare = table + 16 * rows
        sums = spare + width
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        panel = first
        while panel < last:
            n = group(rows, last - panel)
            for b in range(rows):
                for p in range(n):
                    at = sums + (b * n + p) * 2 * width
                    z_at = z + b * z_row + (panel + p) * 3 * width
                    vstore(at, vload(lanes, z_at))
                    vstore(at + width, vload(lanes, z_at + width))
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, 2 * n * width, sums, 2 * n * width)
            for p in range(n):
                for b in range(rows):
                    at = sums + (b * n + p) * 2 * width
                    place = (panel + p) * width
                    r = gate(clipped(vload(lanes, at)))
                    vstore(reset + b * reset_row + place, r * vload(lanes, load_i64(table + 8 * b) + place))
                    vstore(z + b * z_row + 3 * place, gate(clipped(vload(lanes, at + width))))
            panel += n
        meet(frame)
        resets = table + 8 * rows
        for b in range(rows):
            store_i64(resets + 8 * b, reset + b * reset_row)
        reset_rows = prepared(frame, rows, resets, k)
        stride = new_bytes(k)
        panel = first
        while panel < last:
            n = new_group(rows, last - panel)
            for b in range(rows):
                for p in range(n):
                    z_at = z + b * z_row + (panel + p) * 3 * width + 2 * width
                    vstore(sums + (b * n + p) * width, vload(lanes, z_at))
            new_run(k, rows, reset_rows, n, new_weights + panel * stride, stride, sums, n * width, sums, n * width)
            for p in range(n):
                for b in range(rows):
                    place = (panel + p) * width
                    new = candidate(clipped(vload(lanes, sums + (b * n + p) * width)))
                    u = vload(lanes, z + b * z_row + 3 * place)
                    old = vload(lanes, load_i64(table + 8 * b) + place)
                    h = fma(u, old - new, new)
                    put(y + b * y_row + place, h, last_width if panel + p == end else lanes, spare)
            panel += n

    return _over_time(lanes, step, masked)


def rnn(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation],
    clip: float | None = None,
    masked: bool = False,
    bits: int = 32,
) -> Compiled:
    """Plain RNN: h = f(z + h W)."""
    function = activation(*activations[0])
    clipped = _clip(clip)
    group, run, panel_bytes, prepared = operand(lanes, 1, max_sums, bits)
    put = partial_store(lanes)
    width = 4 * lanes

    @inlined
    def step(args, frame, table, rows, z, z_row, y, y_row, c, c_row, first, last, backwards):
        k, weights = arg(args, K), arg(args, WEIGHTS)
        end, last_width = arg(args, PANELS) - 1, arg(args, LAST_WIDTH)
        stride = panel_bytes(k)
        h_rows = prepared(frame, rows, table, k)
        left = last - first
        while left > 0:
            n = group(rows, left)
            panel = first + left - n if backwards else last - left
            sums = z + panel * width
            run(k, rows, h_rows, n, weights + panel * stride, stride, sums, z_row, sums, z_row)
            for p in range(panel, panel + n):
                for b in range(rows):
                    h = function(clipped(vload(lanes, z + b * z_row + p * width)))
                    put(y + b * y_row + p * width, h, last_width if p == end else lanes, table + 8 * rows)
            left -= n

    return _over_time(lanes, step, masked)


def _lstm_cell(
    lanes: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    coupled: bool,
    peephole: bool,
) -> Any:
    """Return the three parts of a cell, for one panel of one row.

    ``gates(z, c, peepholes, units)`` turns the gates' sums at `z` into gates, in place; `units` is the panel's
    offset in bytes within the row's state at `c`. ``update(z, c, peepholes, units)`` writes the new cell state,
    ``output(z, c)`` returns h. Each is a pass of its own over rows and panels: the operations of one cell depend
    on each other, and a processor overlaps those of several only if they are short; and one activation's
    constants fit the registers, where those of all do not.
    """
    gate, candidate, squash = (activation(*a) for a in activations)
    clipped = _clip(clip)
    width = 4 * lanes

    @inlined
    def gates(z, c_row, extra, units):
        zi, zf = vload(lanes, z), vload(lanes, z + width)
        if peephole:
            c = vload(lanes, c_row + units)
            zi = fma(vload(lanes, extra + 3 * units), c, zi)
            zf = fma(vload(lanes, extra + 3 * units + width), c, zf)
        vstore(z, gate(clipped(zi)))
        if not coupled:
            vstore(z + width, gate(clipped(zf)))
        if not peephole:
            vstore(z + 3 * width, gate(clipped(vload(lanes, z + 3 * width))))

    @inlined
    def update(z, c_row, extra, units):
        i = vload(lanes, z)
        # Coupled gates have one weight set: ONNX's input_forget takes f = 1 - i.
        f = splat(i, 1.0) - i if coupled else vload(lanes, z + width)
        g = candidate(clipped(vload(lanes, z + 2 * width)))
        c = fma(f, vload(lanes, c_row + units), i * g)
        vstore(c_row + units, c)
        if peephole:
            zo = fma(vload(lanes, extra + 3 * units + 2 * width), c, vload(lanes, z + 3 * width))
            vstore(z + 3 * width, gate(clipped(zo)))

    @inlined
    def output(z, c):
        return vload(lanes, z + 3 * width) * squash(vload(lanes, c))

    return gates, update, output


def _clip(bound: float | None) -> Any:
    """Return the function that bounds a sum to [-bound, bound], or that leaves it alone."""
    if bound is None:

        @inlined
        def unbounded(x):
            return x

        return unbounded

    @inlined
    def bounded(x):
        return vmax(splat(x, -bound), vmin(splat(x, bound), x))

    return bounded


def _over_time(lanes: int, step: Any, masked: bool, projected: bool = False) -> Compiled:
    """Return the kernel that runs `step` for each time step of the block."""

    @inlined
    def keep_states(args, frame, t, rows, y, y_row, h, h_row, c, c_row, saved, mine, units, after):
        """Undo the step for the rows that skip it, and write the states of those that do not."""
        codes = origin(frame, arg(args, MASK)) + t * time_stride(frame, arg(args, MASK))
        codes_row = row_stride(frame, arg(args, MASK))
        for b in range(rows):
            code = load_i64(codes + b * codes_row)
            here = b * h_row + mine
            if not after and code != COUNTS:
                copy(c + b * c_row, saved + b * c_row, c_row // 4)
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
                copy(saved, c, batch * c_row // 4)
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
