"""Keras's layers of several inputs: Add, Concatenate, Multiply, Dot and the like, with their rules for masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.converters.keras.layer import Convert, Kind, Layer
from fastlstm.converters.keras.tensor import Emitter, Tensor, broadcast
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["KINDS"]


def _aligned(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs as float32 and of one rank; Keras puts the missing axes behind the batch."""
    if len(inputs) < 2:
        raise UnsupportedError(f"{layer.label}: two inputs or more were expected; got {len(inputs)}.")
    rank = max(x.rank for x in inputs)
    aligned = []
    for x in inputs:
        wide = layer.emit.floats(x)
        while wide.rank < rank:
            wide = layer.emit.unsqueeze(wide, 1)
        aligned.append(wide.with_mask(x.mask))
    return aligned


def _merged_mask(layer: Layer, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return the mask of a sum.

    Keras 3 keeps a step that any input keeps, and where one has no mask neither has the sum; Keras 2 keeps a
    step that all inputs with a mask keep.
    """
    masks = [x.mask for x in inputs if x.mask is not None]
    if not masks or (layer.major == 3 and len(masks) < len(inputs)):
        return None
    return _joined(layer.emit, masks, "Or" if layer.major == 3 else "And", layer.label)


def _joined(emit: Emitter, masks: Sequence[Tensor], op: str, label: str) -> Tensor:
    joined = masks[0]
    for mask in masks[1:]:
        joined = joined if mask == joined else emit.logic(op, joined, mask, label)
    return joined


def _elementwise(op: str, average: bool = False) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        values = _aligned(layer, inputs)
        if op == "Sub" and len(values) != 2:
            raise UnsupportedError(f"{layer.label}: two inputs were expected; got {len(values)}.")
        y = values[0].with_mask(None)
        for x in values[1:]:
            y = layer.emit.binary(op, y, x, layer.label)
        if average:
            y = layer.emit.binary("Mul", y, layer.emit.number(1 / len(values)), layer.label)
        return [y.with_mask(_merged_mask(layer, values))]

    return convert


def _multiply(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Multiply; in Keras 3 a masked step counts as 1, and is 0 where every input is masked."""
    values, emit = _aligned(layer, inputs), layer.emit
    mask = _merged_mask(layer, values)
    factors = [_filled(layer, x, 1.0) for x in values] if layer.major == 3 else values
    y = factors[0].with_mask(None)
    for x in factors[1:]:
        y = emit.binary("Mul", y, x, layer.label)
    if mask is not None and layer.major == 3:
        y = emit.where(emit.unsqueeze(mask, -1), y, 0.0, layer.label)
    return [y.with_mask(mask)]


def _filled(layer: Layer, x: Tensor, otherwise: float) -> Tensor:
    if x.mask is None:
        return x
    return layer.emit.where(layer.emit.unsqueeze(x.mask, -1), x, otherwise, layer.label)


def _extreme(op: str) -> Convert:
    """Return the converter of Maximum or Minimum; in Keras 3 a masked step leaves the choice to the others."""

    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        values, emit = _aligned(layer, inputs), layer.emit
        y, kept = values[0], values[0].mask if layer.major == 3 else None
        for x in values[1:]:
            mask = x.mask if layer.major == 3 else None
            other = x
            if mask is not None:
                other = _chosen(layer, mask, x, y)
            if kept is not None:
                y = _chosen(layer, kept, y, other)
            kept = None if mask is None or kept is None else _joined(emit, [kept, mask], "Or", layer.label)
            y = emit.binary(op, y, other, layer.label)
        return [y.with_mask(_merged_mask(layer, values))]

    return convert


def _chosen(layer: Layer, mask: Tensor, x: Tensor, otherwise: Tensor) -> Tensor:
    shape = broadcast(x.shape, otherwise.shape, layer.label)
    return layer.emit.node("Where", layer.emit.unsqueeze(mask, -1), x, otherwise, shape=shape)


def _concatenate(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    emit, rank = layer.emit, inputs[0].rank if inputs else 0
    axis = layer.config.get("axis", -1)
    if type(axis) is not int or not -rank <= axis < rank or axis % rank == 0:
        raise FileFormatError(f"{layer.label}: axis should be one behind the batch; got {axis!r:.40}.")
    dtype = "float32" if any(x.dtype == "float32" for x in inputs) else inputs[0].dtype
    values = [emit.cast(x, dtype) for x in inputs]
    y = emit.concat(values, axis, layer.label)
    masks = [x.mask for x in inputs if x.mask is not None]
    if not masks or y.rank < 3:
        return [y]
    if axis % rank == rank - 1:  # features side by side: a step without a mask is kept
        if layer.major == 2:
            return [y.with_mask(_joined(emit, masks, "And", layer.label))]
        whole = len(masks) == len(inputs)
        return [y.with_mask(_joined(emit, masks, "Or", layer.label) if whole else _all_kept(emit, y))]
    if axis % rank != 1:
        raise UnsupportedError(f"{layer.label}: masked inputs can be joined along time or features only.")
    parts = [_all_kept(emit, x) if x.mask is None else x.mask for x in inputs]
    return [y.with_mask(emit.concat(parts, 1, layer.label))]


def _all_kept(emit: Emitter, x: Tensor) -> Tensor:
    """Return a mask that keeps every step of `x`."""
    true = Tensor(emit.constant(True, "kept"), (), "bool")
    return emit.node("Expand", true, emit.sizes(x, 0, 2), shape=x.shape[:2], dtype="bool")


def _dot(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Multiply matrices over one axis of each input, row of the batch by row."""
    config, emit = layer.config, layer.emit
    if len(inputs) != 2:
        raise UnsupportedError(f"{layer.label}: two inputs were expected; got {len(inputs)}.")
    a, b = (layer.rank(emit.floats(x), 2, 3).with_mask(None) for x in inputs)
    given = config.get("axes")
    axes = given if isinstance(given, list) else [given, given]
    if len(axes) != 2 or any(type(axis) is not int for axis in axes):
        raise FileFormatError(f"{layer.label}: axes should be one or two integers; got {given!r:.40}.")
    first, second = axes[0] % a.rank, axes[1] % b.rank
    if 0 in (first, second):
        raise FileFormatError(f"{layer.label}: axes should not hold the batch.")
    if config.flag("normalize"):
        a, b = _unit(layer, a, first), _unit(layer, b, second)
    left = emit.unsqueeze(a, 1) if a.rank == 2 else emit.transpose(a, [0, 3 - first, first])
    right = emit.unsqueeze(b, 2) if b.rank == 2 else emit.transpose(b, [0, second, 3 - second])
    y = emit.node("MatMul", left, right, shape=(left.shape[0], left.shape[1], right.shape[2]))
    if a.rank == 2:
        return [emit.squeeze(y, 1)]
    return [emit.squeeze(y, 2) if b.rank == 2 else y]


def _unit(layer: Layer, x: Tensor, axis: int) -> Tensor:
    """Return `x` divided by its length along `axis`."""
    emit = layer.emit
    squares = emit.reduce("ReduceSum", emit.binary("Mul", x, x, layer.label), [axis], keepdims=True)
    length = emit.like("Sqrt", emit.like("Max", squares, emit.number(1e-12)))
    return emit.binary("Div", x, length, layer.label)


KINDS: Mapping[str, Kind] = {
    "Add": Kind(_elementwise("Add"), options="any number of inputs, masks"),
    "Subtract": Kind(_elementwise("Sub"), options="two inputs, masks"),
    "Average": Kind(_elementwise("Add", average=True), options="any number of inputs, masks"),
    "Multiply": Kind(_multiply, options="any number of inputs, masks"),
    "Maximum": Kind(_extreme("Max"), options="any number of inputs, masks"),
    "Minimum": Kind(_extreme("Min"), options="any number of inputs, masks"),
    "Concatenate": Kind(
        _concatenate, options="axis, masks", refused="masked inputs along other axes than time or features"
    ),
    "Dot": Kind(_dot, options="axes, normalize", refused="inputs of more than 3 axes"),
}
"""Layers that merge their inputs."""
