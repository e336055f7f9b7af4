"""Reading models and arrays from files, writing arrays to them."""

from __future__ import annotations

import os
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fastlstm.errors import FileFormatError, InputError
from fastlstm.graph import Graph, TensorSpec
from fastlstm.typing import Array

__all__ = ["check_arrays_path", "check_output", "files_of", "read_arrays", "read_inputs", "write_arrays"]


def read_arrays(path: str) -> dict[str, Array]:
    """Read a .npy, .npz or .csv file; an array without a name is called ``""``.

    Nothing is unpickled. A CSV file holds numbers, one row a line, under a line of names or not, which is said on
    stderr.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":  # mapped, which checks the header's size against the file's
            return {"": np.load(path, allow_pickle=False, mmap_mode="r")}
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if suffix == ".csv":
            return {"": _read_table(path)}
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"'{path}' cannot be read as {suffix}: {str(error).rstrip('.')}.") from error
    raise FileFormatError(f"'{path}': expected a file ending in .npy, .npz or .csv.")


def _read_table(path: str) -> Array:
    """Return the numbers of a CSV file; a first line in which no cell is a number is said to be left out."""
    with open(path, encoding="utf-8") as file:
        cells = file.readline().rstrip("\n").split(",")
    numbers = sum(map(_is_number, cells))
    if 0 < numbers < len(cells):
        other = next(cell for cell in cells if not _is_number(cell))
        raise ValueError(f"its first line holds {numbers} numbers and '{other[:40]}', so it is no line of names")
    if not numbers:
        print(f"{path}: the first line is taken for names and left out: {', '.join(cells)[:200]}", file=sys.stderr)
    read = partial(np.loadtxt, path, delimiter=",", ndmin=2, skiprows=int(not numbers), encoding="utf-8")
    table: Array = read()
    if np.isinf(table).any():
        words = read(dtype=str)
        if far := [str(word) for word in words[np.isinf(table)] if "inf" not in word.lower()]:
            raise ValueError(f"the number {far[0][:40]} is larger than a float64 holds")
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def files_of(arguments: Sequence[str]) -> list[str]:
    """Return the files of ``name=file`` or plain file arguments."""
    return [argument.rpartition("=")[2] for argument in arguments]


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
            raise InputError(f"The input {spec} takes integers; the file holds other numbers.")
        array = np.rint(array)
    elif array.dtype.kind not in "fiub":
        raise InputError(f"The input {spec} takes numbers; the file holds {array.dtype}.")
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = array.astype(dtype)
    # A float may be rounded, but stays finite; an integer stays what it is.
    lost = np.isinf(fitted) & np.isfinite(array) if dtype.kind == "f" else fitted != array
    if lost.any():
        raise InputError(f"The input {spec} cannot hold the number {array[lost].flat[0]} of the file.")
    return fitted


def check_output(path: str, sources: Sequence[str] = ()) -> None:
    """Say before anything is computed that an output file's folder is not there, or that it would replace a source."""
    if not Path(path).parent.is_dir():
        raise InputError(f"'{path}' cannot be written: there is no folder '{Path(path).parent}'.")
    for source in sources:
        if Path(path).exists() and Path(source).exists() and os.path.samefile(path, source):
            raise InputError(f"'{path}' is what is read: give the output another name, so that it is not lost.")


def check_arrays_path(path: str, sources: Sequence[str] = ()) -> None:
    """Say before anything is computed that outputs cannot be written to `path`."""
    if Path(path).suffix.lower() not in (".npy", ".npz", ".csv"):
        raise InputError(f"'{path}': expected an output file ending in .npy, .npz or .csv.")
    check_output(path, sources)


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
