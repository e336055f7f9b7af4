"""The micro-kernel: a tile of a matrix product whose sums stay in registers.

    C[r, p, v] += sum over k, ascending, of A[r, k] * W[p, k, v]

for `rows` rows, `panels` weight panels and `vectors` vectors per panel. Every output element is one chain of
fused multiply-adds in the order of k, whatever the tile: this is what makes results bit-identical for every
batch size, chunk size and thread count.

Weights are packed as panels ``[k][vector][lane]``, so a tile reads them once, in order. With one row, each
weight is a memory operand of a single FMA, and several panels side by side give the independent chains
that hide the FMA's latency; with several rows, each weight is loaded into a register and reused.

A convolution's terms are not contiguous: a table of offsets locates them, in A (`gathered` is "rows") or in W
("vectors"). Its sums start from zero, and C is added to them at the end, unless C's address is 0.

With `pairs`, each float of A and W is replaced by a pair of 16-bit integers, whose two products are added together.
The sums are 32-bit integers, which must be exact, until they are added to C, which holds floats.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.simd import (
    F32,
    I64,
    add_pairs,
    broadcast,
    choose,
    constant,
    float_vector,
    int_vector,
    load_vector,
    multiply_add,
    pointer,
    prefetch,
    store_vector,
)
from fastlstm.program.layout import LINE

__all__ = ["tiles"]

FLOAT_BYTES = 4


@cache
def tiles(
    shapes: tuple[tuple[int, int], ...],
    vectors: int,
    lanes: int,
    gathered: str = "",
    prefetching: bool = False,
    pairs: bool = False,
) -> Any:
    """Return the intrinsic ``tiles(rows, panels, k, a_rows, w, w_stride, c_in, c_in_stride, c_out, c_out_stride,
    ahead)``, which runs the tile of that many rows and panels; `shapes` lists the available ones.

    ``a_rows`` is the address of `rows` row addresses; ``w`` the first panel and ``w_stride`` the bytes from
    one panel to the next; ``c_in`` and ``c_out`` hold, row by row at their strides, the panels' vectors side
    by side (a stride of 0 reads the same row, such as a bias, for all). All arguments are int64. With several rows
    and `prefetching`, one cache line per k is prefetched from ``ahead`` on: weights that are needed soon.

    With `gathered`, ``ahead`` is the address of a table instead: for each k, the offset in bytes from a row's address
    to its term ("rows"), or from a panel's address to its first vector ("vectors").
    """
    # When another thread shares the core, loop overhead competes with the FMAs: for 3 rows by 4 vectors, unrolling by
    # eight took 2 to 6 % less time than by four, and 4 to 11 % less than by two. But it compiles more slowly.
    largest = max(rows * panels for rows, panels in shapes)
    # LLVM may reorder integer sums: unrolled by two, it adds the products first, and spills.
    most = 1 if pairs else 2 if lanes == 1 else 8 if largest * vectors <= 12 else 4
    rest = min(most, 2)
    cases = {
        shape: _tile(
            *shape, vectors, lanes, gathered, prefetching, pairs, most if math.prod(shape) == largest else rest
        )
        for shape in shapes
    }

    @intrinsic
    def run(
        typingctx: Any,
        rows: Any,
        panels: Any,
        k: Any,
        a_rows: Any,
        w: Any,
        w_stride: Any,
        c_in: Any,
        c_in_stride: Any,
        c_out: Any,
        c_out_stride: Any,
        ahead: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            choose(builder, args[:2], cases, args[2:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), codegen

    return run


def _tile(
    rows: int, panels: int, vectors: int, lanes: int, gathered: str, prefetching: bool, pairs: bool, unroll: int
) -> Any:
    """Return the function that emits one tile, given the builder and the arguments of `tiles` from ``k`` on."""
    wide = vectors * lanes * FLOAT_BYTES

    def emit(
        b: Any,
        k: Any,
        a_rows: Any,
        w: Any,
        w_stride: Any,
        c_in: Any,
        c_in_stride: Any,
        c_out: Any,
        c_out_stride: Any,
        ahead_at: Any,
    ) -> None:
        places = [(r, p, v) for r in range(rows) for p in range(panels) for v in range(vectors)]
        a = [b.load(pointer(b, b.add(a_rows, I64(8 * r)), I64), align=8) for r in range(rows)]
        w_panel = [b.add(w, b.mul(w_stride, I64(p))) for p in range(panels)]

        def c_address(base: Any, stride: Any, place: tuple[int, int, int]) -> Any:
            r, p, v = place
            return b.add(b.add(base, b.mul(stride, I64(r))), I64(p * wide + v * lanes * FLOAT_BYTES))

        def c_vectors() -> list[Any]:
            return [load_vector(b, c_address(c_in, c_in_stride, place), lanes) for place in places]

        kind = int_vector(lanes) if pairs else float_vector(lanes)
        sums = [constant(kind, 0) for _ in places] if gathered else c_vectors()

        def plus_product(total: Any, one: Any, other: Any) -> Any:
            return add_pairs(b, total, one, other) if pairs else multiply_add(b, one, other, total)

        def step(sums: list[Any], index: Any, weight_offset: Any, ahead: int) -> list[Any]:
            row_offset = b.add(b.mul(index, I64(FLOAT_BYTES)), I64(ahead * FLOAT_BYTES))
            panel_offset = b.add(weight_offset, I64(ahead * wide))
            if gathered:
                entry = b.add(ahead_at, b.add(b.mul(index, I64(8)), I64(8 * ahead)))
                offset = b.load(pointer(b, entry, I64), align=8)
                if gathered == "rows":
                    row_offset = offset
                else:
                    panel_offset = offset

            def splat(r: int) -> Any:
                return broadcast(b, b.load(pointer(b, b.add(a[r], row_offset), F32), align=4), lanes)

            def weight(p: int, v: int) -> Any:
                offset = b.add(panel_offset, I64(v * lanes * FLOAT_BYTES))
                return load_vector(b, b.add(w_panel[p], offset), lanes)

            # Live at any moment: the sums, the whole smaller operand and one value of the larger one.
            # For 3 rows x 4 vectors or 6 rows x 2, that just fits 16 registers; any other order spills.
            new: dict[tuple[int, int, int], Any] = dict(zip(places, sums, strict=True))
            if rows > 1 and prefetching:
                prefetch(b, b.add(ahead_at, b.add(b.mul(index, I64(LINE)), I64(ahead * LINE))))
            columns = [(p, v) for p in range(panels) for v in range(vectors)]
            if rows < len(columns):
                splats = [splat(r) for r in range(rows)]
                for p, v in columns:
                    one = weight(p, v)
                    for r in range(rows):
                        new[r, p, v] = plus_product(new[r, p, v], splats[r], one)
            else:
                weights = [weight(p, v) for p, v in columns]
                for r in range(rows):
                    one = splat(r)
                    for (p, v), loaded in zip(columns, weights, strict=True):
                        new[r, p, v] = plus_product(new[r, p, v], one, loaded)
            return list(new.values())

        def loop(sums: list[Any], start: Any, stop: Any, by: int) -> tuple[list[Any], Any]:
            """Emit ``for index in range(start, stop, by)``, full iterations only; the sums are loop-carried values."""
            last = stop if by == 1 else b.and_(stop, I64(-by))
            before = b.block
            head = b.append_basic_block("tile.head")
            body = b.append_basic_block("tile.body")
            after = b.append_basic_block("tile.after")
            b.branch(head)
            b.position_at_end(head)
            index = b.phi(I64)
            index.add_incoming(start, before)
            carried = [b.phi(kind) for _ in places]
            for phi, value in zip(carried, sums, strict=True):
                phi.add_incoming(value, before)
            b.cbranch(b.icmp_signed("!=", index, last), body, after)
            b.position_at_end(body)
            new = list(carried)
            weight_offset = b.mul(index, I64(wide))
            for ahead in range(by):
                new = step(new, index, weight_offset, ahead)
            index.add_incoming(b.add(index, I64(by)), b.block)
            for phi, value in zip(carried, new, strict=True):
                phi.add_incoming(value, b.block)
            b.branch(head)
            b.position_at_end(after)
            return carried, index

        sums, reached = loop(sums, I64(0), k, unroll)
        if unroll > 1:
            sums, _ = loop(sums, reached, k, 1)
        if pairs:
            sums = [b.sitofp(total, float_vector(lanes)) for total in sums]
        if gathered:
            there, without = b.icmp_signed("!=", c_in, I64(0)), b.block
            with b.if_then(there):
                joined = [b.fadd(before, total) for before, total in zip(c_vectors(), sums, strict=True)]
                with_c = b.block
            merged = [b.phi(float_vector(lanes)) for _ in places]
            for phi, total, more in zip(merged, sums, joined, strict=True):
                phi.add_incoming(total, without)
                phi.add_incoming(more, with_c)
            sums = merged
        for place, total in zip(places, sums, strict=True):
            store_vector(b, total, c_address(c_out, c_out_stride, place))

    return emit
