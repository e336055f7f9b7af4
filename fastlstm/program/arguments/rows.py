"""Arguments of the kernels around recurrent layers, which work on rows of slots; and of those that run parts of
batches and keep the states of pools.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    "Normalised",
    "Part",
    "Pooled",
    "PooledState",
    "Projected",
    "ResetBefore",
    "SmallGRU",
    "SmallLSTM",
    "Softmax",
    "Split",
    "SplitTable",
    "Unary",
]  # fmt: skip


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


class Normalised(NamedTuple):
    """A direction of an LSTM with layer normalisation; z holds the input's sums as they are, without a bias."""

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
    sums: int  # slot of one step's recurrent sums, as z has the input's
    cells: int  # slot of one step's cell states before their normalisation, and its output gates, [panel][2][lane]
    units: int
    scale: Any  # of the input's sums, [panel][4][lane]
    h_scale: Any  # of the recurrent sums
    bias: Any  # of both
    c_scale: Any  # of the cell states, [panel][lane]
    c_bias: Any


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

    z: int  # -1: the sums are made here
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


class Pooled(NamedTuple):
    """The states of a pool's streams, gathered or scattered."""

    rows: Any  # how many, then their numbers in the pool
    states: int
    table: Any  # the words of each state: `PooledState`


class PooledState(NamedTuple):
    """A state of a pool's streams, as the table has it."""

    slot: int
    pool: Any  # row 0 of the pool
    row_bytes: int  # of the pool
    floats: int  # to copy


class Split(NamedTuple):
    """The parts of a program whose batch is divided."""

    table: Any  # `SplitTable`, then a `Part` each, then the numbers of the external slots


class SplitTable(NamedTuple):
    """How the table of parts begins."""

    parts: int
    drive: int  # address of the driver
    externals: int  # external slots


class Part(NamedTuple):
    """A part of a batch, as the table has it; all but the last are addresses."""

    program: int
    frame: int
    slots: int
    row: int  # its first
