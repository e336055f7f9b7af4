"""LSTM cells: from the sums of a group of panels to new states and outputs.

There are two passes over the rows and panels of the group: gates, then cell states and outputs. A pass processes
several items (one panel of one row each) in lockstep: the operations of one activation depend on each other, so it
takes several items to keep the processor busy. A single pass measured slower, because the constants of all activations
do not fit into the registers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation, clipping
from fastlstm.kernels.lockstep import FEW_ROWS, PANELS, access, items_beside
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, join, part, splat, vload, vstore

__all__ = ["lstm_cells", "lstm_share", "lstm_tail"]

Activation = tuple[str, float | None, float | None]


@cache
def lstm_cells(
    lanes: int,
    max_sums: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    coupled: bool,
    peephole: bool,
) -> Any:
    """Return ``cells(rows, n, z, z_row, c, c_row, peepholes, y, y_row, whole, last_width, spare)``.

    The addresses are those of the group's first panel: its sums ``[panel][i, f, g, o][lane]`` at `z`, overwritten by
    the gates, the cell states at `c`, the peepholes ``[panel][i, f, o][lane]`` and the outputs at `y`. Panels from
    `whole` on store only `last_width` lanes of their outputs. `spare` has room for a vector.
    """
    four, two, one_alone = (_passes(lanes, items, activations, clip, coupled, peephole) for items in (4, 2, 1))
    most = items_beside(max_sums)
    gates_4, update_4, output_4 = four
    gates_2, update_2, output_2 = two
    gates_1, update_1, output_1 = one_alone
    width = 4 * lanes

    @inlined
    def line(count, z, z_by, c, c_by, extra, extra_by, y, y_by, whole, last_width, spare):
        """Run the passes over equally spaced items; those from `whole` on are stored in part."""
        fours, pairs = count // 4 * 4 if most == 4 else 0, count // 2 * 2
        for i in range(0, fours, 4):
            gates_4(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
        for i in range(fours, pairs, 2):
            gates_2(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
        for i in range(pairs, count):
            gates_1(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
        for i in range(0, fours, 4):
            update_4(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
            output_4(z + i * z_by, z_by, c + i * c_by, c_by, y + i * y_by, y_by, whole - i, last_width, spare)
        for i in range(fours, pairs, 2):
            update_2(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
            output_2(z + i * z_by, z_by, c + i * c_by, c_by, y + i * y_by, y_by, whole - i, last_width, spare)
        for i in range(pairs, count):
            update_1(z + i * z_by, z_by, c + i * c_by, c_by, extra + i * extra_by, extra_by)
            output_1(z + i * z_by, z_by, c + i * c_by, c_by, y + i * y_by, y_by, whole - i, last_width, spare)

    @inlined
    def cells(rows, n, z, z_row, c, c_row, extra, y, y_row, whole, last_width, spare):
        # Items in lockstep are panels of one row, or rows of one panel.
        few = rows < FEW_ROWS
        count, lines = (n, rows) if few else (rows, n)
        z_by, c_by, extra_by, y_by = (4 * width, width, 3 * width, width) if few else (z_row, c_row, 0, y_row)
        z_to, c_to, extra_to, y_to = (z_row, c_row, 0, y_row) if few else (4 * width, width, 3 * width, width)
        for j in range(lines):
            up_to = whole if few else (count if j < whole else 0)
            line(
                count, z + j * z_to, z_by, c + j * c_to, c_by, extra + j * extra_to, extra_by,
                y + j * y_to, y_by, up_to, last_width, spare,
            )  # fmt: skip

    return cells


def lstm_share(lanes: int, cells: Any, group: Any, run: Any) -> Any:
    """Return the function that does one share of a time step, given `lstm_cells` and the functions of `operand`.

    ``share(frame, k, rows, h_rows, weights, stride, z, z_row, c, c_row, peepholes, y, y_row, first, last, backwards,
    end, last_width, spare)`` runs the panels from `first` to `last`; panels from `end` on store `last_width` lanes.
    """
    width = 4 * lanes

    @inlined
    def share(
        frame, k, rows, h_rows, weights, stride, z, z_row, c, c_row, extra, y, y_row,
        first, last, backwards, end, last_width, spare,
    ):  # fmt: skip
        left = last - first
        while left > 0:
            # Compute cells while their panels' sums are in the cache. With a single row, all sums stay there anyway.
            n = left if rows == 1 else min(left, PANELS) if rows < FEW_ROWS else group(rows, left)
            panel = first + left - n if backwards else last - left
            done = 0
            while done < n:
                m = group(rows, n - done)
                at = panel + (n - done - m if backwards else done)
                own = z + at * 4 * width
                run(frame, k, rows, h_rows, m, weights + at * stride, stride, own, z_row, own, z_row)
                done += m
            cells(
                rows, n, z + panel * 4 * width, z_row, c + panel * width, c_row, extra + panel * 3 * width,
                y + panel * width, y_row, end - panel, last_width, spare,
            )  # fmt: skip
            left -= n

    return share


@cache
def lstm_tail(
    lanes: int,
    vectors: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
) -> Any:
    """Return ``cells(rows, z, z_row, c, c_row, y, y_row, count, spare)`` for units whose gates share vectors.

    The quarters of a single vector are i, f, g and o; two vectors are i f and g o. `count` lanes of an output are
    stored. The lanes of c and y after the last unit are unused.
    """
    gate, candidate, squash = (activation(*a) for a in activations)
    clipped = clipping(clip)
    put = partial_store(lanes)
    own, width = lanes * vectors // 4, 4 * lanes
    at_f, at_g, at_o = own, 2 * own, 3 * own

    @inlined
    def cells(rows, z, z_row, c, c_row, y, y_row, count, spare):
        for b in range(rows):
            first = clipped(vload(lanes, z + b * z_row))
            if vectors == 1:
                gates, g = gate(first), part(lanes, at_g, candidate(first))
            else:
                second = clipped(vload(lanes, z + b * z_row + width))
                gates, g = gate(join(first, second)), part(lanes, 0, candidate(second))
            at = c + b * c_row
            new = fma(part(lanes, at_f, gates), vload(lanes, at), part(lanes, 0, gates) * g)
            vstore(at, new)
            put(y + b * y_row, part(lanes, at_o, gates) * squash(new), count, spare)

    return cells


@cache
def _passes(
    lanes: int, items: int, activations: Any, clip: float | None, coupled: bool, peephole: bool
) -> tuple[Any, Any, Any]:
    """Return the loop bodies of the passes for `items` items in lockstep."""
    gate, candidate, squash = (activation(*a) for a in activations)
    clipped = clipping(clip)
    load, store, store_first = access(lanes, items)
    width = 4 * lanes

    @inlined
    def gates(z, z_by, c, c_by, extra, extra_by):
        if peephole:
            states = load(c, c_by)
            i = fma(load(extra, extra_by), states, load(z, z_by))
            store(z, z_by, gate(clipped(i)))
            if not coupled:
                f = fma(load(extra + width, extra_by), states, load(z + width, z_by))
                store(z + width, z_by, gate(clipped(f)))
        else:
            for k in range(2 if coupled else 3):
                at = z + width * (3 * k if coupled else k + k // 2)  # i, f and o; g is in between
                store(at, z_by, gate(clipped(load(at, z_by))))

    @inlined
    def update(z, z_by, c, c_by, extra, extra_by):
        i = load(z, z_by)
        # Coupled gates share one set of weights: ONNX's input_forget means f = 1 - i.
        f = splat(i, 1.0) - i if coupled else load(z + width, z_by)
        g = candidate(clipped(load(z + 2 * width, z_by)))
        new = fma(f, load(c, c_by), i * g)
        store(c, c_by, new)
        if peephole:
            o = fma(load(extra + 2 * width, extra_by), new, load(z + 3 * width, z_by))
            store(z + 3 * width, z_by, gate(clipped(o)))

    @inlined
    def output(z, z_by, c, c_by, y, y_by, whole, last_width, spare):
        h = load(z + 3 * width, z_by) * squash(load(c, c_by))
        if whole >= items:
            store(y, y_by, h)
        else:
            store_first(y, y_by, h, whole, last_width, spare)

    return gates, update, output
