"""The inputs and outputs of a stream: which axis is time, which is the batch, and whether frames fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.typing import Array

__all__ = ["Port", "by_name", "check_frames", "check_out", "checked_state", "fits", "frames_text", "with_ones"]

_KINDS = {
    "f": ("fiu", "numbers"),
    "i": ("iu", "integers"),
    "u": ("iu", "integers"),
    "b": ("b", "booleans"),
}


@dataclass(frozen=True)
class Port:
    """An input or an output of a stream.

    Attributes
    ----------
    axes : str
        A letter for each axis: T for time, B for the batch rows, anything else for the rest.
    sizes : tuple of int or None
        Sizes of the other axes; None for any size.
    dtype : str
    """

    axes: str
    sizes: tuple[int | None, ...]
    dtype: str

    def shape(self, steps: Any, batch: Any, without: str = "") -> tuple[Any, ...]:
        """Return the shape for a number of time steps and batch rows, some axes left out (`without`)."""
        known = {"T": steps, "B": batch}
        pairs = zip(self.axes, self.sizes, strict=True)
        return tuple(known.get(axis, size) for axis, size in pairs if axis not in without)

    def nothing(self, batch: int, without: str = "") -> Array:
        """Return an array of no frames: its time axis, or a first axis in its place, has size 0."""
        shape = tuple(size or 0 for size in self.shape(0, batch, without))
        return np.empty(shape if "T" in self.axes else (0, *shape), self.dtype)


def frames_text(ports: Mapping[str, Port], batch: int) -> str:
    """Return the names, dtypes and shapes of frames in readable form."""
    without = "T" if batch > 1 else "TB"
    shapes = {name: ", ".join(map(str, port.shape(1, batch, without))) for name, port in ports.items()}
    return ", ".join(f"{name}: {ports[name].dtype}[{shape}]" for name, shape in shapes.items())


def by_name(inputs: Mapping[str, Port], given: Any) -> Mapping[str, Any]:
    """Return the value given for each input; InputError if inputs are missing or unknown."""
    if isinstance(given, Mapping):
        if set(given) != set(inputs):
            raise InputError(f"Expected frames for {', '.join(inputs)}; got {', '.join(map(str, given))}.")
        return given
    if len(inputs) > 1:
        raise InputError(f"Expected a dict of frames for {', '.join(inputs)}; got {type(given).__name__}.")
    return dict.fromkeys(inputs, given)


def fits(shape: tuple[Any, ...], got: tuple[int, ...]) -> bool:
    """Whether a shape matches the expected one, in which None and "n" stand for any size."""
    return len(shape) == len(got) and all(
        size is None or size == "n" or size == n for size, n in zip(shape, got, strict=True)
    )


def with_ones(array: Array, shape: tuple[Any, ...]) -> Array:
    """Return an array with the leading axes of size 1, or the last one, added if it lacks nothing else."""
    missing = len(shape) - array.ndim
    if missing == 1 and shape[-1] == 1 and fits(shape[:-1], array.shape):  # a column of numbers: one feature
        return array.reshape(*array.shape, 1)
    if missing > 0 and set(shape[:missing]) == {1} and array.ndim and fits(shape[missing:], array.shape):
        return array.reshape((1,) * missing + array.shape)
    return array


def check_frames(what: str, port: Port, array: Array, shapes: list[tuple[Any, ...]]) -> None:
    """Raise InputError unless the array has one of the shapes and the kind of numbers that the port takes."""
    if not any(fits(shape, array.shape) for shape in shapes):
        text = " or ".join(f"[{', '.join('any' if s is None else str(s) for s in shape)}]" for shape in shapes)
        raise InputError(f"{what} should have the shape {text}; got {list(array.shape)}.")
    kinds, words = _KINDS[np.dtype(port.dtype).kind]
    if array.dtype.kind not in kinds:
        raise InputError(f"Frames should be {words}; got {array.dtype}.")


def check_out(outputs: Mapping[str, Port], out: Any, shape_of: Mapping[str, tuple[Any, ...]]) -> dict[str, Array]:
    """Return the arrays to write by output; InputError if one does not fit.

    Each has the output's dtype and its shape (in which None stands for any size), is writable, and shares no memory
    with another, nor within itself.
    """
    if isinstance(out, Mapping):
        if set(out) != set(outputs):
            raise InputError(f"out should hold arrays for {', '.join(outputs)}; got {', '.join(map(str, out))}.")
    elif len(outputs) > 1:
        raise InputError(f"out should be a dict of arrays for {', '.join(outputs)}; got {type(out).__name__}.")
    targets: dict[str, Array] = {}
    for name, port in outputs.items():
        target = out[name] if isinstance(out, Mapping) else out
        what = "out" if len(outputs) == 1 else f"out['{name}']"
        if not isinstance(target, np.ndarray) or target.dtype != port.dtype or not fits(shape_of[name], target.shape):
            text = ", ".join("any" if size is None else str(size) for size in shape_of[name])
            got = f"{target.dtype}{list(target.shape)}" if isinstance(target, np.ndarray) else type(target).__name__
            raise InputError(f"{what} should be a {port.dtype} array of shape [{text}]; got {got}.")
        if not target.flags.writeable:
            raise InputError(f"{what} is read-only; give an array that can be written to.")
        if any(size > 1 and not stride for size, stride in zip(target.shape, target.strides, strict=True)):
            raise InputError(f"Elements of {what} share memory; give an array with memory for each of them.")
        for other, earlier in targets.items():
            if np.shares_memory(target, earlier):
                raise InputError(f"out['{other}'] and out['{name}'] share memory; give each output its own.")
        targets[name] = target
    return targets


def checked_state(value: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, Array]:
    """Return a state as arrays; InputError if its names or shapes are not these."""
    if not isinstance(value, Mapping):
        raise InputError(f"A state is a dict of arrays by name; got {type(value).__name__}.")
    given = {name: np.asarray(array) for name, array in value.items()}
    if {name: array.shape for name, array in given.items()} != dict(shapes):
        raise InputError(
            f"This {what}'s state has the arrays {dict(shapes)}; "
            f"got { {name: array.shape for name, array in given.items()} }. Is it the state of another model?"
        )
    for name, array in given.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"The state '{name}' should hold numbers; got {array.dtype}.")
    return given
