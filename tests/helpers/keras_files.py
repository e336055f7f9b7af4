"""Keras files written by hand, as Keras writes them: neither Keras nor TensorFlow is needed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    """Return a serialised layer."""
    return {"class_name": kind, "config": {"name": name, "trainable": True, "dtype": "float32", **config}}


def sequential(shape: Sequence[int | None], *layers: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Return a serialised Sequential model; `shape` is that of its input, without the batch."""
    first = {
        "class_name": "InputLayer",
        "config": {"name": "x", "batch_shape": [None, *shape], "dtype": dtype, "sparse": False},
    }
    return {"class_name": "Sequential", "config": {"name": "model", "layers": [first, *layers]}}


def write_keras(
    path: Path, model: Mapping[str, Any], weights: Mapping[str, Sequence[np.ndarray]], version: str = "3.15.1"
) -> Path:
    """Write a ``.keras`` file; `weights` are by the path of their owner, such as ``layers/lstm/cell``."""
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        for owner, arrays in weights.items():
            group = file.create_group(f"{owner}/vars")
            for number, array in enumerate(arrays):
                group[str(number)] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", data.getvalue())
    return path


def write_h5(
    path: Path, model: Mapping[str, Any], weights: Mapping[str, Mapping[str, np.ndarray]], version: str = "2.15.0"
) -> Path:
    """Write an ``.h5`` file; `weights` are by the layer's name, then by the variable's."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        file.attrs["keras_version"] = version
        file.attrs["backend"] = "tensorflow"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            own = group.create_group(name)
            own.attrs["weight_names"] = [variable.encode() for variable in arrays]
            for variable, array in arrays.items():
                own[variable] = array
    return path
