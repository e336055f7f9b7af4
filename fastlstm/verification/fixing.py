"""Fixing what a model leaves to each call: sizes of axes, and values of inputs such as a sample rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.graph import Graph, TensorSpec
from fastlstm.runtime.conversion import converted
from fastlstm.verification.samples import check_sizes

__all__ = ["fixed", "values_of"]


def fixed(graph: Graph, sizes: Mapping[str, int], values: Mapping[str, Any]) -> Graph:
    """Return the graph with open dimensions of these sizes, and with inputs of these values made constants.

    Raises
    ------
    InputError
        If there is no such dimension or input, or a value does not fit its input.
    """
    if values and set(values) == {spec.name for spec in graph.inputs}:
        raise InputError("All inputs are fixed, so nothing is left to compute: leave one open.")
    constants = values_of(graph, sizes, values)
    left = tuple(spec for spec in _sized(graph, sizes) if spec.name not in values)
    return graph.replace(inputs=left, constants={**graph.constants, **constants})


def values_of(graph: Graph, sizes: Mapping[str, int], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs of these values as the arrays that the graph takes.

    Raises
    ------
    InputError
        If there is no such dimension or input, or a value does not fit its input.
    """
    check_sizes(graph, sizes)
    specs = {spec.name: spec for spec in _sized(graph, sizes)}
    for name in values:
        if name not in specs:
            raise InputError(f"There is no input '{name}'; the model's are: {', '.join(specs)}.")
    return {name: _value(name, specs[name].shape, specs[name].dtype, values) for name in values}


def _sized(graph: Graph, sizes: Mapping[str, int]) -> list[TensorSpec]:
    return [replace(s, shape=tuple(sizes.get(str(n), n) for n in s.shape)) for s in graph.inputs]


def _value(name: str, shape: tuple[int | str, ...], dtype: str, values: Mapping[str, Any]) -> Any:
    """Return an input's value as the array that it takes; one number fills all of it."""
    what = f"The value of '{name}'"
    given = converted(np.asarray(values[name]), dtype or "float32", what)
    if np.dtype(dtype or "float32").kind in "iub" and np.any(given != np.asarray(values[name])):
        raise InputError(f"{what} should be whole, as the input is {dtype}; got {values[name]}.")
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape) or "..." in shape:
        raise InputError(
            f"{what} cannot be fixed while its shape is open ({list(shape)}): fix that too (sizes=, --size)."
        )
    if given.ndim and given.shape != sizes:
        raise InputError(f"{what} should be a number or have the shape {list(sizes)}; got {list(given.shape)}.")
    return np.array(np.broadcast_to(given, sizes))
