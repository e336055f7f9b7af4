"""The operators: what each means in NumPy, what it makes of shapes, its kernels, how it goes on in time.

One module a family; in its table each operator stands once (`definition.Operator`). Whatever else needs to know
something of an operator asks `OPERATORS`. Meanings are those of ONNX's opset 21. `evaluate` runs a node: functions take
the node's inputs in order (None where one is absent) and its attributes by keyword, and return one value or a tuple.
They work in the precision they are given: float32 in, float32 out. A sequence value is a Python list of arrays. An
attribute that holds an element type is an ONNX number or a NumPy name (see `dtype_of`); the ``value`` of
ConstantOfShape is a plain number and its element type stands beside it in ``dtype``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError, InputError, UnsupportedError, nearest
from fastlstm.graph import Graph, Node
from fastlstm.operators import (
    activations,
    arithmetic,
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
    recurrent,
    reductions,
    resize,
    sequences,
    shape,
    signal,
    softmax,
)
from fastlstm.operators.definition import Function, Lowering, Operation, Operator, Stream
from fastlstm.operators.dtypes import ONNX_TYPES, dtype_of
from fastlstm.operators.values import Operands, ValueInfo

__all__ = [
    "ELEMENTWISE", "OPERATORS", "REDUCTIONS", "SUPPORTED", "Function", "Lowering", "Operation", "Operator", "Signature",
    "Stream", "dtype_of", "evaluate", "infer", "misfit", "signature",
]  # fmt: skip

RunGraph = Callable[[Graph, Mapping[str, Any]], Sequence[Any]]

OPERATORS: Mapping[str, Operator] = {
    **activations.OPERATORS,
    **arithmetic.OPERATORS,
    **attention.OPERATORS,
    **control.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **movement.OPERATORS,
    **normalisation.OPERATORS,
    **onnx_reference.OPERATORS,
    **pooling.OPERATORS,
    **quantisation.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resize.OPERATORS,
    **sequences.OPERATORS,
    **shape.OPERATORS,
    **signal.OPERATORS,
    **softmax.OPERATORS,
}
"""Every operator by its name."""

_COMPUTE: Mapping[str, Callable[..., Any]] = {
    name: operator.compute for name, operator in OPERATORS.items() if operator.compute is not None
}

SUPPORTED: frozenset[str] = frozenset(_COMPUTE)
"""The operators that `evaluate` knows."""


def _going(stream: Stream) -> frozenset[str]:
    return frozenset(name for name, operator in OPERATORS.items() if operator.stream is stream)


ELEMENTWISE: frozenset[str] = _going(Stream.ELEMENTS) - {"Identity", "Dropout"}
"""Operators that change each element of the first input alone, the other inputs being settings."""

REDUCTIONS: frozenset[str] = _going(Stream.REDUCTION)
"""Operators that reduce over the axes in their second input."""

_DTYPES = frozenset(map(np.dtype, ONNX_TYPES.values()))


@dataclass(frozen=True)
class Signature:
    """What an operator takes, as the parameters of its function say.

    Attributes
    ----------
    least, most : int
        How many inputs there may be.
    gives : int
        How many outputs there may be.
    gaps : bool
        Whether inputs beyond `least` may be absent with others behind them.
    optional : frozenset of int
        The positions below `least` that may be absent.
    integers : frozenset of int
        The positions of indices, axes and sizes.
    attributes : mapping of str to str
        Attribute name to its kind, written as an annotation: ``"int"``, ``"Sequence[int] | None"``.
    choices : mapping of str to tuple of str
        Of attributes that are one of several words, these words.
    required : frozenset of str
        The attributes that have no default.
    """

    least: int
    most: int
    gives: int
    gaps: bool
    optional: frozenset[int]
    integers: frozenset[int]
    attributes: Mapping[str, str]
    choices: Mapping[str, tuple[str, ...]]
    required: frozenset[str]


@functools.cache
def signature(op: str) -> Signature:
    """Return what the operator `op`, one of `SUPPORTED`, takes."""
    called = inspect.signature(_COMPUTE[op])
    parameters, result = called.parameters.values(), str(called.return_annotation)
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    rest = next((p for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("run_graph", "count")]
    least = sum(p.default is p.empty for p in placed)
    return Signature(
        # Operators of any number of inputs take one at least.
        max(least, int(rest is not None and not placed)),
        len(placed) if rest is None else sys.maxsize,
        1 if not result.startswith("tuple[") else sys.maxsize if "..." in result else result.count(",") + 1,
        rest is None or "Any" in str(rest.annotation),
        frozenset(i for i, p in enumerate(placed) if "None" in str(p.annotation)),
        frozenset(i for i, p in enumerate(placed) if "Integers" in str(p.annotation)),
        {p.name: str(p.annotation) for p in named},
        {p.name: tuple(re.findall(r"'(\w+)'", p.annotation)) for p in named if p.annotation.startswith("Literal[")},
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
    function = _COMPUTE.get(node.op)
    label = f"{node.attrs.get('operator', node.op)} node '{node.name or node.output(0)}'"
    if function is None:
        raise UnsupportedError(f"{label}: the operator is not supported; {nearest(node.op, SUPPORTED)}.")
    known = _keywords(function)
    unused = OPERATORS[node.op].unused
    attrs = {name: v for name, v in node.attrs.items() if name not in unused}
    unknown = sorted(set(attrs) - known)
    if unknown:
        supported = ", ".join(sorted(known - {"run_graph", "count"})) or "none"
        raise UnsupportedError(f"{label}: the attribute '{unknown[0]}' is not supported; supported: {supported}.")
    extra: dict[str, Any] = {}
    if "run_graph" in known:
        extra["run_graph"] = run_graph
    if "count" in known:
        extra["count"] = len(node.outputs)
    for value, listed in zip(inputs, itertools.chain(*_sequences(function)), strict=False):
        if isinstance(value, np.ndarray) and value.dtype not in _DTYPES:
            raise UnsupportedError(f"{label}: the element type {value.dtype} is not supported.")
        if value is not None and listed is not None and isinstance(value, list) is not listed:
            expected = "a sequence of tensors" if listed else "a tensor"
            raise InputError(f"{label} expects {expected} where it is given {_described(value)}.")
    try:
        with np.errstate(all="ignore"):
            result = function(*inputs, **attrs, **extra)
    except FastLSTMError:
        raise
    # NumPy, and ONNX's reference implementation, say in any of these what they cannot do with the values of this run;
    # what it was stays the error's cause. Nothing else is tried instead.
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        given = ", ".join(_described(value) for value in inputs)
        raise InputError(f"{label} does not fit its inputs ({given}): {error}") from error
    results = result if isinstance(result, tuple) else (result,)
    if any(node.outputs[len(results) :]):
        raise UnsupportedError(f"{label} names {len(node.outputs)} outputs; the operator gives {len(results)} here.")
    return tuple(value if isinstance(value, list) or value is None else np.asarray(value) for value in results)


@functools.cache
def _sequences(function: Callable[..., Any]) -> tuple[Sequence[bool | None], Iterable[bool | None]]:
    """Return which inputs are sequences, by their place, then all others: True, False, or None where both are taken."""
    placed: list[bool | None] = []
    for parameter in inspect.signature(function).parameters.values():
        text = str(parameter.annotation)
        listed = None if "Any" in text else text.startswith("list[")
        if parameter.kind is parameter.VAR_POSITIONAL:
            return placed, itertools.repeat(listed)
        if parameter.kind is not parameter.KEYWORD_ONLY:
            placed.append(listed)
    return placed, ()


@functools.cache
def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names a function takes by keyword only: the attributes, and what `evaluate` adds."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _described(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, list):
        return f"a sequence of {len(value)}"
    return f"{value.dtype}{list(value.shape)}"


def infer(at: Operands) -> Sequence[ValueInfo]:
    """Return what is known of a node's outputs before it runs: nothing of operators that are not known or untold."""
    operator = OPERATORS.get(at.node.op)
    if operator is None or isinstance(operator.infer, str):
        return ()
    found = operator.infer(at)
    return (found,) if isinstance(found, ValueInfo) else found


def misfit(at: Operands) -> str:
    """Return a sentence that says why a node cannot run on its inputs, empty if it may.

    Inference and rewrites rely on it: of a node that does not fit nothing is known and nothing is made. It is no error
    yet, for it may stand in a branch that is never taken; where nodes are planned to be run, it is one.
    """
    operator = OPERATORS.get(at.node.op)
    expected = "" if operator is None or operator.expects is None else operator.expects(at)
    if not expected:
        return ""
    given = ", ".join(map(str, at.infos))
    return f"{at.node.op} node '{at.node.name or at.node.output(0)}' expects {expected}; its inputs are {given}."
