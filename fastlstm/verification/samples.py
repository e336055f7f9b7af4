"""Inputs made up to try a model with: sizes for the dimensions it leaves open, values that it can take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec
from fastlstm.typing import Array

__all__ = ["check_sizes", "open_dimensions", "sample_array", "sample_frames", "sample_inputs", "time_steps"]

_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
_MOVES = frozenset(
    ["Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Tile"]
)
_MAX_ELEMENTS = 1 << 26


def open_dimensions(graph: Graph) -> tuple[str, ...]:
    """Return the names of the input dimensions that are not known before run time."""
    return tuple(dict.fromkeys(d for spec in graph.inputs for d in spec.shape if isinstance(d, str)))


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise InputError if `sizes` names a dimension that the graph does not leave open."""
    known = open_dimensions(graph)
    for name in sizes:
        if name not in known:
            raise InputError(f"There is no open dimension '{name}'; the model's are: {', '.join(known) or 'none'}.")


def sample_inputs(
    graph: Graph,
    sizes: Mapping[str, int] | None = None,
    *,
    batch: int = 2,
    time: int = 12,
    seed: int = 0,
) -> dict[str, Array]:
    """Return random inputs for a graph, the same for the same arguments.

    Parameters
    ----------
    graph : Graph
    sizes : mapping of str to int, optional
        Sizes of open dimensions, by name.
    batch, time : int
        Sizes of the open dimensions that `sizes` leaves out: `batch` for those named like a batch and for
        the first of a nameless kind, `time` for the others.
    seed : int

    Returns
    -------
    dict of str to array
        Floats are standard normal. Integers that an embedding is looked up with are within its range,
        lengths are between 1 and the number of steps, integers that are compared with numbers are those, and
        integers of unknown meaning are 0 or 1.

    Raises
    ------
    InputError
        If `sizes` names a dimension that the graph does not leave open, an input would be huge, or its rank is
        not known.
    """
    given = dict(sizes or {})
    check_sizes(graph, given)
    if nameless := [spec.name for spec in graph.inputs if "..." in spec.shape]:
        raise InputError(f"The model does not say the rank of its input '{nameless[0]}': give inputs of your own.")
    has_batch = any(_BATCH.search(name) for name in open_dimensions(graph))
    for spec in graph.inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                like_batch = bool(_BATCH.search(size)) if has_batch else axis == _batch_axis(spec)
                given.setdefault(size, batch if like_batch else time)
    shapes = {spec.name: tuple(d if isinstance(d, int) else given[d] for d in spec.shape) for spec in graph.inputs}
    for name, shape in shapes.items():
        if np.prod(shape, dtype=float) > _MAX_ELEMENTS:
            raise InputError(f"A sample of the input '{name}' would have the shape {list(shape)}: too large.")
    rng = np.random.default_rng(seed)
    return {spec.name: _values(graph, spec, shapes, rng) for spec in graph.inputs}


def sample_array(graph: Graph, spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a random value for one input, of a shape of one's own; see `sample_inputs`."""
    return _values(graph, spec, {spec.name: shape}, rng)


def sample_frames(graph: Graph, inputs: Iterable[str], blank: Any) -> Any:
    """Return frames for a stream or a pool, as random as those of `sample_inputs`.

    `inputs` are the names of the stream's inputs, `blank` is what its ``blank_frame`` or ``blank_chunk`` gives.
    """
    rng, specs = np.random.default_rng(0), {spec.name: spec for spec in graph.inputs}
    if isinstance(blank, dict):
        return {name: sample_array(graph, specs[name], zeros.shape, rng) for name, zeros in blank.items()}
    (name,) = inputs
    return sample_array(graph, specs[name], blank.shape, rng)


def _batch_axis(spec: TensorSpec) -> int | None:
    """Return the axis of rows where no name says it: the first, or the middle one of a state's three."""
    if len(spec.shape) == 3 and [isinstance(size, str) for size in spec.shape] == [False, True, False]:
        return 1
    return 0 if len(spec.shape) > 1 else None


def _values(graph: Graph, spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> Array:
    shape, dtype = shapes[spec.name], np.dtype(spec.dtype)
    bounds = list(_bounds(graph, spec.name))
    if "lengths" in bounds:
        return rng.integers(1, _steps(graph, spec, shapes) + 1, shape).astype(dtype)
    if chosen := [bound for bound in bounds if isinstance(bound, frozenset)]:
        return rng.choice(sorted(frozenset.union(*chosen)), shape).astype(dtype)
    limits = [bound for bound in bounds if isinstance(bound, int)]
    if limits:
        return rng.integers(0, max(1, min(limits)), shape).astype(dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _bounds(graph: Graph, value: str) -> Iterator[int | str | frozenset[int]]:
    """Yield the limits on the integers in `value`: an embedding's rows, "lengths", or numbers it is compared with."""
    seen, waiting = set[str](), [value]
    consumers = graph.consumers()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in consumers.get(name, []):
            if node.op in _MOVES and node.input(0) == name:
                waiting.append(node.output(0))
            elif (limit := _limit(graph, node, name)) is not None:
                yield limit


def _limit(graph: Graph, node: Node, name: str) -> int | str | frozenset[int] | None:
    if node.op == "Equal":
        numbers = [graph.constants[other] for other in node.inputs if other in graph.constants]
        whole = all(array.dtype.kind in "iu" for array in numbers)
        return frozenset(int(n) for array in numbers for n in array.reshape(-1)) if numbers and whole else None
    if node.op == "Gather" and node.input(1) == name:
        table = graph.constants.get(node.input(0))
        return None if table is None else int(table.shape[node.attrs.get("axis", 0)])
    if node.op == "OneHot" and node.input(0) == name:
        depth = graph.constants.get(node.input(1))
        return None if depth is None else int(depth.reshape(-1)[0])
    is_lengths = (node.op in RECURRENT_OPS and RecurrentInputs.of(node).lengths == name) or (
        node.op == "ReverseSequence" and node.input(1) == name
    )
    return "lengths" if is_lengths else None


def _steps(graph: Graph, lengths: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the least number of steps that any other input can have: its first two axes but the batch."""
    sizes = [
        size
        for spec in graph.inputs
        if len(spec.shape) >= 2
        for dim, size in zip(spec.shape[:2], shapes[spec.name][:2], strict=True)
        if dim not in lengths.shape
    ]
    return max(1, min(sizes, default=1))


def time_steps(graph: Graph, inputs: Mapping[str, Array]) -> int:
    """Return how many time steps the first recurrent layer runs for these inputs; 1 if it cannot be told."""
    from fastlstm.passes import shapes

    specs = tuple(TensorSpec(spec.name, inputs[spec.name].shape, spec.dtype) for spec in graph.inputs)
    infos = shapes.infer(graph.replace(inputs=specs))
    for node in graph.nodes:
        shape = infos[RecurrentInputs.of(node).x].shape if node.op in RECURRENT_OPS else None
        if shape and isinstance(shape[0], int):
            return shape[0]
    return 1
