"""Tapes: operators outside segments as kernel calls, recorded for inputs of one shape (see `tape.py`).

Every operator that has kernels is one function here, from arrays of known sizes to instructions. It takes the
`Recorder`, the node and a `Value` for each input (None where one is absent). It returns those of the outputs, or
None if the node has to be run by `fastlstm.operators`, which is the case whenever element types, ranks or parameters
are not those that a kernel takes. Whether it returns None never depends on the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.graph import Node
from fastlstm.tapes import convolution, elementwise, lines, movement, pooling, products, whole
from fastlstm.tapes.recorder import Emitter, Recorder, Value

__all__ = ["EMITTERS", "HEAVY", "Emitter"]


def _either(first: Emitter, second: Emitter) -> Emitter:
    """Return the function that asks a second one where the first has no kernel."""

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
    **whole.EMITTERS,
    **_FLOATS,
    **{op: _either(emit, whole.EMITTERS[op]) for op, emit in _FLOATS.items() if op in whole.EMITTERS},
}
"""Operator -> its function."""

HEAVY = frozenset(_FLOATS)
"""Operators for which it is worth recording a tape."""
