"""The micro-kernel of quantised products: a tile whose integer sums stay in registers.

    C[r, p, v] += a_scale[r] * w_scale[p, v] * sum over k of A[r, k] * W[p, k, v]

A and W are 16 or 8 bits wide, the sum 32. `fastlstm.graph.quantise` bounds the weights so that no such sum overflows,
so it is exact, whatever the order of summation and the instructions used.

How many values of k one instruction takes depends on the target:

- 8-bit rows are multiplied by 8-bit weights four at a time where there is an instruction for it: on ARM ``sdot``, on
  x86 ``vpdpbusd``, which takes unsigned A (so 128 is added to A, and the sums start from what this adds, negated).
- Otherwise x86 multiplies adjacent pairs of 16-bit values and adds the two products (``pmaddwd``; with VNNI the
  compiler merges it with the addition into ``vpdpwssd``), so k advances in pairs and weights are packed
  ``[k / 2][vector][lane][2]``.
- With AVX2 alone, bytes are still multiplied four at a time: ``pmaddubsw`` multiplies |A| by W, or by ~W where A is
  negative, and adds pairs, which cannot saturate at 16 bits as 2 * 127 * 128 is less; ``pmaddwd`` by ones adds the
  pairs. As |a| * ~w = a * w - |a|, the sums start from the magnitudes of the negative values (see `integer_rows`).
  That is 4 instructions for 32 products, against 6 for widening bytes and multiplying them as pairs: an LSTM of 256
  units with one row took 14 % less time.
- A Cortex-M with DSP instructions keeps one sum per register and multiplies a pair per instruction (``smlad``); four
  bytes are first widened to two pairs.
- Helium multiplies whole vectors of k and adds the products to a single sum (``vmladava``): each lane of a result is a
  sum of its own there, and the weights of a lane are contiguous.
- Elsewhere k advances by one, and the compiler widens, multiplies and adds (on NEON ``smlal``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.integer_shape import Shape
from fastlstm.kernels.simd import (
    F32,
    I32,
    I64,
    add_pairs,
    broadcast,
    choose,
    constant,
    int_vector,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    store_vector,
)
from fastlstm.program.layout import LINE

__all__ = ["integer_tiles"]

I8, I16 = ir.IntType(8), ir.IntType(16)
FOURS = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
UNSIGNED_PAIRS = "llvm.x86.avx2.pmadd.ub.sw"
SIGNED_FOURS = "llvm.aarch64.neon.sdot.v4i32.v16i8"
PAIR, WIDENED = "llvm.arm.smlad", "llvm.arm.sxtb16"
DOTS = {I8: "llvm.arm.mve.vmldava.v16i8", I16: "llvm.arm.mve.vmldava.v8i16"}


@cache
def integer_tiles(shapes: tuple[tuple[int, int], ...], shape: Shape) -> Any:
    """Return the intrinsic ``tiles(rows, panels, groups, a, a_stride, a_scales, w, w_stride, w_scales, c_in,
    c_in_stride, c_out, c_out_stride, ahead)``, which runs the tile of that many rows and panels; `shapes` lists the
    available ones.

    ``a`` holds `rows` rows of integers, ``a_stride`` bytes apart, and ``a_scales`` one float32 per row;
    ``w`` is the first panel of weights and ``w_scales`` its vectors of float32 scales, both ``w_stride`` bytes
    from those of the next panel; k runs over ``groups`` groups of `shape.together` values.
    ``c_in``, ``c_out`` and ``ahead`` are as in `fastlstm.kernels.tile`. All arguments are int64.
    """
    cases = {one: (_dots if shape.together > 4 else _tile)(*one, shape) for one in shapes}

    @intrinsic
    def run(
        typingctx: Any, rows: Any, panels: Any, groups: Any, a: Any, a_stride: Any, a_scales: Any, w: Any,
        w_stride: Any, w_scales: Any, c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            choose(builder, args[:2], cases, args[2:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 14), codegen

    return run


def _tile(rows: int, panels: int, shape: Shape, unroll: int = 2) -> Any:
    """Return the function that emits one tile, given the builder and `integer_tiles`' arguments from ``groups`` on."""
    lanes, vectors, group = shape.lanes, shape.vectors, shape.together
    wide = shape.vector_bytes
    step_bytes, a_step = shape.k_bytes * group, shape.row_size * group

    def weights_at(b: Any, address: Any) -> Any:
        """Emit the load of one vector of weights: `group` values of k for each lane."""
        kind = ir.VectorType(I8 if shape.bits == 8 else I16, lanes * group)
        loaded = b.load(pointer(b, address, kind), align=_alignment(shape, shape.bits // 8))
        if group == 4:
            return loaded
        return loaded if kind.element == I16 else b.sext(loaded, ir.VectorType(I16, lanes * group))

    def values_at(b: Any, address: Any) -> Any:
        """Emit the load of `group` values of A, repeated in every lane."""
        one = b.load(pointer(b, address, I16 if group == 1 else I32), align=_alignment(shape, shape.row_size))
        kind = ir.VectorType(one.type, lanes)
        first = b.insert_element(ir.Constant(kind, ir.Undefined), one, I32(0))
        every = b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(int_vector(lanes), [0] * lanes))
        every = b.bitcast(every, ir.VectorType(I8 if group == 4 else I16, lanes * group))
        if not shape.magnitudes:
            return every
        negative = b.sext(b.icmp_signed("<", every, ir.Constant(every.type, None)), every.type)
        name = f"llvm.abs.v{lanes * group}i8"
        return _called(b, name, every.type, every, ir.Constant(ir.IntType(1), 0)), negative

    def added(b: Any, total: Any, values: Any, weights: Any) -> Any:
        """Emit the sum plus the 32-bit products of a group."""
        if group == 1:
            return b.add(total, b.mul(b.sext(values, total.type), b.sext(weights, total.type)))
        if lanes == 1:
            return b.bitcast(_pairs(b, group, *(b.bitcast(v, I32) for v in (total, values, weights))), total.type)
        if group == 2:
            return add_pairs(b, total, values, weights)
        if shape.magnitudes:
            magnitudes, negative = values
            signed = b.xor(weights, negative)
            two = _called(b, UNSIGNED_PAIRS, ir.VectorType(I16, 2 * lanes), magnitudes, signed)
            return add_pairs(b, total, two, constant(two.type, 1))
        if shape.offset:
            # LLVM's intrinsic takes the bytes of a lane as one integer.
            return _called(b, FOURS[lanes], total.type, total, *(b.bitcast(v, total.type) for v in (values, weights)))
        return _called(b, SIGNED_FOURS, total.type, total, values, weights)

    def first_sums(b: Any, w_header: Any, v: int, behind: Any) -> Any:
        """Emit the initial sums of one vector; `behind` is the address where a row ends."""
        if shape.magnitudes:
            bits = b.load(pointer(b, behind, F32), align=4)
            return b.bitcast(broadcast(b, bits, lanes), int_vector(lanes))
        if not shape.offset:
            return ir.Constant(int_vector(lanes), [0] * lanes)
        at = b.add(w_header, I64(wide + v * lanes * 4))
        return b.load(pointer(b, at, int_vector(lanes)), align=4)

    def emit(
        b: Any, groups: Any, a: Any, a_stride: Any, a_scales: Any, w: Any, w_stride: Any, w_scales: Any,
        c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any, next_weights: Any,
    ) -> None:  # fmt: skip
        a_row = [b.add(a, b.mul(a_stride, I64(r))) for r in range(rows)]
        w_panel = [b.add(w, b.mul(w_stride, I64(p))) for p in range(panels)]
        w_header = [b.add(w_scales, b.mul(w_stride, I64(p))) for p in range(panels)]
        ends = (a_scales, w_header, c_in, c_in_stride, c_out, c_out_stride)

        def sums_of(columns: list[tuple[int, int]], fetches: bool) -> None:
            """Emit the whole tile for some vectors of its panels."""
            places = [(r, p, v) for r in range(rows) for p, v in columns]

            def step(sums: list[Any], index: Any, step_ahead: int) -> list[Any]:
                new = dict(zip(places, sums, strict=True))
                if fetches:
                    prefetch(b, b.add(next_weights, b.add(b.mul(index, I64(LINE)), I64(LINE * step_ahead))))
                a_at = b.add(b.mul(index, I64(a_step)), I64(a_step * step_ahead))
                w_at = b.add(b.mul(index, I64(step_bytes)), I64(step_bytes * step_ahead))

                def values(r: int) -> Any:
                    return values_at(b, b.add(a_row[r], a_at))

                def weights(p: int, v: int) -> Any:
                    return weights_at(b, b.add(w_panel[p], b.add(w_at, I64(v * step_bytes // vectors))))

                # The smaller operand is held in registers, the larger one is streamed.
                if rows < len(columns):
                    held = [values(r) for r in range(rows)]
                    for p, v in columns:
                        one = weights(p, v)
                        for r in range(rows):
                            new[r, p, v] = added(b, new[r, p, v], held[r], one)
                else:
                    held = [weights(p, v) for p, v in columns]
                    for r in range(rows):
                        one = values(r)
                        for (p, v), own in zip(columns, held, strict=True):
                            new[r, p, v] = added(b, new[r, p, v], one, own)
                return list(new.values())

            first = [first_sums(b, w_header[p], v, b.add(a_row[r], b.mul(groups, I64(a_step)))) for r, p, v in places]
            sums, reached = _loop(b, first, I64(0), groups, unroll, step)
            if unroll > 1:
                sums, _ = _loop(b, sums, reached, groups, 1, step)
            for at, total in zip(places, sums, strict=True):
                _finish(b, shape, at, total, *ends)

        columns = [(p, v) for p in range(panels) for v in range(vectors)]
        size = _side_by_side(rows, len(columns), shape)
        for start in range(0, len(columns), size):
            sums_of(columns[start : start + size], rows > 1 and start == 0)

    return emit


def _side_by_side(rows: int, columns: int, shape: Shape) -> int:
    """Return how many of a tile's vectors are summed in one pass over k, so that nothing spills.

    Beside the sums, registers hold the smaller operand, one value of the larger one and, unless multiply and add are
    one instruction, one product: 6 rows by 2 vectors fill 16 registers. A value whose magnitude is taken fills two,
    and summing pairs takes a register of ones.
    """
    value, more = (2, 1) if shape.magnitudes else (1, 0)

    def filled(n: int) -> int:
        operands = value * rows + 1 if rows < n else n + value
        return rows * n + operands + 1 + more

    most = max(n for n in range(1, columns + 1) if n == 1 or filled(n) <= shape.registers)
    return -(-columns // -(-columns // most))


def _dots(rows: int, panels: int, shape: Shape) -> Any:
    """Do what `_tile` does, where one instruction adds the products of two whole vectors to a single sum."""
    lanes, group = shape.lanes, shape.together
    each, all_lanes = group * shape.bits // 8, lanes * group * shape.bits // 8
    kind = I8 if shape.row_size == 1 else I16

    def emit(
        b: Any, groups: Any, a: Any, a_stride: Any, a_scales: Any, w: Any, w_stride: Any, w_scales: Any,
        c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any, next_weights: Any,
    ) -> None:  # fmt: skip
        def vector_at(base: Any, index: Any, by: int, held: Any) -> Any:
            place = pointer(b, b.add(base, b.mul(index, I64(by))), ir.VectorType(held, group))
            return b.load(place, align=_alignment(shape, held.width // 8))

        w_header = [b.add(w_scales, b.mul(w_stride, I64(p))) for p in range(panels)]
        ends = (a_scales, w_header, c_in, c_in_stride, c_out, c_out_stride)
        # Four sums per loop: few registers can hold one.
        for r, p, v in [(r, p, v) for r in range(rows) for p in range(panels) for v in range(shape.vectors)]:
            row = b.add(a, b.mul(a_stride, I64(r)))
            weights = b.add(b.add(w, b.mul(w_stride, I64(p))), I64(v * all_lanes))

            def step(sums: list[Any], index: Any, _: int, row: Any = row, weights: Any = weights) -> list[Any]:
                values, new = vector_at(row, index, shape.row_size * group, kind), []
                for lane, total in enumerate(sums):
                    own = vector_at(b.add(weights, I64(lane * each)), index, shape.vectors * all_lanes,
                                    I8 if shape.bits == 8 else I16)  # fmt: skip
                    own = own if own.type == values.type else b.sext(own, values.type)
                    new.append(_called(b, DOTS[kind], I32, I32(0), I32(0), I32(0), total, values, own))
                return new

            sums, _ = _loop(b, [I32(0)] * lanes, I64(0), groups, 1, step)
            total = ir.Constant(int_vector(lanes), ir.Undefined)
            for lane, value in enumerate(sums):
                total = b.insert_element(total, value, I32(lane))
            _finish(b, shape, (r, p, v), total, *ends)

    return emit


def _alignment(shape: Shape, size: int) -> int:
    """Return the alignment of a group of values of `size` bytes."""
    return min(4, shape.together * size)


def _called(b: Any, name: str, kind: Any, *arguments: Any) -> Any:
    module, signature = b.module, ir.FunctionType(kind, [a.type for a in arguments])
    return b.call(module.globals.get(name) or ir.Function(module, signature, name), arguments)


def _pairs(b: Any, group: int, total: Any, values: Any, weights: Any) -> Any:
    """Emit a sum plus the products of one pair of 16-bit values, or of four bytes."""
    if group == 2:
        return _called(b, PAIR, I32, values, weights, total)
    for by in (0, 8):  # bytes 0 and 2, then 1 and 3
        turned = [_called(b, "llvm.fshr.i32", I32, v, v, I32(by)) if by else v for v in (values, weights)]
        total = _called(b, PAIR, I32, *(_called(b, WIDENED, I32, v) for v in turned), total)
    return total


def _loop(
    b: Any, sums: list[Any], start: Any, stop: Any, by: int, step: Callable[[list[Any], Any, int], list[Any]]
) -> tuple[list[Any], Any]:
    """Emit a loop over groups of k, `by` per iteration; return the sums and the group that it has reached."""
    before, head = b.block, b.append_basic_block("tile.head")
    body, after = b.append_basic_block("tile.body"), b.append_basic_block("tile.after")
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(start, before)
    carried = [b.phi(value.type) for value in sums]
    for phi, value in zip(carried, sums, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<=", b.add(index, I64(by)), stop), body, after)
    b.position_at_end(body)
    new = list(carried)
    for step_ahead in range(by):
        new = step(new, index, step_ahead)
    index.add_incoming(b.add(index, I64(by)), b.block)
    for phi, value in zip(carried, new, strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return carried, index


def _finish(
    b: Any, shape: Shape, at: tuple[int, int, int], total: Any, a_scales: Any, w_header: list[Any],
    c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any,
) -> None:  # fmt: skip
    """Emit the scaling of one vector of integer sums, and its addition to C."""
    (r, p, v), lanes = at, shape.lanes
    own = broadcast(b, b.load(pointer(b, b.add(a_scales, I64(4 * r)), F32), align=4), lanes)
    place = I64(p * shape.vector_bytes + v * lanes * 4)
    scale = b.fmul(own, load_vector(b, b.add(w_header[p], I64(v * lanes * 4)), lanes))
    old = load_vector(b, b.add(b.add(c_in, b.mul(c_in_stride, I64(r))), place), lanes)
    target = b.add(b.add(c_out, b.mul(c_out_stride, I64(r))), place)
    store_vector(b, multiply_add(b, b.sitofp(total, scale.type), scale, old), target)
