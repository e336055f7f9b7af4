"""Arrays of other libraries: PyTorch tensors, DLPack objects, pandas and polars columns, Arrow arrays.

None of these libraries is imported: objects are recognised by what they offer. PyTorch tensors in give tensors out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.typing import Array

__all__ = ["as_array", "as_arrays", "as_given", "is_tensor", "tensors_among", "with_tensors"]

Method = Callable[..., Any]


def is_tensor(value: Any) -> bool:
    """Whether a value is a PyTorch tensor."""
    torch = sys.modules.get("torch")  # without torch imported, there can be no tensor
    return torch is not None and isinstance(value, torch.Tensor)


def tensors_among(values: Any) -> bool:
    """Whether a value, a dict's values or a sequence's items are PyTorch tensors, at least one of them."""
    if isinstance(values, Mapping):
        return any(map(is_tensor, values.values()))
    return any(map(is_tensor, values)) if isinstance(values, list | tuple) else is_tensor(values)


def as_array(value: Any, what: str) -> Array:
    """Return a value as a NumPy array, sharing its memory if possible.

    Parameters
    ----------
    value : array_like
        NumPy arrays, numbers and nested lists of them; PyTorch tensors in CPU memory; objects that support DLPack;
        columns of pandas, polars and Arrow, also of lists if these are of equal length.
    what : str
        What error messages call it.

    Raises
    ------
    InputError
        If it holds no numbers, or is a tensor that requires a gradient or lies on another device.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value
    if is_tensor(value):
        return _of_tensor(value, what)
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        array = np.asarray(value)
        if array.dtype.kind == "O" and array.ndim and array.size:  # a column of lists
            array = np.stack([np.stack(row) if _is_nested(row) else np.asarray(row) for row in array])
    except (ValueError, TypeError, BufferError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read as an array: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what}: expected an array of numbers; got {type(value).__name__} of {array.dtype}.")
    return array


def _is_nested(row: Any) -> bool:
    return isinstance(row, np.ndarray) and row.dtype.kind == "O"


def _of_tensor(tensor: Any, what: str) -> Array:
    if tensor.requires_grad:
        raise InputError(
            f"{what} is a tensor that requires a gradient, and none is computed here; give x.detach(), or call inside "
            "torch.no_grad() with inputs that require none."
        )
    if tensor.device.type != "cpu":
        raise InputError(f"{what} is a tensor on {tensor.device}; this engine runs on the processor: give x.cpu().")
    try:
        array: Array = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{what}: a tensor of {tensor.dtype} is not supported ({error}); give x.float().") from error
    return array


def as_arrays(values: Any, what: str) -> Any:
    """Return a value, a dict's values or a sequence's items with NumPy arrays in place of tensors."""
    if isinstance(values, Mapping):
        return {name: as_arrays(value, f"{what} '{name}'") for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(as_arrays(value, what) for value in values)
    return as_array(values, what) if is_tensor(values) else values


def as_given(results: Any) -> Any:
    """Return results as PyTorch tensors that share their memory, for a caller that gave tensors."""
    torch = sys.modules["torch"]
    if isinstance(results, Mapping):
        return {name: as_given(result) for name, result in results.items()}
    if isinstance(results, list | tuple):
        return type(results)(map(as_given, results))
    return torch.from_numpy(results) if isinstance(results, np.ndarray) else results


def with_tensors(method: Method) -> Method:
    """Wrap a method that takes arrays, so that it takes PyTorch tensors too and then returns tensors."""

    @wraps(method)
    def either(self: Any, *arguments: Any) -> Any:
        if not any(map(tensors_among, arguments)):
            return method(self, *arguments)
        arrays = [as_arrays(argument, "The frames") for argument in arguments]
        result = method(self, *arrays)
        written = [given for given, array in zip(arguments, arrays, strict=True) if array is result]
        return written[0] if written else as_given(result)

    return either
