"""What several verbs share: reading models and arrays, printing tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import FileFormatError, InputError
from fastlstm.fileformat import StoredModel, read
from fastlstm.graph import Graph, TensorSpec

__all__ = [
    "add_layers_option",
    "print_json",
    "read_arrays",
    "read_inputs",
    "read_model",
    "table",
    "write_arrays",
]

Array = npt.NDArray[Any]


def add_layers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what a state dict does not."""
    parser.add_argument("--layers", help='the layers of a PyTorch state dict, such as "lstm | last | linear"')


def read_model(path: str, layers: str | None = None) -> StoredModel:
    """Read a model file of any supported format."""
    if path.endswith(".fastlstm"):
        if layers:
            raise InputError("--layers is for PyTorch state dicts; a .fastlstm file says its layers itself.")
        return read(path)
    from fastlstm.converters import load_graph

    return StoredModel(load_graph(path, **({"layers": layers} if layers else {})))


def read_arrays(path: str) -> dict[str, Array]:
    """Read a .npy, .npz or .csv file; an array without a name is called ``""``."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":
            return {"": np.load(path, allow_pickle=False)}
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if suffix == ".csv":
            return {"": np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32)}
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"'{path}' cannot be read as {suffix}: {error}.") from error
    raise FileFormatError(f"'{path}': expected a file ending in .npy, .npz or .csv.")


def read_inputs(paths: Sequence[str], graph: Graph) -> dict[str, Array]:
    """Return the graph's inputs from ``name=file`` or plain file arguments."""
    found: dict[str, Array] = {}
    names = [spec.name for spec in graph.inputs]
    for argument in paths:
        name, _, path = argument.rpartition("=")
        for own, array in read_arrays(path).items():
            free = [n for n in names if n not in found]
            key = name or own or (free[0] if free else "")
            spec = next((s for s in graph.inputs if s.name == key), None)
            found[key] = array if spec is None else _with_batch(array, spec)
    return found


def _with_batch(array: Array, spec: TensorSpec) -> Array:
    """Return a table from a file as one sequence where the model wants a batch of them."""
    if array.ndim == 2 and len(spec.shape) == 3 and array.shape[1] == spec.shape[2]:
        time_first = isinstance(spec.shape[0], str) and "time" in spec.shape[0]
        return array[:, None] if time_first else array[None]
    return array


def write_arrays(path: str, arrays: Mapping[str, Array]) -> None:
    """Write outputs to .npz (all), or .npy or .csv (one), aside first and then renamed."""
    target = Path(path)
    suffix = target.suffix.lower()
    aside = target.with_name(f".{target.name}.partial{suffix}")
    if suffix not in (".npy", ".npz", ".csv"):
        raise InputError(f"'{path}': expected an output file ending in .npy, .npz or .csv.")
    if suffix != ".npz" and len(arrays) != 1:
        raise InputError(f"The model has the outputs {', '.join(arrays)}; only a .npz file holds several.")
    try:
        if suffix == ".npz":
            np.savez(aside, **dict(arrays))
        else:
            (array,) = arrays.values()
            if suffix == ".npy":
                np.save(aside, array)
            else:
                np.savetxt(aside, array.reshape(-1, array.shape[-1] if array.ndim else 1), delimiter=",")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


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
