"""Which array of a Keras file belongs to which variable of which layer.

Every kind of layer declares its variables in the order in which Keras creates them (`Slot`). From the
declarations of a whole model both layouts follow: in a ``.keras`` file a variable has the path of the object
that owns it, in an ``.h5`` file each layer of the model has one flat list, trainable variables first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm.converters.keras.config import class_and_config
from fastlstm.converters.keras.file import KerasFile
from fastlstm.errors import FileFormatError, UnsupportedError, counted
from fastlstm.typing import Array

__all__ = ["MODELS", "Slot", "Weights", "group_names", "is_operation", "layer_data"]

MODELS = frozenset({"Sequential", "Functional", "Model"})
"""Classes of models, which may stand inside one another."""

_RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN"})
_DEEPEST = 24


@dataclass(frozen=True)
class Slot:
    """One variable of a layer.

    Attributes
    ----------
    name : str
        As Keras calls it, such as ``"kernel"``.
    owner : str
        The path of the object inside the layer that owns it, such as ``"cell"``; ``""``: the layer itself.
    trainable : bool
    """

    name: str
    owner: str = ""
    trainable: bool = True


class Weights:
    """The variables of a model, by the path of their owner.

    Parameters
    ----------
    file : KerasFile
    slots : mapping of str to callable
        For every supported class of layer without layers inside: its configuration -> its slots.

    Raises
    ------
    FileFormatError
        If an array is missing or one is left over.
    """

    def __init__(self, file: KerasFile, slots: Mapping[str, Any]) -> None:
        self._slots = slots
        self._major = file.major
        self._values: dict[tuple[str, str], Array] = {}
        if file.layers is not None:
            self._assign_lists(file.config, file.layers)
        else:
            self._assign_groups(file.config, file.groups or {}, file.names or {})

    def get(self, owner: str, name: str) -> Array | None:
        """Return the variable `name` of the object at `owner`, None if the model has no such variable."""
        return self._values.get((owner, name))

    def _assign_groups(
        self, model: dict[str, Any], groups: Mapping[str, list[Array]], names: Mapping[str, str]
    ) -> None:
        declared: dict[str, list[str]] = {}
        for owner, slot, _ in self._declare(model, "", True, 0):
            declared.setdefault(owner, []).append(slot.name)
        left = set(groups)
        for owner, slot_names in declared.items():
            found = _spelling(owner, groups)
            arrays = groups.get(found, [])
            if len(arrays) != len(slot_names):
                raise FileFormatError(
                    f"The weights of '{owner}' should be {', '.join(slot_names)}; "
                    f"the file holds {counted(len(arrays), 'array')} for it."
                )
            left.discard(found)
            for name, array in zip(slot_names, arrays, strict=True):
                self._values[owner, name] = array
        for group in sorted(left):
            if groups[group]:
                raise FileFormatError(
                    f"The file holds {counted(len(groups[group]), 'array')} for '{group}', "
                    "which no layer of the model uses."
                )
        self._check_names(model, names)

    def _check_names(self, model: dict[str, Any], names: Mapping[str, str]) -> None:
        for group, data in group_names(model, ""):
            stated = names.get(group, "")
            expected = layer_name(data)
            if stated and expected and stated != expected:
                raise FileFormatError(
                    f"The weights in '{group}' are those of '{stated}', but the layer there is '{expected}'."
                )

    def _assign_lists(self, model: dict[str, Any], layers: Mapping[str, list[tuple[str, Array]]]) -> None:
        left = {name for name, arrays in layers.items() if arrays}
        for group, data in group_names(model, ""):
            name = layer_name(data)
            slots = list(self._declare(data, group, True, 1))
            slots.sort(key=lambda entry: not entry[2])  # stable: trainable first, each in its order
            arrays = layers.get(name, [])
            left.discard(name)
            if len(arrays) != len(slots):
                raise FileFormatError(
                    f"The layer '{name}' should have the {len(slots)} weights "
                    f"{', '.join(slot.name for _, slot, _ in slots)}; the file holds {len(arrays)} for it."
                )
            for (owner, slot, _), (stated, array) in zip(slots, arrays, strict=True):
                if not _same_variable(slot.name, stated):
                    raise FileFormatError(
                        f"The layer '{name}' should have '{slot.name}' where the file holds '{stated}'."
                    )
                self._values[owner, slot.name] = array
        if left:
            raise FileFormatError(f"The file holds weights of '{sorted(left)[0]}', which the model lacks.")

    def _declare(
        self, data: dict[str, Any], owner: str, trainable: bool, depth: int
    ) -> Iterator[tuple[str, Slot, bool]]:
        """Yield owner, slot and whether it is trained, for all variables of a layer or model."""
        if depth > _DEEPEST:
            raise UnsupportedError(f"Models inside models are read {_DEEPEST} deep; '{owner}' is deeper.")
        if is_operation(data):
            return
        kind, config = class_and_config(data, owner)
        trainable = trainable and config.get("trainable", True) is not False
        inner: Sequence[tuple[str, dict[str, Any]]]
        if kind in MODELS:
            inner = list(group_names(data, owner))
        else:
            inner = [(f"{owner}/{path}", child) for path, child in inner_layers(kind, config, owner)]
        for path, child in inner:
            yield from self._declare(child, path, trainable, depth + 1)
        if not inner and kind in self._slots:
            for slot in self._slots[kind](config, self._major):
                path = f"{owner}/{slot.owner}" if slot.owner else owner
                yield path, slot, trainable and slot.trainable


def layer_data(config: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the serialised layers of a model's configuration."""
    layers = config.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise FileFormatError(f"The model '{where}' should have a list of layers.")
    return layers


def is_operation(data: Mapping[str, Any]) -> bool:
    """Return whether a serialised node of a model is a bare operation of Keras 3, such as ``x + y``."""
    module, config = data.get("module"), data.get("config")
    if isinstance(module, str):
        return module.startswith(("keras.src.ops", "keras.ops"))
    if str(data.get("class_name")).startswith("SpatialDropout"):  # a layer that does not say whether it is trained
        return False
    layer_keys = ("trainable", "layers", "batch_shape", "batch_input_shape")
    return isinstance(config, dict) and not any(key in config for key in layer_keys)


def layer_name(data: Mapping[str, Any]) -> str:
    """Return the name of a serialised layer."""
    config = data.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return str(data.get("name", name) or "")


def group_names(model: dict[str, Any], owner: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and data of the layers of a model, with the paths that Keras makes from their classes."""
    _, config = class_and_config(model, owner or "model")
    used: dict[str, int] = {}
    for data in layer_data(config, owner):
        if is_operation(data):
            continue
        kind, _ = class_and_config(data, owner)
        name = _snake(kind)
        used[name] = used.get(name, -1) + 1
        suffix = f"_{used[name]}" if used[name] else ""
        yield f"{owner}/layers/{name}{suffix}".lstrip("/"), data


def inner_layers(kind: str, config: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return path and data of the layers inside a wrapper: TimeDistributed, Bidirectional, RNN and its cells."""

    def inner(key: str) -> dict[str, Any]:
        data = config.get(key)
        if not isinstance(data, dict):
            raise FileFormatError(f"'{where}' should have a layer under '{key}'.")
        return data

    if kind == "TimeDistributed":
        return [("layer", inner("layer"))]
    if kind == "Bidirectional":
        backward = inner("backward_layer") if config.get("backward_layer") is not None else inner("layer")
        return [("forward_layer", inner("layer")), ("backward_layer", backward)]
    if kind == "RNN":
        return [("cell", inner("cell"))]
    if kind == "StackedRNNCells":
        cells = config.get("cells")
        if not isinstance(cells, list):
            raise FileFormatError(f"'{where}' should have a list of cells.")
        used: dict[str, int] = {}
        found = []
        for data in cells:
            name = _snake(class_and_config(data, where)[0])
            used[name] = used.get(name, -1) + 1
            found.append((f"cells/{name}" + (f"_{used[name]}" if used[name] else ""), data))
        return found
    return []


def _snake(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _spelling(owner: str, groups: Mapping[str, list[Array]]) -> str:
    """Return `owner` as the file spells it: Keras 2 puts an underscore before the parts of an attention."""
    folder, _, last = owner.rpartition("/")
    private = f"{folder}/_{last}"
    return private if owner not in groups and private in groups else owner


def _same_variable(name: str, stated: str) -> bool:
    last = re.sub(r"(_\d+)?(:\d+)?$", "", stated.rpartition("/")[2])
    return name == last or name.endswith(f"_{last}")
