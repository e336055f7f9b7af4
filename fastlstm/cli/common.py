"""What several verbs share: reading models and arrays, printing tables."""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import FileFormatError, InputError
from fastlstm.fileformat import StoredModel, read
from fastlstm.graph import Graph, TensorSpec
from fastlstm.verify import ATOL, RTOL

__all__ = [
    "Progress",
    "above_zero",
    "add_comparing_options",
    "add_state_dict_options",
    "check_arrays_path",
    "check_folder",
    "from_one",
    "parse_sizes",
    "print_json",
    "read_arrays",
    "read_inputs",
    "read_model",
    "state_dict_options",
    "table",
    "write_arrays",
]

Array = npt.NDArray[Any]


def from_one(text: str) -> int:
    """Read an argument that is a whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on; got '{text}'")
    return int(text)


def above_zero(text: str) -> float:
    """Read an argument that is a number above zero."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0; got '{text}'")
    return number


def _tolerance(text: str) -> float:
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on; got '{text}'")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_state_dict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a state dict does not."""
    group = parser.add_argument_group("of PyTorch state dicts and TorchScript archives")
    group.add_argument("--layers", help='what runs in which order, such as "lstm | last | relu | linear"')
    group.add_argument(
        "--batch-first",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether inputs are [batch, time, features] or [time, batch, features]",
    )
    group.add_argument("--prefix", help='use only the tensors whose names begin with it, such as "model."')
    group.add_argument("--shapes", help='of a TorchScript archive\'s inputs, such as "x: float32[batch, time, 40]"')


def state_dict_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_state_dict_options` that were given."""
    names = ("layers", "batch_first", "prefix", "shapes")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def add_comparing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that compares outputs."""
    parser.add_argument("--input", action="append", default=[], metavar="[NAME=]FILE", help="compare on this data")
    parser.add_argument("--size", action="append", default=[], metavar="DIM=N", help="size of an open dimension")
    parser.add_argument("--atol", type=_tolerance, default=ATOL, help="absolute tolerance (%(default)s)")
    parser.add_argument("--rtol", type=_tolerance, default=RTOL, help="relative tolerance (%(default)s)")
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="let PyTorch itself load the source, which can run code out of it",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def parse_sizes(arguments: Sequence[str]) -> dict[str, int]:
    """Return the sizes of open dimensions from ``DIM=N`` arguments."""
    sizes = {}
    for argument in arguments:
        name, _, size = argument.rpartition("=")
        if not (name and size.isascii() and size.isdigit() and int(size) > 0):
            raise InputError(f"--size takes a dimension and a whole number from 1 on, as in batch=4; got '{argument}'.")
        sizes[name] = int(size)
    return sizes


def read_model(path: str, options: Mapping[str, Any] = MappingProxyType({})) -> StoredModel:
    """Read a model file of any supported format; `options` are those of a state dict."""
    if path.endswith(".fastlstm"):
        for name in options:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is for PyTorch files; a .fastlstm file says its layers and shapes itself.")
        return read(path)
    from fastlstm.converters import load_graph

    return StoredModel(load_graph(path, **options))


def read_arrays(path: str) -> dict[str, Array]:
    """Read a .npy, .npz or .csv file; an array without a name is called ``""``.

    Nothing is unpickled. A CSV file holds numbers, one row a line, under a line of names or not.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":  # mapped, which checks the header's size against the file's
            return {"": np.load(path, allow_pickle=False, mmap_mode="r")}
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if suffix == ".csv":
            with open(path, encoding="utf-8") as file:
                named = not _is_numbers(file.readline())
            return {"": np.loadtxt(path, delimiter=",", ndmin=2, skiprows=int(named), encoding="utf-8")}
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"'{path}' cannot be read as {suffix}: {str(error).rstrip('.')}.") from error
    raise FileFormatError(f"'{path}': expected a file ending in .npy, .npz or .csv.")


def _is_numbers(line: str) -> bool:
    try:
        [float(cell) for cell in line.split(",")]
    except ValueError:
        return False
    return True


def read_inputs(paths: Sequence[str], graph: Graph) -> dict[str, Array]:
    """Return the graph's inputs, in its dtypes, from ``name=file`` or plain file arguments.

    An array without a name belongs to the first input that has none yet.
    """
    specs = {spec.name: spec for spec in graph.inputs}
    found: dict[str, Array] = {}
    for argument in paths:
        name, _, path = argument.rpartition("=")
        for own, array in read_arrays(path).items():
            key = name or own or next((n for n in specs if n not in found), "")
            if not key:
                raise InputError(f"'{argument}' is one file too many: the model's inputs are {', '.join(specs)}.")
            if key not in specs:
                raise InputError(f"'{argument}': there is no input '{key}'; the model's are {', '.join(specs)}.")
            found[key] = _fitted(array, specs[key])
    if missing := [str(spec) for spec in graph.inputs if spec.name not in found]:
        raise InputError(f"The input {missing[0]} is missing: give it with --input NAME=FILE.")
    return found


def _fitted(array: Array, spec: TensorSpec) -> Array:
    """Return the array in the input's dtype, and with a batch axis if that is all it lacks."""
    if array.ndim == len(spec.shape) - 1:
        named = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str) and "batch" in size]
        ones = [axis for axis, size in enumerate(spec.shape[:-1]) if size == 1]
        axis = (named or ones or [0])[0]
        array = np.expand_dims(array, axis)
    dtype = np.dtype(spec.dtype)
    if array.dtype.kind == "f" and dtype.kind in "iu":
        if not np.array_equal(array, np.rint(array)):
            raise InputError(f"The input {spec} takes whole numbers; the file holds others.")
        array = np.rint(array)
    elif array.dtype.kind not in "fiub":
        raise InputError(f"The input {spec} takes numbers; the file holds {array.dtype}.")
    return array.astype(dtype, copy=False)


def check_folder(path: str) -> None:
    """Say before anything is computed that the folder of an output file is not there."""
    if not Path(path).parent.is_dir():
        raise InputError(f"'{path}' cannot be written: there is no folder '{Path(path).parent}'.")


def check_arrays_path(path: str) -> None:
    """Say before anything is computed that outputs cannot be written to `path`."""
    if Path(path).suffix.lower() not in (".npy", ".npz", ".csv"):
        raise InputError(f"'{path}': expected an output file ending in .npy, .npz or .csv.")
    check_folder(path)


def write_arrays(path: str, arrays: Mapping[str, Array]) -> None:
    """Write outputs to .npz (all), or .npy or .csv (one), aside first and then renamed."""
    target = Path(path)
    suffix = target.suffix.lower()
    aside = target.with_name(f".{target.name}.partial{suffix}")
    if suffix != ".npz" and len(arrays) != 1:
        raise InputError(f"The model has the outputs {', '.join(arrays)}; only a .npz file holds several.")
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(aside, "w") as archive:  # np.savez cannot store an output called "file"
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        else:
            (array,) = arrays.values()
            if suffix == ".npy":
                np.save(aside, array)
            else:
                np.savetxt(aside, _rows(array), delimiter=",", fmt="%.9g")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _rows(array: Array) -> Array:
    """Return the array as the table that a CSV file can hold: axes of size one fall away."""
    flat = array.squeeze()
    if flat.ndim > 2:
        raise InputError(f"An output of the shape {list(array.shape)} is no table; write it to .npy or .npz.")
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


class Progress:
    """A line on stderr, only where a person looks at it and only when the work takes more than a second.

    A long call into compiled code shows as time that passes; work in parts shows how far it is.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, done: int) -> None:
        """Say how much is done."""
        self._done = min(done, self._total)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        seconds = 0
        while not self._finished.wait(1.0):
            seconds += 1
            text = f"\r{self._done:,} of {self._total:,} {self._what}, {seconds} s"
            print(text, end="", file=sys.stderr, flush=True)
        if seconds:
            print(file=sys.stderr)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    number = [bool(rows) and isinstance(rows[0].get(c), (int, float)) for c in columns]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, number, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(columns)), line(["-" * w for w in widths]), *map(line, cells)])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=2))
