"""Model files into models."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastlstm.errors import AssumptionWarning, InputError
from fastlstm.graph import Graph
from fastlstm.model import Model

__all__ = ["load", "model_of"]

Precision = str | Mapping[str, str]


def load(
    path: str | os.PathLike[str] | bytes, *, threads: int | None = 1, precision: Precision = "float32", **options: Any
) -> Model:
    """Load a model file.

    Parameters
    ----------
    path : str, path or bytes
        ``.onnx .pt .pth .pt2 .safetensors .keras .h5 .json .nam`` or ``.fastlstm``; or the content of such a file.
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

    Warns
    -----
    AssumptionWarning
        What the file leaves open and was assumed. A ``.fastlstm`` file was warned of when it was made.
    """
    if isinstance(path, bytes | bytearray | memoryview):
        with _as_file(bytes(path)) as file:
            graph, stored = _read(file, options)
    else:
        graph, stored = _read(path, options)
    model = model_of(graph, threads, precision, graph.notes if stored else ())
    if stored:
        from fastlstm.fileformat import release

        release(graph.constants.values())  # what runs are packed copies
    return model


def _read(path: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[Graph, bool]:
    """Return a file's graph, and whether it is one that was converted before."""
    if os.fspath(path).endswith(".fastlstm"):
        from fastlstm import fileformat

        if options:
            raise InputError(f"A .fastlstm file takes no option {', '.join(options)}.")
        return fileformat.read(path).graph, True
    from fastlstm.converters import load_graph

    return load_graph(path, **options), False


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a file's content a path of the ending that belongs to it."""
    import tempfile

    from fastlstm.converters.content import suffix_of

    with tempfile.TemporaryDirectory(prefix="fastlstm-", ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, f"model{suffix_of(content)}")
        with open(path, "wb") as file:
            file.write(content)
        yield path


def model_of(graph: Graph, threads: int | None, precision: Precision, known: tuple[str, ...] = ()) -> Model:
    """Return the model of a graph; warn whoever called the function that calls this of its notes, but `known` ones."""
    model = Model(graph, threads, precision)
    for note in model.notes:
        if note not in known:
            warnings.warn(note, AssumptionWarning, stacklevel=3)
    return model
