"""Rows of floats as integers: what integer weights are multiplied with.

They lie in memory of the worker's own: room for one vector, a float32 scale a row, then the rows, of 16 bits a
value, or of 8 where weights of 8 bits are multiplied four at a time.

Where bytes are multiplied by magnitude (`WeightFormat.magnitudes`), the magnitudes of a row's negative values are added
up and stand behind the row as an int32: its sums start there.

A row of features is quantised by its own largest magnitude, and so is one of 8 bits. A row that is known to lie
within [-1, 1], as what most recurrent layers put out does, has a fixed scale, so one pass suffices: it only looks
whether the row does keep within, and a row that does not (an initial state may hold anything) is quantised again.
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

LARGEST, SMALLEST = 3.4028234663852886e38, 1.0000000031710769e-30  # both float32: so nothing is computed with doubles
MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits


@inlined
def row_bytes(k, lanes, size):
    """Bytes of a row of k values of `size` bytes: an odd number of cache lines, so that rows share no few sets."""
    return (size * (k + lanes) + LINE - 1) // LINE * LINE | LINE


@inlined
def first_row(rows):
    """Where the first of `rows` rows lies: behind the room and the scales."""
    return LINE + (4 * rows + LINE - 1) // LINE * LINE


@cache
def quantised(
    lanes: int, limit: int, size: int, offset: int, bounded: bool, magnitudes: bool = False, whole_numbers: bool = False
) -> Any:
    """Return ``quantised(frame, rows, table, k)``, which returns where the integers are.

    Parameters
    ----------
    lanes : int
    limit : int
        The largest magnitude of an integer.
    size : int
        Bytes of an integer.
    offset : int
        What is added to it.
    bounded : bool
        Whether rows lie within [-1, 1] as a rule: then 1 becomes `limit`.
    magnitudes : bool
        Whether the sum of the negative values' magnitudes stands behind each row, from the next multiple of four bytes.
    whole_numbers : bool
        Whether rows hold integers that fit: these are taken as they are, and their scale is 1.

    Notes
    -----
    A NaN in a row makes its scale NaN, and with it every sum of the row; an infinity makes it infinite while the
    finite values beside it count as zero.
    """
    store = store_rounded(size, offset)

    @inlined
    def by_largest(row, target, scale, whole, rest, spare, top):
        """Quantise a row whose largest magnitude is `top`; what is behind its whole vectors is at `spare`."""
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
        """Quantise a row as if it kept within [-1, 1]; return whether it does."""
        return within_one(converted(row, target, whole, rest, spare, limit))

    @inlined
    def as_they_are(row, target, whole, rest, spare):
        """Convert a row of integers; return its scale: 1, or a NaN if there is one among them."""
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
            if whole_numbers:
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
    """Emit the bits of the largest magnitude of the lanes; those of a NaN are larger than infinity's."""
    bits = _magnitude_bits(builder, value)
    name, module = f"llvm.vector.reduce.smax.v{bits.type.count}i32", builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(I32, [bits.type]), name)
    return builder.call(function, [bits])


@intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """larger(a, b): the larger magnitudes; NaN is larger than infinity."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, other = (_magnitude_bits(builder, v) for v in args)
        chosen = builder.select(builder.icmp_signed(">", one, other), one, other)
        return builder.bitcast(chosen, args[0].type)

    return a(a, a), codegen


@intrinsic
def magnitude(typingctx: Any, a: Any) -> Any:
    """magnitude(a): the largest magnitude of its lanes, or SMALLEST; NaN if one is."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found, least = builder.bitcast(_largest_bits(builder, args[0]), F32), ir.Constant(F32, SMALLEST)
        found = builder.select(builder.fcmp_ordered("<", found, least), least, found)
        return builder.fpext(found, ir.DoubleType())

    return types.float64(a), codegen


@intrinsic
def negatives(typingctx: Any, total: Any, address: Any) -> Any:
    """negatives(total, address): a vector of sums with the magnitudes of those of its bytes that are negative."""

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
    """store_sum(address, total): the sum of a vector of integers as an int32."""

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
    """within_one(a): whether no lane is a NaN or past 1 in magnitude."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _magnitude_bits(builder, args[0])
        past = builder.icmp_signed(">", bits, constant(bits.type, 0x3F800000))
        mask = builder.bitcast(past, ir.IntType(bits.type.count))
        return builder.icmp_unsigned("==", mask, ir.Constant(mask.type, 0))

    return types.boolean(a), codegen


@intrinsic
def finite(typingctx: Any, a: Any) -> Any:
    """finite(a): infinities become the largest floats, NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,) = args
        for bound, sign in ((LARGEST, "<"), (-LARGEST, ">")):
            limit = constant(x.type, bound)
            x = builder.select(builder.fcmp_ordered(sign, limit, x), limit, x)
        return x

    return a(a), codegen


@cache
def store_rounded(size: int, offset: int) -> Any:
    """Return ``store(address, x, by)``: x * by to the nearest integer, plus `offset`, in `size` bytes a lane."""

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
