"""The arguments of kernels by name: what an instruction gives and a kernel reads.

A class here is made twice: with the values, as an instruction's arguments; and by `positions`, whose fields are the
words' numbers, for the kernel: ``arg(args, A.k)``. "Slot" fields are numbers of slots, "bytes" are distances in bytes;
arrays stand for their addresses (see `fastlstm.program`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Binary",
    "Embed",
    "Last",
    "LayerNorm",
    "Linear",
    "Move",
    "Projected",
    "ResetBefore",
    "SmallGRU",
    "SmallLSTM",
    "Softmax",
    "Unary",
    "positions",
]  # fmt: skip

T = TypeVar("T", bound=tuple[Any, ...])


def positions(kind: type[T]) -> T:
    """Return the number of each field's word, by name."""
    return kind(*range(len(kind._fields)))  # type: ignore[attr-defined]


class Linear(NamedTuple):
    """``out = bias + x @ weights`` for all rows of a block."""

    x: int  # slot
    out: int  # slot
    k: int
    weights: Any  # packed [panel][k][vector][lane]
    bias: Any  # packed alike
    panels: int
    out_bytes: int  # offset in out's rows
    active: int  # 1: only for rows that are active, which lie one behind the other in out


# The recurrent kernels begin with the same words: the loop over time steps (`fastlstm.kernels.recurrent`) reads them.
# `z` holds the input's part of the gates' sums, `panels` and `last_width` are those of the outputs.


class LSTM(NamedTuple):
    """A direction of an LSTM."""

    z: int  # slot
    y: int  # slot
    y_bytes: int  # offset in y's rows
    k: int  # previous outputs that every sum reads
    weights: Any  # [panel][k][4][lane]; behind them those of the tail, [k][vector][lane]
    panels: int
    last_width: int  # lanes of the last panel that are stored
    h: int  # slot
    c: int  # slot
    reverse: int  # 1: time runs backwards
    mask: int  # slot of the codes, -1: none
    peepholes: Any  # [panel][i, f, o][lane]
    tail_units: int
    tail_width: int  # lanes of the tail's output that are stored


class Projected(NamedTuple):
    """A direction of an LSTM whose output is projected."""

    z: int
    y: int
    y_bytes: int
    k: int
    weights: Any
    panels: int
    last_width: int
    h: int
    c: int
    reverse: int
    mask: int
    peepholes: Any
    unprojected: int  # slot of one step's hidden units
    projection: Any  # [panel][hidden][lane]
    hidden: int
    hidden_panels: int


class GRU(NamedTuple):
    """A direction of a GRU whose reset gate is applied after the product."""

    z: int
    y: int
    y_bytes: int
    k: int
    weights: Any  # [panel][k][3][lane]
    panels: int
    last_width: int
    h: int
    c: int  # a slot that nothing reads
    reverse: int
    mask: int
    start: Any  # what the recurrent sums start from, [panel][0, 0, b_hn][lane]


class ResetBefore(NamedTuple):
    """A direction of a GRU whose reset gate is applied to h before the product."""

    z: int
    y: int
    y_bytes: int
    k: int
    weights: Any  # of r and z, [panel][k][2][lane]
    panels: int
    last_width: int
    h: int
    c: int
    reverse: int
    mask: int
    new_weights: Any  # of n, [panel][k][lane]
    reset: int  # slot of r * h, one step
    zeros: Any  # what the sums of a group of panels start from


class RNN(NamedTuple):
    """A direction of a plain RNN."""

    z: int
    y: int
    y_bytes: int
    k: int
    weights: Any  # [panel][k][lane]
    panels: int
    last_width: int
    h: int
    c: int
    reverse: int
    mask: int
    zeros: Any


# One batch row of a small layer: `fastlstm.kernels.one_row` reads the words that both have.


class SmallLSTM(NamedTuple):
    """A direction of a small LSTM, one batch row."""

    z: int
    y: int
    y_bytes: int
    hidden: int
    weights: Any  # pass by pass, [k][vector][lane]
    full: int  # passes before the last
    last_width: int
    h: int
    reverse: int
    mask: int
    x: int  # slot
    inputs: int  # features of x that are multiplied here; 0: z holds their products
    x_weights: Any
    bias: Any
    c: int


class SmallGRU(NamedTuple):
    """A direction of a small GRU or RNN, one batch row."""

    z: int
    y: int
    y_bytes: int
    hidden: int
    weights: Any  # pass by pass, [k][panel][gate][lane]
    full: int
    last_width: int
    h: int
    reverse: int
    mask: int
    start: Any  # what the sums start from, [panel][gate][lane]


class Move(NamedTuple):
    """Copy features from one slot to another."""

    x: int
    out: int
    x_bytes: int
    out_bytes: int
    floats: int


class Last(NamedTuple):
    """Copy the last time step of each row."""

    x: int
    out: int
    floats: int


class Embed(NamedTuple):
    """Copy the rows of a table that ids name."""

    ids: int
    out: int
    table: Any
    rows: int
    floats: int


class Unary(NamedTuple):
    """A function of every element."""

    x: int
    out: int
    vectors: int


class Binary(NamedTuple):
    """A function of two elements."""

    a: int
    b: int
    out: int
    vectors: int


class Softmax(NamedTuple):
    """Softmax over the features of each row."""

    x: int
    out: int
    features: int


class LayerNorm(NamedTuple):
    """Normalisation over the features of each row."""

    x: int
    out: int
    features: int
    scale: int  # slot
    bias: int  # slot
