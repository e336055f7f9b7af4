"""The micro-kernel of quantised products: a tile whose integer sums stay in registers.

    C[r, p, v] += a_scale[r] * w_scale[p, v] * sum over k of A[r, k] * W[p, k, v]

A is 16 bits wide, W 16 or 8, the sum 32. `fastlstm.quantise` bounds the weights so that no such sum overflows,
so it is exact, whatever the order in which it is taken and whatever the instructions.

x86 multiplies neighbouring pairs of 16 bits and adds each pair (``pmaddwd``; with VNNI the compiler merges it
with the addition into ``vpdpwssd``), so k advances in pairs and weights are packed ``[k / 2][vector][lane][2]``.
Elsewhere k advances one by one and the compiler widens, multiplies and adds (on NEON ``smlal``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm.simd import F32, I32, I64, broadcast, int_vector, load_vector, multiply_add, pointer, store_vector

__all__ = ["integer_tile"]

I8, I16 = ir.IntType(8), ir.IntType(16)
PAIRWISE = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@cache
def integer_tile(rows: int, panels: int, vectors: int, lanes: int, bits: int, group: int, unroll: int = 2) -> Any:
    """Return the intrinsic ``tile(groups, a, a_stride, a_scales, w, w_stride, w_scales, c_in, c_in_stride,
    c_out, c_out_stride)``.

    ``a`` holds `rows` rows of int16 at a distance of ``a_stride`` bytes and ``a_scales`` one float32 a row;
    ``w`` is the first panel of `bits` wide weights and ``w_scales`` its vectors of float32 scales, both at
    ``w_stride`` bytes to those of the next panel; k runs over ``groups`` groups of `group` values. ``c_in`` and
    ``c_out`` are as in `fastlstm.kernels.tile`. All arguments are int64.
    """
    wide = vectors * lanes * 4  # bytes of a panel's sums
    step_bytes = vectors * lanes * group * bits // 8
    places = [(r, p, v) for r in range(rows) for p in range(panels) for v in range(vectors)]

    @intrinsic
    def run(
        typingctx: Any, groups: Any, a: Any, a_stride: Any, a_scales: Any, w: Any, w_stride: Any, w_scales: Any,
        c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _emit(builder, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), codegen

    def weights_at(b: Any, address: Any) -> Any:
        """Emit the load of one vector of weights: `group` values of k for each lane."""
        kind = ir.VectorType(I8 if bits == 8 else I16, lanes * group)
        loaded = b.load(pointer(b, address, kind), align=1)
        return loaded if kind.element == I16 else b.sext(loaded, ir.VectorType(I16, lanes * group))

    def values_at(b: Any, address: Any) -> Any:
        """Emit the load of `group` values of A, repeated in every lane."""
        one = b.load(pointer(b, address, I32 if group == 2 else I16), align=2)
        kind = ir.VectorType(one.type, lanes)
        first = b.insert_element(ir.Constant(kind, ir.Undefined), one, I32(0))
        every = b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(int_vector(lanes), [0] * lanes))
        return b.bitcast(every, ir.VectorType(I16, lanes * group))

    def multiplied(b: Any, values: Any, weights: Any) -> Any:
        """Emit the 32-bit products, those of a group added."""
        if group == 1:
            kind = int_vector(lanes)
            return b.mul(b.sext(values, kind), b.sext(weights, kind))
        name, kind = PAIRWISE[lanes], ir.FunctionType(int_vector(lanes), [values.type] * 2)
        module = b.module
        return b.call(module.globals.get(name) or ir.Function(module, kind, name), [values, weights])

    def _emit(
        b: Any, groups: Any, a: Any, a_stride: Any, a_scales: Any, w: Any, w_stride: Any, w_scales: Any,
        c_in: Any, c_in_stride: Any, c_out: Any, c_out_stride: Any,
    ) -> None:  # fmt: skip
        a_row = [b.add(a, b.mul(a_stride, I64(r))) for r in range(rows)]
        w_panel = [b.add(w, b.mul(w_stride, I64(p))) for p in range(panels)]
        columns = [(p, v) for p in range(panels) for v in range(vectors)]

        def step(sums: list[Any], index: Any, ahead: int) -> list[Any]:
            new = dict(zip(places, sums, strict=True))
            at = b.add(b.mul(index, I64(2 * group)), I64(2 * group * ahead))
            values = [values_at(b, b.add(a_row[r], at)) for r in range(rows)]
            at = b.add(b.mul(index, I64(step_bytes)), I64(step_bytes * ahead))
            for p, v in columns:
                weights = weights_at(b, b.add(w_panel[p], b.add(at, I64(v * step_bytes // vectors))))
                for r in range(rows):
                    new[r, p, v] = b.add(new[r, p, v], multiplied(b, values[r], weights))
            return list(new.values())

        def loop(sums: list[Any], start: Any, stop: Any, by: int) -> tuple[list[Any], Any]:
            before, head = b.block, b.append_basic_block("tile.head")
            body, after = b.append_basic_block("tile.body"), b.append_basic_block("tile.after")
            b.branch(head)
            b.position_at_end(head)
            index = b.phi(I64)
            index.add_incoming(start, before)
            carried = [b.phi(int_vector(lanes)) for _ in places]
            for phi, value in zip(carried, sums, strict=True):
                phi.add_incoming(value, before)
            b.cbranch(b.icmp_signed("<=", b.add(index, I64(by)), stop), body, after)
            b.position_at_end(body)
            new = list(carried)
            for ahead in range(by):
                new = step(new, index, ahead)
            index.add_incoming(b.add(index, I64(by)), b.block)
            for phi, value in zip(carried, new, strict=True):
                phi.add_incoming(value, b.block)
            b.branch(head)
            b.position_at_end(after)
            return carried, index

        zero = ir.Constant(int_vector(lanes), [0] * lanes)
        sums, reached = loop([zero] * len(places), I64(0), groups, unroll)
        if unroll > 1:
            sums, _ = loop(sums, reached, groups, 1)
        for r in range(rows):
            own = broadcast(b, b.load(pointer(b, b.add(a_scales, I64(4 * r)), F32), align=4), lanes)
            for p, v in columns:
                place = I64(p * wide + v * lanes * 4)
                at = b.add(w_scales, b.add(b.mul(w_stride, I64(p)), I64(v * lanes * 4)))
                scale = b.fmul(own, load_vector(b, at, lanes))
                total = b.sitofp(sums[places.index((r, p, v))], scale.type)
                old = load_vector(b, b.add(b.add(c_in, b.mul(c_in_stride, I64(r))), place), lanes)
                target = b.add(b.add(c_out, b.mul(c_out_stride, I64(r))), place)
                store_vector(b, multiply_add(b, total, scale, old), target)

    return run
