"""Conversion of arrays to the dtype that a model takes, if all numbers are in its range."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError
from fastlstm.typing import Array

__all__ = ["converted"]


def converted(array: Array, dtype: npt.DTypeLike, what: str) -> Array:
    """Return the array, or a copy with the dtype; InputError if a number is out of its range.

    Integers have to be in the range of an integer dtype, finite numbers in that of a float dtype: beyond it they would
    wrap around or become infinite.
    """
    wanted = np.dtype(dtype)
    if array.dtype == wanted:
        return array
    if wanted.kind in "iu" and array.dtype.kind in "iu" and array.size:
        low, high, limits = int(array.min()), int(array.max()), np.iinfo(wanted)
        if low < limits.min or high > limits.max:
            raise InputError(
                f"{what}: expected {wanted}, which holds {limits.min} to {limits.max}; "
                f"got {array.dtype} with numbers from {low} to {high}."
            )
    with np.errstate(over="ignore"):
        result = array.astype(wanted)
    if wanted.kind == "f" and array.dtype.kind in "fiu":
        lost = np.isinf(result)
        if lost.any() and np.isfinite(array[lost]).any():
            raise InputError(
                f"{what}: expected {wanted}, whose largest number is {np.finfo(wanted).max:.3g}; "
                f"got {array.dtype} with numbers as large as {np.abs(array[np.isfinite(array)]).max():.3g}. Scale it."
            )
    return result
