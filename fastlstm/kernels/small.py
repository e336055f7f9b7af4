"""An LSTM of few hidden units, one batch row: bound by latency, not by arithmetic.

A step is a chain: the sums need the h of the step before, h needs the sums. Here a pass computes all sums that the
registers hold, and the cells take them out of the registers, two panels side by side as vectors of twice the
lanes, so that the latencies of their activations overlap. Where the last hidden units fill only half or a
quarter of a vector, its neighbours are the units' other gates: no vector is spent on padding.

A *pass* is some whole panels and, in the last pass, the tail. Its weights are ``[k][vector][lane]``; its vectors are,
panel by panel, the gates i f g o; a tail of two vectors is ``i f | g o``, of one ``i f g o``.

Where the input has few features its product runs here too, on the same chains: bias, then x, then h, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba.core import types
from numba.core.types.containers import Tuple
from numba.extending import intrinsic

from fastlstm.kernels.activations import activation
from fastlstm.kernels.frame import active_rows, arg, first_share, next_share, origin, time_stride, word
from fastlstm.kernels.memory import clear, copy, partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.layout import SCRATCH, START, STEPS
from fastlstm.simd import (
    F32,
    I64,
    Vec,
    broadcast,
    emit_join,
    float_vector,
    fma,
    join,
    load_vector,
    multiply_add,
    part,
    pointer,
    vload,
    vstore,
)

__all__ = ["lstm", "register_chains"]

# Argument words. X, Z, Y, H and C are slots. With INPUTS features of x the sums start at BIAS; with none, where x's
# part was computed before, at Z. FULL is the number of passes before the last; HIDDEN the units.
X, INPUTS, X_WEIGHTS, BIAS, Z, Y, Y_OFFSET, HIDDEN, WEIGHTS, FULL, LAST_WIDTH, H, C, REVERSED = range(14)

Activation = tuple[str, float | None, float | None]
UNROLL = 4


def lstm(
    lanes: int, panels: int, last: int, tail: int, activations: tuple[Activation, Activation, Activation]
) -> Callable[[int, int, int], int]:
    """LSTM over a block of time steps: passes of `panels` panels, one of `last` panels and `tail` vectors."""
    functions = tuple(activation(*a) for a in activations)
    full_pass = _pass(lanes, max(panels, 1), 0, functions, False)
    last_pass = _pass(lanes, last, tail, functions, True)
    pass_row, several = 16 * lanes * panels, panels > 0

    @inlined
    def step(args, t, sums, x, before, y, c, spare):
        inputs, x_weights = arg(args, INPUTS), arg(args, X_WEIGHTS)
        k, weights, full = arg(args, HIDDEN), arg(args, WEIGHTS), arg(args, FULL) if several else 0
        for i in range(full + 1):
            # What was used last is still in the cache: every second step goes the other way.
            j = full - i if t & 1 else i
            at, units = j * pass_row, j * 4 * lanes * panels
            if not several or j == full:
                last_pass(
                    inputs, x, x_weights + inputs * at, k, before, weights + k * at,
                    sums + at, y + units, c + units, arg(args, LAST_WIDTH), spare,
                )  # fmt: skip
            else:
                full_pass(
                    inputs, x, x_weights + inputs * at, k, before, weights + k * at,
                    sums + at, y + units, c + units, lanes, spare,
                )  # fmt: skip

    def kernel(args: int, frame: int, unused: int) -> int:
        share = first_share(frame)
        while share >= 0:
            if share == 0:  # one worker does it all
                steps = word(frame, STEPS)
                count = 0
                while count < steps and active_rows(frame, word(frame, START) + count) > 0:
                    count += 1
                x, x_time = origin(frame, arg(args, X)), time_stride(frame, arg(args, X))
                sums, sums_time = arg(args, BIAS), 0
                if arg(args, INPUTS) == 0:
                    sums, sums_time = origin(frame, arg(args, Z)), time_stride(frame, arg(args, Z))
                y, y_time = origin(frame, arg(args, Y)) + arg(args, Y_OFFSET), time_stride(frame, arg(args, Y))
                h, c = origin(frame, arg(args, H)), origin(frame, arg(args, C))
                t, by = 0, 1
                if arg(args, REVERSED) != 0:
                    t, by = count - 1, -1
                before = h
                for i in range(count):
                    step(args, i, sums + t * sums_time, x + t * x_time, before, y + t * y_time, c, word(frame, SCRATCH))
                    before = y + t * y_time
                    t += by
                if count > 0:
                    copy(h, before, arg(args, HIDDEN))
                for t in range(count, steps):
                    clear(y + t * y_time, arg(args, HIDDEN))
            share = next_share(frame, share)
        return 0

    return kernel


def _pass(lanes: int, panels: int, tail: int, functions: tuple[Any, Any, Any], last: bool) -> Any:
    """Return the function that computes one pass: its sums, then its cells.

    ``run(inputs, x, x_weights, k, h, weights, sums, y, c, last_width, spare)``; the last vector of the last pass has
    `last_width` lanes.
    """
    groups = [(2, 4)] * (panels // 2) + [(1, 4)] * (panels % 2) + ([(1, tail)] if tail else [])
    chains = register_chains(lanes, tuple(groups))
    cells = _cells(lanes, tuple(groups), 0, 0, functions, last)

    @inlined
    def run(inputs, x, x_weights, k, h, weights, sums, y, c, last_width, spare):
        cells(chains(inputs, x, x_weights, k, h, weights, sums), y, c, last_width, spare)

    return run


@cache
def _cells(lanes: int, groups: tuple[tuple[int, int], ...], value: int, panel: int, functions: Any, last: bool) -> Any:
    """Return ``cells(values, y, c, last_width, spare)`` for `groups`, from `value` of `values` and from `panel` on."""
    if not groups:

        @inlined
        def nothing(values, y, c, last_width, spare):
            return

        return nothing
    (beside, vectors), others = groups[0], groups[1:]
    cell = {4: _whole, 2: _halves, 1: _quarters}[vectors](lanes * beside, value, functions)
    rest = _cells(lanes, others, value + vectors, panel + beside, functions, last)
    put = partial_store(lanes)
    at = 4 * lanes * panel
    pair, is_last = beside == 2, last and not others

    @inlined
    def cells(values, y, c, last_width, spare):
        h = cell(values, c + at)
        if is_last:
            if pair:
                vstore(y + at, part(lanes, 0, h))
                put(y + at + 4 * lanes, part(lanes, lanes, h), last_width, spare)
            else:
                put(y + at, h, last_width, spare)
        else:
            vstore(y + at, h)
        rest(values, y, c, last_width, spare)

    return cells


def _whole(lanes: int, value: int, functions: Any) -> Any:
    """Cells of whole vectors, a vector a gate."""
    gate, candidate, output = functions
    at_f, at_g, at_o = value + 1, value + 2, value + 3

    @inlined
    def cell(values, c):
        i, f, g = gate(values[value]), gate(values[at_f]), candidate(values[at_g])
        new = fma(f, vload(lanes, c), i * g)
        vstore(c, new)
        return gate(values[at_o]) * output(new)

    return cell


def _halves(lanes: int, value: int, functions: Any) -> Any:
    """Cells in half a vector: the sums are i f and g o. What stands above in c and h means nothing."""
    gate, candidate, output = functions
    half, at_go = lanes // 2, value + 1
    at_o = lanes + half

    @inlined
    def cell(values, c):
        gates = gate(join(values[value], values[at_go]))
        f, o = part(lanes, half, gates), part(lanes, at_o, gates)
        new = fma(f, vload(lanes, c), part(lanes, 0, gates) * candidate(values[at_go]))
        vstore(c, new)
        return o * output(new)

    return cell


def _quarters(lanes: int, value: int, functions: Any) -> Any:
    """Cells in a quarter of a vector: the sums are i f g o. What stands above in c and h means nothing."""
    gate, candidate, output = functions
    at_f, at_g, at_o = lanes // 4, lanes // 2, 3 * lanes // 4

    @inlined
    def cell(values, c):
        gates = gate(values[value])
        f, o = part(lanes, at_f, gates), part(lanes, at_o, gates)
        new = fma(f, vload(lanes, c), gates * part(lanes, at_g, candidate(values[value])))
        vstore(c, new)
        return o * output(new)

    return cell


@cache
def register_chains(lanes: int, groups: tuple[tuple[int, int], ...]) -> Any:
    """Return the intrinsic ``chains(inputs, x, x_weights, k, h, weights, sums)``: a pass's sums, out of registers.

    Every sum starts at its lane of `sums` and takes the products of x, then of h, in ascending order. The result is
    a tuple of vectors; those of a group of two panels are joined, gate by gate.
    """
    total = sum(beside * vectors for beside, vectors in groups)
    row = 4 * lanes * total
    kinds = [Vec(lanes * beside) for beside, vectors in groups for _ in range(vectors)]

    def product(b: Any, sums: list[Any], k: Any, a: Any, w: Any, unroll: int, start: Any) -> tuple[list[Any], Any]:
        """Emit the loop over k from `start` on, by `unroll`; return the sums and where it stopped."""
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
