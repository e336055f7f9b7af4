"""The two kinds of weights that a kernel may have: float32, or integers with a scale per row.

Kernels that multiply ask `operand` for four functions and do not know which kind they get. With integer weights, the
rows of the other operand are quantised first: to 14 bits and a sign, or to 8 bits where a layer's own outputs are
multiplied by 8-bit recurrent weights.

A panel of integer weights consists of its float32 scales ``[vector][lane]``, then ``[k / g][vector][lane][g]``, where
one instruction multiplies and adds g values of k (`WeightFormat.together`). If that instruction takes unsigned rows,
`BYTE_OFFSET` is added to them; what this adds to each sum follows the scales, negated, as int32: the sums start from
it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.integer_product import integer_product
from fastlstm.kernels.integer_rows import quantised
from fastlstm.kernels.integer_shape import Shape
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import product
from fastlstm.target import WeightFormat
from fastlstm.target.limits import BYTE_LIMIT, BYTE_OFFSET, VALUE_LIMIT

__all__ = ["operand"]


@cache
def operand(
    lanes: int,
    vectors: int,
    max_sums: int,
    weights: WeightFormat,
    recurrent: bool = False,
    bounded: bool = False,
    integers: bool = False,
) -> tuple[Any, Any, Any, Any]:
    """Return ``group``, ``run``, ``panel_bytes`` and ``prepared`` for a weight format.

    ``group`` and ``run`` are as in `fastlstm.kernels.product`, except that instead of `table` ``run`` takes what
    ``prepared(frame, rows, table, k)`` returns for the row addresses at `table`; ``panel_bytes(k)`` is a panel's size.

    Parameters
    ----------
    lanes, vectors, max_sums : int
    weights : WeightFormat
    recurrent : bool
        Whether rows are a layer's own outputs and the weights its recurrent ones.
    bounded : bool
        Whether rows usually lie within [-1, 1].
    integers : bool
        Whether rows hold integers of at most 14 bits, which are multiplied by integer weights unscaled.
    """
    width = vectors * lanes * 4
    if weights.bits == 32:

        @inlined
        def float_bytes(k):
            return k * width

        @inlined
        def as_they_are(frame, rows, table, k):
            return table

        return *product(lanes, vectors, max_sums), float_bytes, as_they_are

    eight = recurrent and weights.bits == 8
    together = weights.together(recurrent)
    size = 1 if eight and weights.fours > weights.pairs else 2
    offset = BYTE_OFFSET if size == 1 and weights.unsigned else 0
    stepwise = eight and weights.magnitudes
    shape = Shape(lanes, vectors, max_sums, weights.bits, together, size, not eight, offset, stepwise)
    header, each = shape.header_bytes, shape.k_bytes

    @inlined
    def panel_bytes(k):
        return header + (k + together - 1) // together * together * each

    # 8 bits are too few to waste any on a fixed range: with each row scaled by its own largest magnitude, LSTMs of 128
    # to 512 units with random weights had half the error (1.0e-3 to 1.5e-3 against 2.5e-3), for up to 3 % more time.
    limit, fixed = (BYTE_LIMIT, False) if eight else (VALUE_LIMIT, bounded)
    rows = quantised(lanes, limit, size, offset, fixed, stepwise, integers)
    return *integer_product(shape), panel_bytes, rows
