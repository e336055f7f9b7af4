"""LSTMs with few hidden units and one batch row: bound by latency, not by throughput (see `fastlstm.kernels.one_row`).

If the last hidden units fill only half or a quarter of a vector, their gates share vectors, so none is wasted on
padding. A pass consists of whole panels and, in the last pass, this tail. A pass's weights are ``[k][vector][lane]``;
its vectors are, panel by panel, the gates i f g o; a tail of two vectors is ``i f | g o``, of one ``i f g o``.

If the input has few features, the input projection is computed here too, in the same chains: bias, then x, then h, as
everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation
from fastlstm.kernels.frame import arg, origin, time_stride
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.one_row import over_time, register_chains, storing
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, join, part, vload, vstore
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import SmallLSTM

__all__ = ["lstm"]

A = positions(SmallLSTM)

Activation = tuple[str, float | None, float | None]


def lstm(
    lanes: int,
    panels: int,
    last: int,
    tail: int,
    activations: tuple[Activation, Activation, Activation],
    masked: bool = False,
) -> Compiled:
    """Return the kernel: passes of `panels` panels each, then one of `last` panels and a tail of `tail` vectors.

    Arguments: `SmallLSTM`.
    """
    functions = tuple(activation(*a) for a in activations)

    @inlined
    def sources(args, frame):
        x, x_time = origin(frame, arg(args, A.x)), time_stride(frame, arg(args, A.x))
        sums, sums_time = arg(args, A.bias), 0
        if arg(args, A.inputs) == 0:
            sums, sums_time = origin(frame, arg(args, A.z)), time_stride(frame, arg(args, A.z))
        return sums, sums_time, x, x_time, origin(frame, arg(args, A.c))

    def one_pass(own: int, own_tail: int, last: bool) -> Any:
        groups = ((2, 4),) * (own // 2) + ((1, 4),) * (own % 2) + (((1, own_tail),) if own_tail else ())
        chains = register_chains(lanes, groups)
        cells = _cells(lanes, groups, 0, 0, functions, last)
        row, units = 16 * lanes * panels, 4 * lanes * panels  # bytes of each pass before the last

        @inlined
        def run(args, j, sums, x, h, y, c, last_width, spare):
            inputs, k, at, place = arg(args, A.inputs), arg(args, A.hidden), j * row, j * units
            x_weights, weights = arg(args, A.x_weights) + inputs * at, arg(args, A.weights) + k * at
            cells(chains(inputs, x, x_weights, k, h, weights, sums + at), y + place, c + place, last_width, spare)

        return run

    return over_time(lanes, panels, masked, sources, one_pass(max(panels, 1), 0, False), one_pass(last, tail, True))


@cache
def _cells(lanes: int, groups: tuple[tuple[int, int], ...], value: int, panel: int, functions: Any, last: bool) -> Any:
    """Return ``cells(values, y, c, last_width, spare)`` for `groups`, starting at ``values[value]`` and at `panel`.

    The new states of all groups are computed first, then all outputs: a group's output would have to wait for its
    state, and meanwhile the next group's gates are computed.
    """
    if not groups:

        @inlined
        def nothing(values, y, c, last_width, spare):
            return

        return nothing
    (beside, vectors), others = groups[0], groups[1:]
    state, opened = {4: _whole, 2: _halves, 1: _quarters}[vectors](lanes * beside, value, functions)
    output = functions[2]
    rest = _cells(lanes, others, value + vectors, panel + beside, functions, last)
    store = storing(lanes, beside, last and not others)
    at = 4 * lanes * panel

    @inlined
    def cells(values, y, c, last_width, spare):
        new, o = state(values, c + at)
        rest(values, y, c, last_width, spare)
        store(y + at, opened(o) * output(new), last_width, spare)

    return cells


def _whole(lanes: int, value: int, functions: Any) -> tuple[Any, Any]:
    """Return ``state(values, c)`` for whole vectors, one per gate, and the activation of the output gate.

    ``state`` returns the new state and the argument of that activation.
    """
    gate, candidate, _ = functions
    at_f, at_g, at_o = value + 1, value + 2, value + 3

    @inlined
    def state(values, c):
        i, f, g = gate(values[value]), gate(values[at_f]), candidate(values[at_g])
        new = fma(f, vload(lanes, c), i * g)
        vstore(c, new)
        return new, values[at_o]

    return state, gate


@inlined
def _known(o):
    """Return an output gate already computed along with the other gates."""
    return o


def _halves(lanes: int, value: int, functions: Any) -> tuple[Any, Any]:
    """Do the same for half a vector: the sums are i f and g o. The upper lanes of c and h are unused."""
    gate, candidate, _ = functions
    half, at_go = lanes // 2, value + 1
    at_o = lanes + half

    @inlined
    def state(values, c):
        gates = gate(join(values[value], values[at_go]))
        f, o = part(lanes, half, gates), part(lanes, at_o, gates)
        new = fma(f, vload(lanes, c), part(lanes, 0, gates) * candidate(values[at_go]))
        vstore(c, new)
        return new, o

    return state, _known


def _quarters(lanes: int, value: int, functions: Any) -> tuple[Any, Any]:
    """Do the same for a quarter of a vector: the sums are i f g o. The upper lanes of c and h are unused."""
    gate, candidate, _ = functions
    at_f, at_g, at_o = lanes // 4, lanes // 2, 3 * lanes // 4

    @inlined
    def state(values, c):
        gates = gate(values[value])
        f, o = part(lanes, at_f, gates), part(lanes, at_o, gates)
        new = fma(f, vload(lanes, c), gates * part(lanes, at_g, candidate(values[value])))
        vstore(c, new)
        return new, o

    return state, _known
