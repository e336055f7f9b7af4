"""What a caller gives a model, against what the model says that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError, nearest
from fastlstm.foreign import as_array
from fastlstm.graph import TensorSpec

__all__ = ["check_inputs", "check_names", "fill"]

Array = npt.NDArray[Any]


def check_names(specs: tuple[TensorSpec, ...], given: Iterable[str]) -> None:
    """InputError unless every input is there, and nothing else."""
    names = [spec.name for spec in specs]
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if not unknown and not missing:
        return
    if unknown:
        said = f"There is no input '{unknown[0]}'" + (f", {nearest(str(unknown[0]), names)}" if len(names) > 1 else "")
    else:
        said = f"The input '{missing[0]}' is missing"
    raise InputError(f"{said}. The model takes {', '.join(map(str, specs))}.")


def check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Return the inputs as arrays of the declared dtypes, ranks and sizes; InputError says what does not fit."""
    names = [spec.name for spec in specs]
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"run takes the inputs by name, a dict of {', '.join(names)}; got {type(inputs).__name__}. "
            "A call of the model itself takes arrays in order."
        )
    check_names(specs, inputs)
    sizes: dict[str, tuple[int, str]] = {}
    return {
        spec.name: _sequence(spec, inputs[spec.name])
        if spec.dtype == "sequence"
        else _checked(spec, inputs[spec.name], sizes)
        for spec in specs
    }


def fill(out: Mapping[str, Array], made: Mapping[str, Any]) -> Any:
    """Write results to the arrays that the caller gives, and return those; InputError if they do not fit."""
    if not isinstance(out, Mapping) or set(out) != set(made):
        got = ", ".join(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
        raise InputError(f"out should hold arrays for {', '.join(made)}; got {got}.")
    names = list(made)
    for number, name in enumerate(names):
        target, result = out[name], made[name]
        if not isinstance(result, np.ndarray):
            raise InputError(f"out cannot take the output '{name}', which is a list; leave out away.")
        if not isinstance(target, np.ndarray) or (target.dtype, target.shape) != (result.dtype, result.shape):
            got = f"{target.dtype}{list(target.shape)}" if isinstance(target, np.ndarray) else type(target).__name__
            raise InputError(f"out['{name}'] should be {result.dtype}{list(result.shape)}; got {got}.")
        if not target.flags.writeable:
            raise InputError(f"out['{name}'] is read-only; give an array that can be written to.")
        if any(size > 1 and not stride for size, stride in zip(target.shape, target.strides, strict=True)):
            raise InputError(f"Elements of out['{name}'] share memory; give an array with memory for each of them.")
        for other in names[:number]:
            if np.shares_memory(target, out[other]):
                raise InputError(f"out['{other}'] and out['{name}'] share memory; give each output its own.")
    for name in names:
        out[name][...] = made[name]
    return out


def _sequence(spec: TensorSpec, value: Any) -> Any:
    """Return a sequence of tensors as a list of arrays."""
    if not isinstance(value, list | tuple):
        raise InputError(f"Input {spec}: expected a list of arrays; got {type(value).__name__}.")
    return [as_array(item, f"Input {spec}") for item in value]


def _checked(spec: TensorSpec, value: Any, sizes: dict[str, tuple[int, str]]) -> Array:
    array = as_array(value, f"Input {spec}")
    if spec.dtype and array.dtype != spec.dtype:
        array = _converted(spec, array)
    if "..." in spec.shape:
        return array
    if array.ndim != len(spec.shape):
        raise InputError(f"Input {spec}: expected {len(spec.shape)} dimensions; got {list(array.shape)}.")
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise InputError(
                    f"Input {spec}: expected {dim} where {list(array.shape)} has {size}. The model's file says {dim}; "
                    "where another size is meant, export it with this axis open."
                )
        elif dim:
            known = sizes.setdefault(dim, (size, spec.name))
            if known[0] != size:
                raise InputError(
                    f"Input {spec}: '{dim}' is {size} here and {known[0]} in '{known[1]}'; it has to be one number."
                )
    return array


def _converted(spec: TensorSpec, array: Array) -> Array:
    """Return an array as the input's dtype; InputError if numbers would become others."""
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(wanted.kind, ""):
        raise InputError(
            f"Input {spec}: expected {wanted}; got {array.dtype}. Give x.astype('{wanted}') if that is meant."
        )
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(f"Input {spec}: {array.min()} to {array.max()} does not fit {wanted}.")
    with np.errstate(over="ignore"):
        made = array.astype(wanted)
    if wanted.kind == "f" and np.count_nonzero(np.isinf(made)) != np.count_nonzero(np.isinf(array)):
        raise InputError(f"Input {spec}: it holds numbers that are too large for {wanted}; scale them.")
    return made
