"""The configuration of one Keras layer, read so that nothing in it can be overlooked.

A layer's converter asks for every key by name. `Config.finish` then refuses the layer if a key is left
that nobody asked for, unless it is one that only matters for training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["Config", "class_and_config", "is_custom", "policy_name"]

_TRAINING_KEYS = frozenset(
    {"activity_regularizer", "batch_input_shape", "batch_shape", "dtype", "name", "seed", "trainable"}
)
_TRAINING_SUFFIXES = ("_constraint", "_initializer", "_regularizer")
_MISSING: Any = object()
_LARGEST = 1 << 31


class Config:
    """The keys of one layer's configuration.

    Parameters
    ----------
    label : str
        The layer as messages name it, such as ``"LSTM layer 'encoder'"``.
    data : mapping
        The configuration as the file holds it.
    """

    def __init__(self, label: str, data: Mapping[str, Any]) -> None:
        self.label = label
        self._data = data
        self._unread = set(data)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key` as it stands in the file."""
        self._unread.discard(key)
        return self._data.get(key, default)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def integer(self, key: str, default: Any = _MISSING, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`; without a default the key must be there."""
        value = self.get(key, default)
        if value is _MISSING:
            raise FileFormatError(f"{self.label}: the key '{key}' is missing.")
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < _LARGEST:
            raise self._wrong(key, f"an integer of at least {minimum}", value)
        return value

    def integers(self, key: str, count: int | None, default: Any = _MISSING, minimum: int = 1) -> list[int]:
        """Return `count` integers (any number if None); a single one stands for all of them."""
        value = self.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value] * (count or 1)
        fits = isinstance(value, list | tuple) and (count is None or len(value) == count)
        if not fits or any(isinstance(v, bool) or not isinstance(v, int) or not minimum <= v < _LARGEST for v in value):
            raise self._wrong(key, f"{count or 'some'} integer(s) of at least {minimum}", value)
        return list(value)

    def number(self, key: str, default: Any = _MISSING) -> float:
        """Return a finite float."""
        value = self.get(key, default)
        if isinstance(value, dict):  # Keras 3 writes some numbers as {"class_name": "__numpy__", ...}
            value = value.get("config", {}).get("value") if isinstance(value.get("config"), dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a number", None if value is _MISSING else value)
        return float(value)

    def choice(self, key: str, options: Sequence[Any], default: Any = None) -> Any:
        """Return the value of `key`, which must be one of `options`: the others are not supported."""
        value = self.get(key, default)
        if not any(value is option or (value == option and type(value) is type(option)) for option in options):
            raise UnsupportedError(
                f"{self.label}: {key}={value!r} is not supported; supported: "
                f"{', '.join(repr(option) for option in options)}."
            )
        return value

    def ignore(self, *keys: str) -> None:
        """Name keys that make no difference at inference."""
        self._unread.difference_update(keys)

    def finish(self) -> None:
        """Refuse the layer if it has a key that was neither asked for nor known to matter in training only.

        Raises
        ------
        UnsupportedError
            The message names the layer and the keys.
        """
        left = sorted(key for key in self._unread if key not in _TRAINING_KEYS and not key.endswith(_TRAINING_SUFFIXES))
        if left:
            raise UnsupportedError(
                f"{self.label}: the option(s) {', '.join(repr(key) for key in left)} are not known; "
                "every option must be understood, because one that is ignored can change the numbers."
            )

    def _wrong(self, key: str, expected: str, value: Any) -> FileFormatError:
        return FileFormatError(f"{self.label}: {key} should be {expected}; got {value!r:.80}.")


def class_and_config(data: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return class name and configuration of a serialised layer.

    Raises
    ------
    FileFormatError
        If `data` is no serialised layer.
    """
    if isinstance(data, dict):
        name, config = data.get("class_name"), data.get("config")
        if isinstance(name, str) and isinstance(config, list):  # a Sequential of Keras 2.0 and 2.1
            config = {"name": where, "layers": config}
        if isinstance(name, str) and isinstance(config, dict):
            return name, config
    raise FileFormatError(f"{where}: expected a serialised Keras layer with class_name and config.")


def is_custom(data: Mapping[str, Any]) -> bool:
    """Return whether a serialised object says that it comes from outside Keras."""
    module, registered = data.get("module"), data.get("registered_name")
    if isinstance(registered, str) and ">" in registered:
        return True
    if not isinstance(module, str):
        return False
    return module.split(".")[0] not in ("keras", "tf_keras", "tensorflow", "builtins")


def policy_name(value: Any) -> str:
    """Return the name of a layer's dtype policy, in any of the forms that Keras writes."""
    if isinstance(value, dict):
        config = value.get("config")
        return str(config.get("name")) if isinstance(config, dict) else "?"
    return "float32" if value is None else str(value)
