"""What the axes of a model's inputs and outputs are: rows, time, or fixed.

The names of open dimensions give a first guess; a few runs on made-up rows then decide. They also show that rows do not
influence each other, so that scores do not depend on which rows are computed together: a model that returns other bits
for a row in a batch is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.errors import FastLSTMError, InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, RecurrentInputs, TensorSpec
from fastlstm.model import Model
from fastlstm.typing import Array
from fastlstm.verification.samples import sample_inputs

__all__ = ["InputPort", "OutputPort", "Ports", "find_ports", "takes_lengths"]

_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
_ROWS, _SHORT, _LONG = 3, 5, 8  # sizes of the trial runs, which two axes do not have by chance


@dataclass(frozen=True)
class InputPort:
    """An input and its axes of rows and of time; None for an axis that it does not have."""

    spec: TensorSpec
    rows: int | None
    time: int | None

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes of the other axes."""
        pairs = enumerate(self.spec.shape)
        return tuple(int(size) for axis, size in pairs if axis not in (self.rows, self.time))


@dataclass(frozen=True)
class OutputPort:
    """An output: its axis of rows, its axis whose size follows the input's time, and the sizes of the others."""

    name: str
    dtype: str
    rows: int
    time: int | None
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Ports:
    """A model as a function of rows.

    Attributes
    ----------
    inputs : dict of str to InputPort
        Those that columns are mapped to.
    lengths : tuple of str
        Inputs that take the number of steps of each row.
    constants : dict of str to InputPort
        Inputs that are the same for every row.
    values : dict of str to number or array
        Values of the constants as they were given; they are broadcast to the input's shape.
    outputs : dict of str to OutputPort
    batch : int or None
        The number of rows that a call takes, None for any.
    ragged : bool
        Whether rows of several lengths may share a call, with the bits that each has alone.
    """

    inputs: dict[str, InputPort]
    lengths: tuple[str, ...]
    constants: dict[str, InputPort]
    values: dict[str, Any]
    outputs: dict[str, OutputPort]
    batch: int | None
    ragged: bool

    def call(self, model: Model, arrays: Mapping[str, Array], rows: int, lengths: Array | None) -> dict[str, Array]:
        """Run the model on a batch: arrays in the model's layout, lengths [rows] where it takes them."""
        given = dict(arrays)
        for name, port in self.constants.items():
            shape = [rows if axis == port.rows else int(size) for axis, size in enumerate(port.spec.shape)]
            try:
                given[name] = np.broadcast_to(np.asarray(self.values[name], port.spec.dtype), shape)
            except (ValueError, TypeError) as error:
                raise InputError(f"The constant for input {port.spec} does not fit it: {error}.") from error
        for name in self.lengths:
            dtype = next(spec.dtype for spec in model.inputs if spec.name == name)
            given[name] = np.asarray(lengths, dtype)
        return model.run(given)


def find_ports(model: Model, mapped: set[str], constants: Mapping[str, Any], wanted: set[str] | None = None) -> Ports:
    """Return what a model's axes mean.

    Parameters
    ----------
    model : Model
    mapped : set of str
        Inputs that columns are mapped to.
    constants : mapping of str to number or array
        Values of inputs that are the same for every row.
    wanted : set of str, optional
        The outputs to look at; all if not given.

    Raises
    ------
    InputError
        If a constant does not fit.
    UnsupportedError
        If the model is not a function of single rows, or its axes cannot be identified.
    """
    graph = model.graph
    for spec in graph.inputs:
        if "..." in spec.shape or not spec.dtype or spec.dtype == "sequence":
            raise UnsupportedError(f"Input {spec} does not say its shape and type, so rows cannot be put into it.")
    lengths = tuple(
        spec.name
        for spec in graph.inputs
        if spec.name not in mapped and spec.name not in constants and takes_lengths(graph, spec.name)
    )
    axes = {spec.name: _axes(spec, graph) for spec in graph.inputs}
    for name in constants:
        if name not in axes:
            raise InputError(f"There is no input '{name}' for a constant; the model's are {', '.join(axes)}.")
        if axes[name][1] is not None:
            raise InputError(f"Input {_spec(graph, name)} changes with time: map a column to it, not a constant.")
    fixed = {
        int(spec.shape[rows])
        for spec in graph.inputs
        if (rows := axes[spec.name][0]) is not None and isinstance(spec.shape[rows], int)
    }
    if len(fixed) > 1:
        raise UnsupportedError(f"The inputs take {sorted(fixed)} rows a call; they should agree.")
    ports = Ports(
        {name: InputPort(_spec(graph, name), *axes[name]) for name in axes if name in mapped},
        lengths,
        {name: InputPort(_spec(graph, name), *axes[name]) for name in axes if name in constants},
        dict(constants),
        {},
        fixed.pop() if fixed else None,
        bool(lengths),
    )
    return _tried(model, ports, wanted)


def _spec(graph: Graph, name: str) -> TensorSpec:
    return next(spec for spec in graph.inputs if spec.name == name)


def takes_lengths(graph: Graph, name: str) -> bool:
    """Whether the input holds a recurrent layer's lengths, possibly through casts."""
    consumers, waiting = graph.consumers(), [name]
    while waiting:
        value = waiting.pop()
        for node in consumers.get(value, []):
            if node.op in RECURRENT_OPS and RecurrentInputs.of(node).lengths == value:
                return True
            if node.op in ("Cast", "Identity"):
                waiting.append(node.output(0))
    return False


def _axes(spec: TensorSpec, graph: Graph) -> tuple[int | None, int | None]:
    """Return the axes of rows and of time as suggested by the dimensions' names, or else their positions."""
    names = [d for s in graph.inputs for d in s.shape if isinstance(d, str)]
    named = any(_BATCH.search(name) for name in names)
    rows: int | None = None
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and _BATCH.search(size):
            rows = axis
            break
    if rows is None and not named and spec.shape:
        open_axes = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
        middle = len(spec.shape) == 3 and open_axes == [1] and spec.shape[0] != 1
        ones = [axis for axis, size in enumerate(spec.shape[:2]) if size == 1 and len(spec.shape) > 1]
        rows = 1 if middle else ones[0] if ones and len(open_axes) < 2 else 0 if open_axes else None
    elif rows is None and len(spec.shape) > 1 and spec.shape[0] == 1:
        rows = 0
    times = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str) and axis != rows]
    if len(times) > 1:
        raise UnsupportedError(f"Input {spec} leaves more than rows and one time axis open, which cannot be scored.")
    return rows, times[0] if times else None


# --- trial runs ----------------------------------------------------------------------------------------------


def _tried(model: Model, ports: Ports, wanted: set[str] | None) -> Ports:
    """Return the ports with the outputs that trial runs show."""
    rows = ports.batch or _ROWS
    short, long = _trial(model, ports, rows, _SHORT), _trial(model, ports, rows, _LONG)
    single = short if ports.batch else _trial(model, ports, 1, _SHORT)
    outputs = {}
    for spec in model.outputs:
        if wanted is None or spec.name in wanted:
            outputs[spec.name] = _output(spec.name, single[1], short[1], long[1], ports.batch)
    found = replace(ports, outputs=outputs)
    if not ports.batch:
        _check_alone(model, found, *short)
    if any(port.rows is None for port in found.inputs.values()):
        found = replace(found, batch=1)  # a call takes one value of that input, and each row has its own
    if found.ragged and not (found.batch is None and _holds_ragged(model, found, *long)):
        found = replace(found, ragged=False)
    return found


Trial = tuple[dict[str, Array], dict[str, Array]]


def _trial(model: Model, ports: Ports, rows: int, steps: int) -> Trial:
    """Run made-up rows; return the inputs and the outputs."""
    sizes: dict[str, int] = {}
    for port in ports.inputs.values():
        for axis, size in enumerate(port.spec.shape):
            if isinstance(size, str):
                sizes[size] = rows if axis == port.rows else steps
    for spec in model.graph.inputs:
        for size in spec.shape:
            if isinstance(size, str):
                sizes.setdefault(size, rows)
    arrays = sample_inputs(model.graph, sizes)
    arrays = {name: arrays[name] for name in ports.inputs}
    try:
        return arrays, ports.call(model, arrays, rows, np.full(rows, steps))
    except FastLSTMError as error:
        raise UnsupportedError(f"The model does not run on {rows} made-up row(s) of {steps} steps: {error}") from error


def _output(
    name: str, single: Mapping[str, Array], short: Mapping[str, Array], long: Mapping[str, Array], batch: int | None
) -> OutputPort:
    one, array, other = single[name], short[name], long[name]
    if not one.ndim == array.ndim == other.ndim:
        raise UnsupportedError(f"Output '{name}' has other axes for other rows; it cannot be a column.")
    differs = [axis for axis in range(array.ndim) if one.shape[axis] != array.shape[axis]]
    if batch is not None:
        differs = [axis for axis in range(array.ndim) if array.shape[axis] == batch][:1]
    grows = [axis for axis in range(array.ndim) if array.shape[axis] != other.shape[axis]]
    if len(differs) != 1 or len(grows) > 1 or differs == grows:
        raise UnsupportedError(
            f"Output '{name}' has no axis of rows ({list(one.shape)} for one row, {list(array.shape)} for "
            f"{len(array)}): choose among the outputs (outputs=[...], --output NAME)."
        )
    time = grows[0] if grows else None
    dims = tuple(size for axis, size in enumerate(array.shape) if axis not in (differs[0], time))
    return OutputPort(name, str(array.dtype), differs[0], time, dims)


def _check_alone(model: Model, ports: Ports, arrays: Mapping[str, Array], together: Mapping[str, Array]) -> None:
    """Raise UnsupportedError unless every row has the same bits alone as in a batch."""
    for row in range(_ROWS):
        alone = ports.call(model, _rows_of(ports, arrays, [row]), 1, np.full(1, _SHORT))
        for name, port in ports.outputs.items():
            if not _same(alone[name], together[name].take([row], axis=port.rows)):
                raise UnsupportedError(
                    f"Output '{name}' of a row depends on the rows it is computed with, or its axis of rows is not "
                    "where the names of the model's dimensions say: rows cannot be scored one by one."
                )


def _holds_ragged(model: Model, ports: Ports, arrays: Mapping[str, Array], whole: Mapping[str, Array]) -> bool:
    """Whether a shorter row has the same bits in a padded batch, and every output shows which steps are its own."""
    if any(o.time is not None and whole[n].shape[o.time] != _LONG for n, o in ports.outputs.items()):
        return False
    lengths = np.array([_LONG, _SHORT, 1])
    padded = ports.call(model, arrays, _ROWS, lengths)
    for row, length in enumerate(lengths):
        cut = {
            name: array.take(range(length), axis=ports.inputs[name].time)
            if ports.inputs[name].time is not None
            else array
            for name, array in _rows_of(ports, arrays, [row]).items()
        }
        alone = ports.call(model, cut, 1, lengths[row : row + 1])
        for name, port in ports.outputs.items():
            mine = padded[name].take([row], axis=port.rows)
            if port.time is not None:
                mine = mine.take(range(length), axis=port.time)
            if not _same(alone[name], mine):
                return False
    return True


def _rows_of(ports: Ports, arrays: Mapping[str, Array], rows: list[int]) -> dict[str, Array]:
    return {
        name: array if (axis := ports.inputs[name].rows) is None else array.take(rows, axis=axis)
        for name, array in arrays.items()
    }


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()
