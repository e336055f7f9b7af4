"""Tapes: operators outside segments as kernel calls, recorded for inputs of one shape (see `tape.py`).

Every operator that has kernels is one function here, from arrays of known sizes to instructions. It takes the
`Recorder`, the node and a `Cell` for each input (None where one is absent). It returns the cells of the outputs, or
None if the node has to be run by `fastlstm.ops`, which is the case whenever element types, ranks or parameters are not
those that a kernel takes. Whether it returns None never depends on the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastlstm.graph import Node
from fastlstm.tapes import convolution, elementwise, lines, movement, products
from fastlstm.tapes.recorder import Cell, Recorder

__all__ = ["EMITTERS", "Emitter"]

Emitter = Callable[[Recorder, Node, Sequence[Cell | None]], "list[Cell] | None"]

EMITTERS: Mapping[str, Emitter] = {
    **movement.EMITTERS,
    **elementwise.EMITTERS,
    **products.EMITTERS,
    **convolution.EMITTERS,
    **lines.EMITTERS,
}
"""Operator -> its function."""
