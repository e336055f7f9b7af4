"""What the converter of one Keras layer works with, and how a kind of layer is described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastlstm.converters.keras.config import Config, class_and_config
from fastlstm.converters.keras.tensor import Emitter, Tensor
from fastlstm.converters.keras.weights import Slot, Weights
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["Arguments", "Kind", "Layer", "Translator", "flatten", "no_slots"]


class Translator(Protocol):
    """The model around a layer: it calls layers inside layers, and knows which tensors have lost their masks."""

    def call(self, data: dict[str, Any], owner: str, inputs: Sequence[Tensor], arguments: Arguments) -> list[Tensor]:
        """Return the outputs of the serialised layer `data`, whose weights are at `owner`."""

    def take_mask(self, x: Tensor) -> None:
        """Take the mask away from a tensor: layers that read it from now on see none."""


class Arguments:
    """The keyword arguments of a layer's call: tensors, lists of tensors and plain values."""

    def __init__(self, label: str, values: Mapping[str, Any]) -> None:
        self.label = label
        self._values = {key: value for key, value in values.items() if key != "training" and value is not None}

    def take(self, key: str, default: Any = None) -> Any:
        """Return the argument `key` and count it as understood."""
        return self._values.pop(key, default)

    def tensor(self, key: str) -> Tensor | None:
        """Return the argument `key`, which must be a tensor if it is there."""
        value = self.take(key)
        if value is None or isinstance(value, Tensor):
            return value
        raise UnsupportedError(f"{self.label}: the argument '{key}' should be a tensor; got {value!r:.80}.")

    def masks(self, key: str, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the masks of `inputs`: those under the argument `key`, or those that travel with them."""
        given = self.take(key)
        if given is None:
            return [x.mask for x in inputs]
        listed = given if isinstance(given, list) else [given]
        if len(listed) > len(inputs) or any(mask is not None and not isinstance(mask, Tensor) for mask in listed):
            raise UnsupportedError(f"{self.label}: the argument '{key}' should hold a mask for each input.")
        return [*listed, *(x.mask for x in inputs[len(listed) :])]

    def tensors(self, key: str) -> list[Tensor]:
        """Return the argument `key`, a tensor or a nest of lists of tensors, as a flat list."""
        return flatten(self.take(key), f"{self.label}: the argument '{key}'")

    def flag(self, key: str) -> bool:
        """Return the argument `key`, a boolean; False if it is absent."""
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise UnsupportedError(f"{self.label}: the argument '{key}' should be true or false.")
        return value

    def finish(self) -> None:
        """Refuse the call if it has arguments that nobody asked for."""
        if self._values:
            raise UnsupportedError(
                f"{self.label}: the argument(s) {', '.join(repr(key) for key in sorted(self._values))} "
                "of its call are not supported."
            )


@dataclass
class Layer:
    """One layer at one of its calls.

    Attributes
    ----------
    kind : str
        The class, such as ``"LSTM"``.
    name : str
    owner : str
        Where its weights are.
    config : Config
    emit : Emitter
    weights : Weights
    major : int
        The major version of Keras that wrote the model.
    translator : Translator
    arguments : Arguments
    """

    kind: str
    name: str
    owner: str
    config: Config
    emit: Emitter
    weights: Weights
    major: int
    translator: Translator
    arguments: Arguments

    @property
    def label(self) -> str:
        """The layer as messages name it."""
        return self.config.label

    def weight(self, name: str, shape: Sequence[int], owner: str = "") -> Array:
        """Return a variable as float32, after checking its shape.

        Raises
        ------
        FileFormatError
            If its shape is another.
        """
        array = self.weights.get(f"{self.owner}/{owner}" if owner else self.owner, name)
        if array is None:
            raise FileFormatError(f"{self.label}: the file holds no '{name}' for it.")
        if array.shape != tuple(shape):
            raise FileFormatError(
                f"{self.label}: '{name}' should have the shape {list(shape)}; got {list(array.shape)}."
            )
        return np.ascontiguousarray(array, np.float32)

    def constant(self, name: str, array: Array) -> Tensor:
        """Return a constant made from this layer's weights."""
        return self.emit.array(np.ascontiguousarray(array, np.float32), f"{self.name}.{name}")

    def inner(self, data: Any, owner: str) -> Layer:
        """Return a layer inside this one, such as a cell."""
        kind, config = class_and_config(data, self.label)
        name = f"{self.name}/{config.get('name', owner)}"
        label = f"{kind} '{config.get('name', owner)}' in {self.label}"
        path = f"{self.owner}/{owner}" if owner else self.owner
        return Layer(
            kind, name, path, Config(label, config), self.emit, self.weights, self.major, self.translator,
            Arguments(label, {}),
        )  # fmt: skip

    def one(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the only input.

        Raises
        ------
        UnsupportedError
            If there are more or none.
        """
        if len(inputs) != 1:
            raise UnsupportedError(f"{self.label}: one input was expected; got {len(inputs)}.")
        return inputs[0]

    def channels_first(self) -> bool:
        """Return whether the option data_format puts the channels before the axes of space."""
        return bool(self.config.choice("data_format", ["channels_last", "channels_first", None]) == "channels_first")

    def rank(self, x: Tensor, *ranks: int) -> Tensor:
        """Return `x` if its rank is one of `ranks`.

        Raises
        ------
        FileFormatError
            If it is not.
        """
        if x.rank not in ranks:
            raise FileFormatError(
                f"{self.label}: its input should have {' or '.join(map(str, ranks))} dimensions; "
                f"got the shape [{', '.join(map(str, x.shape))}]."
            )
        return x


Convert = Callable[[Layer, Sequence[Tensor]], list[Tensor]]
"""Adds a layer's nodes and returns its outputs, with the masks that Keras gives them."""

Slots = Callable[[Mapping[str, Any], int], list[Slot]]
"""A layer's configuration and Keras's major version -> its variables, in the order Keras creates them."""


def no_slots(_config: Mapping[str, Any], _major: int) -> list[Slot]:
    """Return the variables of a layer without any."""
    return []


@dataclass(frozen=True)
class Kind:
    """How one class of layer is converted.

    Attributes
    ----------
    convert : callable
    slots : callable
    options : str
        What is supported of its options, for the feature table.
    refused : str
        What is not.
    """

    convert: Convert
    slots: Slots = field(default=no_slots)
    options: str = "all"
    refused: str = ""


def flatten(value: Any, where: str) -> list[Tensor]:
    """Return the tensors in a nest of lists, in order; anything else is refused, None is left out."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in flatten(item, where)]
    raise UnsupportedError(f"{where} should hold tensors; got {value!r:.80}.")
