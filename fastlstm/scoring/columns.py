"""From Arrow arrays to NumPy arrays: concatenated sequences of different lengths, and the rows that do not fit.

If a column's type does not fit for any row, that is an `InputError`; what is wrong in a row is reported for that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from fastlstm.errors import InputError
from fastlstm.scoring.arrow import numpy_numbers
from fastlstm.typing import Array

__all__ = ["Column", "Wanted", "check_type", "read_column"]


@dataclass(frozen=True)
class Wanted:
    """What an input of the model expects of each row.

    Attributes
    ----------
    name : str
        The input's, for messages.
    dims : tuple of int
        Sizes within one time step, or within the row if there is no time.
    dtype : str
    has_time : bool
        Whether a row has any number of steps.
    """

    name: str
    dims: tuple[int, ...]
    dtype: str
    has_time: bool

    def __str__(self) -> str:
        sizes = " × ".join(map(str, self.dims)) or "one"
        number = "value" if self.dims in ((), (1,)) else "values"
        what = {"f": "numbers", "i": "integers", "u": "integers", "b": "booleans"}
        kind = what.get(np.dtype(self.dtype).kind, self.dtype)
        if self.has_time:
            return f"input '{self.name}' takes a list of steps with {sizes} {number} each ({kind})"
        return f"input '{self.name}' takes {sizes} {number} a row ({kind})"


@dataclass(frozen=True)
class Column:
    """The rows that fit, concatenated.

    Attributes
    ----------
    values : array [steps of all rows, *dims], or [rows, *dims] without time
    offsets : array [rows + 1] of int64
        Where each row begins; without time simply its number.
    """

    values: Array
    offsets: Array

    @property
    def lengths(self) -> Array:
        """The number of steps of each row."""
        return np.diff(self.offsets)


class _Misfit(Exception):  # noqa: N818 - caught within this module
    """Which elements of an array do not fit, and why."""

    def __init__(self, positions: Array, reason: str | Sequence[str]) -> None:
        super().__init__()
        self.positions = positions
        self.reasons = [reason] * len(positions) if isinstance(reason, str) else list(reason)


def read_column(arrays: Sequence[Any], wanted: Wanted) -> tuple[list[Column], dict[int, str]]:
    """Return the rows that fit, piece by piece, and by row number why the others do not.

    Parameters
    ----------
    arrays : sequence of pyarrow.Array
        The column's rows, in one or more pieces of one type, which `check_type` accepts.
    wanted : Wanted
    """
    columns: list[Column] = []
    reasons: dict[int, str] = {}
    first = 0
    for array in arrays:
        column, wrong = _read_piece(array, wanted)
        columns.append(column)
        reasons.update({first + row: reason for row, reason in wrong.items()})
        first += len(array)
    return columns, reasons


def _read_piece(array: Any, wanted: Wanted) -> tuple[Column, dict[int, str]]:
    rows = np.arange(len(array))
    reasons: dict[int, str] = {}
    read = _sequences if wanted.has_time else _single
    while True:
        try:
            return read(array, wanted), reasons
        except _Misfit as misfit:  # noqa: PERF203 - at most once for each way not to fit
            for position, reason in zip(misfit.positions, misfit.reasons, strict=True):
                reasons.setdefault(int(rows[position]), reason)
            fits = np.ones(len(rows), bool)
            fits[misfit.positions] = False
            array, rows = array.filter(pa.array(fits)), rows[fits]


def check_type(column: str, kind: Any, wanted: Wanted) -> None:
    """Raise InputError if no value of this Arrow type could fit the input.

    Only the type decides, so an empty array is used; the contents do not matter.
    """
    try:
        read_column([_of_none(kind)], wanted)
    except InputError as error:
        raise InputError(f"Column '{column}' is {kind}: {error}") from None


def _of_none(kind: Any) -> Any:
    """Return an array without elements; of a dictionary, its values."""
    return pa.nulls(0, kind.value_type if kinds.is_dictionary(kind) else kind)


# --- sequences and single values ---------------------------------------------------------------------------


def _sequences(array: Any, wanted: Wanted) -> Column:
    array = _plain(array)
    if kinds.is_struct(array.type):
        return _side_by_side(array, wanted)
    if kinds.is_null(array.type) and len(array):
        raise _Misfit(np.arange(len(array)), "null in place of a sequence")
    if kinds.is_null(array.type):
        return Column(np.zeros((0, *wanted.dims), wanted.dtype), np.zeros(1, np.int64))
    if not _is_list(array.type):
        raise InputError(f"{wanted}.")
    _refuse_nulls(array, "null in place of a sequence")
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(_lengths(array), out=offsets[1:])
    try:
        return Column(_values(array.flatten(), wanted.dims, wanted), offsets)
    except _Misfit as misfit:
        owners = np.searchsorted(offsets, misfit.positions, side="right") - 1
        first = np.unique(owners, return_index=True)[1]
        raise _Misfit(
            owners[first],
            [f"step {misfit.positions[i] - offsets[owners[i]]}: {misfit.reasons[i]}" for i in first],
        ) from None


def _side_by_side(array: Any, wanted: Wanted) -> Column:
    """Read a struct of sequences, each of whose fields holds one value of every step; or a struct of steps."""
    _refuse_nulls(array, "null in place of a sequence")
    fields = _fields(array)
    if not any(_is_list(field.type) for field in fields):  # one column per step
        if wanted.dims not in ((), (1,)):
            raise InputError(f"{wanted}; here is one value for each of {len(fields)} steps.")
        values = _values(array, (len(fields),), wanted).reshape(-1, *wanted.dims)
        return Column(values, np.arange(len(array) + 1, dtype=np.int64) * len(fields))
    if wanted.dims != (len(fields),):
        raise InputError(f"{wanted}; here are {len(fields)} sequences side by side.")
    one = Wanted(wanted.name, (), wanted.dtype, True)
    columns = [_sequences(field, one) for field in fields]
    unequal = np.any([column.lengths != columns[0].lengths for column in columns], axis=0)
    if unequal.any():
        where = np.flatnonzero(unequal)
        raise _Misfit(where, [f"sequences of {_counts(columns, int(row))} steps side by side" for row in where])
    return Column(np.stack([column.values for column in columns], axis=1), columns[0].offsets)


def _counts(columns: Sequence[Column], row: int) -> str:
    return " and ".join(map(str, sorted({int(column.lengths[row]) for column in columns})))


def _single(array: Any, wanted: Wanted) -> Column:
    return Column(_values(array, wanted.dims, wanted), np.arange(len(array) + 1, dtype=np.int64))


def _values(array: Any, dims: tuple[int, ...], wanted: Wanted) -> Array:
    """Return [elements, *dims] in the input's dtype."""
    array = _plain(array)
    if kinds.is_null(array.type) and len(array):
        raise _Misfit(np.arange(len(array)), "null")
    if kinds.is_null(array.type):
        return np.zeros((0, *dims), wanted.dtype)
    if kinds.is_struct(array.type):
        _refuse_nulls(array, "null")
        fields = _fields(array)
        if not dims or dims[0] != len(fields):
            raise InputError(f"{wanted}; here are {len(fields)} fields.")
        return np.stack([_values(field, dims[1:], wanted) for field in fields], axis=1)
    if _is_list(array.type):
        if not dims:
            raise InputError(f"{wanted}; here are lists in place of numbers.")
        _refuse_nulls(array, "null")
        expected = dims[0]
        if not kinds.is_fixed_size_list(array.type) or array.type.list_size != expected:
            lengths = _lengths(array)
            where = np.flatnonzero(lengths != expected)
            if len(where):
                raise _Misfit(where, [f"{lengths[i]} values where the model takes {expected}" for i in where])
        try:
            return _values(array.flatten(), dims[1:], wanted).reshape(len(array), *dims)
        except _Misfit as misfit:
            owners, first = np.unique(misfit.positions // expected, return_index=True)
            raise _Misfit(owners, [misfit.reasons[i] for i in first]) from None
    if any(size != 1 for size in dims):
        raise InputError(f"{wanted}; here is one value.")
    return _numbers(array, np.dtype(wanted.dtype), wanted).reshape(len(array), *dims)


def _numbers(array: Any, dtype: np.dtype[Any], wanted: Wanted) -> Array:
    """Return numbers in the input's dtype; nulls, and numbers that it cannot represent, are misfits."""
    if kinds.is_decimal(array.type):
        array = array.cast(pa.float64())
    allowed = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(dtype.kind, "")
    try:
        kind = np.dtype(array.type.to_pandas_dtype()).kind
    except (NotImplementedError, TypeError):
        kind = "O"
    if kind not in allowed:
        raise InputError(f"{wanted}; here are values of the type {array.type}.")
    _refuse_nulls(array, "null")
    numbers = numpy_numbers(array)
    if numbers.dtype == dtype:
        return numbers
    with np.errstate(over="ignore"):
        result = numbers.astype(dtype)
    lost = np.isinf(result) & ~np.isinf(numbers) if dtype.kind == "f" else _wrapped(numbers, dtype)
    if lost.any():
        where = np.flatnonzero(lost)
        raise _Misfit(where, [f"{numbers[i]} is beyond {dtype}" for i in where])
    return result


def _wrapped(numbers: Array, dtype: np.dtype[Any]) -> Array:
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    if limits is None:
        return np.zeros(len(numbers), bool)
    low, high = np.iinfo(numbers.dtype).min, np.iinfo(numbers.dtype).max
    beyond = np.zeros(len(numbers), bool)
    if low < limits.min:
        beyond |= numbers < limits.min
    if high > limits.max:
        beyond |= numbers > limits.max
    return beyond


# --- Arrow's many encodings ---------------------------------------------------------------------------------


def _plain(array: Any) -> Any:
    """Return the array without dictionary encoding, run-end encoding or extension type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if kinds.is_dictionary(array.type):
        array = array.dictionary_decode()
    if kinds.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array


def _is_list(kind: Any) -> bool:
    return bool(
        kinds.is_list(kind)
        or kinds.is_large_list(kind)
        or kinds.is_fixed_size_list(kind)
        or kinds.is_list_view(kind)
        or kinds.is_large_list_view(kind)
    )


def _lengths(array: Any) -> Array:
    """Return the length of each list; there are no nulls."""
    if kinds.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size, np.int64)
    if kinds.is_list_view(array.type) or kinds.is_large_list_view(array.type):
        return numpy_numbers(array.sizes).astype(np.int64)
    return np.diff(numpy_numbers(array.offsets)).astype(np.int64)


def _fields(array: Any) -> list[Any]:
    """Return the fields of a struct, with nested structs flattened; the fields of a null struct are null."""
    found: list[Any] = []
    for field in array.flatten():
        plain = _plain(field)
        found.extend(_fields(plain) if kinds.is_struct(plain.type) else [plain])
    return found


def _refuse_nulls(array: Any, reason: str) -> None:
    if array.null_count:
        raise _Misfit(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)), reason)
