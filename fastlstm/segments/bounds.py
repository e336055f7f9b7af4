"""What kernels of a segment touch, worked out from an instruction's arguments, against the slots and arrays they get.

In check mode a program asks `check` about every instruction when it is assembled, before anything runs. The table
repeats what the docstrings of `fastlstm.kernels` say, on purpose from the arguments alone: builder and kernel have to
agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastlstm.segments.program import Instruction, Slot

__all__ = ["BoundsError", "check"]

Touched: TypeAlias = list[tuple[int, int]]
Extent: TypeAlias = Callable[[tuple[Any, ...], Sequence[Any]], tuple[Touched, Touched]]
"""Constants and arguments -> (argument that names a slot, floats of a row that it has to have), (argument that is an
array, bytes that it has to have)."""


class BoundsError(AssertionError):
    """An instruction would touch what does not belong to it: a bug of the engine, never of the caller."""


def check(slots: Sequence[Slot], step: Instruction) -> None:
    """Raise `BoundsError` if an instruction reads or writes past a row of its slots, or past its arrays."""
    if step.kernel in ELSEWHERE:
        return
    rows, arrays = EXTENTS[step.kernel](step.constants, step.args)
    for position, floats in rows:
        index = step.args[position]
        if not isinstance(index, int) or not 0 <= index < len(slots):
            raise BoundsError(f"{step.kernel}: argument {position} is {index}, and there are {len(slots)} slots")
        if floats > slots[index].width:
            raise BoundsError(
                f"{step.kernel}: {floats} floats of a row of '{slots[index].name}', which has {slots[index].width}"
            )
    for position, size in arrays:
        array = step.args[position]
        if isinstance(array, int) or array.nbytes < size:
            got = "an integer" if isinstance(array, int) else f"{array.nbytes}"
            raise BoundsError(f"{step.kernel}: {size} bytes of argument {position}, which has {got}")


def _linear(constants: tuple[Any, ...], args: Sequence[Any]) -> tuple[Touched, Touched]:
    lanes, vectors, _, bits = constants
    k, panels, offset = args[2], args[5], args[6] // 4
    columns = panels * vectors * lanes
    weights = 4 * k * columns if bits == 32 else k * columns * bits // 8
    return [(0, k), (1, offset + columns)], [(3, weights), (4, 4 * columns)]


def _recurrent(gates: int, packed_gates: int, cells: bool) -> Extent:
    def extent(constants: tuple[Any, ...], args: Sequence[Any]) -> tuple[Touched, Touched]:
        lanes, (offset, size), (columns, last_width) = constants[0], args[2:4], args[5:7]
        tail = constants[8] if len(constants) == 9 else 0  # vectors
        whole = columns * lanes
        stored = whole + args[13] if tail else whole - lanes + last_width
        state = whole + args[12] if tail else whole
        rows = [(0, gates * whole + tail * lanes), (1, offset // 4 + stored), (7, state)]
        rows += [(8, state)] if cells else []
        rows += [(10, 1)] if args[10] >= 0 else []
        bits = 32 if tail else constants[7] if gates == 4 else constants[5]
        return rows, [(4, (packed_gates * whole + tail * lanes) * size * bits // 8)]

    return extent


def _projected(constants: tuple[Any, ...], args: Sequence[Any]) -> tuple[Touched, Touched]:
    lanes, (offset, size), (columns, last_width) = constants[0], args[2:4], args[5:7]
    units = int(args[13][2]) * lanes
    rows = [(0, 4 * units), (1, offset // 4 + (columns - 1) * lanes + last_width), (7, columns * lanes)]
    rows += [(8, units), (12, units)]
    rows += [(10, 1)] if args[10] >= 0 else []
    return rows, [(4, 4 * units * size * constants[7] // 8), (13, 24)]


def _small_lstm(constants: tuple[Any, ...], args: Sequence[Any]) -> tuple[Touched, Touched]:
    lanes, each, last, tail = constants[:4]
    hidden, full, last_width, inputs = args[3], args[5], args[6], args[11]
    panels = full * each + last
    vectors = 4 * panels + tail
    stored = args[2] // 4 + panels * lanes + last_width - (0 if tail else lanes)
    rows = [(1, stored), (7, hidden), (14, hidden), *([(10, inputs)] if inputs else [(0, vectors * lanes)])]
    rows += [(9, 1)] if args[9] >= 0 else []
    return rows, [(4, 4 * vectors * lanes * hidden), (12, 4 * vectors * lanes * inputs), (13, 4 * vectors * lanes)]


def _small(gates: int) -> Extent:
    def extent(constants: tuple[Any, ...], args: Sequence[Any]) -> tuple[Touched, Touched]:
        lanes, each, last = constants[:3]
        panels = args[5] * each + last
        stored = args[2] // 4 + (panels - 1) * lanes + args[6]
        rows = [(0, gates * panels * lanes), (1, stored), (7, panels * lanes), *([(9, 1)] if args[9] >= 0 else [])]
        return rows, [(4, 4 * gates * panels * lanes * args[3])]

    return extent


def _vectors(*slots: int, count: int) -> Extent:
    """Return the extent of a kernel that goes through rows of whole vectors; argument `count` says how many."""
    return lambda constants, args: ([(at, constants[0] * args[count]) for at in slots], [])


def _features(*slots: int) -> Extent:
    """Return the extent of a kernel that goes through vectors of so many features."""
    return lambda constants, args: ([(at, -(-args[2] // constants[0]) * constants[0]) for at in slots], [])


EXTENTS: Mapping[str, Extent] = {
    "linear.linear": _linear,
    "recurrent.lstm": _recurrent(4, 4, cells=True),
    "gru.gru": _recurrent(3, 3, cells=False),
    "gru.reset_before": _recurrent(3, 2, cells=False),
    "rnn.rnn": _recurrent(1, 1, cells=False),
    "projected.lstm": _projected,
    "small.lstm": _small_lstm,
    "small_gru.gru": _small(3),
    "small_gru.rnn": _small(1),
    "elementwise.unary": _vectors(0, 1, count=2),
    "elementwise.binary": _vectors(0, 1, 2, count=3),
    "elementwise.softmax": _features(0, 1),
    "elementwise.layer_norm": _features(0, 1, 3, 4),
    "movement.move": lambda _, args: ([(0, args[2] // 4 + args[4]), (1, args[3] // 4 + args[4])], []),
    "movement.last": lambda _, args: ([(0, args[2]), (1, args[2])], []),
    "movement.embed": lambda _, args: ([(0, 1), (1, args[4])], [(2, 4 * args[3] * args[4])]),
}
ELSEWHERE = frozenset(["split.split", "gather.gather", "gather.scatter"])
"""Kernels whose arguments are addresses: they have protected pages alone."""
