"""Tapes: operators outside segments as kernel calls, recorded for inputs of one shape (see `tape.py`).

Every operator that has kernels is one function here, from arrays of known sizes to instructions. It takes the
`Recorder`, the node and a `Value` for each input (None if one is absent). It returns the values of the outputs, or None
if no kernel supports these element types, ranks or parameters, and `fastlstm.operators` runs the node. Whether it
returns None never depends on sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.graph import Node
from fastlstm.lowering.tapes import convolution, elementwise, integers, lines, movement, pooling, products
from fastlstm.lowering.tapes.recorder import Emitter, Recorder, Value

__all__ = ["EMITTERS", "HEAVY", "Emitter"]


def _either(first: Emitter, second: Emitter) -> Emitter:
    """Return a function that tries one, then the other."""

    def emit(rec: Recorder, node: Node, operands: Sequence[Value | None]) -> list[Value] | None:
        made = first(rec, node, operands)
        return second(rec, node, operands) if made is None else made

    return emit


_FLOATS: Mapping[str, Emitter] = {
    **movement.EMITTERS,
    **elementwise.EMITTERS,
    **products.EMITTERS,
    **convolution.EMITTERS,
    **pooling.EMITTERS,
    **lines.EMITTERS,
}

EMITTERS: Mapping[str, Emitter] = {
    **integers.EMITTERS,
    **_FLOATS,
    **{op: _either(emit, integers.EMITTERS[op]) for op, emit in _FLOATS.items() if op in integers.EMITTERS},
}
"""Operator -> its function."""

HEAVY = frozenset(_FLOATS)
"""Operators for which it is worth recording a tape."""
