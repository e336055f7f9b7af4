"""Arrays of any shape, outside the rows of a segment: strided copies, elementwise functions, broadcasting.

Addresses and sizes are fixed when a tape is recorded (see `fastlstm.lowering.tapes.tape`), so they are arguments. An
array has up to five axes here, the last one innermost; strides are in bytes. Whole vectors may be read past an array's
end (a tape leaves room there), but nothing is written past it, because another worker's part begins there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation, operation
from fastlstm.kernels.frame import arg, bound, first_share, next_share, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.logarithm import log
from fastlstm.kernels.memory import partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import (
    every_second,
    load_f32,
    load_i64,
    store_f32,
    transpose_block,
    vload,
    vsplat_load,
    vstore,
    vstore_first,
)
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import Binary, Copy, Fill, Pad, Unary
from fastlstm.program.layout import SCRATCH

__all__ = ["binary", "copied_line", "copy", "fill", "logarithm", "offset", "pad", "unary"]

COPY, PAD, FILL, UNARY, BINARY = positions(Copy), positions(Pad), positions(Fill), positions(Unary), positions(Binary)


@inlined
def offset(args, steps, i, j, k, m):
    """Offset in bytes of a line from the array's first element; `steps` are the words of its strides."""
    outer = i * arg(args, steps.i) + j * arg(args, steps.j)
    return outer + k * arg(args, steps.k) + m * arg(args, steps.m)


@inlined
def _put(lanes, address, value, count, limit):
    """Write the first `count` lanes; all of them if the rest lies before `limit`, and so is overwritten later.

    Masked stores are microcoded on some processors: laying out short lines took three times as long with them.
    """
    if address + 4 * lanes <= limit:
        vstore(address, value)
    else:
        vstore_first(address, value, count)


@inlined
def _repeat(lanes, out, value, count, limit):
    """Write one number `count` times; `value` is a vector of it. For `limit` see `_put`."""
    done = 0
    while done < count:
        _put(lanes, out + 4 * done, value, count - done, limit)
        done += lanes


@cache
def copied_line(lanes: int) -> Any:
    """Return ``line(x, x_step, out, out_step, count)``, which copies elements at strides in bytes."""

    @inlined
    def line(x, x_step, out, out_step, count):
        done = 0
        if x_step == 4 and out_step == 4:
            while done + lanes <= count:
                vstore(out + 4 * done, vload(lanes, x + 4 * done))
                done += lanes
        while done + 2 <= count:  # LLVM would unroll a plain loop, and take as long for it as for the rest of `copy`
            at, to = x + done * x_step, out + done * out_step
            store_f32(to, load_f32(at))
            store_f32(to + out_step, load_f32(at + x_step))
            done += 2
        if done < count:
            store_f32(out + done * out_step, load_f32(x + done * x_step))

    return line


def copy(lanes: int) -> Compiled:
    """Out = x, each with its own strides. Arguments: `Copy`.

    If the last axis of out is the second to last of x, blocks are transposed in registers.
    """
    line = copied_line(lanes)

    @inlined
    def turned(x, x_step, out, out_line, lines, count):
        """Copy columns of x, 4 bytes apart, to lines of `count` elements, both numbers multiples of `lanes`."""
        for first in range(0, lines, lanes):
            for done in range(0, count, lanes):
                transpose_block(
                    lanes, x + 4 * first + done * x_step, x_step, out + first * out_line + 4 * done, out_line
                )

    def kernel(args: int, frame: int, unused: int) -> int:
        lines, count = arg(args, COPY.sizes.m), arg(args, COPY.sizes.e)
        x_line, x_step = arg(args, COPY.x_steps.m), arg(args, COPY.x_steps.e)
        out_line, out_step = arg(args, COPY.out_steps.m), arg(args, COPY.out_steps.e)
        outer = arg(args, COPY.sizes.i)
        whole_lines, whole = 0, 0  # the part that is transposed; lines copy the rest
        if x_line == 4 and x_step != 4 and out_step == 4:
            whole_lines, whole = lines - lines % lanes, count - count % lanes
        start = whole_lines if whole == count else 0
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, outer, part), bound(frame, outer, part + 1)):
                for j in range(arg(args, COPY.sizes.j)):
                    for k in range(arg(args, COPY.sizes.k)):
                        x = arg(args, COPY.x) + offset(args, COPY.x_steps, i, j, k, 0)
                        out = arg(args, COPY.out) + offset(args, COPY.out_steps, i, j, k, 0)
                        turned(x, x_step, out, out_line, whole_lines, whole)
                        for m in range(start, lines):
                            done = whole if m < whole_lines else 0
                            line(
                                x + m * x_line + done * x_step, x_step,
                                out + m * out_line + done * out_step, out_step, count - done,
                            )  # fmt: skip
            part = next_share(frame, part)
        return 0

    return kernel


def pad(lanes: int) -> Compiled:
    """Out = planes that contain x, with one number around it. Arguments: `Pad`."""

    @inlined
    def line(x, step, out, count, limit):
        done = 0
        if step == 4:
            while done < count:
                _put(lanes, out + 4 * done, vload(lanes, x + 4 * done), count - done, limit)
                done += lanes
        elif step == 8:
            while done < count:
                both = vload(lanes, x + 8 * done), vload(lanes, x + 8 * done + 4 * lanes)
                _put(lanes, out + 4 * done, every_second(both[0], both[1]), count - done, limit)
                done += lanes
        else:
            while done < count:
                store_f32(out + 4 * done, load_f32(x + done * step))
                done += 1

    @inlined
    def short(x, x_by, step, out, out_by, count, value, left, width):
        """Lines of at most one vector, written in order: lanes past the end are overwritten by what follows."""
        for _ in range(count):
            vstore(out, value)
            inside = vload(lanes, x)
            if step == 8:
                inside = every_second(inside, vload(lanes, x + 4 * lanes))
            vstore(out + 4 * left, inside)
            vstore(out + 4 * (left + width), value)
            x += x_by
            out += out_by

    def kernel(args: int, frame: int, unused: int) -> int:
        inner, height, width = arg(args, PAD.inner), arg(args, PAD.height), arg(args, PAD.width)
        top, left = arg(args, PAD.top), arg(args, PAD.left)
        lines, pitch = arg(args, PAD.lines), arg(args, PAD.pitch)
        x_line, step, x_inner = arg(args, PAD.x_line), arg(args, PAD.x_step), arg(args, PAD.x_inner)
        out_inner = arg(args, PAD.out_inner)
        value = vsplat_load(lanes, arg(args, PAD.number))
        planes = arg(args, PAD.outer) * inner
        part = first_share(frame)
        while part >= 0:
            first, last = bound(frame, planes, part), bound(frame, planes, part + 1)
            while first < last:
                a, b = first // inner, first % inner
                count = min(last - first, inner - b)
                x = arg(args, PAD.x) + a * arg(args, PAD.x_outer) + b * x_inner
                out = arg(args, PAD.out) + a * arg(args, PAD.out_outer) + b * out_inner
                limit, quick = out + count * out_inner, 0
                if lines == 1 and height == 1 and pitch <= lanes and (step == 4 or step == 8):
                    quick = max(0, (count * out_inner - 4 * (left + width + lanes)) // out_inner + 1)
                    short(x, x_inner, step, out, out_inner, quick, value, left, width)
                    x += quick * x_inner
                    out += quick * out_inner
                for _ in range(quick, count):
                    # The padding at the end of a line and at the start of the next is written in one go.
                    target = out + 4 * (top * pitch + left)
                    _repeat(lanes, out, value, top * pitch + (left if height > 0 else 0), limit)
                    for y in range(height):
                        line(x + y * x_line, step, target, width, limit)
                        between = pitch - width if y + 1 < height else pitch - left - width
                        _repeat(lanes, target + 4 * width, value, between, limit)
                        target += 4 * pitch
                    rest = lines - top - height
                    _repeat(lanes, out + 4 * (top + height) * pitch, value, rest * pitch, limit)
                    x += x_inner
                    out += out_inner
                first += count
            part = next_share(frame, part)
        return 0

    return kernel


def fill(lanes: int) -> Compiled:
    """Out = one number. Arguments: `Fill`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        out, count = arg(args, FILL.out), arg(args, FILL.elements)
        value, number = vsplat_load(lanes, arg(args, FILL.number)), load_f32(arg(args, FILL.number))
        part = first_share(frame)
        while part >= 0:
            first, last = bound(frame, count, part), bound(frame, count, part + 1)
            while first + lanes <= last:
                vstore(out + 4 * first, value)
                first += lanes
            while first < last:
                store_f32(out + 4 * first, number)
                first += 1
            part = next_share(frame, part)
        return 0

    return kernel


def unary(lanes: int, name: str, alpha: float | None, beta: float | None) -> Compiled:
    """Out = f(x), contiguous. Arguments: `Unary`."""
    apply, put = activation(name, alpha, beta), partial_store(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        x, out, count = arg(args, UNARY.x), arg(args, UNARY.out), arg(args, UNARY.elements)
        vectors = (count + lanes - 1) // lanes
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, vectors, part), bound(frame, vectors, part + 1)):
                at = 4 * lanes * i
                put(out + at, apply(vload(lanes, x + at)), min(lanes, count - i * lanes), word(frame, SCRATCH))
            part = next_share(frame, part)
        return 0

    return kernel


def logarithm() -> Compiled:
    """Out = log(x), contiguous. Arguments: `Unary`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        count = arg(args, UNARY.elements)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, count, part), bound(frame, count, part + 1)):
                store_f32(arg(args, UNARY.out) + 4 * i, log(load_f32(arg(args, UNARY.x) + 4 * i)))
            part = next_share(frame, part)
        return 0

    return kernel


Step = tuple[str, float | None, float | None, int]
"""A function behind another: its name, its parameters, and which of its two operands the value is; 0 if it has one."""


@cache
def _behind(lanes: int, steps: tuple[Step, ...]) -> Any:
    """Return ``function(value, numbers)``: the steps one after the other."""
    if not steps:

        @inlined
        def unchanged(value, numbers):
            return value

        return unchanged
    before, (name, alpha, beta, side) = _behind(lanes, steps[:-1]), steps[-1]
    at = 8 * sum(1 for step in steps[:-1] if step[3])
    if not side:
        apply = activation(name, alpha, beta)

        @inlined
        def of_one(value, numbers):
            return apply(before(value, numbers))

        return of_one
    combine = operation(name)

    @inlined
    def of_two(value, numbers):
        left, right = before(value, numbers), vsplat_load(lanes, load_i64(numbers + at))
        return combine(left, right) if side == 1 else combine(right, left)

    return of_two


def binary(lanes: int, name: str, *steps: Step) -> Compiled:
    """Out = a op b, with out contiguous; then the steps, while the value is in a register. Arguments: `Binary`."""
    apply, finished, put = operation(name), _behind(lanes, steps), partial_store(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        count, a_step, b_step = arg(args, BINARY.sizes.e), arg(args, BINARY.a_steps.e), arg(args, BINARY.b_steps.e)
        spare, outer = word(frame, SCRATCH), arg(args, BINARY.sizes.i)
        n1, n2, n3 = arg(args, BINARY.sizes.j), arg(args, BINARY.sizes.k), arg(args, BINARY.sizes.m)
        part = first_share(frame)
        while part >= 0:
            for i in range(bound(frame, outer, part), bound(frame, outer, part + 1)):
                for j in range(n1):
                    for k in range(n2):
                        for m in range(n3):
                            a = arg(args, BINARY.a) + offset(args, BINARY.a_steps, i, j, k, m)
                            b = arg(args, BINARY.b) + offset(args, BINARY.b_steps, i, j, k, m)
                            out = arg(args, BINARY.out) + 4 * count * (((i * n1 + j) * n2 + k) * n3 + m)
                            done = 0
                            while done < count:
                                left = vload(lanes, a + 4 * done) if a_step != 0 else vsplat_load(lanes, a)
                                right = vload(lanes, b + 4 * done) if b_step != 0 else vsplat_load(lanes, b)
                                value = finished(apply(left, right), arg(args, BINARY.numbers))
                                put(out + 4 * done, value, min(lanes, count - done), spare)
                                done += lanes
            part = next_share(frame, part)
        return 0

    return kernel
