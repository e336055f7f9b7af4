"""Integers and booleans outside segments (loop conditions, indices, masks), computed element by element.

There are few of them, so one kernel does all operations on all types; its arguments say which. Numbers are computed
in 64 bits and truncated to their type when stored, so they wrap as NumPy's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.arrays import offset
from fastlstm.kernels.frame import arg, bound, complain, first_share, next_share
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import COUNTS, SKIP, SKIP_FIRST
from fastlstm.kernels.simd import (
    F32,
    I8,
    I32,
    load_f32,
    load_i8,
    load_i32,
    load_i64,
    store_f32,
    store_i8,
    store_i32,
    store_i64,
)
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Elementwise, Gather, Lines, MaskCodes, Running, Where
from fastlstm.program.layout import KINDS, OPERATIONS

__all__ = ["argmax", "elementwise", "gather", "load", "mask_codes", "running", "where"]

ELEMENTWISE, WHERE, GATHER = positions(Elementwise), positions(Where), positions(Gather)
LINES, MASK_CODES, RUNNING = positions(Lines), positions(MaskCodes), positions(Running)
BOOL, INT8, INT32, INT64, FLOAT = (KINDS[name] for name in ("bool", "int8", "int32", "int64", "float32"))
ADD, SUB, MUL, AND, OR, XOR = (OPERATIONS[name] for name in ("Add", "Sub", "Mul", "And", "Or", "Xor"))
NOT, MIN, MAX = (OPERATIONS[name] for name in ("Not", "Min", "Max"))
LESS, LESS_OR_EQUAL = OPERATIONS["Less"], OPERATIONS["LessOrEqual"]  # LESS and all after it are comparisons
GREATER, GREATER_OR_EQUAL = OPERATIONS["Greater"], OPERATIONS["GreaterOrEqual"]

Compiled = Callable[[int, int, int], int]


@intrinsic
def as_float(typingctx: Any, value: Any) -> Any:
    """as_float(n) -> an integer as float32, rounded once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.sitofp(args[0], F32)

    return types.float32(types.int64), codegen


@intrinsic
def as_byte(typingctx: Any, value: Any) -> Any:
    """as_byte(n) -> the lowest 8 bits of an integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.trunc(args[0], I8)

    return types.int8(types.int64), codegen


@intrinsic
def as_half(typingctx: Any, value: Any) -> Any:
    """as_half(n) -> the lowest 32 bits of an integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.trunc(args[0], I32)

    return types.int32(types.int64), codegen


@inlined
def load(address, kind):
    """The integer of type `kind` at `address`."""
    if kind == INT64:
        return load_i64(address)
    if kind == INT32:
        return load_i32(address) + 0
    number = load_i8(address) + 0
    return number if kind == INT8 else number & 255


@inlined
def store(address, kind, value):
    """Write an integer as a number of type `kind`."""
    if kind == INT64:
        store_i64(address, value)
    elif kind == INT32:
        store_i32(address, as_half(value))
    elif kind == FLOAT:
        store_f32(address, as_float(value))
    else:
        store_i8(address, as_byte(value))


@inlined
def size_of(kind):
    """Bytes of a number of type `kind`."""
    if kind == INT64:
        return 8
    if kind == INT32:
        return 4
    return 4 if kind == FLOAT else 1


@inlined
def compared(operation, a, b):
    """Whether a comparison of two numbers holds."""
    if operation == LESS:
        return a < b
    if operation == LESS_OR_EQUAL:
        return a <= b
    if operation == GREATER:
        return a > b
    if operation == GREATER_OR_EQUAL:
        return a >= b
    return a == b


@inlined
def computed(operation, a, b):
    """The result of an operation on two integers."""
    if operation == ADD:
        return a + b
    if operation == SUB:
        return a - b
    if operation == MUL:
        return a * b
    if operation == AND:
        return a & b
    if operation == OR:
        return a | b
    if operation == XOR:
        return a ^ b
    if operation == NOT:
        return 1 - a
    if operation == MIN:
        return min(a, b)
    if operation == MAX:
        return max(a, b)
    return a


def elementwise() -> Compiled:
    """Out = a op b. Arguments: `Elementwise`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        operation, count = arg(args, ELEMENTWISE.operation), arg(args, ELEMENTWISE.elements)
        kind, out_kind = arg(args, ELEMENTWISE.a_kind), arg(args, ELEMENTWISE.out_kind)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, count, part), bound(frame, count, part + 1)):
                a = arg(args, ELEMENTWISE.a) + i * arg(args, ELEMENTWISE.a_step)
                b = arg(args, ELEMENTWISE.b) + i * arg(args, ELEMENTWISE.b_step)
                out = arg(args, ELEMENTWISE.out) + i * size_of(out_kind)
                if operation >= LESS and kind == FLOAT:
                    store(out, out_kind, 1 if compared(operation, load_f32(a), load_f32(b)) else 0)
                elif operation >= LESS:
                    store(out, out_kind, 1 if compared(operation, load(a, kind), load(b, kind)) else 0)
                elif kind == FLOAT:  # a cast to booleans
                    store(out, out_kind, 1 if load_f32(a) != 0.0 else 0)
                else:
                    value = computed(operation, load(a, kind), load(b, kind))
                    store(out, out_kind, value if out_kind != BOOL else 1 if value != 0 else 0)
            part = next_share(frame, part)
        return 0

    return kernel


def where() -> Compiled:
    """Out = a where the condition holds, else b: float32, out contiguous. Arguments: `Where`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        outer, n1, n2 = arg(args, WHERE.sizes.i), arg(args, WHERE.sizes.j), arg(args, WHERE.sizes.k)
        n3, count = arg(args, WHERE.sizes.m), arg(args, WHERE.sizes.e)
        c_step, a_step, b_step = (
            arg(args, WHERE.condition_steps.e), arg(args, WHERE.a_steps.e), arg(args, WHERE.b_steps.e),
        )  # fmt: skip
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, outer, part), bound(frame, outer, part + 1)):
                for j in range(n1):
                    for k in range(n2):
                        for m in range(n3):
                            c = arg(args, WHERE.condition) + offset(args, WHERE.condition_steps, i, j, k, m)
                            a = arg(args, WHERE.a) + offset(args, WHERE.a_steps, i, j, k, m)
                            b = arg(args, WHERE.b) + offset(args, WHERE.b_steps, i, j, k, m)
                            out = arg(args, WHERE.out) + 4 * count * (((i * n1 + j) * n2 + k) * n3 + m)
                            for e in range(count):
                                if load(c + e * c_step, BOOL) != 0:
                                    store_f32(out + 4 * e, load_f32(a + e * a_step))
                                else:
                                    store_f32(out + 4 * e, load_f32(b + e * b_step))
            part = next_share(frame, part)
        return 0

    return kernel


def gather() -> Compiled:
    """Out = the slices of x that indices select along an axis. Arguments: `Gather`.

    Negative indices count from the end. An index out of range sets the frame's status to 1 and reads nothing.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        kind, size, outer = arg(args, GATHER.kind), arg(args, GATHER.size), arg(args, GATHER.sizes.i)
        x_step, out_step = arg(args, GATHER.x_steps.e), arg(args, GATHER.out_steps.e)
        part = first_share(frame)
        while part >= 0:
            first, last = bound(frame, outer, part), bound(frame, outer, part + 1)
            for number in range(arg(args, GATHER.picked)):
                index = load(arg(args, GATHER.indices) + number * size_of(kind), kind)
                if index < 0:
                    index += size
                if index < 0 or index >= size:
                    complain(frame)
                else:
                    x_base = arg(args, GATHER.x) + index * arg(args, GATHER.x_slice)
                    out_base = arg(args, GATHER.out) + number * arg(args, GATHER.out_slice)
                    for i in range(first, last):
                        for j in range(arg(args, GATHER.sizes.j)):
                            for k in range(arg(args, GATHER.sizes.k)):
                                for m in range(arg(args, GATHER.sizes.m)):
                                    x = x_base + offset(args, GATHER.x_steps, i, j, k, m)
                                    out = out_base + offset(args, GATHER.out_steps, i, j, k, m)
                                    for e in range(arg(args, GATHER.sizes.e)):
                                        store_f32(out + e * out_step, load_f32(x + e * x_step))
            part = next_share(frame, part)
        return 0

    return kernel


def argmax() -> Compiled:
    """Out = the index of each line's largest element, as int64; NaN counts as largest, ties go to the first.

    Arguments: `Lines`.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        lines, count = arg(args, LINES.lines), arg(args, LINES.length)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, lines, part), bound(frame, lines, part + 1)):
                x, best, top = arg(args, LINES.x) + 4 * count * line, 0, -math.inf
                for i in range(count):
                    value = load_f32(x + 4 * i)
                    if value > top or (value != value and top == top):
                        best, top = i, value
                store_i64(arg(args, LINES.out) + 8 * line, best)
            part = next_share(frame, part)
        return 0

    return kernel


def running() -> Compiled:
    """Out = cumulative results of an operation along each line, such as running sums. Arguments: `Running`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        operation, kind = arg(args, RUNNING.operation), arg(args, RUNNING.kind)
        lines, x_step, out_step = arg(args, RUNNING.lines), arg(args, RUNNING.x_step), arg(args, RUNNING.out_step)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, lines, part), bound(frame, lines, part + 1)):
                x = arg(args, RUNNING.x) + line * arg(args, RUNNING.x_line)
                out = arg(args, RUNNING.out) + line * arg(args, RUNNING.out_line)
                total = load(x, kind)
                store(out, kind, total)
                for i in range(1, arg(args, RUNNING.length)):
                    total = computed(operation, total, load(x + i * x_step, kind))
                    store(out + i * out_step, kind, total)
            part = next_share(frame, part)
        return 0

    return kernel


def mask_codes() -> Compiled:
    """Out = the codes of `fastlstm.kernels.recurrent` for a mask [T, B], as int64. Arguments: `MaskCodes`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        steps, rows = arg(args, MASK_CODES.steps), arg(args, MASK_CODES.rows)
        part = first_share(frame)
        while part >= 0:
            for b in range(bound(frame, rows, part), bound(frame, rows, part + 1)):
                skip = SKIP_FIRST
                for i in range(steps):
                    t = steps - 1 - i if arg(args, MASK_CODES.reverse) != 0 else i
                    code = skip
                    mask = arg(args, MASK_CODES.mask) + t * arg(args, MASK_CODES.mask_time)
                    if load(mask + b * arg(args, MASK_CODES.mask_row), BOOL) != 0:
                        code, skip = COUNTS, SKIP
                    store_i64(arg(args, MASK_CODES.out) + 8 * (t * rows + b), code)
            part = next_share(frame, part)
        return 0

    return kernel
