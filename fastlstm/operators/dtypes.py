"""Element types as attributes name them: ONNX numbers or NumPy names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ONNX_TYPES", "dtype_of"]

ONNX_TYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""The numbers of ``onnx.TensorProto.DataType`` that NumPy has a type for, and that type's name."""


def dtype_of(value: int | str) -> np.dtype[Any]:
    """Return the NumPy dtype for an ONNX number or a NumPy name.

    Raises
    ------
    ValueError
        If NumPy has no such type (bfloat16, strings, 8-bit and 4-bit floats).
    """
    name = ONNX_TYPES.get(value) if isinstance(value, int) else value
    if name not in ONNX_TYPES.values():
        raise ValueError(f"The element type {value} is not supported; supported: {', '.join(ONNX_TYPES.values())}.")
    return np.dtype(name)
