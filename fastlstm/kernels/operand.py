"""The two kinds of weights that a kernel may have: float32, or integers with a scale a row.

Kernels that multiply ask `operand` for four functions and do not know which kind they are given. For integer
weights the rows of the other operand are quantised first, each by its own largest magnitude, into memory of the
worker's own: room for one vector, a float32 scale a row, then the rows as int16.

A panel of integer weights is its float32 scales ``[vector][lane]``, then ``[k / g][vector][lane][g]``, g = 2 on
processors that multiply pairs, else 1. The sum over k is cut into blocks of `limits.BLOCK`: within one it is
exact in 32 bits, between them it is float32, in ascending order, whatever the tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm import machine
from fastlstm.kernels.integer_tile import integer_tile
from fastlstm.kernels.limits import BLOCK, VALUE_LIMIT
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.product import group_size, product
from fastlstm.layout import QUANTISED
from fastlstm.simd import I32, constant, float_vector, int_vector, load_i64, pointer, store_f32, vload, vsplat

__all__ = ["operand"]

LARGEST, SMALLEST = 3.4028234663852886e38, 1e-30
MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
LINE = 64


@cache
def operand(lanes: int, vectors: int, max_sums: int, bits: int) -> tuple[Any, Any, Any, Any]:
    """Return ``group``, ``run``, ``panel_bytes`` and ``prepared`` for weights of that many bits.

    ``group`` and ``run`` are as in `fastlstm.kernels.product`, except that ``run`` takes what ``prepared(frame,
    rows, table, k)`` returns for the addresses of rows at `table`; ``panel_bytes(k)`` is the size of a panel.
    """
    width = vectors * lanes * 4
    if bits == 32:

        @inlined
        def float_bytes(k):
            return k * width

        @inlined
        def as_they_are(frame, rows, table, k):
            return table

        return *product(lanes, vectors, max_sums), float_bytes, as_they_are

    together = 2 if machine.detect().pairwise else 1
    each = vectors * lanes * bits // 8

    @inlined
    def panel_bytes(k):
        return width + (k + together - 1) // together * together * each

    return *_integer_product(lanes, vectors, max_sums, bits, together), panel_bytes, _quantised(lanes)


@inlined
def _row_bytes(k, lanes):
    """Bytes of a quantised row: an odd number of cache lines, so that rows do not fall on the same ones."""
    return (2 * (k + lanes) + LINE - 1) // LINE * LINE | LINE


@inlined
def _first_row(rows):
    return LINE + (4 * rows + LINE - 1) // LINE * LINE


@cache
def _integer_product(lanes: int, vectors: int, max_sums: int, bits: int, together: int) -> tuple[Any, Any]:
    # A product needs a register of its own before it is added, so fewer sums fit than with fused multiply-adds:
    # 3 rows x 4 vectors spill with 16 registers and run at two thirds of the speed of 2 x 4.
    sums = max_sums if max_sums > 12 else 8
    most_rows = min(6 if max_sums > 12 else 2, max(1, sums // vectors))
    alone = group_size(vectors, 1, max_sums)
    beside = group_size(vectors, most_rows, sums)
    shapes = [(1, p) for p in range(1, alone + 1)]
    for r in range(2, most_rows + 1):
        shapes += [(r, 1), (r, beside)] if beside > 1 else [(r, 1)]
    run_tile = _dispatch(tuple(dict.fromkeys(shapes)), vectors, lanes, bits, together)
    scales = vectors * lanes * 4
    each = vectors * lanes * bits // 8

    @inlined
    def group(rows, panels):
        if rows > 1:
            return beside if panels >= beside else 1
        if panels <= alone:
            return panels
        return alone if panels >= 2 * alone else (panels + 1) // 2

    @inlined
    def run(k, rows, place, panels, w, w_stride, c_in, c_in_stride, c_out, c_out_stride):
        row_bytes, values = _row_bytes(k, lanes), place + _first_row(rows)
        start, source, source_stride = 0, c_in, c_in_stride
        while start < k:
            groups = (min(BLOCK, k - start) + together - 1) // together
            at = w + scales + start * each
            done = 0
            while done < rows:
                r = min(most_rows, rows - done)
                run_tile(
                    r, panels, groups, values + done * row_bytes + 2 * start, row_bytes, place + LINE + 4 * done,
                    at, w_stride, w, source + done * source_stride, source_stride,
                    c_out + done * c_out_stride, c_out_stride,
                )  # fmt: skip
                done += r
            source, source_stride = c_out, c_out_stride
            start += BLOCK

    return group, run


@cache
def _dispatch(shapes: tuple[tuple[int, int], ...], vectors: int, lanes: int, bits: int, together: int) -> Any:
    """Return a function that runs the tile of the given rows and panels: a chain of comparisons."""
    (rows, panels), others = shapes[-1], shapes[:-1]
    this = integer_tile(rows, panels, vectors, lanes, bits, together)
    if not others:

        @inlined
        def only(r, p, groups, a, a_stride, scales, w, w_stride, w_scales, c, c_stride, out, out_stride):
            this(groups, a, a_stride, scales, w, w_stride, w_scales, c, c_stride, out, out_stride)

        return only
    rest = _dispatch(others, vectors, lanes, bits, together)

    @inlined
    def run(r, p, groups, a, a_stride, scales, w, w_stride, w_scales, c, c_stride, out, out_stride):
        if r == rows and p == panels:
            this(groups, a, a_stride, scales, w, w_stride, w_scales, c, c_stride, out, out_stride)
        else:
            rest(r, p, groups, a, a_stride, scales, w, w_stride, w_scales, c, c_stride, out, out_stride)

    return run


@cache
def _quantised(lanes: int) -> Any:
    """Return the function that quantises rows and returns where they are.

    A row's scale is its largest magnitude over `VALUE_LIMIT`. A NaN in the row makes the scale NaN, and with it
    every sum of the row; an infinity makes it infinite while the finite values beside it count as zero.
    """

    @inlined
    def quantised(frame, rows, table, k):
        place = load_i64(frame + 8 * QUANTISED)
        row_bytes, values = _row_bytes(k, lanes), place + _first_row(rows)
        whole = k // lanes
        for b in range(rows):
            row, target = load_i64(table + 8 * b), values + b * row_bytes
            clear(place, lanes)
            copy(place, row + 4 * lanes * whole, k - lanes * whole)
            largest = vload(lanes, place)
            for i in range(whole):
                largest = _larger(largest, vload(lanes, row + 4 * lanes * i))
            top = _magnitude(largest)
            top = top if top >= SMALLEST or top != top else SMALLEST
            store_f32(place + LINE + 4 * b, top / VALUE_LIMIT)
            by = vsplat(lanes, VALUE_LIMIT / (top if top <= LARGEST else LARGEST))
            for i in range(whole):
                _store_rounded(target + 2 * lanes * i, vload(lanes, row + 4 * lanes * i), by)
            _store_rounded(target + 2 * lanes * whole, vload(lanes, place), by)
        return place

    return quantised


def _magnitude_bits(builder: Any, value: Any) -> Any:
    kind = int_vector(value.type.count)
    return builder.and_(builder.bitcast(value, kind), constant(kind, 0x7FFFFFFF))


@intrinsic
def _larger(typingctx: Any, a: Any, b: Any) -> Any:
    """_larger(a, b): the larger magnitudes; NaN is larger than infinity."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, other = (_magnitude_bits(builder, v) for v in args)
        chosen = builder.select(builder.icmp_signed(">", one, other), one, other)
        return builder.bitcast(chosen, args[0].type)

    return a(a, a), codegen


@intrinsic
def _magnitude(typingctx: Any, a: Any) -> Any:
    """_magnitude(a): the largest magnitude of its lanes, NaN if one is."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _magnitude_bits(builder, args[0])
        name, module = f"llvm.vector.reduce.smax.v{bits.type.count}i32", builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(I32, [bits.type]), name)
        found = builder.bitcast(builder.call(function, [bits]), ir.FloatType())
        return builder.fpext(found, ir.DoubleType())

    return types.float64(a), codegen


@intrinsic
def _store_rounded(typingctx: Any, address: Any, value: Any, by: Any) -> Any:
    """_store_rounded(address, x, by) writes x * by, rounded to the nearest int16."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        target, x, factor = args
        kind = float_vector(x.type.count)
        for bound, sign in ((LARGEST, "<"), (-LARGEST, ">")):  # an infinity becomes finite, a NaN stays
            limit = constant(kind, bound)
            x = builder.select(builder.fcmp_ordered(sign, limit, x), limit, x)
        rounded = builder.fadd(builder.fmul(x, factor), constant(kind, MAGIC))
        whole = builder.bitcast(rounded, int_vector(x.type.count))
        narrow = builder.trunc(whole, ir.VectorType(ir.IntType(16), x.type.count))
        builder.store(narrow, pointer(builder, target, narrow.type), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, value, value), codegen
