"""Branches and loops. The bodies are run by the caller, who knows the values around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.graph import Graph, TensorSpec
from fastlstm.operators.definition import Lowering, Operator, Stream, table
from fastlstm.operators.rules import within
from fastlstm.operators.sizes import MAX_ELEMENTS, checked_rounds, integer
from fastlstm.operators.values import Operands
from fastlstm.typing import Array

__all__ = ["OPERATORS"]

RunGraph = Callable[[Graph, Mapping[str, Any]], Sequence[Any]]


def if_(condition: Array, *, then_branch: Graph, else_branch: Graph, run_graph: RunGraph) -> tuple[Any, ...]:
    """Return the outputs of one branch or the other."""
    return tuple(run_graph(then_branch if bool(condition) else else_branch, {}))


def loop(
    trips: Array | None = None,
    condition: Array | None = None,
    *carried: Any,
    body: Graph,
    run_graph: RunGraph,
) -> tuple[Any, ...]:
    """Run the body until it says stop or has run `trips` times.

    The body takes the number of the iteration, the condition and the carried values; it returns the
    condition, the carried values, and one value for each output that is collected over the iterations.
    """
    names = [spec.name for spec in body.inputs]
    values = list(carried)
    limit = None if trips is None else integer(trips)
    going = condition is None or bool(condition)
    collected: list[list[Array]] = [[] for _ in body.outputs[1 + len(values) :]]
    room = MAX_ELEMENTS
    iteration = 0
    while going and (limit is None or iteration < limit):
        given = [np.array(iteration, dtype=np.int64), np.array(going), *values]
        results = run_graph(body, dict(zip(names, given, strict=True)))
        going = bool(results[0])
        values = list(results[1 : 1 + len(values)])
        for column, value in zip(collected, results[1 + len(values) :], strict=True):
            column.append(value)
            room -= value.size
        if room < 0:
            raise ValueError(f"the loop has collected more than {MAX_ELEMENTS} elements")
        iteration = checked_rounds(iteration + 1)
    specs = body.outputs[1 + len(values) :]
    return (*values, *(_stacked(column, 0, spec) for column, spec in zip(collected, specs, strict=True)))


def scan(
    *inputs: Any,
    body: Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    run_graph: RunGraph,
) -> tuple[Any, ...]:
    """Run the body once for every slice of the scanned inputs.

    The body takes the carried values and one slice of each scanned input; it returns the carried values and
    one slice of each scanned output. A direction of 1 walks (or fills) an axis from its end.
    """
    carry = len(inputs) - num_scan_inputs
    specs = body.outputs[carry:]
    values, scanned = list(inputs[:carry]), inputs[carry:]
    in_axes = scan_input_axes or [0] * num_scan_inputs
    out_axes = scan_output_axes or [0] * len(specs)
    backwards_in = scan_input_directions or [0] * num_scan_inputs
    backwards_out = scan_output_directions or [0] * len(specs)
    columns = [
        np.moveaxis(np.flip(array, axis) if backwards else array, axis, 0)
        for array, axis, backwards in zip(scanned, in_axes, backwards_in, strict=True)
    ]
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"the scanned inputs have different lengths {sorted(lengths)}")
    names = [spec.name for spec in body.inputs]
    collected: list[list[Array]] = [[] for _ in specs]
    for slices in zip(*columns, strict=True):
        results = run_graph(body, dict(zip(names, [*values, *map(np.asarray, slices)], strict=True)))
        values = list(results[:carry])
        for column, value in zip(collected, results[carry:], strict=True):
            column.append(value)
    outputs = [
        _stacked(column[::-1] if backwards else column, axis, spec)
        for column, axis, backwards, spec in zip(collected, out_axes, backwards_out, specs, strict=True)
    ]
    return (*values, *outputs)


def _stacked(column: list[Array], axis: int, spec: TensorSpec) -> Array:
    """Return what was collected as one array; of no iterations at all, an empty one of the declared type."""
    if column:
        return np.stack(column, axis=axis)
    inner = [size if isinstance(size, int) else 0 for size in spec.shape]
    inner.insert(axis if axis >= 0 else axis + len(inner) + 1, 0)
    return np.zeros(inner, dtype=spec.dtype)


def _scan_fit(at: Operands) -> str:
    scanned = int(at.attr("num_scan_inputs", 1))
    axes = at.attr("scan_input_axes") or [0] * scanned
    for info, axis in zip(at.infos[len(at.infos) - scanned :], axes, strict=True):
        wrong = "" if info.rank is None else within([int(axis)], info.rank, least=1)
        if wrong:
            return f"to scan along {wrong}"
    return ""


# Why there is no kernel, no shape, no stream.
_FOLLOWED = "`fastlstm.passes.shapes` follows its bodies"
_BODY = "runs a body of its own on values that change with time"

OPERATORS = table(
    Operator("If", if_, _FOLLOWED, Lowering.LOOP, _BODY),
    Operator("Loop", loop, _FOLLOWED, Lowering.LOOP, Stream.LOOP),
    Operator("Scan", scan, _FOLLOWED, Lowering.LOOP, Stream.LOOP, _scan_fit),
)
