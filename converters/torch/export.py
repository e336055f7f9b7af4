"""PyTorch programs: ``.pt2`` files, ``torch.export.ExportedProgram`` and ``torch.nn.Module``.

An exported program is read at the level of aten, where ``lstm``, ``gru`` and ``rnn`` are whole: projections and
plain RNNs come through, which PyTorch's ONNX exporters break. A file is read without torch and nothing in it is
executed. A module is exported first, with every axis of its inputs left open that the model leaves open;
plain ``torch.export.export`` fixes the time axis of recurrent layers, because it traces them step by step.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.aten import control, elementwise, layers, movement, recurrent
from fastlstm.converters.torch.aten.graph import AtenGraph
from fastlstm.converters.torch.aten.schemas import SYNONYMS
from fastlstm.converters.torch.free_axes import with_free_axes
from fastlstm.converters.torch.kept_state import check_module, restored
from fastlstm.converters.torch.program import Call, Program, read_program
from fastlstm.converters.torch.quantised import Unpacked
from fastlstm.converters.torch.scripted import scripted_program
from fastlstm.converters.torch.state_dict import from_state_dict
from fastlstm.errors import DependencyError, InputError
from fastlstm.graph import Graph

__all__ = ["from_torch", "load", "program_graph", "supported"]

_HANDLERS = {
    **control.HANDLERS,
    **elementwise.HANDLERS,
    **layers.HANDLERS,
    **movement.HANDLERS,
    **recurrent.HANDLERS,
}
_OTHER_OVERLOADS = {
    "aten.norm.ScalarOpt_dim": "aten.linalg_vector_norm.default",
    "aten.swapaxes.default": "aten.transpose.int",
    "aten.swapdims.default": "aten.transpose.int",
}
_FIRST_NAMES = {
    f"aten.{second}.{target.split('.')[2]}": target
    for second, first in SYNONYMS.items()
    for target in _HANDLERS
    if target.startswith(f"aten.{first}.")
} | _OTHER_OVERLOADS
"""Second names of operations, with their overloads, to those that have a handler."""
_FIRST_ARGUMENTS = {
    "aten.transpose.int": {"axis0": "dim0", "axis1": "dim1"},
    "aten.linalg_vector_norm.default": {"p": "ord"},
}


def supported() -> list[str]:
    """Return the names of the aten operations that are read."""
    return sorted(name for name in [*_HANDLERS, *_FIRST_NAMES] if name.startswith(("aten.", "_operator.")))


def load(path: str | Path) -> Graph:
    """Read an exported program from a ``.pt2`` file that ``torch.export.save`` wrote (PyTorch 2.9 and newer).

    Raises
    ------
    FileFormatError
        If the file is damaged.
    UnsupportedError
        If an operation is not supported, or the file is of another version.
    """
    path = Path(path)
    return program_graph(read_program(Archive(path)), path.stem)


def from_torch(obj: Any, example_inputs: Sequence[Any] | None = None) -> Graph:
    """Build a graph from a PyTorch module or exported program.

    Parameters
    ----------
    obj : torch.nn.Module or torch.export.ExportedProgram
        A module is read in evaluation mode; its own mode is left as it is. Dynamically quantised LSTM and GRU
        layers keep their 8-bit weights.
    example_inputs : sequence of tensors, optional
        What the module is called with while it is traced. Sizes of 2 and more are left open where the module
        allows it; a size of 1 is taken to be fixed. Not needed for an LSTM, GRU or RNN alone, and for a module that
        takes one input [batch, time(, features)] and begins with an embedding, a recurrent or a linear layer.

    Raises
    ------
    InputError
        If the module needs example inputs, or does not run with them.
    UnsupportedError
        If an operation is not supported, or the module keeps something in its attributes or buffers that changes
        the results of later calls; the message names it.
    """
    try:
        import torch
    except ImportError:
        raise DependencyError.missing("torch", "torch", "Reading a PyTorch module") from None
    if isinstance(obj, torch.export.ExportedProgram):
        return program_graph(_read(torch, obj), "")
    if not isinstance(obj, torch.nn.Module):
        raise InputError(f"Expected a torch.nn.Module or ExportedProgram; got a {type(obj).__name__}.")
    unpacked = Unpacked(torch)
    with unpacked.inside(obj) as module:
        graph = _from_module(torch, module, example_inputs)
    return unpacked.narrowed(graph) if unpacked.count else graph


def _from_module(torch: Any, obj: Any, example_inputs: Sequence[Any] | None) -> Graph:
    """Build the graph of a module without quantised layers."""
    if example_inputs is None and isinstance(obj, (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)):
        word = obj.mode.lower().removesuffix("_tanh")
        return from_state_dict(obj.state_dict(), layers=word, batch_first=obj.batch_first, name=type(obj).__name__)
    examples = _examples(torch, obj) if example_inputs is None else tuple(example_inputs)
    with restored(torch, obj), _evaluating(obj):
        stored = check_module(torch, obj, examples)
        graph = program_graph(_program(torch, obj, examples), type(obj).__name__)
    graph = graph.replace(notes=(*graph.notes, *stored))
    if example_inputs is None:
        shapes = ", ".join(str(list(example.shape)) for example in examples)
        graph = graph.replace(notes=(*graph.notes, f"The module was followed with an input of the shape {shapes}."))
    return graph


def program_graph(program: Program, name: str) -> Graph:
    """Return the graph of a program of aten calls, with every axis of its inputs open that can be.

    Raises
    ------
    UnsupportedError
        If an operation is not supported.
    """
    program = replace(program, calls=tuple(_first_named(call) for call in program.calls))
    return AtenGraph(with_free_axes(program), name, _HANDLERS).build()


def _first_named(call: Call) -> Call:
    """Return a call by the operation's first name, so that handlers and shape rules know one name each."""
    target = _FIRST_NAMES.get(call.target)
    if target is None:
        return call
    arguments = _FIRST_ARGUMENTS.get(target, {})
    return Call(target, {arguments.get(name, name): value for name, value in call.arguments.items()}, call.outputs)


def _read(torch: Any, program: Any) -> Program:
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    return read_program(Archive(stored))


def _program(torch: Any, module: Any, examples: tuple[Any, ...]) -> Program:
    """Return the program of a module by torch.export, or by TorchScript where that does not follow it."""
    try:
        return _read(torch, _export(torch, module, examples))
    except InputError:
        found = scripted_program(torch, module, examples)
        if found is None:
            raise
        return found


def _export(torch: Any, module: Any, examples: tuple[Any, ...]) -> Any:
    """Return the exported program of a module with every axis open that it leaves open."""
    open_axes = tuple(
        dict.fromkeys(range(e.dim()), torch.export.Dim.AUTO) if isinstance(e, torch.Tensor) else None for e in examples
    )
    try:
        with torch.no_grad(), _shapes_only(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says is of its own ways
            program = torch.export.export(module, examples, dynamic_shapes=open_axes)
    except Exception as error:  # torch raises what the module raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"torch.export cannot follow the module with the inputs given: {reason[:300]}") from error
    return program


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Put a module and its parts in evaluation mode for as long as the context lasts."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


@contextlib.contextmanager
def _shapes_only(torch: Any) -> Iterator[None]:
    """Let torch.export work out what recurrent layers give by shape, not by running them over a fixed time."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd

    def output(x: Any, h: Any, settings: Sequence[Any]) -> Any:
        bidirectional = settings[-2]
        return x.new_empty(*x.shape[:2], (2 if bidirectional else 1) * h.shape[2])

    def lstm(x: Any, hx: Any, *settings: Any) -> Any:
        h, c = hx
        return output(x, h, settings), h.new_empty(h.shape), c.new_empty(c.shape)

    def gru_or_rnn(x: Any, h: Any, *settings: Any) -> Any:
        return output(x, h, settings), h.new_empty(h.shape)

    aten = torch.ops.aten
    kernels = {
        aten.lstm.input: lstm,
        aten.gru.input: gru_or_rnn,
        aten.rnn_tanh.input: gru_or_rnn,
        aten.rnn_relu.input: gru_or_rnn,
    }
    before = {operation: operation.py_kernels.get(key) for operation in kernels}
    try:
        for operation, kernel in kernels.items():
            operation.py_kernels[key] = kernel
            operation._dispatch_cache.clear()
        yield
    finally:
        for operation, kernel in before.items():
            operation.py_kernels.pop(key, None)
            if kernel is not None:
                operation.py_kernels[key] = kernel
            operation._dispatch_cache.clear()


def _examples(torch: Any, module: Any) -> tuple[Any, ...]:
    """Make an input for the module's first layer."""
    nn = torch.nn
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            return (torch.zeros(2, 3, dtype=torch.long),)
        if isinstance(part, nn.RNNBase):
            return (torch.zeros(2, 3, part.input_size),)
        if isinstance(part, nn.RNNCellBase):
            return (torch.zeros(2, part.input_size),)
        if isinstance(part, nn.Linear):
            return (torch.zeros(2, 3, part.in_features),)
    raise InputError(f"Give example_inputs=(...): tensors that {type(module).__name__} can be called with.")
