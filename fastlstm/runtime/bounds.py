"""Check mode: whether what an instruction of a segment accesses is within its slots and arrays.

A program calls `check` for every instruction when it is assembled, before anything runs. The table restates what the
docstrings of `fastlstm.kernels` say, using the arguments alone: builder and kernel have to agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastlstm.program.arguments.rows import LSTM, Linear, Normalised, Projected, SmallGRU, SmallLSTM
from fastlstm.program.program import Instruction, Slot

__all__ = ["BoundsError", "check"]

Touched: TypeAlias = Mapping[str, int]
Extent: TypeAlias = Callable[[tuple[Any, ...], Any], tuple[Touched, Touched]]
"""Constants and arguments -> the floats per row that each slot needs, and the bytes that each array needs; both by the
argument's name."""


class BoundsError(AssertionError):
    """An instruction would access memory out of bounds: a bug of the engine, never of the caller."""


def check(slots: Sequence[Slot], step: Instruction) -> None:
    """Raise `BoundsError` if an instruction reads or writes past a row of its slots, or past its arrays."""
    if step.kernel in ELSEWHERE:
        return
    rows, arrays = EXTENTS[step.kernel](step.constants, step.args)
    for name, floats in rows.items():
        index = getattr(step.args, name)
        if not isinstance(index, int) or not 0 <= index < len(slots):
            raise BoundsError(f"{step.kernel}: {name} is {index}, and there are {len(slots)} slots")
        if floats > slots[index].width:
            raise BoundsError(
                f"{step.kernel}: {floats} floats of a row of '{slots[index].name}', which has {slots[index].width}"
            )
    for name, size in arrays.items():
        array = getattr(step.args, name)
        if isinstance(array, int) or array.nbytes < size:
            got = "an integer" if isinstance(array, int) else f"{array.nbytes}"
            raise BoundsError(f"{step.kernel}: {size} bytes of {name}, which has {got}")


def _linear(constants: tuple[Any, ...], args: Linear) -> tuple[Touched, Touched]:
    lanes, vectors, _, form = constants[:4]
    columns = args.panels * vectors * lanes
    rows = {"x": args.k, "out": args.out_bytes // 4 + columns}
    return rows, {"weights": args.k * columns * form.bits // 8, "bias": 4 * columns}


def _masked(args: Any) -> dict[str, int]:
    return {"mask": 1} if args.mask >= 0 else {}


def _lstm(constants: tuple[Any, ...], args: LSTM) -> tuple[Touched, Touched]:
    lanes, form, tail = constants[0], constants[7], constants[8] if len(constants) == 9 else 0  # vectors
    whole = args.panels * lanes
    stored = whole + args.tail_width if tail else whole - lanes + args.last_width
    state = whole + args.tail_units
    rows = {"z": 4 * whole + tail * lanes, "y": args.y_bytes // 4 + stored, "h": state, "c": state, **_masked(args)}
    return rows, {"weights": (4 * whole + tail * lanes) * args.k * form.bits // 8}


def _recurrent(gates: int, packed_gates: int) -> Extent:
    def extent(constants: tuple[Any, ...], args: Any) -> tuple[Touched, Touched]:
        lanes, form = constants[0], constants[5]
        whole = args.panels * lanes
        stored = args.y_bytes // 4 + whole - lanes + args.last_width
        rows = {"z": gates * whole, "y": stored, "h": whole, **_masked(args)}
        return rows, {"weights": packed_gates * whole * args.k * form.bits // 8}

    return extent


def _projected(constants: tuple[Any, ...], args: Projected) -> tuple[Touched, Touched]:
    lanes, form, projection_form = constants[0], constants[7], constants[8]
    units, whole = args.hidden_panels * lanes, args.panels * lanes
    stored = args.y_bytes // 4 + whole - lanes + args.last_width
    rows = {"z": 4 * units, "y": stored, "h": whole, "c": units, "unprojected": units, **_masked(args)}
    projection = whole * args.hidden * projection_form.bits // 8
    return rows, {"weights": 4 * units * args.k * form.bits // 8, "projection": projection}


def _normalised(constants: tuple[Any, ...], args: Normalised) -> tuple[Touched, Touched]:
    lanes, form = constants[0], constants[6]
    whole = args.panels * lanes
    stored = args.y_bytes // 4 + whole - lanes + args.last_width
    rows = {"z": 4 * whole, "y": stored, "h": whole, "c": whole, "sums": 4 * whole, "cells": 2 * whole}
    gates, cells = (dict.fromkeys(names, size * whole) for names, size in ((_OF_GATES, 16), (_OF_CELLS, 4)))
    return {**rows, **_masked(args)}, {"weights": 4 * whole * args.k * form.bits // 8, **gates, **cells}


_OF_GATES, _OF_CELLS = ("scale", "h_scale", "bias"), ("c_scale", "c_bias")


def _small_lstm(constants: tuple[Any, ...], args: SmallLSTM) -> tuple[Touched, Touched]:
    lanes, each, last, tail = constants[:4]
    panels = args.full * each + last
    vectors = 4 * panels + tail
    stored = args.y_bytes // 4 + panels * lanes + args.last_width - (0 if tail else lanes)
    rows = {"y": stored, "h": args.hidden, "c": args.hidden, **_masked(args)}
    rows |= {"x": args.inputs} if args.inputs else {"z": vectors * lanes}
    sizes = {"weights": args.hidden, "x_weights": args.inputs, "bias": 1}
    return rows, {name: 4 * vectors * lanes * k for name, k in sizes.items()}


def _small(gates: int) -> Extent:
    def extent(constants: tuple[Any, ...], args: SmallGRU) -> tuple[Touched, Touched]:
        lanes, each, last = constants[:3]
        panels = args.full * each + last
        stored = args.y_bytes // 4 + (panels - 1) * lanes + args.last_width
        rows = {"z": gates * panels * lanes, "y": stored, "h": panels * lanes, **_masked(args)}
        return rows, {"weights": 4 * gates * panels * lanes * args.hidden}

    return extent


def _vectors(*slots: str) -> Extent:
    """Return the extent of a kernel that processes rows of whole vectors."""
    return lambda constants, args: (dict.fromkeys(slots, constants[0] * args.vectors), {})


def _features(*slots: str) -> Extent:
    """Return the extent of a kernel that processes a number of features, vector by vector."""
    return lambda constants, args: (dict.fromkeys(slots, -(-args.features // constants[0]) * constants[0]), {})


EXTENTS: Mapping[str, Extent] = {
    "linear.linear": _linear,
    "recurrent.lstm": _lstm,
    "gru.gru": _recurrent(3, 3),
    "gru.reset_before": _recurrent(3, 2),
    "rnn.rnn": _recurrent(1, 1),
    "projected.lstm": _projected,
    "normalised.lstm": _normalised,
    "small.lstm": _small_lstm,
    "small_gru.gru": _small(3),
    "small_gru.rnn": _small(1),
    "elementwise.unary": _vectors("x", "out"),
    "elementwise.binary": _vectors("a", "b", "out"),
    "elementwise.softmax": _features("x", "out"),
    "elementwise.layer_norm": _features("x", "out", "scale", "bias"),
    "movement.move": lambda _, a: ({"x": a.x_bytes // 4 + a.floats, "out": a.out_bytes // 4 + a.floats}, {}),
    "movement.last": lambda _, a: ({"x": a.floats, "out": a.floats}, {}),
    "movement.embed": lambda _, a: ({"ids": 1, "out": a.floats}, {"table": 4 * a.rows * a.floats}),
}
ELSEWHERE = frozenset(["split.split", "gather.gather", "gather.scatter", "profile.mark"])
"""Kernels whose arguments are addresses: only protected pages guard their accesses."""
