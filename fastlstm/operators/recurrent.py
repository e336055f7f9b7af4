"""Recurrent layers: shapes of LSTM, GRU and RNN. What they compute stands in `fastlstm.operators.reference`."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.graph import RECURRENT_OPS, RecurrentInputs
from fastlstm.operators import dims
from fastlstm.operators.definition import Lowering, Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.rules import differ
from fastlstm.operators.values import Operands, ValueInfo

__all__ = ["OPERATORS"]


def _layer_info(at: Operands) -> tuple[ValueInfo, ...]:
    x, w_hh = (at[RecurrentInputs.position(name)].shape for name in ("x", "w_hh"))
    hidden = int(at.attr("hidden_size", 0))
    directions = len(at.attr("directions", ["forward"]))
    size: Dim = w_hh[2] if w_hh is not None and len(w_hh) == 3 else at.fresh(2, 1)
    time, batch = (x[0], x[1]) if x is not None and len(x) == 3 else (at.fresh(0), at.fresh(1))
    dtype = at[0].dtype
    return (
        ValueInfo((time, batch, dims.multiply(directions, size)), dtype),
        ValueInfo((directions, batch, size), dtype),
        ValueInfo((directions, batch, hidden), dtype),
    )


def _layer_fit(at: Operands) -> str:
    """Expect x [T, B, I] and weights, states, lengths and masks that go with it and with one another."""
    G = RECURRENT_OPS[at.node.op]
    H, D = int(at.attr("hidden_size")), len(at.attr("directions"))
    place = RecurrentInputs.position
    x, w_ih, w_hh = (at[place(name)].shape for name in ("x", "w_ih", "w_hh"))
    T, B, features = x if x is not None and len(x) == 3 else (None, None, None)
    width = w_ih[2] if w_ih is not None and len(w_ih) == 3 else features
    projected = at.given(place("w_hr"))
    P = w_hh[2] if projected and w_hh is not None and len(w_hh) == 3 else None if projected else H
    expected: Sequence[tuple[str, tuple[Dim | None, ...]]] = (
        ("x", (T, B, width)), ("w_ih", (D, G * H, features)), ("w_hh", (D, G * H, P)),
        ("bias", (D, 4 * H if at.node.op == "GRU" else G * H)), ("lengths", (B,)), ("mask", (T, B)),
        ("h_0", (D, B, P)), ("c_0", (D, B, H)), ("peephole", (D, 3 * H)), ("w_hr", (D, P, H)),
        ("norm", (D, 10 * H)),
    )  # fmt: skip
    for name, sizes in expected:
        shape = at[place(name)].shape
        if not at.given(place(name)) or shape is None:
            continue
        if len(shape) != len(sizes) or any(s is not None and differ(s, d) for s, d in zip(sizes, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            return f"{name} to be [{wanted}]"
    return ""


OPERATORS = table(
    *(Operator(name, None, _layer_info, Lowering.RECURRENT, Stream.RECURRENT, _layer_fit) for name in RECURRENT_OPS)
)
