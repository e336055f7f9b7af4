"""LSTM cells: from the sums of a group of panels to new states and outputs.

Two passes over the rows and panels of the group: the gates, then cell states and outputs. A pass takes several items
(an item is one panel of one row) in lockstep: the operations of one activation depend on each other, and a processor
has room to wait for few of them; side by side they keep its units busy. All in one pass measured slower: the
constants of all activations do not fit the registers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation, clipping
from fastlstm.kernels.lockstep import access, items_beside
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, join, part, splat, vload, vstore

__all__ = ["lstm_cells", "lstm_tail"]

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

    The addresses are those of the group's first panel: of its sums ``[panel][i, f, g, o][lane]`` at `z`, which
    become gates in place, of the cell states at `c`, the peepholes ``[panel][i, f, o][lane]`` and the outputs at
    `y`. Panels from `whole` on store `last_width` lanes of their output only. `spare` is room for a vector.
    """
    four, two, one_alone = (_passes(lanes, items, activations, clip, coupled, peephole) for items in (4, 2, 1))
    most = items_beside(max_sums)
    gates_4, update_4, output_4 = four
    gates_2, update_2, output_2 = two
    gates_1, update_1, output_1 = one_alone
    width = 4 * lanes

    @inlined
    def line(count, z, z_by, c, c_by, extra, extra_by, y, y_by, whole, last_width, spare):
        """Run the passes over items that lie at equal distances; those from `whole` on are stored in part."""
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
        # Along the panels of one row, or along the rows of each panel.
        one = rows == 1
        count = n if one else rows
        z_by, c_by, extra_by, y_by = z_row, c_row, 0, y_row
        if one:
            z_by, c_by, extra_by, y_by = 4 * width, width, 3 * width, width
        for p in range(1 if one else n):
            up_to = whole if one else (count if p < whole else 0)
            line(
                count, z + p * 4 * width, z_by, c + p * width, c_by, extra + p * 3 * width, extra_by,
                y + p * width, y_by, up_to, last_width, spare,
            )  # fmt: skip

    return cells


@cache
def lstm_tail(
    lanes: int,
    vectors: int,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
) -> Any:
    """Return ``cells(rows, z, z_row, c, c_row, y, y_row, count, spare)`` for units whose gates share vectors.

    Of one vector the quarters are i, f, g and o; of two the halves are i f and g o. `count` lanes of an output are
    stored. What stands in the lanes of c and y behind the last unit means nothing.
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
    """Return what the passes do with so many items side by side."""
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
                at = z + width * (3 * k if coupled else k + k // 2)  # i, f and o; g lies between
                store(at, z_by, gate(clipped(load(at, z_by))))

    @inlined
    def update(z, z_by, c, c_by, extra, extra_by):
        i = load(z, z_by)
        # Coupled gates have one weight set: ONNX's input_forget takes f = 1 - i.
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
