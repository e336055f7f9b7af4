"""A model's outputs as Arrow columns: sequences are lists, vectors lists of fixed size, single numbers plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastlstm.scoring.ports import OutputPort

__all__ = ["arrow_column", "arrow_type"]

Array = npt.NDArray[Any]


def arrow_type(port: OutputPort) -> Any:
    """Return the type of an output's column; axes of size one fall away."""
    kind = pa.from_numpy_dtype(np.dtype(port.dtype))
    for size in _sizes(port):
        kind = pa.list_(kind, size)
    return kind if port.time is None else pa.list_(kind)


def arrow_column(rows: Array | Sequence[Array], port: OutputPort) -> Any:
    """Return an output's column from [rows, *dims], or with time from an array [steps, *dims] for each row."""
    flat: Any = rows
    if port.time is not None:
        flat = np.concatenate(rows) if len(rows) else np.empty((0, *port.dims), port.dtype)
    column = pa.array(np.ascontiguousarray(flat).reshape(-1))
    for size in _sizes(port):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    if port.time is None:
        return column
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), column)


def _sizes(port: OutputPort) -> list[int]:
    return [size for size in reversed(port.dims) if size != 1]
