"""Modules that ``torch.export`` does not follow, by the way of TorchScript.

Packed sequences, for one, end the export. ``torch.jit.script`` compiles a module as it is written; what it does not
take, ``torch.jit.trace`` follows with the example inputs.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.program import Program
from fastlstm.converters.torch.torchscript import read_torchscript
from fastlstm.errors import InputError, UnsupportedError

__all__ = ["scripted_program"]


def scripted_program(torch: Any, module: Any, examples: Sequence[Any]) -> Program | None:
    """Return the program of a module as TorchScript has it; None if it has none that can be read.

    Parameters
    ----------
    torch : Python module
    module : torch.nn.Module
        In the mode in which it is to be read.
    examples : sequence
        What it is called with. Sizes of 2 and more are left open where the module allows it, as in an export.
    """
    shapes = _shapes(torch, module, examples)
    for archive, given in _archives(torch, module, examples, shapes):
        with contextlib.suppress(UnsupportedError, InputError):
            return read_torchscript(archive, given)
    return None


def _archives(
    torch: Any, module: Any, examples: Sequence[Any], shapes: str | None
) -> Iterator[tuple[Archive, str | None]]:
    """Yield the archives that TorchScript makes of a module, with the shapes that they do not say."""
    makers: tuple[tuple[Callable[[], Any], str | None], ...] = (
        (lambda: torch.jit.script(module), shapes),
        (lambda: torch.jit.trace(module, tuple(examples), check_trace=False), None),
    )
    for make, given in makers:
        stored = io.BytesIO()
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # What numbers decide while it is traced would stay as they decided it.
                warnings.filterwarnings("error", category=torch.jit.TracerWarning)
                warnings.filterwarnings("error", message=".*tracer cannot track")
                torch.jit.save(make(), stored)
        except Exception:  # noqa: BLE001 (torch raises what it likes; the next way, or the export's own words, follow)
            continue
        stored.seek(0)
        yield Archive(stored), given


def _shapes(torch: Any, module: Any, examples: Sequence[Any]) -> str | None:
    """Return the inputs as `read_torchscript` takes them; None if they are not all tensors with names."""
    if not all(isinstance(example, torch.Tensor) for example in examples):
        return None
    names = list(inspect.signature(module.forward).parameters)
    if len(names) < len(examples) or not all(name.isidentifier() for name in names):
        return None
    said = []
    for name, example in zip(names, examples, strict=False):
        sizes = [f"{name}_{axis}" if size > 1 else str(size) for axis, size in enumerate(example.shape)]
        said.append(f"{name}: {str(example.dtype).removeprefix('torch.')}[{', '.join(sizes)}]")
    return ", ".join(said)
