"""The model: what `fastlstm.load` returns."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.errors import InputError, UnsupportedError, counted
from fastlstm.runtime import prepared
from fastlstm.runtime.native import Call
from fastlstm.target.machine import cores
from fastlstm.typing import Array

if TYPE_CHECKING:
    from fastlstm.executor import Executor
    from fastlstm.graph import Graph, TensorSpec
    from fastlstm.lowering.plan import Plan
    from fastlstm.reporting.profile import Profile
    from fastlstm.streaming.engines import Engine
    from fastlstm.streaming.pool import StreamPool
    from fastlstm.streaming.stream import Stream

__all__ = ["Model", "workers_of"]

NOTHING: Any = object()  # what stands for a first input that was not given
LONG = 1 << 20
"""Elements of an input from which on a sequence goes through in blocks, if the model streams."""


class Model:
    """A model ready to run.

    Parameters
    ----------
    graph : Graph
        A converter's result, which is optimised and planned here.
    threads : int or None
        The largest number of threads to use, including the calling one; None for all of the machine's cores. A call
        uses several only where that is faster; the bits are the same. Without POSIX threads, or if the process is
        limited to one processor, every call runs on its own thread.
    precision : str or mapping of str to str
        "float32", "int16" or "int8" (see `fastlstm.graph.quantise`), for all layers or by layer name. Layers that are
        already narrow, from a file or a quantised model, stay so.

    Notes
    -----
    A model holds no state and may be called from several threads at once. It can be pickled: the graph is stored, and
    compiled code is found or made again where it is loaded.

    Raises
    ------
    InputError
        If `threads` or `precision` is not one of these; a call raises it if its inputs do not fit.
    UnsupportedError
        If the graph is not valid, or holds what cannot run.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)
    >>> x = np.zeros((4, 5, 3), np.float32)
    >>> y, h, c = model(x)
    >>> model.run({"input": x}).keys()
    dict_keys(['output', 'h_n', 'c_n'])
    """

    _executor: Any  # an Executor, or what stands for one

    def __init__(self, graph: Graph, threads: int | None = 1, precision: str | Mapping[str, str] = "float32") -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads should be a positive integer, or None for all cores; got {threads!r}.")
        from fastlstm import passes  # a model whose first call is kept needs none of these
        from fastlstm.executor import Executor
        from fastlstm.graph.quantise import quantise
        from fastlstm.operators.validation import validated

        optimised = passes.optimise(validated(graph))
        narrow = optimised if precision == "float32" else quantise(optimised, precision)
        if optimised.notes != graph.notes:
            graph = graph.replace(notes=optimised.notes)
        self.graph = graph if narrow is optimised else narrow
        self.threads = threads
        self._streaming: dict[tuple[tuple[str, str], ...], Engine] = {}
        self._executor = Executor(narrow, workers_of(threads))

    @classmethod
    def waiting(cls, call: Call, threads: int | None, make: Callable[[], Model]) -> Model:
        """Return a model that runs by `call`, and becomes what `make` returns when something else is asked of it."""
        model = cls.__new__(cls)
        model.threads = threads
        model._streaming = {}
        model._executor = _Waiting(call, make)
        return model

    def keep_first_call(self, place: Path, notes: Sequence[str]) -> None:
        """Keep the first call in a file of the cache, with what loading warned of: see `fastlstm.runtime.prepared`."""
        self._executor.met = partial(prepared.keep, place, self._executor.graph, notes)

    @cached_property  # and not __getattr__, with which every attribute of every call is looked up the slow way
    def graph(self) -> Graph:
        """The graph as it was loaded or made."""
        self._planned()
        graph: Graph = vars(self)["graph"]
        return graph

    def _planned(self) -> Executor:
        """Return what runs the model, planned if it is not yet."""
        if isinstance(self._executor, _Waiting):
            vars(self).update(vars(self._executor.model()))
        executor: Executor = self._executor
        return executor

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs by name, shape and dtype; a dimension that may vary is a str."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs by name, shape and dtype."""
        return self.graph.outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed where the file leaves something open, and what else is worth knowing, in sentences."""
        return self.graph.notes

    @property
    def plan(self) -> Plan:
        """What runs, in which order and with which kernel. Prints as a table."""
        return self._planned().plan

    def run(self, inputs: Mapping[str, Any], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the model on whole sequences.

        Parameters
        ----------
        inputs : mapping of str to array
            One array per input, in the model's own layout. Other float and integer dtypes are converted where
            the input is float32; an integer input takes integers only.
        out : mapping of str to array, optional
            Arrays of the outputs' shapes and dtypes, to write to and return instead of new ones.

        Returns
        -------
        dict of str to array

        Raises
        ------
        InputError
            If a name, rank, size or dtype does not fit.
        """
        executor = self._executor
        quick = executor.quick
        known = quick(inputs, out)
        if known is None:
            known = executor.enter(inputs, out)
        return self._run(inputs, out) if known is None else known

    def _run(self, inputs: Any, out: Any) -> dict[str, Array]:
        """Run inputs that no entry knows."""
        if inputs is None and isinstance(out, Mapping):
            raise InputError("run takes the inputs alone, model.run({...}), and gives all outputs, in a dict by name.")
        from fastlstm.inputs import check_inputs, fill
        from fastlstm.runtime.foreign import as_arrays, as_given, tensors_among

        if tensors_among(inputs):
            tensors: dict[str, Array] = as_given(self.run(as_arrays(inputs, "The input"), as_arrays(out, "out")))
            return tensors if out is None else out
        values = check_inputs(self.graph.inputs, inputs)
        try:
            results = self._in_blocks(values) or self._planned().run(values)
        except MemoryError as error:
            raise InputError(f"There is not enough memory for a call with these inputs: {error}") from error
        made = {spec.name: result for spec, result in zip(self.graph.outputs, results, strict=True)}
        return made if out is None else fill(out, made)

    def _in_blocks(self, values: Mapping[str, Any]) -> list[Array] | None:
        """Return the outputs for a long sequence that a stream has taken block by block, None if none has."""
        longest = max((value.size for value in values.values() if isinstance(value, np.ndarray)), default=0)
        if longest < LONG or self._planned().tapes is None:
            return None
        from fastlstm.streaming.whole import in_blocks  # which imports all of streaming

        try:
            engine = self.streaming_engine()
        except UnsupportedError:  # it does not stream
            return None
        return in_blocks(engine, self.graph, values)

    def __call__(self, first: Any = NOTHING, /, *more: Any, out: Any = None, **named: Any) -> Any:
        """Run the model on whole sequences, with the inputs in order or by keyword.

        Parameters
        ----------
        first, *more : array
            The inputs in the model's order and layout: NumPy arrays or what can be read as one, PyTorch tensors, DLPack
            objects, columns of pandas, polars and Arrow.
        out : array, or tuple of arrays, optional
            Arrays of the outputs' shapes and dtypes, to write to and return instead of new ones.
        **named : array
            Inputs by name.

        Returns
        -------
        array, or tuple of arrays for several outputs
            PyTorch tensors if one came in.

        Raises
        ------
        InputError
            If a name, rank, size or dtype does not fit.
        """
        if out is None and not more and not named:  # no tuple of the one array that most models take
            quick = self._executor.quick  # a value and no method, which the interpreter finds faster
            known = quick(first)
            if known is not None:
                return known
        arrays = () if first is NOTHING else (first, *more)
        if named:
            arrays = self._placed(arrays, named)
        given = arrays[0] if len(arrays) == 1 else arrays
        known = self._executor.quick(given, out)
        if known is None:
            known = self._executor.enter(given, out)
        return self._called(arrays, out) if known is None else known

    def _called(self, arrays: tuple[Any, ...], out: Any) -> Any:
        """Run inputs in their order that no entry knows."""
        if len(arrays) != len(self.graph.inputs):
            names = [spec.name for spec in self.graph.inputs]
            wanted = f"{counted(len(names), 'input')} ({', '.join(names)})"
            raise InputError(f"The model takes {wanted}; got {len(arrays)}.")
        from fastlstm.runtime.foreign import as_arrays, as_given, tensors_among

        if tensors_among(arrays):
            results = as_given(self(*as_arrays(arrays, "The input"), out=as_arrays(out, "out")))
            return results if out is None else out
        named = {spec.name: array for spec, array in zip(self.graph.inputs, arrays, strict=True)}
        if out is None:
            results = tuple(self._run(named, None).values())
            return results[0] if len(results) == 1 else results
        shown = [spec.name for spec in self.graph.outputs]
        targets = (out,) if len(shown) == 1 else out
        if not isinstance(targets, tuple) or len(targets) != len(shown):
            raise InputError(f"out should be a tuple of arrays for {', '.join(shown)}; got {type(out).__name__}.")
        self._run(named, dict(zip(shown, targets, strict=True)))
        return out

    def _placed(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the inputs in order, some of them given by keyword."""
        from fastlstm.inputs import check_names

        names = [spec.name for spec in self.graph.inputs]
        given = {**dict(zip(names, arrays, strict=False)), **named}
        if len(given) < len(arrays) + len(named) or len(arrays) > len(names):
            raise InputError(f"An input was given twice; the model takes {', '.join(names)}.")
        check_names(self.graph.inputs, given)
        return tuple(given[name] for name in names)

    def stream(self, batch: int = 1, state: Mapping[str, str] | None = None) -> Stream:
        """Return a new stream: the model one frame at a time, with its state kept.

        Parameters
        ----------
        batch : int
            Rows that advance together.
        state : mapping of str to str, optional
            State inputs and the outputs that return them, ``{"h_in": "h_out"}``, where the model does not show which
            belong together.

        Returns
        -------
        Stream

        Raises
        ------
        UnsupportedError
            If the model cannot stream; the message names the layer and the reason.
        InputError
            If `state` names no inputs or outputs, or ones that differ in shape.
        """
        from fastlstm.streaming.stream import Stream

        return Stream(self, batch, state)

    def streams(self, capacity: int, state: Mapping[str, str] | None = None) -> StreamPool:
        """Return a pool of streams, any of which advance together.

        Parameters
        ----------
        capacity : int
            The largest number of streams open at once.
        state : mapping of str to str, optional
            As in `stream`.

        Returns
        -------
        StreamPool

        Raises
        ------
        UnsupportedError
            If the model cannot stream; the message names the layer and the reason.
        InputError
            If there is no memory for so many, or `state` does not fit.
        """
        from fastlstm.streaming.pool import StreamPool

        return StreamPool(self, capacity, state)

    def streaming_engine(self, state: Mapping[str, str] | None = None) -> Engine:
        """Return what a stream runs on; made once, so that streams share their weights."""
        from fastlstm.streaming.choosing import engine_for

        key = tuple(sorted((state or {}).items()))
        if key not in self._streaming:
            self._streaming[key] = engine_for(self, state)
        return self._streaming[key]

    def profile(self, inputs: Any, seconds: float = 1.0) -> Profile:
        """Measure how long each layer takes, on one thread.

        Parameters
        ----------
        inputs : mapping of str to array, or array
            As for `run`; if the model has one input, the array alone will do.
        seconds : float
            How long to measure.

        Returns
        -------
        Profile
            Prints as a table; ``profile.save("profile.svg")`` draws it.

        Raises
        ------
        InputError
            If an input does not fit.
        """
        from fastlstm.executor import Executor
        from fastlstm.inputs import check_inputs
        from fastlstm.reporting.profile import measure
        from fastlstm.runtime.clock import Clock
        from fastlstm.runtime.foreign import as_arrays

        alone = len(self.graph.inputs) == 1 and not isinstance(inputs, Mapping)
        named = {self.graph.inputs[0].name: inputs} if alone else inputs
        arrays = check_inputs(self.graph.inputs, as_arrays(named, "The input"))
        clock = Clock(self.plan.target)
        executor = Executor(self.plan.graph, clock=clock)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        layers = [node.name or node.first_output for node in executor.plan.graph.nodes]
        return measure(lambda: executor.run(arrays), clock, seconds, shapes, layers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a ``.fastlstm`` file: to a temporary file first, loaded again, then renamed.

        Raises
        ------
        UnsupportedError
            If the file could not be loaded again; nothing is written then.
        """
        from fastlstm.files import fileformat
        from fastlstm.verification import comparison

        fileformat.write(
            path, self.graph, check=lambda stored: comparison.check_stored(stored, Model(stored.graph).run)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.graph, self.threads)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        name = f" {self.graph.name}" if self.graph.name else ""
        return f"<fastlstm.Model{name} ({inputs}) -> ({outputs})>"

    def _repr_html_(self) -> str:
        from fastlstm.reporting.tables import facts_html

        facts = {"inputs": list(map(str, self.inputs)), "outputs": list(map(str, self.outputs))}
        if self.notes:
            facts["notes"] = list(self.notes)
        return facts_html(facts, f"fastlstm.Model {self.graph.name}")


class _Waiting:
    """Stands for the executor of a model that is not made yet."""

    def __init__(self, call: Call, make: Callable[[], Model]) -> None:
        self.quick, self._make, self._lock = call, make, threading.Lock()
        self._made: Model | None = None

    def enter(self, *_: Any) -> None:
        """Answer that no other entry is known."""

    def model(self) -> Model:
        """Return the model, made when this is first called."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def workers_of(threads: int | None) -> int:
    """Return how many threads a call may use: on one processor they would only take turns (1.45 times the time)."""
    processors = cores()
    return processors if threads is None or processors == 1 else threads
