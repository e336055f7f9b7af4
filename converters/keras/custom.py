"""Activations of the user's own, said to be known ones: ``custom_objects={"mine>snake": "silu"}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastlstm.converters.keras.activations import ACTIVATION_NAMES
from fastlstm.errors import InputError, nearest

__all__ = ["with_known"]


def with_known(config: dict[str, Any], custom_objects: Mapping[str, str]) -> dict[str, Any]:
    """Return a model's configuration with known activations in the place of the user's own.

    Parameters
    ----------
    config : dict
        A serialised model.
    custom_objects : mapping of str to str
        The names of functions as the file has them, and those of Keras's functions that they are.

    Raises
    ------
    InputError
        If a function is said to be one that is not known, or the model has none of that name.
    """
    for own, known in custom_objects.items():
        if known not in ACTIVATION_NAMES:
            raise InputError(
                f"custom_objects: '{own}' should be a known activation; '{known}' is not, "
                f"{nearest(known, ACTIVATION_NAMES)}."
            )
    found = dict(_activations(config))
    for own in custom_objects:
        if own not in found.values():
            names = sorted({name for name in found.values() if name not in ACTIVATION_NAMES})
            raise InputError(
                f"custom_objects: the model has no activation '{own}'; of your own it has {', '.join(names) or 'none'}."
            )
    renamed: dict[str, Any] = _renamed(config, custom_objects)
    return renamed


def _renamed(value: Any, known: Mapping[str, str], is_activation: bool = False) -> Any:
    if is_activation and (name := _name(value)) in known:
        return known[name]
    if isinstance(value, dict):
        return {key: _renamed(inner, known, "activation" in str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, known) for inner in value]
    return value


def _activations(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of every activation in a configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{place}.{key}"
            if "activation" in str(key) and (name := _name(inner)):
                yield where, name
            else:
                yield from _activations(inner, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _activations(inner, f"{place}.{number}")


def _name(spec: Any) -> str:
    """Return the name of a serialised function, "" of anything else."""
    if isinstance(spec, dict) and spec.get("class_name") == "function":
        spec = spec.get("config")
    return spec if isinstance(spec, str) else ""
