"""What every operator means that is not recurrent: one NumPy function each, with ONNX's opset-21 meaning.

Functions take the node's inputs in order (None where one is absent) and its attributes by keyword, and
return one value or a tuple. They work in the precision they are given: float32 in, float32 out. A sequence
value is a Python list of arrays. An attribute that holds an element type is an ONNX number or a NumPy name
(see `dtype_of`); the ``value`` of ConstantOfShape is a plain number and its element type stands beside it
in ``dtype``.

`evaluate` is the one way in. It turns whatever NumPy has to say about ranks and sizes that do not fit into
a sentence that names the node.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError, InputError, UnsupportedError, nearest
from fastlstm.graph import Graph, Node
from fastlstm.operators import (
    activations,
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalisation,
    onnx_reference,
    pooling,
    quantisation,
    reductions,
    resize,
    sequences,
    shape,
    signal,
    softmax,
)
from fastlstm.operators.dtypes import ONNX_TYPES, dtype_of

__all__ = ["SUPPORTED", "Signature", "dtype_of", "evaluate", "signature"]

RunGraph = Callable[[Graph, Mapping[str, Any]], Sequence[Any]]

_TABLE: Mapping[str, Callable[..., Any]] = {
    **activations.OPS,
    **attention.OPS,
    **control.OPS,
    **convolution.OPS,
    **elementwise.OPS,
    **indexing.OPS,
    **linear.OPS,
    **movement.OPS,
    **normalisation.OPS,
    **onnx_reference.OPS,
    **pooling.OPS,
    **quantisation.OPS,
    **reductions.OPS,
    **resize.OPS,
    **sequences.OPS,
    **shape.OPS,
    **signal.OPS,
    **softmax.OPS,
}

SUPPORTED: frozenset[str] = frozenset(_TABLE)
"""The operators that `evaluate` knows."""


_NO_EFFECT: Mapping[str, frozenset[str]] = {
    "BatchNormalization": frozenset({"momentum"}),  # speaks of training
    "Cast": frozenset({"saturate", "round_mode"}),  # speak of 8-bit floats, which are refused
    "CastLike": frozenset({"saturate", "round_mode"}),
    "Dropout": frozenset({"seed"}),  # speaks of training
    "GroupNormalization": frozenset({"stash_type"}),  # the precision of float16's sums
    "LayerNormalization": frozenset({"stash_type"}),
    "QuantizeLinear": frozenset({"saturate", "precision"}),  # speak of 8-bit floats and float16
    "RMSNormalization": frozenset({"stash_type"}),
    "Range": frozenset({"stash_type"}),
    "SequenceEmpty": frozenset({"dtype"}),  # a Python list has no element type
    "TopK": frozenset({"sorted"}),  # 0 allows any order; ours is sorted
}
"""Attributes that are understood and change nothing in what the operators here compute."""

_DTYPES = frozenset(map(np.dtype, ONNX_TYPES.values()))


@dataclass(frozen=True)
class Signature:
    """What an operator takes, as the parameters of its function say.

    Attributes
    ----------
    least, most : int
        How many inputs there may be.
    optional : frozenset of int
        The positions below `least` that may be absent.
    attributes : mapping of str to str
        Attribute name to its kind, written as an annotation: ``"int"``, ``"Sequence[int] | None"``.
    required : frozenset of str
        The attributes that have no default.
    """

    least: int
    most: int
    optional: frozenset[int]
    attributes: Mapping[str, str]
    required: frozenset[str]


@functools.cache
def signature(op: str) -> Signature:
    """Return what the operator `op`, one of `SUPPORTED`, takes."""
    parameters = inspect.signature(_TABLE[op]).parameters.values()
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    listed = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("run_graph", "count")]
    least = sum(p.default is p.empty for p in placed)
    return Signature(
        # Operators of any number of inputs take one at least.
        max(least, int(listed and not placed)),
        sys.maxsize if listed else len(placed),
        frozenset(i for i, p in enumerate(placed) if "None" in str(p.annotation)),
        {p.name: str(p.annotation) for p in named},
        frozenset(p.name for p in named if p.default is p.empty),
    )


def evaluate(node: Node, inputs: Sequence[Any], run_graph: RunGraph | None = None) -> tuple[Any, ...]:
    """Return the outputs of one node.

    Parameters
    ----------
    node : Node
    inputs : sequence
        A NumPy array for each of the node's inputs, None for an absent one, a list of arrays for a sequence.
    run_graph : callable, optional
        ``run_graph(body, inputs)`` runs the body of an If, Loop or Scan, with the values around it bound, and
        returns its outputs in order. Only these operators need it.

    Returns
    -------
    tuple of array (or list of arrays)

    Raises
    ------
    InputError
        If ranks, sizes or element types do not fit; the message names the node.
    UnsupportedError
        If the operator or one of its attributes is not known.
    """
    function = _TABLE.get(node.op)
    label = f"{node.attrs.get('operator', node.op)} node '{node.name or node.output(0)}'"
    if function is None:
        raise UnsupportedError(f"{label}: the operator is not supported; {nearest(node.op, SUPPORTED)}.")
    known = _keywords(function)
    attrs = {name: v for name, v in node.attrs.items() if name not in _NO_EFFECT.get(node.op, ())}
    unknown = sorted(set(attrs) - known)
    if unknown:
        supported = ", ".join(sorted(known - {"run_graph", "count"})) or "none"
        raise UnsupportedError(f"{label}: the attribute '{unknown[0]}' is not supported; supported: {supported}.")
    extra: dict[str, Any] = {}
    if "run_graph" in known:
        extra["run_graph"] = run_graph
    if "count" in known:
        extra["count"] = len(node.outputs)
    for value in inputs:
        if isinstance(value, np.ndarray) and value.dtype not in _DTYPES:
            raise UnsupportedError(f"{label}: the element type {value.dtype} is not supported.")
    try:
        with np.errstate(all="ignore"):
            result = function(*inputs, **attrs, **extra)
    except FastLSTMError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        given = ", ".join(_described(value) for value in inputs)
        raise InputError(f"{label} does not fit its inputs ({given}): {error}") from error
    results = result if isinstance(result, tuple) else (result,)
    if any(node.outputs[len(results) :]):
        raise UnsupportedError(f"{label} names {len(node.outputs)} outputs; the operator gives {len(results)} here.")
    return tuple(value if isinstance(value, list) or value is None else np.asarray(value) for value in results)


@functools.cache
def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names a function takes by keyword only: the attributes, and what `evaluate` adds."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _described(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, list):
        return f"sequence of {len(value)}"
    return f"{value.dtype}{list(value.shape)}"
