"""An explicit SIMD vector type for Numba, and memory access by address.

Kernels are plain Python loops over two kinds of values: 64-bit integers (sizes and addresses) and `Vec`
values, each an LLVM ``<lanes x float>`` that lives in a register. Nothing here allocates, raises or
touches a Python object. ``+ - * /`` work on vectors; everything else is a function below.

llvmlite's ``declare_intrinsic`` refuses vector types, so LLVM intrinsics such as ``llvm.fma.v8f32`` are
declared as ordinary functions of that name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models, register_default
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


class Vec(types.Type):
    """Numba's type of a vector of `lanes` float32 values."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vec({lanes})")


@register_default(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(F32, fe_type.lanes))


def _register_arithmetic(op: Any, emit: str) -> None:
    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:  # noqa: ARG002
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(op)(Template)

    @lower_builtin(op, Vec, Vec)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, emit)(*args)


for _op, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_arithmetic(_op, _emit)


def int_vector(lanes: int) -> ir.VectorType:
    """Return LLVM's type of `lanes` 32-bit integers."""
    return ir.VectorType(I32, lanes)


def float_vector(lanes: int) -> ir.VectorType:
    """Return LLVM's type of `lanes` 32-bit floats."""
    return ir.VectorType(F32, lanes)


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return an LLVM vector constant with `value` in every lane; floats rounded to float32."""
    rounded = float(np.float32(value)) if isinstance(kind.element, ir.FloatType) else int(value)
    return ir.Constant(kind, [rounded] * kind.count)


def call_intrinsic(builder: Any, name: str, *args: Any) -> Any:
    """Emit a call of the LLVM intrinsic ``llvm.<name>.v<lanes>f32`` on vectors of one type."""
    kind = args[0].type
    full = f"llvm.{name}.v{kind.count}f32"
    module = builder.module
    function = module.globals.get(full) or ir.Function(module, ir.FunctionType(kind, [kind] * len(args)), full)
    return builder.call(function, args)


def call_primitive(builder: Any, name: str, returns: Any, *args: Any) -> Any:
    """Emit a call of a primitive, which `fastlstm.kernels.primitives` defines for each target."""
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(returns, [a.type for a in args]), name)
    return builder.call(function, args)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit a * b + c: fused if the target has FMA, else rounded twice; see `fastlstm.kernels.primitives`."""
    return call_primitive(builder, f"fl_multiply_add_{a.type.count}", a.type, a, b, c)


def add_pairs(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """Emit 32-bit sums plus a dot product per lane: that of the lane's two 16-bit values in a and in b."""
    pairs = ir.VectorType(ir.IntType(16), 2 * total.type.count)
    a, b = (builder.bitcast(value, pairs) for value in (a, b))
    return builder.add(total, call_primitive(builder, PAIRS[total.type.count], total.type, a, b))


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """Emit the conversion of an integer address to a typed pointer."""
    return builder.inttoptr(address, kind.as_pointer())


def load_vector(builder: Any, address: Any, lanes: int) -> Any:
    """Emit an unaligned vector load (on aligned data it costs the same as an aligned one)."""
    return builder.load(pointer(builder, address, float_vector(lanes)), align=4)


def store_vector(builder: Any, value: Any, address: Any) -> None:
    """Emit an unaligned vector store."""
    builder.store(value, pointer(builder, address, value.type), align=4)


def choose(builder: Any, values: Sequence[Any], cases: Mapping[Any, Callable[..., None]], args: Sequence[Any]) -> None:
    """Emit a switch over the values of some integers, which have to be among the keys of `cases`.

    Parameters
    ----------
    values : sequence of LLVM integers
    cases : mapping of tuple of int to callable
        Each emits its code, given the builder and `args`; the first is the default case.
    """
    (_, first), *others = cases.items()
    after = builder.append_basic_block("chosen")
    for numbers, emit in reversed(others):
        equal = [builder.icmp_signed("==", value, value.type(n)) for value, n in zip(values, numbers, strict=True)]
        here, rest = builder.append_basic_block("case"), builder.append_basic_block("rest")
        builder.cbranch(reduce(builder.and_, equal), here, rest)
        builder.position_at_end(here)
        emit(builder, *args)
        builder.branch(after)
        builder.position_at_end(rest)
    first(builder, *args)
    builder.branch(after)
    builder.position_at_end(after)


def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at `address` into the L2 cache; no address can fault."""
    kind, module, name = ir.IntType(8).as_pointer(), builder.module, "llvm.prefetch.p0"
    takes = ir.FunctionType(ir.VoidType(), [kind, I32, I32, I32])
    function = module.globals.get(name) or ir.Function(module, takes, name)
    read, locality, data = I32(0), I32(2), I32(1)
    builder.call(function, [builder.inttoptr(address, kind), read, locality, data])


def broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    """Emit a vector with `scalar` in every lane."""
    kind = float_vector(lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(int_vector(lanes), [0] * lanes))


# ---------------------------------------------------------------- memory


@intrinsic(prefer_literal=True)
def vload(typingctx: Any, lanes: Any, address: Any) -> Any:
    """vload(LANES, address) -> Vec of LANES floats at `address`; LANES is a compile-time constant."""
    n = lanes.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_vector(builder, args[1], n)

    return Vec(n)(lanes, types.int64), codegen


@intrinsic
def vstore(typingctx: Any, address: Any, value: Any) -> Any:
    """vstore(address, vec) writes the vector's lanes at `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_vector(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def vstore_first(typingctx: Any, address: Any, value: Any, count: Any) -> Any:
    """vstore_first(address, vec, count) writes the first `count` lanes (or all, if there are fewer), nothing beyond."""
    lanes = value.lanes

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, vector, n = args
        kind, flags, module = int_vector(lanes), ir.VectorType(ir.IntType(1), lanes), builder.module
        wide = builder.select(builder.icmp_signed("<", n, I64(lanes)), n, I64(lanes))
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(wide, I32), I32(0))
        limit = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), constant(kind, 0))
        mask = builder.icmp_signed("<", ir.Constant(kind, list(range(lanes))), limit)
        name, target = f"llvm.masked.store.v{lanes}f32.p0", vector.type.as_pointer()
        takes = ir.FunctionType(ir.VoidType(), [vector.type, target, I32, flags])
        function = module.globals.get(name) or ir.Function(module, takes, name)
        builder.call(function, [vector, builder.inttoptr(place, target), I32(4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen


@intrinsic(prefer_literal=True)
def transpose_block(typingctx: Any, lanes: Any, x: Any, x_step: Any, out: Any, out_step: Any) -> Any:
    """transpose_block(LANES, x, x_step, out, out_step) transposes a block of LANES rows of LANES floats.

    The steps are the bytes from one row to the next; the floats of a row are contiguous on both sides.
    """
    n = lanes.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, x, x_step, out, out_step = args
        rows = [load_vector(builder, builder.add(x, builder.mul(x_step, I64(r))), n) for r in range(n)]
        step = 1
        while step < n:  # rows i and i + step exchange what lies off the diagonal, in blocks of `step` lanes
            upper = ir.Constant(int_vector(n), [n + i - step if i & step else i for i in range(n)])
            lower = ir.Constant(int_vector(n), [n + i if i & step else i + step for i in range(n)])
            for i in (i for i in range(n) if not i & step):
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
            step *= 2
        for r, row in enumerate(rows):
            store_vector(builder, row, builder.add(out, builder.mul(out_step, I64(r))))
        return context.get_dummy_value()

    return types.void(lanes, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def vsplat_load(typingctx: Any, lanes: Any, address: Any) -> Any:
    """vsplat_load(LANES, address) -> Vec with the one float at `address` in every lane."""
    n = lanes.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, builder.load(pointer(builder, args[1], F32), align=4), n)

    return Vec(n)(lanes, types.int64), codegen


@intrinsic(prefer_literal=True)
def vsplat(typingctx: Any, lanes: Any, value: Any) -> Any:
    """vsplat(LANES, x) -> Vec with x (converted to float32) in every lane."""
    n = lanes.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[1], sig.args[1], types.float32)
        return broadcast(builder, scalar, n)

    return Vec(n)(lanes, types.float64), codegen


@intrinsic
def splat(typingctx: Any, like: Any, value: Any) -> Any:
    """splat(vec, x) -> Vec of vec's type with x (converted to float32) in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, builder.fptrunc(args[1], F32), like.lanes)

    return like(like, types.float64), codegen


def _memory(kind: Any, numba_type: Any) -> tuple[Any, Any]:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(pointer(builder, args[0], kind), align=kind.width // 8 if kind != F32 else 4)

        return numba_type(types.int64), codegen

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[1], pointer(builder, args[0], kind), align=kind.width // 8 if kind != F32 else 4)
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), codegen

    return load, store


load_i64, store_i64 = _memory(I64, types.int64)
load_i32, store_i32 = _memory(I32, types.int32)
load_i8, store_i8 = _memory(I8, types.int8)
load_f32, store_f32 = _memory(F32, types.float32)


# ---------------------------------------------------------------- arithmetic


def _elementwise(name: str, arity: int, emit: Callable[..., Any]) -> Any:
    """Make an intrinsic that maps `arity` vectors of one type to one vector of that type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)

    if arity == 1:

        def typer(typingctx: Any, a: Any) -> Any:
            return a(a), codegen
    elif arity == 2:

        def typer(typingctx: Any, a: Any, b: Any) -> Any:  # type: ignore[misc]
            return a(a, a), codegen
    else:

        def typer(typingctx: Any, a: Any, b: Any, c: Any) -> Any:  # type: ignore[misc]
            return a(a, a, a), codegen

    typer.__name__ = typer.__qualname__ = name
    return intrinsic(typer)


def _as_int(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, int_vector(value.type.count))


def _as_float(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, float_vector(value.type.count))


def _emit_min(builder: Any, bound: Any, x: Any) -> Any:
    # `bound < x ? bound : x` is one minps instruction and, unlike llvm.minnum, keeps a NaN in x.
    return builder.select(builder.fcmp_ordered("<", bound, x), bound, x)


def _emit_max(builder: Any, bound: Any, x: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", bound, x), bound, x)


def _emit_where_negative(builder: Any, x: Any, a: Any, b: Any) -> Any:
    zero = constant(int_vector(x.type.count), 0)
    return builder.select(builder.icmp_signed("<", _as_int(builder, x), zero), a, b)


def _emit_where_less(builder: Any, x: Any, bound: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", x, bound), a, b)


def _emit_abs(builder: Any, x: Any) -> Any:
    mask = constant(int_vector(x.type.count), 0x7FFFFFFF)
    return _as_float(builder, builder.and_(_as_int(builder, x), mask))


def _emit_copysign(builder: Any, magnitude: Any, sign: Any) -> Any:
    # `magnitude` is non-negative (or NaN), so or-ing in the sign bit is enough.
    mask = constant(int_vector(sign.type.count), -0x80000000)
    bits = builder.or_(_as_int(builder, magnitude), builder.and_(_as_int(builder, sign), mask))
    return _as_float(builder, bits)


def _emit_pow2_low(builder: Any, x: Any) -> Any:
    kind = int_vector(x.type.count)
    shifted = builder.shl(_as_int(builder, x), constant(kind, 23))
    return _as_float(builder, builder.add(shifted, constant(kind, 0x3F800000)))


def _emit_greater(builder: Any, a: Any, b: Any) -> Any:
    larger = builder.select(builder.fcmp_ordered(">", a, b), a, b)  # b, if one of the two is a NaN
    return builder.select(builder.fcmp_unordered("uno", a, a), a, larger)


def _emit_every_second(builder: Any, a: Any, b: Any) -> Any:
    lanes = a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(int_vector(lanes), list(range(0, 2 * lanes, 2))))


fma = _elementwise("fma", 3, multiply_add)
"""fma(a, b, c) = a * b + c, rounded once if the processor has FMA."""
vmin = _elementwise("vmin", 2, _emit_min)
"""vmin(bound, x): the smaller of the two; NaN if x is NaN."""
vmax = _elementwise("vmax", 2, _emit_max)
"""vmax(bound, x): the larger of the two; NaN if x is NaN."""
vgreater = _elementwise("vgreater", 2, _emit_greater)
"""vgreater(a, b): the larger of the two; NaN if either is NaN."""
every_second = _elementwise("every_second", 2, _emit_every_second)
"""every_second(a, b): lanes 0, 2, 4 ... of a and then of b."""
vabs = _elementwise("vabs", 1, _emit_abs)
"""vabs(x): the absolute value."""
vsqrt = _elementwise("vsqrt", 1, lambda builder, x: call_intrinsic(builder, "sqrt", x))
"""vsqrt(x): the square root, correctly rounded."""
vfloor = _elementwise("vfloor", 1, lambda builder, x: call_intrinsic(builder, "floor", x))
"""vfloor(x): the largest integer not above x."""
vcopysign = _elementwise("vcopysign", 2, _emit_copysign)
"""vcopysign(magnitude, x): the non-negative magnitude with the sign of x."""
where_negative = _elementwise("where_negative", 3, _emit_where_negative)
"""where_negative(x, a, b): a where the sign bit of x is set, else b."""
pow2_low = _elementwise("pow2_low", 1, _emit_pow2_low)
"""pow2_low(n + 1.5 * 2**23) = 2**n: the low mantissa bits of the sum hold the integer n."""


@intrinsic
def where_less(typingctx: Any, x: Any, bound: Any, a: Any, b: Any) -> Any:
    """where_less(x, bound, a, b): a where x < bound, else b (b where x is NaN)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _emit_where_less(builder, *args)

    return x(x, x, x, x), codegen


def emit_join(builder: Any, a: Any, b: Any) -> Any:
    """Emit the vector of a's lanes followed by b's."""
    places = ir.Constant(int_vector(2 * a.type.count), list(range(2 * a.type.count)))
    return builder.shuffle_vector(a, b, places)


@intrinsic(prefer_literal=True)
def part(typingctx: Any, lanes: Any, start: Any, value: Any) -> Any:
    """part(LANES, START, vec) -> Vec of LANES lanes of vec from START on; lanes past its end are undefined."""
    n, first = lanes.literal_value, start.literal_value
    places = [min(i, value.lanes) for i in range(first, first + n)]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vec = args[2]
        return builder.shuffle_vector(vec, ir.Constant(vec.type, ir.Undefined), ir.Constant(int_vector(n), places))

    return Vec(n)(lanes, start, value), codegen


@intrinsic
def join(typingctx: Any, a: Any, b: Any) -> Any:
    """join(a, b) -> Vec of a's lanes followed by b's."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_join(builder, *args)

    return Vec(2 * a.lanes)(a, b), codegen


HALVES = ir.VectorType(I32, 2)  # of a double, the lower one first
MANTISSA = 20  # bits of it in the upper half
SQRT_HALF = 0x3FE6A09E, 0x667F3BCD  # halves of sqrt(1/2), the upper one first


@intrinsic
def exponent_of(typingctx: Any, value: Any) -> Any:
    """exponent_of(x) -> the integer e for which x / 2**e lies between sqrt(1/2) and sqrt(2), of a normal double.

    In halves, as processors with words of 32 bits have doubles.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = builder.bitcast(args[0], HALVES)
        low, high = (builder.extract_element(halves, I32(i)) for i in (0, 1))
        borrow = builder.zext(builder.icmp_unsigned("<", low, I32(SQRT_HALF[1])), I32)
        above = builder.sub(builder.sub(high, I32(SQRT_HALF[0])), borrow)
        return builder.sext(builder.ashr(above, I32(MANTISSA)), I64)

    return types.int64(types.float64), codegen


@intrinsic
def without_exponent(typingctx: Any, value: Any, exponent: Any) -> Any:
    """without_exponent(x, e) -> x / 2**e, where neither is a denormal."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = builder.bitcast(args[0], HALVES)
        by = builder.shl(builder.trunc(args[1], I32), I32(MANTISSA))
        high = builder.sub(builder.extract_element(halves, I32(1)), by)
        return builder.bitcast(builder.insert_element(halves, high, I32(1)), ir.DoubleType())

    return types.float64(types.float64, types.int64), codegen


@intrinsic
def sqrt(typingctx: Any, value: Any) -> Any:
    """sqrt(x) -> the square root of a double, as one instruction; Numba's own calls the C library."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [ir.DoubleType()]), args)

    return types.float64(types.float64), codegen


# ---------------------------------------------------------------- calls and the floating-point mode


@intrinsic
def call_kernel(typingctx: Any, address: Any, args: Any, frame: Any) -> Any:
    """call_kernel(address, args, frame) calls the kernel at `address`; see `fastlstm.kernels.compiler`."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        kind = ir.FunctionType(I64, [I64, I64, I64])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), [*values[1:], I64(0)])

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def call_c(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """call_c(address, a, b, c, d) calls a C function that takes up to four words and returns at most one."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(I64, [I64] * 4)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(*[types.int64] * 5), codegen


def primitive(name: str, arguments: int) -> Any:
    """Return the intrinsic that calls a primitive with 64-bit integers and returns one."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_primitive(builder, name, I64, *args)

    if arguments == 0:

        def typer(typingctx: Any) -> Any:
            return types.int64(), codegen
    elif arguments == 1:

        def typer(typingctx: Any, a: Any) -> Any:  # type: ignore[misc]
            return types.int64(types.int64), codegen
    else:

        def typer(typingctx: Any, a: Any, b: Any) -> Any:  # type: ignore[misc]
            return types.int64(types.int64, types.int64), codegen

    typer.__name__ = typer.__qualname__ = name
    return intrinsic(typer)


get_float_mode = primitive("fl_get_float_mode", 0)
"""get_float_mode() -> the processor's floating-point control word (0 where unknown)."""
set_float_mode = primitive("fl_set_float_mode", 1)
"""set_float_mode(word) restores what get_float_mode returned."""
with_flush_to_zero = primitive("fl_with_flush_to_zero", 1)
"""with_flush_to_zero(word) -> the control word that treats denormals as zero."""
