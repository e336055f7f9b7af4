"""What kernels for small layers with one batch row share: passes over the hidden units, and the loop over time.

A step is a dependency chain: the sums need the previous step's h, and h needs the sums. A *pass* computes as many sums
as the registers hold (`register_chains`), and the cells take them from the registers, two panels at a time as vectors
of twice the lanes, so that the latencies of their activations overlap. The last pass may have a different number of
panels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core import types
from numba.core.types.containers import Tuple
from numba.extending import intrinsic

from fastlstm.kernels.frame import active_rows, arg, first_share, next_share, origin, time_stride, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.memory import clear, copy_vectors, partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.recurrent import COUNTS, SKIP
from fastlstm.kernels.simd import (
    F32,
    I64,
    Vec,
    broadcast,
    emit_join,
    float_vector,
    load_i64,
    load_vector,
    multiply_add,
    part,
    pointer,
    vstore,
)
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import SmallLSTM
from fastlstm.program.layout import RUNS, SCRATCH, START, STEPS

__all__ = ["over_time", "register_chains", "storing"]

A = positions(SmallLSTM)  # its first words are those of `SmallGRU` too
UNROLL = 4


def over_time(lanes: int, panels: int, masked: bool, sources: Any, full_pass: Any, last_pass: Any) -> Compiled:
    """Return the kernel that runs full passes of `panels` panels (0: none) and the last pass at every time step.

    ``sources(args, frame)`` returns the addresses of the sums' initial values and of x, each followed by its stride in
    bytes from one time step to the next, and the address of the cell states. ``full_pass`` and ``last_pass`` are
    ``run(args, j, sums, x, h, y, c, last_width, spare)`` for pass number j, whose last vector has `last_width` lanes; h
    is the previous output. If `masked`, steps that do not count are not computed.
    """

    @inlined
    def only_pass(args, t, sums, x, before, y, c, spare):
        last_pass(args, 0, sums, x, before, y, c, arg(args, A.last_width), spare)

    @inlined
    def passes(args, t, sums, x, before, y, c, spare):
        full = arg(args, A.full)
        # Every second step runs the passes in reverse: the weights used last are still in the cache.
        j, by = (full, -1) if t & 1 else (0, 1)
        for _ in range(full + 1):
            if j == full:
                last_pass(args, j, sums, x, before, y, c, arg(args, A.last_width), spare)
            else:
                full_pass(args, j, sums, x, before, y, c, lanes, spare)
            j += by

    step = passes if panels else only_pass
    copied = copy_vectors(lanes)

    def kernel(args: int, frame: int, unused: int) -> int:
        share = first_share(frame)
        while share >= 0:
            if share == 0:  # one worker does everything
                steps = word(frame, STEPS)
                count = 0
                while count < steps and active_rows(frame, word(frame, START) + count) > 0:
                    count += 1
                sums, sums_time, x, x_time, c = sources(args, frame)
                y, y_time = origin(frame, arg(args, A.y)) + arg(args, A.y_bytes), time_stride(frame, arg(args, A.y))
                h = origin(frame, arg(args, A.h))
                t, by = 0, 1
                if arg(args, A.reverse) != 0:
                    t, by = count - 1, -1
                before = h
                turn = word(frame, START) + word(frame, RUNS)
                for i in range(count):
                    now, code = y + t * y_time, COUNTS
                    if masked:  # the codes of `fastlstm.kernels.recurrent`
                        slot = arg(args, A.mask)
                        code = load_i64(origin(frame, slot) + t * time_stride(frame, slot))
                    if code == COUNTS:
                        step(args, turn + i, sums + t * sums_time, x + t * x_time, before, now, c, word(frame, SCRATCH))
                        before = now
                    elif code == SKIP:
                        copied(now, before, arg(args, A.hidden))
                    else:
                        clear(now, arg(args, A.hidden))
                    t += by
                if count > 0:
                    copied(h, before, arg(args, A.hidden))
                for t in range(count, steps):
                    clear(y + t * y_time, arg(args, A.hidden))
            share = next_share(frame, share)
        return 0

    return kernel


def storing(lanes: int, beside: int, last: bool) -> Any:
    """Return ``store(y, h, last_width, spare)`` for `beside` panels; if `last`, it stores the last vector in part."""
    put = partial_store(lanes)

    @inlined
    def whole(y, h, last_width, spare):
        vstore(y, h)

    @inlined
    def one(y, h, last_width, spare):
        put(y, h, last_width, spare)

    @inlined
    def two(y, h, last_width, spare):
        vstore(y, part(lanes, 0, h))
        put(y + 4 * lanes, part(lanes, lanes, h), last_width, spare)

    return (two if beside == 2 else one) if last else whole


@cache
def register_chains(lanes: int, groups: tuple[tuple[int, int], ...]) -> Any:
    """Return the intrinsic ``chains(inputs, x, x_weights, k, h, weights, sums)``: a pass's sums in registers.

    Every sum starts from its lane of `sums`; the products of x and then of h are added in ascending order. The result
    is a tuple of vectors; in a group of two panels these are joined gate by gate.
    """
    total = sum(beside * vectors for beside, vectors in groups)
    row = 4 * lanes * total
    kinds = [Vec(lanes * beside) for beside, vectors in groups for _ in range(vectors)]

    def product(b: Any, sums: list[Any], k: Any, a: Any, w: Any, unroll: int, start: Any) -> tuple[list[Any], Any]:
        """Emit the loop over k from `start`, unrolled by `unroll`; return the sums and where it stopped."""
        before, head, body, after = b.block, *(b.append_basic_block(f"chains.{n}") for n in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index, carried = b.phi(I64), [b.phi(float_vector(lanes)) for _ in sums]
        index.add_incoming(start, before)
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<=", b.add(index, I64(unroll)), k), body, after)
        b.position_at_end(body)
        new: list[Any] = list(carried)
        a_at, w_at = b.add(a, b.mul(index, I64(4))), b.add(w, b.mul(index, I64(row)))
        for ahead in range(unroll):
            one = broadcast(b, b.load(pointer(b, b.add(a_at, I64(4 * ahead)), F32), align=4), lanes)
            for v in range(total):
                weight = load_vector(b, b.add(w_at, I64(ahead * row + 4 * lanes * v)), lanes)
                new[v] = multiply_add(b, one, weight, new[v])
        index.add_incoming(b.add(index, I64(unroll)), b.block)
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return carried, index

    def joined(b: Any, sums: list[Any]) -> list[Any]:
        found, at = [], 0
        for beside, vectors in groups:
            own = sums[at : at + beside * vectors]
            found += [emit_join(b, *own[v::vectors]) if beside == 2 else own[v] for v in range(vectors)]
            at += beside * vectors
        return found

    @intrinsic
    def chains(typingctx: Any, inputs: Any, x: Any, x_weights: Any, k: Any, h: Any, weights: Any, sums: Any) -> Any:
        result = Tuple(kinds)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            inputs, x, x_weights, k, h, weights, start = args
            sums = [load_vector(b, b.add(start, I64(4 * lanes * v)), lanes) for v in range(total)]
            sums, _ = product(b, sums, inputs, x, x_weights, 1, I64(0))
            sums, reached = product(b, sums, k, h, weights, UNROLL, I64(0))
            sums, _ = product(b, sums, k, h, weights, 1, reached)
            return context.make_tuple(b, result, joined(b, sums))

        return result(*[types.int64] * 7), codegen

    return chains
