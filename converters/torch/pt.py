"""``.pt`` and ``.pth`` files: state dicts and TorchScript archives, told apart by what the archive holds."""

from __future__ import annotations

from pathlib import Path

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch import state_dict
from fastlstm.converters.torch.export import program_graph
from fastlstm.converters.torch.legacy import open_archive
from fastlstm.converters.torch.torchscript import is_torchscript, read_torchscript
from fastlstm.errors import InputError
from fastlstm.graph import Graph

__all__ = ["load"]


def load(
    path: str | Path,
    layers: str | None = None,
    batch_first: bool | None = None,
    prefix: str = "",
    lengths: bool = False,
    shapes: str | None = None,
) -> Graph:
    """Read a state dict or a TorchScript archive. Nothing in the file is executed.

    Parameters
    ----------
    path : str or path
    layers, batch_first, prefix, lengths
        As in `fastlstm.converters.torch.state_dict.from_state_dict`; with `layers` only a TorchScript archive's
        weights are read.
    shapes : str, optional
        Of a TorchScript archive: dtypes and shapes of its inputs, as in ``"x: float32[batch, time, 40]"``.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    UnsupportedError
        If it holds something that is not supported; the message names it.
    """
    path = Path(path)
    archive = open_archive(path)
    if layers is None and isinstance(archive, Archive) and is_torchscript(archive):
        settings = {"batch_first": batch_first, "prefix": prefix or None, "lengths": lengths or None}
        for name in (name for name, value in settings.items() if value is not None):
            raise InputError(f"{name} is for state dicts; '{path}' is a TorchScript archive, whose code says it.")
        return program_graph(read_torchscript(archive, shapes), path.stem)
    if shapes is not None:
        raise InputError(f"shapes is for TorchScript archives; '{path}' is read by its weights alone.")
    return state_dict.load(path, layers, batch_first, prefix, lengths)
