"""Keras's EinsumDense: a dense layer whose equation says which axes it sums over and where the new ones go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.keras.layer import Kind, Layer
from fastlstm.converters.keras.layers import activated
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.converters.keras.weights import Slot
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators.dims import Dim

__all__ = ["KINDS"]

_EQUATION = re.compile(r"(\.\.\.)?([a-zA-Z]+),([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)")
_FREE = "0123456789"  # letters for the axes that an ellipsis stands for


def _labels(layer: Layer, x: Tensor) -> tuple[str, str, str]:
    """Return one letter for each axis of the input, the kernel and the output."""
    given = layer.config.get("equation")
    found = _EQUATION.fullmatch(given.replace(" ", "")) if isinstance(given, str) else None
    if found is None or bool(found[1]) != bool(found[4]):
        raise UnsupportedError(
            f"{layer.label}: the equation {given!r:.60} is not supported; supported: 'abc,cd->abd' and '...c,cd->...d'."
        )
    source, kernel, target = found[2], found[3], found[5]
    elided = x.rank - len(source)
    if elided < 0 or (elided > 0) != bool(found[1]) or elided > len(_FREE):
        raise FileFormatError(f"{layer.label}: the equation '{given}' does not fit an input of {x.rank} axes.")
    head = _FREE[:elided]
    if any(len(set(text)) < len(text) for text in (source, kernel, target)):
        raise UnsupportedError(f"{layer.label}: a letter stands twice in a part of the equation '{given}'.")
    return head + source, kernel, head + target


def _einsum_dense(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    emit, config = layer.emit, layer.config
    x = emit.floats(layer.one(inputs))
    config.choice("lora_rank", [None])
    config.ignore("lora_alpha")
    source, letters, target = _labels(layer, x)
    summed = [a for a in letters if a in source and a not in target]
    new = [a for a in letters if a not in source and a in target]
    kept = [a for a in source if a not in summed]
    if len(summed) + len(new) < len(letters) or set(kept) | set(new) != set(target) or not summed:
        raise UnsupportedError(
            f"{layer.label}: in its equation every letter of the kernel should be summed over or be new in the output."
        )
    sizes = _sizes(layer, x, source, target, new)
    kernel = layer.weight("kernel", [int(sizes[a]) for a in letters])
    order = [letters.index(a) for a in (*summed, *new)]
    columns = int(np.prod([int(sizes[a]) for a in new], dtype=np.int64))
    matrix = kernel.transpose(order).reshape(-1, columns)
    lined = emit.transpose(x, [source.index(a) for a in (*kept, *summed)])
    heads = [sizes[a] for a in kept]
    if len(summed) > 1:
        lined = _reshaped(layer, lined, len(kept), [len(matrix)], [*heads, len(matrix)])
    y = emit.node("Dense", lined, layer.constant("kernel", matrix), shape=[*heads, columns])
    if len(new) != 1:
        y = _reshaped(layer, y, len(kept), [int(sizes[a]) for a in new], [*heads, *(sizes[a] for a in new)])
    y = emit.transpose(y, [[*kept, *new].index(a) for a in target])
    axes = config.get("bias_axes")
    if axes is not None:
        y = emit.binary("Add", y, layer.constant("bias", layer.weight("bias", _bias(layer, axes, target, sizes))), "")
    return [activated(layer, y)]


def _sizes(layer: Layer, x: Tensor, source: str, target: str, new: Sequence[str]) -> dict[str, Dim]:
    """Return the size of every letter's axis; those of new axes stand in the option output_shape."""
    sizes: dict[str, Dim] = dict(zip(source, x.shape, strict=True))
    given = layer.config.get("output_shape")
    listed = given if isinstance(given, list) else [given]
    for letter, size in zip(reversed(target), reversed(listed), strict=False):
        if letter in new:
            if type(size) is not int or not 0 < size < 1 << 31:
                raise FileFormatError(f"{layer.label}: output_shape should hold the size of the new axis '{letter}'.")
            sizes[letter] = size
    for letter in (*new, *(a for a in source if a not in target)):
        if not isinstance(sizes.get(letter), int):
            raise UnsupportedError(f"{layer.label}: the size of the axis '{letter}' must be known before run time.")
    return sizes


def _bias(layer: Layer, axes: Any, target: str, sizes: Mapping[str, Dim]) -> list[int]:
    """Return the bias's shape: from the first axis that has one on, 1 for those without."""
    if not isinstance(axes, str) or not axes or any(a not in target for a in axes):
        raise FileFormatError(f"{layer.label}: bias_axes should be axes of its output; got {axes!r:.40}.")
    shape = [sizes[a] if a in axes else 1 for a in target[min(target.index(a) for a in axes) :]]
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedError(f"{layer.label}: a bias along an axis whose size is not known is not supported.")
    return [int(size) for size in shape]


def _reshaped(layer: Layer, x: Tensor, kept: int, tail: Sequence[int], shape: Sequence[Dim]) -> Tensor:
    """Return `x` with the axes behind the first `kept` in the shape `tail`."""
    if kept <= 1 or sum(not isinstance(size, int) for size in shape[:kept]) <= 1:
        head = [size if isinstance(size, int) else -1 for size in shape[:kept]]
        return layer.emit.reshape(x, [*head, *tail], shape)
    parts: list[Tensor | str] = [layer.emit.sizes(x, 0, kept), layer.emit.ints(tail)]
    whole = layer.emit.node("Concat", *parts, shape=(kept + len(tail),), dtype="int64", axis=0)
    return layer.emit.node("Reshape", x, whole, shape=shape)


def _slots(config: Mapping[str, Any], _major: int) -> list[Slot]:
    return [Slot("kernel")] if config.get("bias_axes") is None else [Slot("kernel"), Slot("bias")]


KINDS: Mapping[str, Kind] = {
    "EinsumDense": Kind(
        _einsum_dense,
        _slots,
        "equation (kernel axes summed over or new), bias_axes, activation",
        "an ellipsis on the right, axes that input, kernel and output share, lora",
    ),
}
"""EinsumDense. It does not hand on a mask."""
