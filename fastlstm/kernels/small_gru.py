"""GRUs (reset after the product) and plain RNNs of few hidden units, one batch row: bound by latency.

As in `fastlstm.kernels.small` a pass keeps the recurrent sums of some panels in registers until the cells take them,
two panels side by side; the input's part stands in the slot z, as the general kernels find it. A pass's weights are
``[k][panel][gate][lane]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation
from fastlstm.kernels.frame import active_rows, arg, first_share, next_share, origin, time_stride, word
from fastlstm.kernels.lockstep import access
from fastlstm.kernels.memory import clear, copy, partial_store
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.small import register_chains
from fastlstm.layout import SCRATCH, START, STEPS
from fastlstm.simd import fma, part, vload, vstore

__all__ = ["gru", "rnn"]

# Argument words. Z, Y and H are slots. FROM is the address of what the sums start from, ``[panel][gate][lane]``; FULL
# the number of passes before the last; HIDDEN the units.
Z, Y, Y_OFFSET, HIDDEN, WEIGHTS, FULL, LAST_WIDTH, H, REVERSED, FROM = range(10)

Activation = tuple[str, float | None, float | None]
Compiled = Callable[[int, int, int], int]


def gru(lanes: int, panels: int, last: int, activations: tuple[Activation, Activation]) -> Compiled:
    """GRU over a block of time steps: passes of `panels` panels, one of `last` panels."""
    gate, candidate = (activation(*a) for a in activations)
    width = 4 * lanes

    def cell_of(beside: int, value: int) -> Any:
        load, wide, at_u, at_n = access(lanes, beside)[0], beside * lanes, value + 1, value + 2

        @inlined
        def cell(values, z, old):
            r = gate(values[value] + load(z, 3 * width))
            u = gate(values[at_u] + load(z + width, 3 * width))
            new = candidate(fma(r, values[at_n], load(z + 2 * width, 3 * width)))
            return fma(u, vload(wide, old) - new, new)

        return cell

    return _over_time(lanes, 3, panels, last, cell_of)


def rnn(lanes: int, panels: int, last: int, activations: tuple[Activation]) -> Compiled:
    """Plain RNN over a block of time steps: passes of `panels` panels, one of `last` panels."""
    function = activation(*activations[0])

    def cell_of(beside: int, value: int) -> Any:
        wide = beside * lanes

        @inlined
        def cell(values, z, old):
            return function(values[value] + vload(wide, z))

        return cell

    return _over_time(lanes, 1, panels, last, cell_of)


def _over_time(lanes: int, gates: int, panels: int, last: int, cell_of: Any) -> Compiled:
    """Return the kernel; ``cell_of(beside, value)`` makes ``cell(values, z, old)`` for the sums from `value` on."""
    full_pass = _pass(lanes, gates, max(panels, 1), cell_of, False)
    last_pass = _pass(lanes, gates, last, cell_of, True)
    units, several = 4 * lanes * panels, panels > 0

    @inlined
    def step(args, t, z, before, y, spare):
        k, weights, start = arg(args, HIDDEN), arg(args, WEIGHTS), arg(args, FROM)
        full = arg(args, FULL) if several else 0
        for i in range(full + 1):
            # What was used last is still in the cache: every second step goes the other way.
            j = full - i if t & 1 else i
            at = j * units
            w, own, s = weights + k * gates * at, z + gates * at, start + gates * at
            if not several or j == full:
                last_pass(k, before, w, s, own, before + at, y + at, arg(args, LAST_WIDTH), spare)
            else:
                full_pass(k, before, w, s, own, before + at, y + at, lanes, spare)

    def kernel(args: int, frame: int, unused: int) -> int:
        share = first_share(frame)
        while share >= 0:
            if share == 0:  # one worker does it all
                steps = word(frame, STEPS)
                count = 0
                while count < steps and active_rows(frame, word(frame, START) + count) > 0:
                    count += 1
                z, z_time = origin(frame, arg(args, Z)), time_stride(frame, arg(args, Z))
                y, y_time = origin(frame, arg(args, Y)) + arg(args, Y_OFFSET), time_stride(frame, arg(args, Y))
                h = origin(frame, arg(args, H))
                t, by = 0, 1
                if arg(args, REVERSED) != 0:
                    t, by = count - 1, -1
                before = h
                for i in range(count):
                    step(args, i, z + t * z_time, before, y + t * y_time, word(frame, SCRATCH))
                    before = y + t * y_time
                    t += by
                if count > 0:
                    copy(h, before, arg(args, HIDDEN))
                for t in range(count, steps):
                    clear(y + t * y_time, arg(args, HIDDEN))
            share = next_share(frame, share)
        return 0

    return kernel


def _pass(lanes: int, gates: int, panels: int, cell_of: Any, last: bool) -> Any:
    """Return ``run(k, h, weights, start, z, old, y, last_width, spare)``: one pass's sums, then its cells.

    `h` is the row that the sums multiply; z, old and y those of the pass's first unit. The last vector of the last
    pass has `last_width` lanes.
    """
    groups = ((2, gates),) * (panels // 2) + ((1, gates),) * (panels % 2)
    chains = register_chains(lanes, groups)
    cells = _cells(lanes, groups, 0, 0, cell_of, last)

    @inlined
    def run(k, h, weights, start, z, old, y, last_width, spare):
        cells(chains(0, h, weights, k, h, weights, start), z, old, y, last_width, spare)

    return run


@cache
def _cells(lanes: int, groups: tuple[tuple[int, int], ...], value: int, panel: int, cell_of: Any, last: bool) -> Any:
    """Return ``cells(values, z, old, y, last_width, spare)`` for `groups`, from `value` and from `panel` on."""
    if not groups:

        @inlined
        def nothing(values, z, old, y, last_width, spare):
            return

        return nothing
    (beside, gates), others = groups[0], groups[1:]
    cell = cell_of(beside, value)
    rest = _cells(lanes, others, value + gates, panel + beside, cell_of, last)
    put = partial_store(lanes)
    at, z_at = 4 * lanes * panel, 4 * lanes * panel * gates
    pair, is_last = beside == 2, last and not others

    @inlined
    def cells(values, z, old, y, last_width, spare):
        h = cell(values, z + z_at, old + at)
        if is_last and pair:
            vstore(y + at, part(lanes, 0, h))
            put(y + at + 4 * lanes, part(lanes, lanes, h), last_width, spare)
        elif is_last:
            put(y + at, h, last_width, spare)
        else:
            vstore(y + at, h)
        rest(values, z, old, y, last_width, spare)

    return cells
