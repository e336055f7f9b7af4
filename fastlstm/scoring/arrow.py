"""A model's outputs as Arrow columns: sequences are lists, vectors fixed-size lists, single numbers plain values.

pyarrow's own conversions from and to NumPy import pandas, which takes 0.4 s; those here share memory without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from fastlstm.scoring.ports import OutputPort
from fastlstm.typing import Array

__all__ = ["arrow_column", "arrow_numbers", "arrow_type", "numpy_numbers"]


def arrow_type(port: OutputPort) -> Any:
    """Return the type of an output's column, without axes of size one."""
    kind = pa.from_numpy_dtype(np.dtype(port.dtype))
    for size in _sizes(port):
        kind = pa.list_(kind, size)
    return kind if port.time is None else pa.list_(kind)


def arrow_column(port: OutputPort, values: Array, steps: Array | None = None) -> Any:
    """Return an output's column from [rows, *dims], or with time from [steps of all rows, *dims] and their counts."""
    column = arrow_numbers(np.ascontiguousarray(values).reshape(-1))
    for size in _sizes(port):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    if steps is None:
        return column
    offsets = np.zeros(len(steps) + 1, np.int32)
    np.cumsum(steps, out=offsets[1:])
    return pa.ListArray.from_arrays(arrow_numbers(offsets), column)


def arrow_numbers(values: Array) -> Any:
    """Return an array [values] as Arrow's, of the same memory but for booleans."""
    if values.dtype == bool:
        return pa.array(values)  # eight to a byte
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def numpy_numbers(array: Any) -> Array:
    """Return an Arrow array of numbers or booleans, none of them null, as NumPy's, of the same memory if it can be."""
    found: Array = array.to_numpy(zero_copy_only=False) if pa.types.is_boolean(array.type) else np.from_dlpack(array)
    return found


def _sizes(port: OutputPort) -> list[int]:
    return [size for size in reversed(port.dims) if size != 1]
