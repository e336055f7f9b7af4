"""Ways to run a model: this engine, the float64 reference, or the framework that the file comes from.

A `Runner` takes and returns arrays by the names of the graph's inputs and outputs. Frameworks are imported
only when asked for, and are given only files that a converter has read and accepted before. PyTorch's loaders
of exported programs and TorchScript archives unpickle and evaluate parts of a file that no converter looks at,
so they are used only for files that the caller trusts.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.errors import DependencyError, FastLSTMError, InputError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.operators import reference
from fastlstm.typing import Array

__all__ = [
    "Runner", "RunnerError", "keras_runner", "object_runner", "own_framework", "reference_runner", "torch_runner",
]  # fmt: skip

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class RunnerError(FastLSTMError):
    """A framework refused a model or its inputs; the message holds the framework's own words."""


@dataclass(frozen=True)
class Runner:
    """Something that computes a model's outputs.

    Attributes
    ----------
    name : str
        What runs, with its version.
    run : callable
        Arrays by input name -> arrays by output name.
    """

    name: str
    run: Run


def reference_runner(graph: Graph) -> Runner:
    """Return the runner of the float64 reference."""
    return Runner("the float64 reference", lambda inputs: reference.run(graph, inputs))


def own_framework(
    path: str | os.PathLike[str], graph: Graph, threads: int | None = None, *, trusted: bool = False
) -> Runner:
    """Return a runner of the source file at `path` in the framework of its format.

    Parameters
    ----------
    path : path
        A file that a converter has accepted.
    graph : Graph
        What the converter made of it: names and order of inputs and outputs.
    threads : int, optional
        For frameworks that take a number of threads per model (onnxruntime); default: their own choice.
    trusted : bool
        Let the framework load the file even if its loader can run code from it, as PyTorch's can.

    Raises
    ------
    DependencyError
        If the framework is not installed; the message says how to install it.
    UnsupportedError
        If no framework runs files of this kind (weights without a program), or only a trusted one.
    RunnerError
        If the framework does not take the model.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _onnxruntime(path, graph, threads)
    if suffix in (".keras", ".h5", ".hdf5"):
        return _keras(path, graph)
    load = _torch_export if suffix == ".pt2" else _torchscript if _is_torchscript(path) else None
    if load is None:
        raise UnsupportedError(f"{path.name} holds no program that another framework could run.")
    if not trusted:
        raise UnsupportedError(
            f"PyTorch may run code from {path.name} when it loads the file. If you trust it, say so with --trusted "
            "(trusted=True in Python)."
        )
    return load(path, graph)


@contextmanager
def _words_of(framework: str) -> Iterator[None]:
    """Turn whatever a framework raises into a `RunnerError`, and its warnings into silence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # frameworks raise what they like
        words = str(error).strip() or type(error).__name__
        raise RunnerError(f"{framework} refuses it: {words.splitlines()[0][:300]}") from error


def _import(name: str, format: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"Running {format} in its own framework needs the package '{name}', which is not installed or "
            f"does not load ({error}). Install it with: pip install {name}"
        ) from error


def _onnxruntime(path: Path, graph: Graph, threads: int | None) -> Runner:
    ort = _import("onnxruntime", "an ONNX file")
    name = f"onnxruntime {ort.__version__}"
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    outputs = [spec.name for spec in graph.outputs]
    with _words_of(name):
        session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _words_of(name):
            return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return Runner(name, run)


def torch_runner(module: Any, graph: Graph) -> Runner:
    """Return the runner of a ``torch.nn.Module`` (or another callable on tensors), in evaluation mode.

    The graph's inputs are passed by position, and its outputs are the tensors in what comes back, in order.
    """
    torch = _import("torch", "a PyTorch model")
    if isinstance(module, torch.nn.Module):
        module.eval()
    return _torch(torch, lambda tensors: module(*tensors), graph)


def object_runner(model: Any, graph: Graph) -> Runner:
    """Return the runner of a model in another framework's hands: a PyTorch module, a Keras model, or any callable.

    A callable takes inputs by name and returns outputs by name.

    Raises
    ------
    InputError
        If it is none of these.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")  # whoever has such an object has imported it
    if keras is not None and isinstance(model, keras.Model):  # on PyTorch, Keras models are modules too
        return keras_runner(model, graph)
    if torch is not None and isinstance(model, torch.nn.Module):
        return torch_runner(model, graph)
    if not callable(model):
        raise InputError(
            "Outputs are compared with a model file, a fastlstm.Model, a PyTorch module, a Keras model or a function "
            f"from inputs by name to outputs by name; got {type(model).__name__}."
        )
    return Runner("the function given", lambda inputs: dict(model(inputs)))


def _torch(torch: Any, call: Callable[[list[Any]], Any], graph: Graph) -> Runner:
    name = f"torch {torch.__version__}"
    leaves = _import("torch.utils._pytree", "a PyTorch model").tree_leaves

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _words_of(name), torch.no_grad():
            tensors = [torch.from_numpy(np.array(inputs[spec.name])) for spec in graph.inputs]
            found = [leaf.numpy() for leaf in leaves(call(tensors)) if isinstance(leaf, torch.Tensor)]
            return _by_name(found, graph)

    return Runner(name, run)


def _torchscript(path: Path, graph: Graph) -> Runner:
    torch = _import("torch", "a TorchScript archive")
    with _words_of(f"torch {torch.__version__}"):
        module = torch.jit.load(os.fspath(path), map_location="cpu").eval()
    names = [argument.name for argument in module.forward.schema.arguments[1:]]

    def call(tensors: list[Any]) -> Any:
        given = dict(zip((spec.name for spec in graph.inputs), tensors, strict=True))
        parts = {name: [t for key, t in given.items() if re.fullmatch(rf"{name}_\d+", key)] for name in names}
        if sum(n in given for n in names) + sum(map(len, parts.values())) != len(tensors):
            return module(*tensors)  # read by its weights, so that the names are others
        # a tuple of tensors is spread over inputs with numbers; an optional input may have been left out
        return module(**{n: given.get(n, tuple(parts[n])) for n in names if n in given or parts[n]})

    return _torch(torch, call, graph)


def _torch_export(path: Path, graph: Graph) -> Runner:
    torch = _import("torch", "an exported program")
    pytree = _import("torch.utils._pytree", "an exported program")
    with _words_of(f"torch {torch.__version__}"):
        program = torch.export.load(os.fspath(path))
        module, in_spec = program.module(), program.call_spec.in_spec

    def call(tensors: list[Any]) -> Any:
        args, kwargs = pytree.tree_unflatten(tensors, in_spec)
        return module(*args, **kwargs)

    return _torch(torch, call, graph)


def _keras(path: Path, graph: Graph) -> Runner:
    keras = _import("keras", "a Keras file")
    name = f"keras {keras.__version__}"
    with _words_of(name):
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    return keras_runner(model, graph)


def keras_runner(model: Any, graph: Graph) -> Runner:
    """Return the runner of a Keras model object, in inference mode."""
    keras = _import("keras", "a Keras model")
    name = f"keras {keras.__version__}"

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _words_of(name):
            for layer in model.layers:
                if getattr(layer, "stateful", False):
                    layer.reset_state()
            arrays = [inputs[spec.name] for spec in graph.inputs]
            found = model(arrays if len(arrays) > 1 else arrays[0], training=False)
            return _by_name([keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(found)], graph)

    return Runner(name, run)


def _by_name(arrays: Sequence[Array], graph: Graph) -> dict[str, Array]:
    if len(arrays) != len(graph.outputs):
        raise ValueError(f"{len(arrays)} outputs came, {len(graph.outputs)} were expected")
    return {spec.name: array for spec, array in zip(graph.outputs, arrays, strict=True)}


def _is_torchscript(path: Path) -> bool:
    """Return whether a .pt file is a TorchScript archive: it holds code beside its data."""
    if path.suffix.lower() not in (".pt", ".pth", ".jit", ".torchscript") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
