"""fastlstm: LSTM, GRU and RNN inference on CPUs.

``load`` reads a model file, ``from_onnx``, ``from_torch``, ``from_state_dict`` and ``from_keras`` take objects;
each gives a `Model`. `LSTM`, `GRU` and `RNN` are layers from plain arrays. Importing this compiles nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastlstm.errors import DependencyError, FastLSTMError, FileFormatError, InputError, UnsupportedError
from fastlstm.version import __version__ as __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastlstm.graph import Graph, Node, TensorSpec
    from fastlstm.layers import GRU, LSTM, RNN
    from fastlstm.model import Model
    from fastlstm.streaming.pool import StreamPool
    from fastlstm.streaming.stream import Stream

    Precision = str | Mapping[str, str]


__all__ = [
    "GRU", "LSTM", "RNN", "DependencyError", "FastLSTMError", "FileFormatError", "Graph", "InputError", "Model",
    "Node", "Stream", "StreamPool", "TensorSpec", "UnsupportedError", "from_keras", "from_onnx", "from_state_dict",
    "from_torch", "load",
]  # fmt: skip

_LAZY = {
    "GRU": "layers", "LSTM": "layers", "RNN": "layers", "Model": "model",
    "Graph": "graph", "Node": "graph", "TensorSpec": "graph",
    "Stream": "streaming.stream", "StreamPool": "streaming.pool",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"fastlstm.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'fastlstm' has no attribute '{name}'")


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
    from fastlstm.model import Model

    if os.fspath(path).endswith(".fastlstm"):
        from fastlstm import fileformat

        if options:
            raise InputError(f"A .fastlstm file takes no option {', '.join(options)}.")
        graph = fileformat.read(path).graph
    else:
        from fastlstm.converters import load_graph

        graph = load_graph(path, **options)
    return Model(graph, threads, precision)


def from_onnx(proto: Any, *, threads: int | None = 1, precision: Precision = "float32") -> Model:
    """Return the model of an ONNX ModelProto."""
    from fastlstm.converters.onnx.load import from_onnx as read
    from fastlstm.model import Model

    return Model(read(proto), threads, precision)


def from_torch(
    module: Any, example_inputs: Any = None, *, threads: int | None = 1, precision: Precision = "float32"
) -> Model:
    """Return the model of a ``torch.nn.Module`` or ``torch.export.ExportedProgram``.

    Parameters
    ----------
    module : torch.nn.Module or torch.export.ExportedProgram
        A module is read as it is in evaluation mode.
    example_inputs : sequence of tensors, optional
        What the module is called with; needed unless its first layer says what it takes.
    threads, precision
        As in `load`.
    """
    from fastlstm.converters.torch.export import from_torch as read
    from fastlstm.model import Model

    return Model(read(module, example_inputs), threads, precision)


def from_state_dict(
    mapping: Any, *, threads: int | None = 1, precision: Precision = "float32", **options: Any
) -> Model:
    """Return the model of a PyTorch state dict; ``layers=`` says what it does not."""
    from fastlstm.converters.torch.state_dict import from_state_dict as read
    from fastlstm.model import Model

    return Model(read(mapping, **options), threads, precision)


def from_keras(model: Any, *, threads: int | None = 1, precision: Precision = "float32") -> Model:
    """Return the model of a Keras model object."""
    from fastlstm.converters.keras.load import from_keras as read
    from fastlstm.model import Model

    return Model(read(model), threads, precision)
