"""Model files into models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastlstm.errors import InputError
from fastlstm.model import Model

__all__ = ["load"]

Precision = str | Mapping[str, str]


def load(
    path: str | os.PathLike[str], *, threads: int | None = 1, precision: Precision = "float32", **options: Any
) -> Model:
    """Load a model file.

    Parameters
    ----------
    path : str or path
        ``.onnx .pt .pth .pt2 .safetensors .keras .h5 .json .nam`` or ``.fastlstm``.
    threads : int or None
        Worker threads; None asks for the machine's cores.
    precision : str or mapping of str to str
        "float32", "int16" or "int8", for all layers or by layer name.
    **options
        What the format's reader takes, such as ``layers=`` for a PyTorch state dict.

    Raises
    ------
    FileFormatError, UnsupportedError, DependencyError, InputError
        One sentence each; OSError if the file cannot be read.
    """
    if os.fspath(path).endswith(".fastlstm"):
        from fastlstm import fileformat

        if options:
            raise InputError(f"A .fastlstm file takes no option {', '.join(options)}.")
        graph = fileformat.read(path).graph
        model = Model(graph, threads, precision)
        fileformat.release(graph.constants.values())  # what runs are packed copies
        return model
    from fastlstm.converters import load_graph

    return Model(load_graph(path, **options), threads, precision)
