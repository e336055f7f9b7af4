"""What a caller gives a model, against what the model says that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastlstm.errors import InputError, nearest
from fastlstm.graph import TensorSpec
from fastlstm.runtime.conversion import converted
from fastlstm.runtime.foreign import as_array
from fastlstm.typing import Array

__all__ = ["check_inputs", "check_names", "fill"]


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
    from fastlstm.streaming.ports import Port, check_out

    if not isinstance(out, Mapping):
        raise InputError(f"out should be a dict of arrays for {', '.join(made)}; got {type(out).__name__}.")
    lists = [name for name, result in made.items() if not isinstance(result, np.ndarray)]
    if lists:
        raise InputError(f"The output '{lists[0]}' is a list of arrays, which out cannot take. Leave out away.")
    ports = {name: Port("." * result.ndim, result.shape, str(result.dtype)) for name, result in made.items()}
    targets = check_out(ports, out, {name: result.shape for name, result in made.items()})
    # A result may be one of the inputs, in whose memory another one is written.
    kept = {
        name: result.copy() if any(np.may_share_memory(result, target) for target in targets.values()) else result
        for name, result in made.items()
    }
    for name, target in targets.items():
        target[...] = kept[name]
    return out


def _sequence(spec: TensorSpec, value: Any) -> Any:
    """Return a sequence of tensors as a list of arrays."""
    if not isinstance(value, list | tuple):
        raise InputError(f"Input {spec}: expected a list of arrays; got {type(value).__name__}.")
    return [as_array(item, f"Input {spec}") for item in value]


def _checked(spec: TensorSpec, value: Any, sizes: dict[str, tuple[int, str]]) -> Array:
    array = as_array(value, f"Input {spec}")
    if spec.dtype and array.dtype != spec.dtype:
        wanted = np.dtype(spec.dtype)
        if array.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(wanted.kind, ""):
            raise InputError(
                f"Input {spec}: expected {wanted}; got {array.dtype}. Give x.astype('{wanted}') if that is meant."
            )
        array = converted(array, wanted, f"Input {spec}")
    if "..." in spec.shape:
        return array
    if array.ndim != len(spec.shape):
        raise InputError(f"Input {spec}: expected {len(spec.shape)} dimensions; got {list(array.shape)}.")
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(dim, int):
            if dim != size:
                fixed = f" The model's file fixes it; export it with axis {axis} open to run other sizes."
                hint = fixed if axis < array.ndim - 1 else ""  # the last one is most often that of features
                raise InputError(f"Input {spec}: expected {dim} where {list(array.shape)} has {size}.{hint}")
        elif dim:
            known = sizes.setdefault(dim, (size, spec.name))
            if known[0] != size:
                raise InputError(
                    f"Input {spec}: '{dim}' is {size} here and {known[0]} in '{known[1]}'; it has to be one number."
                )
    return array
