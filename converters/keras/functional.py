"""The wiring of a functional Keras model: which layer is called on which outputs of which other calls.

Keras 3 writes a call as ``{"args": [...], "kwargs": {...}}`` with tensors as ``__keras_tensor__`` objects,
Keras 2 as a list of ``[layer, call, output, kwargs]``. Both become a `Call`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.converters.keras.order import CircleError, execution_order
from fastlstm.converters.keras.weights import layer_data, layer_name
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["Call", "Reference", "Wiring", "read_wiring"]


@dataclass(frozen=True)
class Reference:
    """One tensor: the layer that makes it, at which of its calls, as which of its outputs."""

    layer: str
    call: int
    output: int


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes
    ----------
    layer : dict
        The serialised layer.
    name : str
    number : int
        0 for the layer's first call in the model.
    args : list
        Positional arguments: `Reference`, plain values, slices, and lists of these.
    kwargs : dict
    """

    layer: dict[str, Any]
    name: str
    number: int
    args: list[Any]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Wiring:
    """A functional model's inputs, its calls in an order in which they can run, and its outputs."""

    inputs: list[Reference]
    calls: list[Call]
    outputs: list[Reference]


def read_wiring(config: Mapping[str, Any], major: int) -> Wiring:
    """Return the wiring of a functional model.

    Parameters
    ----------
    config : mapping
        The model's configuration.
    major : int
        Keras's major version.

    Raises
    ------
    FileFormatError
        If a tensor is referred to that nothing makes, or calls wait for one another.
    """
    name = str(config.get("name", "model"))
    layers = layer_data(config, name)
    parser = _Parser(layers, major)
    inputs = [parser.reference(item, False) for item in _endpoints(config.get("input_layers"), name)]
    outputs = [parser.reference(item, True) for item in _endpoints(config.get("output_layers"), name)]
    calls: list[Call] = []
    for layer in layers:
        nodes = layer.get("inbound_nodes")
        if not isinstance(nodes, list):
            raise FileFormatError(f"The layer '{layer_name(layer)}' of '{name}' should list its inbound_nodes.")
        for number, node in enumerate(nodes):
            args, kwargs = parser.node(node)
            calls.append(Call(layer, layer_name(layer), number, args, kwargs))
    known = {(reference.layer, 0) for reference in inputs}
    return Wiring(inputs, _in_order(calls, known, outputs, name), outputs)


class _Parser:
    def __init__(self, layers: Sequence[dict[str, Any]], major: int) -> None:
        self._major = major
        self._layers = {layer_name(layer): layer for layer in layers}

    def reference(self, item: Any, is_output: bool) -> Reference:
        """Return a ``[layer, call, output]`` triple as a Reference, calls counted from 0.

        A model inside a model has an own first call, from when it was made. Keras 2 counts it for every kind
        of model, Keras 3 for functional ones and only in the list of outputs.
        """
        layer, call, output = item[:3]
        if layer not in self._layers:
            raise FileFormatError(f"The model refers to a layer '{layer}' that it does not hold.")
        kind = self._layers[layer].get("class_name")
        counted = kind in ("Functional", "Model") and (is_output or self._major == 2)
        if counted or (kind == "Sequential" and self._major == 2):
            call -= 1
        return Reference(layer, call, output)

    def node(self, node: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments of one call."""
        if isinstance(node, dict):
            args, kwargs = node.get("args"), node.get("kwargs")
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise UnsupportedError(
                    "A layer is called with a dict of tensors, which is not supported; call it with a list."
                )
            return self._plain(args), self._plain(kwargs)
        if not isinstance(node, list) or not node:
            raise FileFormatError("An inbound node should be a list or an object.")
        entries = [node] if isinstance(node[0], str) else node
        args, kwargs = [], {}
        for entry in entries:
            if not _is_triple(entry):
                raise FileFormatError(f"An inbound node should name layer, call and output; got {entry!r:.80}.")
            args.append(entry[2] if entry[0] == "_CONSTANT_VALUE" else self.reference(entry, False))
            if len(entry) > 3 and isinstance(entry[3], dict):
                kwargs.update(self._legacy(entry[3]))
        return args, kwargs

    def _plain(self, value: Any) -> Any:
        """Return a value of Keras 3 with its tensors as References."""
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind, config = value.get("class_name"), value.get("config")
        if kind is None:
            return {key: self._plain(item) for key, item in value.items()}
        if kind == "__keras_tensor__" and isinstance(config, dict) and _is_triple(config.get("keras_history")):
            return self.reference(config["keras_history"], False)
        if kind == "__slice__" and isinstance(config, dict):
            return slice(config.get("start"), config.get("stop"), config.get("step"))
        if kind == "__tuple__" and isinstance(config, dict):
            return self._plain(config.get("value"))
        if kind == "__ellipsis__":
            return Ellipsis
        if kind == "__tensor__" and isinstance(config, dict):
            return _array(config)
        raise UnsupportedError(f"A layer is called with a value of class '{kind}', which is not supported.")

    def _legacy(self, value: Any) -> Any:
        """Return a keyword argument of Keras 2 with its tensors as References."""
        if _is_triple(value):
            if value[0] == "_CONSTANT_VALUE":
                return value[2]
            if value[0] in self._layers:
                return self.reference(value, False)
        if isinstance(value, list):
            return [self._legacy(item) for item in value]
        if isinstance(value, dict):
            if value == {"class_name": "__ellipsis__"}:
                return Ellipsis
            if set(value) == {"start", "stop", "step"}:
                return slice(value["start"], value["stop"], value["step"])
            return {key: self._legacy(item) for key, item in value.items()}
        return value


def _array(config: Mapping[str, Any]) -> Array:
    """Return a tensor that is written out as lists of numbers."""
    dtype = str(config.get("dtype"))
    try:
        array = np.asarray(config.get("value"))
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or dtype not in ("bool", "int32", "int64", "float32"):
        raise UnsupportedError(f"A layer is called with a tensor of dtype '{dtype}' that cannot be read.")
    return array.astype(dtype)


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and (isinstance(value[2], int) or value[0] == "_CONSTANT_VALUE")
    )


def _endpoints(value: Any, name: str) -> list[Any]:
    """Return the triples in a model's list of inputs or outputs, however it is nested."""
    if _is_triple(value):
        return [value]
    if isinstance(value, list):
        return [item for part in value for item in _endpoints(part, name)]
    if isinstance(value, dict):
        return [item for key in sorted(value) for item in _endpoints(value[key], name)]
    raise FileFormatError(f"The inputs and outputs of the model '{name}' should be layers; got {value!r:.80}.")


def _references(value: Any) -> Iterator[Reference]:
    """Yield the tensors in a nest of arguments, in the order in which Keras flattens it."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _references(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _in_order(
    calls: Sequence[Call], known: set[tuple[str, int]], outputs: Sequence[Reference], name: str
) -> list[Call]:
    """Return the calls in the order in which Keras runs them."""
    makes = {(call.name, call.number): index for index, call in enumerate(calls)}
    parents: list[list[int]] = []
    for call in calls:
        needs = [(r.layer, r.call) for r in _references([call.args, call.kwargs])]
        for need in needs:
            if need not in known and need not in makes:
                raise FileFormatError(
                    f"The layer '{call.name}' takes an output of call {need[1]} of '{need[0]}', which is not made."
                )
        parents.append([makes[need] for need in needs if need not in known])
    roots = [makes[r.layer, r.call] for r in outputs if (r.layer, r.call) in makes and (r.layer, r.call) not in known]
    try:
        return [calls[index] for index in execution_order(parents, [call.name for call in calls], roots)]
    except CircleError as circle:
        raise FileFormatError(
            f"The model '{name}' is wired in a circle through the layer '{calls[circle.index].name}'."
        ) from None
