"""Model files into graphs: one module a format, imported when a file of that format comes.

Every module exposes ``load(path, **options) -> Graph``. The formats are folders of ``converters/`` in the checkout,
whose README.md has what each supports; in an installed package they stand beside this file.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastlstm.errors import InputError, UnsupportedError
from fastlstm.files.opening import refuse_pointer
from fastlstm.graph import Graph

__all__ = ["FORMATS", "load_graph"]

_HERE = Path(__file__).parent
if not (_HERE / "onnx").is_dir():  # a checkout, or an editable install of one
    __path__.append(str(_HERE.parents[1] / "converters"))

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        ".onnx": "onnx.load",
        ".pt": "torch.pt",
        ".pth": "torch.pt",
        ".ckpt": "torch.pt",
        ".tar": "torch.pt",
        ".bin": "torch.pt",
        ".jit": "torch.pt",
        ".torchscript": "torch.pt",
        ".pt2": "torch.export",
        ".safetensors": "torch.state_dict",
        ".keras": "keras.load",
        ".h5": "keras.load",
        ".hdf5": "keras.load",
        ".json": "audio.load",
        ".aidax": "audio.load",
        ".nam": "audio.load",
    }
)
"""File name endings and the modules that read them."""


def load_graph(path: str | os.PathLike[str], **options: Any) -> Graph:
    """Read a model file.

    Parameters
    ----------
    path : str or path
        The ending says the format.
    **options
        What that format's ``load`` takes, such as ``layers=`` for a state dict.

    Raises
    ------
    UnsupportedError
        If no format has this ending.
    FileFormatError
        If the file is damaged, or a Git LFS pointer to a model.
    InputError
        If the format does not take one of the options.
    OSError
        If the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pb" or (Path(path) / "saved_model.pb").is_file():
        raise UnsupportedError(
            f"'{os.fspath(path)}' is a SavedModel of TensorFlow, which is not read. Load it in Keras and write "
            "model.save('model.keras'), or make an ONNX file of it: "
            "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx."
        )
    if Path(path).is_dir():
        raise UnsupportedError(f"'{os.fspath(path)}' is a folder; a model file was expected.")
    there = Path(path).exists()
    if suffix not in FORMATS and (suffix or there):
        kind = f"files ending in '{suffix}'" if suffix else "files whose name has no ending"
        raise UnsupportedError(
            f"'{os.fspath(path)}': {kind} are not supported; these are: {', '.join([*FORMATS, '.fastlstm'])}."
        )
    if not there:  # before a package is asked for
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    with open(path, "rb") as file:
        refuse_pointer(path, file.read(64))
    load = importlib.import_module(f"fastlstm.converters.{FORMATS[suffix]}").load
    known = [name for name, p in inspect.signature(load).parameters.items() if p.kind == p.KEYWORD_ONLY]
    known += [name for name in list(inspect.signature(load).parameters)[1:] if name not in known]
    for name in options:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise InputError(f"Reading a {suffix} file has no option '{name}'; it {takes}.")
    graph: Graph = load(path, **options)
    return graph
