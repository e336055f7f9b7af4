"""Quantised rows: the operand that integer weights are multiplied with.

They are in the worker's own memory: room for one vector, a float32 scale per row, then the rows, with 16 bits per
value, or 8 where 8-bit weights are multiplied four at a time.

Where bytes are multiplied by magnitude (`WeightFormat.magnitudes`), each row is followed by the sum of the magnitudes
of its negative values, as an int32: the row's sums start from it.

A row of features is scaled by its own largest magnitude, and so is any row of 8 bits. A row expected to lie within
[-1, 1], like the outputs of most recurrent layers, has a fixed scale, so one pass suffices: it also checks the range,
and a row that exceeds it (an initial state may hold anything) is quantised again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.frame import word
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import F32, I32, constant, int_vector, load_i64, pointer, store_f32, vload, vsplat
from fastlstm.program.layout import LINE, QUANTISED

__all__ = ["first_row", "quantised", "row_bytes"]

LARGEST, SMALLEST = 3.4028234663852886e38, 1.0000000031710769e-30  # both float32: no doubles needed
MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits


@inlined
def row_bytes(k, lanes, size):
    """Bytes of a row of k values of `size` bytes: an odd number of cache lines, to spread rows over sets."""
    return (size * (k + lanes) + LINE - 1) // LINE * LINE | LINE


@inlined
def first_row(rows):
    """Offset of the first of `rows` rows: after the room for a vector and the scales."""
    return LINE + (4 * rows + LINE - 1) // LINE * LINE


@cache
def quantised(
    lanes: int, limit: int, size: int, offset: int, bounded: bool, magnitudes: bool = False, integers: bool = False
) -> Any:
    """Return ``quantised(frame, rows, table, k)``, which returns the address of the quantised rows' memory.

    Parameters
    ----------
    lanes : int
    limit : int
        The largest magnitude of an integer.
    size : int
        Bytes of an integer.
    offset : int
        What is added to every integer.
    bounded : bool
        Whether rows usually lie within [-1, 1]: then 1 becomes `limit`.
    magnitudes : bool
        Whether the sum of the negative values' magnitudes follows each row, at the next multiple of four bytes.
    integers : bool
        Whether rows hold integers that fit: these are converted unscaled, and their scale is 1.

    Notes
    -----
    A NaN in a row makes its scale NaN, and with it every sum of the row. An infinity makes the scale infinite, and the
    row's finite values count as zero.
    """
    store = store_rounded(size, offset)

    @inlined
    def by_largest(row, target, scale, whole, rest, spare, top):
        """Quantise a row whose largest magnitude is `top`; the remainder after its whole vectors is at `spare`."""
        store_f32(scale, top / limit)
        if top <= LARGEST:
            by = vsplat(lanes, limit / top)
            for i in range(whole):
                store(target + size * lanes * i, vload(lanes, row + 4 * lanes * i), by)
            if rest > 0:
                store(target + size * lanes * whole, vload(lanes, spare), by)
        else:
            by = vsplat(lanes, limit / LARGEST)
            for i in range(whole):
                store(target + size * lanes * i, finite(vload(lanes, row + 4 * lanes * i)), by)
            if rest > 0:
                store(target + size * lanes * whole, finite(vload(lanes, spare)), by)

    @inlined
    def largest_of(row, whole, rest, spare):
        largest = vsplat(lanes, 0.0)
        if rest > 0:
            largest = vload(lanes, spare)
        for i in range(whole):
            largest = larger(largest, vload(lanes, row + 4 * lanes * i))
        return magnitude(largest)

    @inlined
    def converted(row, target, whole, rest, spare, factor):
        """Write a row times a factor as integers; return the largest magnitudes, lane by lane."""
        largest = vsplat(lanes, 0.0)
        by = vsplat(lanes, factor)
        for i in range(whole):
            x = vload(lanes, row + 4 * lanes * i)
            largest = larger(largest, x)
            store(target + size * lanes * i, x, by)
        if rest > 0:
            x = vload(lanes, spare)
            largest = larger(largest, x)
            store(target + size * lanes * whole, x, by)
        return largest

    @inlined
    def in_one_pass(row, target, whole, rest, spare):
        """Quantise a row as if it were within [-1, 1]; return whether it is."""
        return within_one(converted(row, target, whole, rest, spare, limit))

    @inlined
    def as_they_are(row, target, whole, rest, spare):
        """Convert a row of integers unscaled; return its scale: 1, or NaN if the row contains a NaN."""
        return 1.0 + 0.0 * magnitude(converted(row, target, whole, rest, spare, 1.0))

    @inlined
    def add_up_negatives(target, k):
        total = vsplat(lanes, 0.0)
        for i in range((k + lanes - 1) // lanes):
            total = negatives(total, target + lanes * i)
        store_sum(target + (k + 3) // 4 * 4, total)

    @inlined
    def kernel(frame, rows, table, k):
        place = word(frame, QUANTISED)
        stride, values = row_bytes(k, lanes, size), place + first_row(rows)
        whole = k // lanes
        rest = k - lanes * whole
        for b in range(rows):
            row, target, scale = load_i64(table + 8 * b), values + b * stride, place + LINE + 4 * b
            if rest > 0:
                clear(place, lanes)
                copy(place, row + 4 * lanes * whole, rest)
            if integers:
                store_f32(scale, as_they_are(row, target, whole, rest, place))
            elif bounded and in_one_pass(row, target, whole, rest, place):
                store_f32(scale, 1.0 / limit)
            else:
                by_largest(row, target, scale, whole, rest, place, largest_of(row, whole, rest, place))
            if magnitudes:
                add_up_negatives(target, k)
        return place

    return kernel


def _magnitude_bits(builder: Any, value: Any) -> Any:
    kind = int_vector(value.type.count)
    return builder.and_(builder.bitcast(value, kind), constant(kind, 0x7FFFFFFF))


def _largest_bits(builder: Any, value: Any) -> Any:
    """Emit the bits of the lanes' largest magnitude; a NaN's compare greater than infinity's."""
    bits = _magnitude_bits(builder, value)
    name, module = f"llvm.vector.reduce.smax.v{bits.type.count}i32", builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(I32, [bits.type]), name)
    return builder.call(function, [bits])


@intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """larger(a, b): the larger magnitude in each lane; NaN counts as larger than infinity."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, other = (_magnitude_bits(builder, v) for v in args)
        chosen = builder.select(builder.icmp_signed(">", one, other), one, other)
        return builder.bitcast(chosen, args[0].type)

    return a(a, a), codegen


@intrinsic
def magnitude(typingctx: Any, a: Any) -> Any:
    """magnitude(a): the largest magnitude of its lanes, at least SMALLEST; NaN if any lane is NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found, least = builder.bitcast(_largest_bits(builder, args[0]), F32), ir.Constant(F32, SMALLEST)
        found = builder.select(builder.fcmp_ordered("<", found, least), least, found)
        return builder.fpext(found, ir.DoubleType())

    return types.float64(a), codegen


@intrinsic
def negatives(typingctx: Any, total: Any, address: Any) -> Any:
    """negatives(total, address): a vector of sums plus the magnitudes of the negative bytes at `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums, place = args
        kind = int_vector(sums.type.count)
        loaded = builder.load(pointer(builder, place, ir.VectorType(ir.IntType(8), kind.count)), align=1)
        value, zero = builder.sext(loaded, kind), constant(kind, 0)
        below = builder.select(builder.icmp_signed("<", value, zero), value, zero)
        return builder.fsub(sums, builder.sitofp(below, sums.type))

    return total(total, types.int64), codegen


@intrinsic
def store_sum(typingctx: Any, address: Any, total: Any) -> Any:
    """store_sum(address, total) stores the sum of a vector of integers as an int32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, sums = args
        whole = builder.fptosi(sums, int_vector(sums.type.count))
        name, module = f"llvm.vector.reduce.add.v{whole.type.count}i32", builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(I32, [whole.type]), name)
        builder.store(builder.call(function, [whole]), pointer(builder, place, I32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, total), codegen


@intrinsic
def within_one(typingctx: Any, a: Any) -> Any:
    """within_one(a): whether no lane is NaN or exceeds 1 in magnitude."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _magnitude_bits(builder, args[0])
        past = builder.icmp_signed(">", bits, constant(bits.type, 0x3F800000))
        mask = builder.bitcast(past, ir.IntType(bits.type.count))
        return builder.icmp_unsigned("==", mask, ir.Constant(mask.type, 0))

    return types.boolean(a), codegen


@intrinsic
def finite(typingctx: Any, a: Any) -> Any:
    """finite(a): infinities become the largest finite floats; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,) = args
        for bound, sign in ((LARGEST, "<"), (-LARGEST, ">")):
            limit = constant(x.type, bound)
            x = builder.select(builder.fcmp_ordered(sign, limit, x), limit, x)
        return x

    return a(a), codegen


@cache
def store_rounded(size: int, offset: int) -> Any:
    """Return ``store(address, x, by)``: x * by rounded to integers, plus `offset`, in `size` bytes per lane."""

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any, by: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target, x, factor = args
            rounded = builder.fadd(builder.fmul(x, factor), constant(x.type, MAGIC + offset))
            whole = builder.bitcast(rounded, int_vector(x.type.count))
            narrow = builder.trunc(whole, ir.VectorType(ir.IntType(8 * size), x.type.count))
            builder.store(narrow, pointer(builder, target, narrow.type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, value, value), codegen

    return store
