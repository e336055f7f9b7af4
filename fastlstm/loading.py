"""Model files into models."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlstm.errors import AssumptionWarning, FastLSTMError, InputError
from fastlstm.files.opening import Content, content_of, open_model
from fastlstm.model import Model, workers_of
from fastlstm.runtime import prepared
from fastlstm.target import machine

if TYPE_CHECKING:
    from fastlstm.graph import Graph

__all__ = ["load", "model_of"]

Precision = str | Mapping[str, str]


def load(
    path: str | os.PathLike[str] | bytes, *, threads: int | None = 1, precision: Precision = "float32", **options: Any
) -> Model:
    """Load a model file.

    Parameters
    ----------
    path : str, path or bytes
        ``.onnx .pt .pth .pt2 .safetensors .keras .h5 .json .nam`` or ``.fastlstm``; or the contents of such a file.
    threads : int or None
        The largest number of threads to use; None for all of the machine's cores.
    precision : str or mapping of str to str
        "float32", "int16" or "int8", for all layers or by layer name.
    **options
        Options of the format's reader: ``layers``, ``batch_first``, ``prefix`` and ``lengths`` for a PyTorch state
        dict (see `from_state_dict`), ``shapes`` for a TorchScript archive, ``custom_objects`` for Keras.

    Returns
    -------
    Model

    Raises
    ------
    FileFormatError
        If the file is damaged, or not what its name says.
    UnsupportedError
        If something in the model is not supported; the message names it.
    InputError
        If an option does not fit the format.
    DependencyError
        If a package needed to read the format is missing (`onnx` for ONNX files).
    OSError
        If the file cannot be read.

    Warns
    -----
    AssumptionWarning
        About what was assumed because the file leaves it open; for ``.fastlstm`` files, only when they are made.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> from safetensors.numpy import save_file
    >>> save_file({"l.weight_ih_l0": np.ones((8, 3)), "l.weight_hh_l0": np.ones((8, 2))}, "m.safetensors")
    >>> model = fastlstm.load("m.safetensors", layers="lstm", batch_first=True)
    >>> print(model.inputs[0])
    input: float32[batch, time, 3]
    """
    if isinstance(path, bytes | bytearray | memoryview):
        with _as_file(bytes(path)) as file:
            model, notes = _load(file, threads, precision, options)
    elif not isinstance(path, str | os.PathLike):
        raise InputError(
            f"load takes the path of a model file, or its bytes; got {type(path).__name__}. Objects are for "
            "from_torch, from_keras, from_onnx and, if they are weights by name, from_state_dict."
        )
    else:
        model, notes = _load(path, threads, precision, options)
    _warn(notes, 2)
    return model


def _load(
    path: str | os.PathLike[str], threads: int | None, precision: Precision, options: Mapping[str, Any]
) -> tuple[Model, Sequence[str]]:
    """Return a file's model, and what to warn of."""
    if os.fspath(path).endswith(".fastlstm"):
        if options:
            raise InputError(f"A .fastlstm file takes no option {', '.join(options)}.")
        return _load_stored(path, threads, precision)
    from fastlstm.converters import load_graph

    model = Model(load_graph(path, **options), threads, precision)
    return model, model.notes


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a file's content a path of the ending that belongs to it."""
    import tempfile

    from fastlstm.converters.content import suffix_of

    with tempfile.TemporaryDirectory(prefix="fastlstm-", ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, f"model{suffix_of(content)}")
        with open(path, "wb") as file:
            file.write(content)
        try:
            yield path
        except FastLSTMError as error:  # nobody knows that path
            raise type(error)(str(error).replace(f"'{path}'", path).replace(path, "The content given")) from error


def _load_stored(
    path: str | os.PathLike[str], threads: int | None, precision: Precision
) -> tuple[Model, Sequence[str]]:
    """Return the model of a ``.fastlstm`` file, by a call that was kept where there is one; and what to warn of."""
    with open_model(path) as file:
        target = machine.detect()
        place = prepared.place_of(file, threads, workers_of(threads), precision, target)
        kept = None if place is None else prepared.find(place, target)
        content = content_of(file)
    if kept is None:
        return _read(path, content, threads, precision, place)
    made = Model.waiting(kept.call, threads, lambda: _read(path, content, threads, precision, place)[0])
    return made, kept.notes


def _read(
    path: str | os.PathLike[str], content: Content, threads: int | None, precision: Precision, place: Path | None
) -> tuple[Model, list[str]]:
    """Return the model that a file's content is, and the notes that the file does not have itself.

    Its first call is going to be kept at `place`.
    """
    from fastlstm.files import fileformat  # who runs by a call that was kept waits for it no longer than for the model

    graph = fileformat.read_content(Path(path), content).graph
    model = Model(graph, threads, precision)
    fileformat.release(graph.constants.values())  # what runs are packed copies
    notes = [note for note in model.notes if note not in graph.notes]
    if place is not None:
        model.keep_first_call(place, notes)
    return model, notes


def model_of(graph: Graph, threads: int | None, precision: Precision) -> Model:
    """Return the model of a graph; warn whoever called the function that calls this of its notes."""
    model = Model(graph, threads, precision)
    _warn(model.notes, 3)
    return model


def _warn(notes: Sequence[str], level: int) -> None:
    """Warn whoever made the call that is so many calls above this one."""
    for note in notes:
        warnings.warn(note, AssumptionWarning, stacklevel=level + 1)
