"""Whole numbers and truth values outside segments: what decides about rounds, indices and masks, element by element.

There are few of them, so one kernel does all operations on all types: which, stands in its arguments. Numbers are
computed in 64 bits and cut to their type when they are stored, which is how NumPy wraps them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.frame import arg, bound, complain, first_share, next_share
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import COUNTS, SKIP, SKIP_FIRST
from fastlstm.simd import F32, I8, I32, load_f32, load_i8, load_i32, load_i64, store_f32, store_i8, store_i32, store_i64

__all__ = ["argmax", "elementwise", "gather", "load", "mask_codes", "where"]

Compiled = Callable[[int, int, int], int]


@intrinsic
def as_float(typingctx: Any, value: Any) -> Any:
    """as_float(n) -> the float32 nearest to a whole number, rounded once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.sitofp(args[0], F32)

    return types.float32(types.int64), codegen


@intrinsic
def as_byte(typingctx: Any, value: Any) -> Any:
    """as_byte(n) -> the lowest 8 bits of a whole number."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.trunc(args[0], I8)

    return types.int8(types.int64), codegen


@intrinsic
def as_half(typingctx: Any, value: Any) -> Any:
    """as_half(n) -> the lowest 32 bits of a whole number."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.trunc(args[0], I32)

    return types.int32(types.int64), codegen


@inlined
def load(address, kind):
    """The whole number of type `kind` at `address`."""
    if kind == 4:
        return load_i64(address)
    if kind == 3:
        return load_i32(address) + 0
    number = load_i8(address) + 0
    return number if kind == 1 else number & 255


@inlined
def store(address, kind, value):
    """Write a whole number as a number of type `kind`."""
    if kind == 4:
        store_i64(address, value)
    elif kind == 3:
        store_i32(address, as_half(value))
    elif kind == 5:
        store_f32(address, as_float(value))
    else:
        store_i8(address, as_byte(value))


@inlined
def size_of(kind):
    """Bytes of a number of type `kind`."""
    if kind == 4:
        return 8
    return 1 if kind < 3 else 4


@inlined
def compared(operation, a, b):
    """Whether two numbers compare as the operation says."""
    if operation == 10:
        return a < b
    if operation == 11:
        return a <= b
    if operation == 12:
        return a > b
    if operation == 13:
        return a >= b
    return a == b


@inlined
def computed(operation, a, b):
    """What an operation makes of two whole numbers."""
    if operation == 0:
        return a + b
    if operation == 1:
        return a - b
    if operation == 2:
        return a * b
    if operation == 3:
        return a & b
    if operation == 4:
        return a | b
    if operation == 5:
        return a ^ b
    if operation == 6:
        return 1 - a
    if operation == 8:
        return min(a, b)
    if operation == 9:
        return max(a, b)
    return a


def elementwise() -> Compiled:
    """Out = a op b. Arguments: operation, elements, a, its kind and bytes from one to the next, b likewise, out, kind.

    A step of 0 stands for a single number.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        operation, kind, out_kind = arg(args, 0), arg(args, 3), arg(args, 9)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, arg(args, 1), part), bound(frame, arg(args, 1), part + 1)):
                a, b = arg(args, 2) + i * arg(args, 4), arg(args, 5) + i * arg(args, 7)
                out = arg(args, 8) + i * size_of(out_kind)
                if operation >= 10 and kind == 5:
                    store(out, out_kind, 1 if compared(operation, load_f32(a), load_f32(b)) else 0)
                elif operation >= 10:
                    store(out, out_kind, 1 if compared(operation, load(a, kind), load(b, kind)) else 0)
                elif kind == 5:  # a cast to truth values
                    store(out, out_kind, 1 if load_f32(a) != 0.0 else 0)
                else:
                    value = computed(operation, load(a, kind), load(b, kind))
                    store(out, out_kind, 1 if out_kind == 0 and value != 0 else value if out_kind != 0 else 0)
            part = next_share(frame, part)
        return 0

    return kernel


def where() -> Compiled:
    """Out = a where the condition holds, else b: float32, out one element behind the other.

    Arguments: condition, a, b, out, five sizes, strides of the condition, of a and of b.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        n1, n2, n3, count = arg(args, 5), arg(args, 6), arg(args, 7), arg(args, 8)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, arg(args, 4), part), bound(frame, arg(args, 4), part + 1)):
                for j in range(n1):
                    for k in range(n2):
                        for m in range(n3):
                            c = arg(args, 0) + i * arg(args, 9) + j * arg(args, 10) + k * arg(args, 11)
                            c += m * arg(args, 12)
                            a = arg(args, 1) + i * arg(args, 14) + j * arg(args, 15) + k * arg(args, 16)
                            a += m * arg(args, 17)
                            b = arg(args, 2) + i * arg(args, 19) + j * arg(args, 20) + k * arg(args, 21)
                            b += m * arg(args, 22)
                            out = arg(args, 3) + 4 * count * (((i * n1 + j) * n2 + k) * n3 + m)
                            for e in range(count):
                                if load(c + e * arg(args, 13), 0) != 0:
                                    store_f32(out + 4 * e, load_f32(a + e * arg(args, 18)))
                                else:
                                    store_f32(out + 4 * e, load_f32(b + e * arg(args, 23)))
            part = next_share(frame, part)
        return 0

    return kernel


def gather() -> Compiled:
    """Out = the slices of x along an axis that indices name.

    Arguments: x, out, indices, their kind and number, size of the axis, bytes from one slice to the next in x and in
    out, five sizes of a slice, its strides in x, its strides in out. An index outside leaves a 1 in the frame's status
    and reads nothing; negative ones count from the end.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        kind, size = arg(args, 3), arg(args, 5)
        part = first_share(frame)
        while part >= 0:
            first, last = bound(frame, arg(args, 8), part), bound(frame, arg(args, 8), part + 1)
            for number in range(arg(args, 4)):
                index = load(arg(args, 2) + number * size_of(kind), kind)
                if index < 0:
                    index += size
                if index < 0 or index >= size:
                    complain(frame)
                else:
                    x_base, out_base = arg(args, 0) + index * arg(args, 6), arg(args, 1) + number * arg(args, 7)
                    for i in range(first, last):
                        for j in range(arg(args, 9)):
                            for k in range(arg(args, 10)):
                                for m in range(arg(args, 11)):
                                    x = x_base + i * arg(args, 13) + j * arg(args, 14) + k * arg(args, 15)
                                    x += m * arg(args, 16)
                                    out = out_base + i * arg(args, 18) + j * arg(args, 19) + k * arg(args, 20)
                                    out += m * arg(args, 21)
                                    for e in range(arg(args, 12)):
                                        store_f32(out + e * arg(args, 22), load_f32(x + e * arg(args, 17)))
            part = next_share(frame, part)
        return 0

    return kernel


def argmax() -> Compiled:
    """Out = where each line's largest element stands, as int64; a NaN is larger than all, the first of equals counts.

    Arguments: x, out, lines, elements of a line.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        count = arg(args, 3)
        part = first_share(frame)
        while part >= 0:
            for line in range(bound(frame, arg(args, 2), part), bound(frame, arg(args, 2), part + 1)):
                x, best, top = arg(args, 0) + 4 * count * line, 0, -math.inf
                for i in range(count):
                    value = load_f32(x + 4 * i)
                    if value > top or (value != value and top == top):
                        best, top = i, value
                store_i64(arg(args, 1) + 8 * line, best)
            part = next_share(frame, part)
        return 0

    return kernel


def mask_codes() -> Compiled:
    """Out = the codes of `fastlstm.kernels.recurrent` for a mask [T, B], as int64.

    Arguments: mask, out, time steps, rows, the mask's strides, whether time runs backwards.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        steps, rows = arg(args, 2), arg(args, 3)
        part = first_share(frame)
        while part >= 0:
            for b in range(bound(frame, rows, part), bound(frame, rows, part + 1)):
                skip = SKIP_FIRST
                for i in range(steps):
                    t = steps - 1 - i if arg(args, 6) != 0 else i
                    code = skip
                    if load(arg(args, 0) + t * arg(args, 4) + b * arg(args, 5), 0) != 0:
                        code, skip = COUNTS, SKIP
                    store_i64(arg(args, 1) + 8 * (t * rows + b), code)
            part = next_share(frame, part)
        return 0

    return kernel
