"""fastlstm: LSTM, GRU and RNN inference on CPUs.

``load`` reads a model file, ``from_onnx``, ``from_torch``, ``from_state_dict`` and ``from_keras`` take objects;
each gives a `Model`. `LSTM`, `GRU` and `RNN` are layers from plain arrays. Importing this compiles nothing.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastlstm.errors import (
    AssumptionWarning,
    DependencyError,
    FastLSTMError,
    FileFormatError,
    InputError,
    UnsupportedError,
    VerificationError,
)
from fastlstm.version import __version__ as __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastlstm.commands.bench import bench
    from fastlstm.commands.convert import convert
    from fastlstm.commands.latency import latency
    from fastlstm.commands.verify import verify
    from fastlstm.graph import Graph, Node, TensorSpec
    from fastlstm.layers import GRU, LSTM, RNN
    from fastlstm.loading import load
    from fastlstm.model import Model
    from fastlstm.scoring.run import Summary
    from fastlstm.scoring.scorer import Columns, Scorer
    from fastlstm.streaming.pool import StreamPool
    from fastlstm.streaming.stream import Stream
    from fastlstm.target import Target

    Precision = str | Mapping[str, str]


__all__ = [
    "GRU", "LSTM", "RNN", "AssumptionWarning", "DependencyError", "FastLSTMError", "FileFormatError", "Graph",
    "InputError", "Model", "Node", "Scorer", "Stream", "StreamPool", "TensorSpec", "UnsupportedError",
    "VerificationError", "bench", "convert", "export", "from_keras", "from_onnx", "from_state_dict", "from_torch",
    "latency", "load", "score", "verify",
]  # fmt: skip

_LAZY = {
    "GRU": "layers", "LSTM": "layers", "RNN": "layers", "Model": "model",
    "Graph": "graph", "Node": "graph", "TensorSpec": "graph",
    "Stream": "streaming.stream", "StreamPool": "streaming.pool", "Scorer": "scoring.scorer",
    "load": "loading", "bench": "commands.bench", "convert": "commands.convert", "latency": "commands.latency",
    "verify": "commands.verify",
}  # fmt: skip


# Streams, pools and caches rely on it, and nobody has run them without.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise DependencyError(
        "fastlstm does not support Python without its global interpreter lock. Start it with: PYTHON_GIL=1 python …"
    )

# The package of this name is loaded first: whoever loads it later would take the function's place.
import_module("fastlstm.export")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import_module("fastlstm.forking")  # forks wait for the rest of this
        return getattr(import_module(f"fastlstm.{_LAZY[name]}"), name)
    if name == "ray":
        return import_module("fastlstm.ray")
    raise AttributeError(f"module 'fastlstm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "ray"]


def from_onnx(proto: Any, *, threads: int | None = 1, precision: Precision = "float32") -> Model:
    """Return the model of an ONNX ModelProto.

    Parameters
    ----------
    proto : onnx.ModelProto
        Opset 6 or newer, with its weights inside.
    threads, precision
        As in `load`.

    Returns
    -------
    Model

    Raises
    ------
    UnsupportedError
        If an operator or one of its attributes is not supported; the message names the node.
    FileFormatError
        If the model is not a valid one.

    Examples
    --------
    >>> import fastlstm
    >>> from onnx import parser
    >>> proto = parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     half (float[batch, 3] x) => (float[batch, 3] y) <float[1] two = {2}> { y = Div(x, two) }''')
    >>> fastlstm.from_onnx(proto)([[2, 4, 6]])
    array([[1., 2., 3.]], dtype=float32)
    """
    from fastlstm.converters.onnx.load import from_onnx as read
    from fastlstm.loading import model_of

    return model_of(read(proto), threads, precision)


def from_torch(
    module: Any, example_inputs: Any = None, *, threads: int | None = 1, precision: Precision = "float32"
) -> Model:
    """Return the model of a ``torch.nn.Module`` or ``torch.export.ExportedProgram``.

    Parameters
    ----------
    module : torch.nn.Module or torch.export.ExportedProgram
        Modules are read as in evaluation mode.
    example_inputs : sequence of tensors, optional
        Arguments of ``forward``; needed unless the first layer determines them. Sizes of 2 and more are left open where
        the module allows it.
    threads, precision
        As in `load`.

    Returns
    -------
    Model
        Inputs have the names of the arguments of ``forward``, and the module's own layout.

    Raises
    ------
    InputError
        If the module needs example inputs, or does not run with them.
    UnsupportedError
        If an operation is not supported, or the module keeps state between calls; the message names it.

    Examples
    --------
    >>> import fastlstm, torch
    >>> model = fastlstm.from_torch(torch.nn.GRU(3, 2, batch_first=True))
    >>> y, h = model(torch.zeros(1, 5, 3))
    >>> y.shape
    torch.Size([1, 5, 2])
    """
    from fastlstm.converters.torch.export import from_torch as read
    from fastlstm.loading import model_of

    return model_of(read(module, example_inputs), threads, precision)


def from_state_dict(
    mapping: Any, *, threads: int | None = 1, precision: Precision = "float32", **options: Any
) -> Model:
    """Return the model of a PyTorch state dict, or of other weights with such names.

    Parameters
    ----------
    mapping : mapping of str to array or tensor
        Weights by dotted names, in the order in which the modules were made.
    threads, precision
        As in `load`.
    **options
        layers : str
            The layers in the order they run: ``"embedding | lstm | last | relu | linear"``. Without it the modules are
            chained in their order, every step is kept, and no activation or skip connection comes between.
        batch_first : bool
            Whether inputs and outputs are [batch, time, features] or [time, batch, features].
        prefix : str
            Use only the tensors whose names begin with this.
        lengths : bool
            Add an input ``lengths`` [batch] int64, for models that pack padded sequences.

    Returns
    -------
    Model

    Raises
    ------
    UnsupportedError
        If a tensor belongs to no known layer.
    InputError
        If the options do not fit the tensors.

    Warns
    -----
    AssumptionWarning
        About what was assumed because the options leave it open.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)
    >>> model(np.zeros((1, 5, 3)))[0].shape
    (1, 5, 2)
    """
    from fastlstm.converters.torch.state_dict import from_state_dict as read
    from fastlstm.loading import model_of

    return model_of(read(mapping, **options), threads, precision)


def from_keras(
    model: Any,
    *,
    threads: int | None = 1,
    precision: Precision = "float32",
    custom_objects: Mapping[str, str] | None = None,
) -> Model:
    """Return the model of a Keras model object.

    Parameters
    ----------
    model : keras.Model
        A model of Keras 3, or of Keras 2 in TensorFlow.
    threads, precision
        As in `load`.
    custom_objects : mapping of str to str, optional
        Custom activations that are known functions under another name: ``{"mine>snake": "silu"}``.

    Returns
    -------
    Model
        Inputs and outputs keep their names and layout from Keras, batch first.

    Raises
    ------
    InputError
        If it is not a Keras model, or `custom_objects` names nothing in it.
    UnsupportedError
        If a layer or an option is not supported; the message names it.

    Examples
    --------
    >>> import fastlstm, keras, numpy as np
    >>> layers = [keras.Input((None, 3)), keras.layers.LSTM(2), keras.layers.Dense(1)]
    >>> fastlstm.from_keras(keras.Sequential(layers))(np.zeros((1, 5, 3))).shape
    (1, 1)
    """
    from fastlstm.converters.keras.load import from_keras as read
    from fastlstm.loading import model_of

    return model_of(read(model, custom_objects), threads, precision)


def export(
    model: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    targets: Sequence[str | Target] = ("x86-64-v3",),
    name: str | None = None,
    *,
    batch: int = 1,
    precision: Precision | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, Any] | None = None,
    state: Mapping[str, str] | None = None,
    whole: bool = False,
    weights: str = "inside",
) -> dict[str, Any]:
    """Write a model as code to link: a C header, an object file per target, tests and a manifest.

    Parameters
    ----------
    model : Model or path
    folder : path
        Created if it does not exist; otherwise it must be empty.
    targets : sequence of str or Target
        Names from ``fastlstm.target.TARGETS``, or targets of your own. With ``"x86-64-v3"`` or ``"x86-64-v4"`` there is
        also a library that contains both and chooses at run time.
    name : str, optional
        The prefix of C names and files; the model's or the folder's name by default.
    batch : int
        Rows per call.
    precision : str or mapping of str to str, optional
        As in `load`; the model's own by default.
    sizes : mapping of str to int, optional
        Sizes of open dimensions. The model is then called on whole sequences (``N_call``) and does not stream; with
        `state` it streams, and a step takes a chunk of these sizes.
    inputs : mapping of str to number or array, optional
        Values of inputs that are the same in every call, such as a sample rate; they become constants.
    state : mapping of str to str, optional
        State inputs and the outputs that return them, as for `Model.stream`.
    whole : bool
        Call the model on whole sequences even if it could stream. This is the default for models that cannot stream and
        have no open dimensions.
    weights : "inside" or "apart"
        "apart" writes a ``.bin`` file per target, to be mapped or flashed on its own.

    Returns
    -------
    dict
        The manifest, which is also in ``N.json``.

    Raises
    ------
    UnsupportedError
        If part of the model has no native code; the message names it.
    InputError
        If an argument does not fit, the folder is not empty, or the name is no C identifier. Nothing is written.
    OSError
        If the folder cannot be written, for example because the disk is full; nothing is left behind.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)
    >>> fastlstm.export(model, "cell", targets=["cortex-m4"], name="cell")["targets"]["cortex-m4"]["undefined"]
    []
    """
    from fastlstm.export.folder import export as write
    from fastlstm.model import Model

    chosen = model if isinstance(model, Model) else _load(model)
    if name is None and not isinstance(model, Model):
        from fastlstm.export.names import name_of

        name = name_of(os.path.splitext(os.path.basename(os.fspath(model)))[0])
    return write(
        chosen,
        folder,
        targets,
        name,
        batch=batch,
        precision=precision,
        sizes=sizes,
        inputs=inputs,
        state=state,
        whole=whole,
        weights=weights,
    )


def _load(path: str | os.PathLike[str]) -> Model:
    from fastlstm.loading import load

    return load(path)


def score(
    model: Model | str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    stream: bool = False,
    **options: Any,
) -> Summary:
    """Score a data set: every row exactly once, with the same bits for any partition, batch size and restart.

    Parameters
    ----------
    model : Model or path
        A model with one thread is fastest, because each worker then runs it by itself.
    source : path, sequence of paths, or table
        Parquet or CSV files or folders of them, a ``.npz`` file, fsspec URLs, ``"-"`` (an Arrow stream on stdin); an
        Arrow, polars or pandas table. With `stream`, ``.wav`` and ``.npy`` recordings.
    out : path
        A folder, or an fsspec URL of one. Created if it does not exist; a run that was stopped in it resumes where it
        stopped.
    columns : mapping of str to str or sequence of str, optional
        The column of each input, as for `fastlstm.scoring.scorer.Scorer`: a list column is a sequence, lists of lists
        are frames × features, several columns or a struct's fields become features side by side.
    stream : bool
        Feed whole recordings in pieces, with constant memory; see `fastlstm.scoring.recordings.score_recordings` for
        its options.
    **options
        ``constants``, ``outputs``, ``keep``, ``max_length``, ``batch_rows``, ``batch_frames`` as for `Scorer`, and

        on_error : "aside" or "stop"
            Rows that cannot be scored go to ``_rejected/`` with their numbers and reasons, or stop the run.
        resume : bool, optional
            True: there must be a run to resume; False: there must be none.
        part_rows : int
            Input rows per part (16384; 2048 if outputs are whole sequences).
        workers : int
            Threads, or actors on Ray; one per core by default.
        memory : int
            Approximate number of bytes to use besides the model (1 GiB).
        ray : str
            The address of a Ray cluster ("auto", "local", "ray://..."): its workers read `source` and write `out`.
        watch : callable
            Called once with a `fastlstm.scoring.progress.Progress`, which then follows the run.

    Returns
    -------
    Summary
        Rows, rejected rows, seconds and rows per second; ``as_data()`` returns plain data.

    Raises
    ------
    InputError
        If columns do not fit the model, the folder holds a run with another input, model or setting, or a row cannot be
        scored and `on_error` is "stop". Nothing is computed in the first two cases.
    FileFormatError
        If a file cannot be read; parts already written are kept.
    OSError
        If the disk is full, for example; a later run resumes.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="lstm | last", batch_first=True)
    >>> np.savez("rows.npz", **{model.inputs[0].name: np.zeros((10, 5, 3), np.float32)})
    >>> fastlstm.score(model, "rows.npz", "scored").rows
    10
    """
    try:
        from fastlstm.scoring.run import score as score_rows
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise DependencyError.missing("pyarrow", "score", "Scoring data sets") from error
    if stream:
        from fastlstm.scoring.recordings import score_recordings

        return score_recordings(model, source, out, **options)
    return score_rows(model, source, out, columns, **options)
