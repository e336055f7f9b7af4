"""GRUs (reset after the product) and plain RNNs with few hidden units and one batch row: bound by latency.

See `fastlstm.kernels.one_row`. As in the general kernels, the input projection is in the slot z. A pass's weights are
``[k][panel][gate][lane]``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastlstm.kernels.activations import activation
from fastlstm.kernels.frame import arg, origin, time_stride
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.lockstep import access
from fastlstm.kernels.one_row import over_time, register_chains, storing
from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import fma, vload
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import SmallGRU

__all__ = ["gru", "rnn"]

A = positions(SmallGRU)

Activation = tuple[str, float | None, float | None]


def gru(
    lanes: int, panels: int, last: int, activations: tuple[Activation, Activation], masked: bool = False
) -> Compiled:
    """Return the kernel of a GRU: passes of `panels` panels each, then one of `last` panels. Arguments: `SmallGRU`."""
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

    return _over_time(lanes, 3, panels, last, masked, cell_of)


def rnn(lanes: int, panels: int, last: int, activations: tuple[Activation], masked: bool = False) -> Compiled:
    """Return the kernel of a plain RNN: passes as in `gru`. Arguments: `SmallGRU`."""
    function = activation(*activations[0])

    def cell_of(beside: int, value: int) -> Any:
        wide = beside * lanes

        @inlined
        def cell(values, z, old):
            return function(values[value] + vload(wide, z))

        return cell

    return _over_time(lanes, 1, panels, last, masked, cell_of)


def _over_time(lanes: int, gates: int, panels: int, last: int, masked: bool, cell_of: Any) -> Compiled:
    """Return the kernel; ``cell_of(beside, value)`` makes ``cell(values, z, old)`` for the sums from `value` on."""

    @inlined
    def sources(args, frame):
        return origin(frame, arg(args, A.z)), time_stride(frame, arg(args, A.z)), 0, 0, 0

    def one_pass(own: int, last: bool) -> Any:
        groups = ((2, gates),) * (own // 2) + ((1, gates),) * (own % 2)
        chains = register_chains(lanes, groups)
        cells = _cells(lanes, groups, 0, 0, cell_of, last)
        units = 4 * lanes * panels  # bytes of each pass before the last

        @inlined
        def run(args, j, z, x, h, y, c, last_width, spare):
            k, at = arg(args, A.hidden), j * units
            weights, start = arg(args, A.weights) + k * gates * at, arg(args, A.start) + gates * at
            cells(chains(0, h, weights, k, h, weights, start), z + gates * at, h + at, y + at, last_width, spare)

        return run

    return over_time(lanes, panels, masked, sources, one_pass(max(panels, 1), False), one_pass(last, True))


@cache
def _cells(lanes: int, groups: tuple[tuple[int, int], ...], value: int, panel: int, cell_of: Any, last: bool) -> Any:
    """Return ``cells(values, z, old, y, last_width, spare)`` for `groups`, from ``values[value]`` and `panel` on."""
    if not groups:

        @inlined
        def nothing(values, z, old, y, last_width, spare):
            return

        return nothing
    (beside, gates), others = groups[0], groups[1:]
    cell = cell_of(beside, value)
    rest = _cells(lanes, others, value + gates, panel + beside, cell_of, last)
    store = storing(lanes, beside, last and not others)
    at, z_at = 4 * lanes * panel, 4 * lanes * panel * gates

    @inlined
    def cells(values, z, old, y, last_width, spare):
        store(y + at, cell(values, z + z_at, old + at), last_width, spare)
        rest(values, z, old, y, last_width, spare)

    return cells
