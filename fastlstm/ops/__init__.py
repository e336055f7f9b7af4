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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError, InputError, UnsupportedError
from fastlstm.graph import Graph, Node
from fastlstm.ops import activations
from fastlstm.ops.dtypes import dtype_of

__all__ = ["SUPPORTED", "dtype_of", "evaluate"]

RunGraph = Callable[[Graph, Mapping[str, Any]], Sequence[Any]]

_TABLE: Mapping[str, Callable[..., Any]] = {
    **activations.OPS,
}

SUPPORTED: frozenset[str] = frozenset(_TABLE)
"""The operators that `evaluate` knows."""


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
    label = f"{node.op} node '{node.name or node.output(0)}'"
    if function is None:
        raise UnsupportedError(
            f"{label}: the operator is not supported; supported: {', '.join(sorted(SUPPORTED))}."
        )
    known = _keywords(function)
    unknown = sorted(set(node.attrs) - known)
    if unknown:
        supported = ", ".join(sorted(known - {"run_graph", "count"})) or "none"
        raise UnsupportedError(
            f"{label}: the attribute '{unknown[0]}' is not supported; supported: {supported}."
        )
    extra: dict[str, Any] = {}
    if "run_graph" in known:
        extra["run_graph"] = run_graph
    if "count" in known:
        extra["count"] = len(node.outputs)
    try:
        with np.errstate(all="ignore"):
            result = function(*inputs, **node.attrs, **extra)
    except FastLSTMError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        given = ", ".join(_described(value) for value in inputs)
        raise InputError(f"{label} does not fit its inputs ({given}): {error}") from error
    results = result if isinstance(result, tuple) else (result,)
    return tuple(
        value if isinstance(value, list) or value is None else np.asarray(value) for value in results
    )


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
