"""The model: what `fastlstm.load` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastlstm import passes
from fastlstm.errors import InputError
from fastlstm.executor import Executor
from fastlstm.graph import Graph, TensorSpec
from fastlstm.machine import cores
from fastlstm.plan import Plan
from fastlstm.quantise import quantise
from fastlstm.validation import validated

if TYPE_CHECKING:
    from fastlstm.streaming.engines import Engine
    from fastlstm.streaming.pool import StreamPool
    from fastlstm.streaming.stream import Stream

__all__ = ["Model"]

Array = npt.NDArray[Any]


class Model:
    """A model ready to run.

    Parameters
    ----------
    graph : Graph
        As a converter made it; it is optimised and planned here.
    threads : int or None
        Threads to use at most, the calling one counted; None asks for the machine's cores. A call uses more than
        one where that pays off; the bits are the same. Without POSIX threads, or where the process may use one
        processor only, every call runs on its own thread.
    precision : str or mapping of str to str
        "float32", "int16" or "int8" (see `fastlstm.quantise`), for all layers or by layer name. Layers that are
        narrow already, out of a file or a quantised model, stay so.

    Notes
    -----
    A model holds no state and may be called from several threads at once. It pickles: the graph travels, the
    compiled code is found or made again where it lands.
    """

    def __init__(self, graph: Graph, threads: int | None = 1, precision: str | Mapping[str, str] = "float32") -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads should be a whole number from 1 on, or None for all cores; got {threads!r}.")
        optimised = passes.optimise(validated(graph))
        narrow = optimised if precision == "float32" else quantise(optimised, precision)
        if optimised.notes != graph.notes:
            graph = graph.replace(notes=optimised.notes)
        self.graph = graph if narrow is optimised else narrow
        self.threads = threads
        self._streaming: dict[tuple[tuple[str, str], ...], Engine] = {}
        self._executor = Executor(narrow, _workers(threads))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs by name, shape and dtype; a dimension that may vary is a str."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs by name, shape and dtype."""
        return self.graph.outputs

    @property
    def plan(self) -> Plan:
        """What runs, in which order, by which kernel; it prints as a table."""
        return self._executor.plan

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the model on whole sequences.

        Parameters
        ----------
        inputs : mapping of str to array
            One array an input, in the model's own layout. Other float and integer dtypes are converted where
            the input is float32; an integer input takes integers only.

        Returns
        -------
        dict of str to array

        Raises
        ------
        InputError
            If a name, rank, size or dtype does not fit.
        """
        values = check_inputs(self.graph.inputs, inputs)
        results = self._executor.run(values)
        return {spec.name: result for spec, result in zip(self.graph.outputs, results, strict=True)}

    def __call__(self, *arrays: Any) -> Any:
        """Run with the inputs in order; one output comes as the array, several as a tuple."""
        if len(arrays) == 1:
            known = self._executor.quick(arrays[0])
            if known is not None:
                return known
        if len(arrays) != len(self.graph.inputs):
            names = ", ".join(spec.name for spec in self.graph.inputs)
            raise InputError(f"The model takes {len(self.graph.inputs)} input(s) ({names}); got {len(arrays)}.")
        named = {spec.name: array for spec, array in zip(self.graph.inputs, arrays, strict=True)}
        results = tuple(self.run(named).values())
        return results[0] if len(results) == 1 else results

    def stream(self, batch: int = 1, state: Mapping[str, str] | None = None) -> Stream:
        """Return a new `Stream` of `batch` rows; `state` pairs state inputs with outputs by hand."""
        from fastlstm.streaming.stream import Stream

        return Stream(self, batch, state)

    def streams(self, capacity: int, state: Mapping[str, str] | None = None) -> StreamPool:
        """Return a `StreamPool`: up to `capacity` streams that advance together, any of them at a time."""
        from fastlstm.streaming.pool import StreamPool

        return StreamPool(self, capacity, state)

    def streaming_engine(self, state: Mapping[str, str] | None = None) -> Engine:
        """Return what a stream runs on; made once, so that streams share their weights."""
        from fastlstm.streaming.choosing import engine_for

        key = tuple(sorted((state or {}).items()))
        if key not in self._streaming:
            self._streaming[key] = engine_for(self, state)
        return self._streaming[key]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a ``.fastlstm`` file: aside first, loaded again, then renamed.

        Raises
        ------
        UnsupportedError
            If the file could not be loaded again; nothing is written then.
        """
        from fastlstm import fileformat, verify

        fileformat.write(path, self.graph, check=lambda stored: verify.check_stored(stored, Model(stored.graph).run))

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.graph, self.threads)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<fastlstm.Model {self.graph.name or ''} ({inputs}) -> ({outputs})>"


def _workers(threads: int | None) -> int:
    """Return how many threads a call may use: on one processor they would only take turns (1.45 times the time)."""
    processors = cores()
    return processors if threads is None or processors == 1 else threads


def check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Return the inputs as arrays of the declared dtypes, ranks and sizes; InputError says what does not fit."""
    names = [spec.name for spec in specs]
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"run takes the inputs by name, a dict of {', '.join(names)}; got {type(inputs).__name__}. "
            "A call of the model itself takes arrays in order."
        )
    unknown = [name for name in inputs if name not in names]
    missing = [name for name in names if name not in inputs]
    if unknown or missing:
        raise InputError(
            f"Expected the inputs {', '.join(names)}; "
            + "; ".join(
                [f"there is no input '{name}'" for name in unknown] + [f"'{name}' is missing" for name in missing]
            )
            + "."
        )
    sizes: dict[str, tuple[int, str]] = {}
    return {
        spec.name: _sequence(spec, inputs[spec.name])
        if spec.dtype == "sequence"
        else _checked(spec, inputs[spec.name], sizes)
        for spec in specs
    }


def _sequence(spec: TensorSpec, value: Any) -> Any:
    """Return a sequence of tensors as a list of arrays."""
    if not isinstance(value, list | tuple):
        raise InputError(f"Input {spec}: expected a list of arrays; got {type(value).__name__}.")
    return [np.asarray(item) for item in value]


def _checked(spec: TensorSpec, value: Any, sizes: dict[str, tuple[int, str]]) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"Input {spec} cannot be read as an array: {error}.") from error
    wanted = np.dtype(spec.dtype) if spec.dtype else array.dtype
    if array.dtype != wanted:
        allowed = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(wanted.kind, "")
        if array.dtype.kind not in allowed:
            raise InputError(f"Input {spec}: expected {wanted}; got {array.dtype}. Convert it first.")
        array = array.astype(wanted)
    if "..." in spec.shape:
        return array
    if array.ndim != len(spec.shape):
        raise InputError(f"Input {spec}: expected {len(spec.shape)} dimensions; got {list(array.shape)}.")
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise InputError(f"Input {spec}: expected {dim} where {list(array.shape)} has {size}.")
        elif dim:
            known = sizes.setdefault(dim, (size, spec.name))
            if known[0] != size:
                raise InputError(
                    f"Input {spec}: '{dim}' is {size} here and {known[0]} in '{known[1]}'; it has to be one number."
                )
    return array
