"""Keras models, from files or alive, as graphs: neither TensorFlow nor Keras is needed to read a file.

How a model is read: `file` gives configuration and arrays, `weights` says which array is which
variable, `model` walks through the layers in order, and a table of kinds (`layers`,
`recurrent` and their like) says what every layer adds to the graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastlstm.converters.keras import (
    activation_layers,
    attention,
    convolution,
    einsum,
    layers,
    merging,
    normalisation,
    operations,
    recurrent,
    shapes,
    transposed,
)
from fastlstm.converters.keras.custom import with_known
from fastlstm.converters.keras.file import read_keras_file
from fastlstm.converters.keras.layer import Kind
from fastlstm.converters.keras.model import ModelReader
from fastlstm.errors import FileFormatError, InputError
from fastlstm.graph import Graph

__all__ = ["KINDS", "OPERATIONS", "from_keras", "load", "supported"]

KINDS: Mapping[str, Kind] = {
    name: kind
    for module in (
        layers,
        recurrent,
        activation_layers,
        attention,
        convolution,
        einsum,
        merging,
        normalisation,
        shapes,
        transposed,
    )
    for name, kind in module.KINDS.items()
}
"""Every supported class of layer."""

OPERATIONS: Mapping[str, Kind] = operations.OPERATIONS
"""The bare operations of Keras 3 that functional models hold."""


def load(path: str | Path, custom_objects: Mapping[str, str] | None = None) -> Graph:
    """Read a ``.keras``, ``.h5`` or ``.hdf5`` file of Keras 2 or 3.

    Parameters
    ----------
    path : str or Path
    custom_objects : mapping of str to str, optional
        Activations of your own that are known ones under another name: ``{"mine>snake": "silu"}``.

    Returns
    -------
    Graph
        Inputs and outputs have the names and the layout that they have in Keras, batch first.

    Raises
    ------
    FileFormatError
        If the file is damaged, or its weights do not fit its model.
    UnsupportedError
        If a layer or an option is not supported; the message names it.
    InputError
        If `custom_objects` names no activation of the model, or none that is known.
    """
    try:
        file = read_keras_file(Path(path))
        if custom_objects:
            file = replace(file, config=with_known(file.config, custom_objects))
        return ModelReader(file, KINDS, OPERATIONS).graph()
    except RecursionError:
        raise FileFormatError(f"'{path}' nests its layers too deeply to be read.") from None


def from_keras(model: Any, custom_objects: Mapping[str, str] | None = None) -> Graph:
    """Return the graph of a live Keras model (Keras 3, or Keras 2 in TensorFlow).

    The model is saved to a temporary ``.keras`` file and read back; `custom_objects` as in `load`.

    Raises
    ------
    InputError
        If `model` is no Keras model.
    UnsupportedError
        If a layer or an option is not supported.
    """
    save = getattr(model, "save", None)
    if save is None or not hasattr(model, "get_config"):
        raise InputError(f"from_keras expects a Keras model; got {type(model).__name__}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        save(path)
        return load(path, custom_objects)


def supported() -> list[tuple[str, str, str]]:
    """Return a row for every supported layer: its class, what is supported of it, and what is refused."""
    return [(name, kind.options, kind.refused) for name, kind in sorted(KINDS.items())]
