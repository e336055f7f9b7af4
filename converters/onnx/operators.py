"""The operators of ai.onnx that are read, and for each the attributes whose meaning is known.

They are those of `fastlstm.operators` in their opset-21 form, which say what they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastlstm import operators
from fastlstm.graph import RECURRENT_OPS
from fastlstm.operators.onnx_reference import REFERENCE

__all__ = ["DTYPE_ATTRIBUTES", "OPERATORS", "Attribute"]


@dataclass(frozen=True)
class Attribute:
    """One attribute of the table.

    Attributes
    ----------
    choices : tuple of str
        The values understood; empty: any.
    dropped : bool
        Whether it is left out of the Graph.
    """

    choices: tuple[str, ...] = ()
    dropped: bool = False


_OTHERS = {"Dense", "Dropout", "LogCumSumExp", REFERENCE, *RECURRENT_OPS}
"""Operators of ours that ai.onnx does not have, or that are brought to another form."""

_OWN = {"integers"}
"""Attributes that only passes give to nodes: a file that has one says more than it can know."""


def _attributes(op: str) -> dict[str, Attribute]:
    takes = operators.signature(op)
    unused = dict.fromkeys(sorted(operators.OPERATORS[op].unused), Attribute(dropped=True))
    if op.endswith("Normalization") and "stash_type" in unused:
        unused["stash_type"] = Attribute(("1",), dropped=True)  # sums in float32
    return {name: Attribute(takes.choices.get(name, ())) for name in takes.attributes if name not in _OWN} | unused


OPERATORS: Mapping[str, Mapping[str, Attribute]] = {op: _attributes(op) for op in sorted(operators.SUPPORTED - _OTHERS)}
"""Operator → its attributes."""

DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})
"""Attributes that hold a number of ``TensorProto.DataType``."""
