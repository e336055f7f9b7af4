"""Keras's layers that move data and compute nothing: Flatten, Reshape, RepeatVector, padding, cropping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlstm.converters.keras.layer import Convert, Kind, Layer
from fastlstm.converters.keras.tensor import Tensor
from fastlstm.errors import FileFormatError, UnsupportedError, counted
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim

__all__ = ["KINDS", "reshaped"]

_END = (1 << 63) - 1


def _flatten(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, emit = layer.one(inputs), layer.emit
    if layer.channels_first() and x.rank > 2:
        x = emit.transpose(x, [0, *range(2, x.rank), 1])
    size = dims.product(x.shape[1:])
    return [emit.reshape(x, [0, size if isinstance(size, int) else -1], (x.shape[0], size))]


def reshaped(layer: Layer, x: Tensor, target: Sequence[int]) -> Tensor:
    """Return `x` with everything but its batch in the shape `target`, where one size may be -1."""
    if list(target).count(-1) > 1:
        raise FileFormatError(f"{layer.label}: at most one size may be left open; got {list(target)}.")
    whole, known = dims.product(x.shape[1:]), dims.product([size for size in target if size != -1])
    if not isinstance(whole, int) or not isinstance(known, int):
        open_size: Dim = f"{layer.name}.open"
        return layer.emit.reshape(x, [0, *target], (x.shape[0], *(open_size if s == -1 else s for s in target)))
    fits = known > 0 and whole % known == 0 if -1 in target else known == whole
    if not fits:
        raise FileFormatError(f"{layer.label}: {whole} elements do not fit into the shape {list(target)}.")
    sizes = [whole // known if size == -1 else size for size in target]
    return layer.emit.reshape(x, [0, *sizes], (x.shape[0], *sizes))


def _reshape(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    given = layer.config.get("target_shape")
    open_as_number = [-1 if size is None else size for size in given] if isinstance(given, list) else given
    fits = isinstance(open_as_number, list) and all(type(size) is int and size >= -1 for size in open_as_number)
    if not fits or 0 in open_as_number:
        raise FileFormatError(f"{layer.label}: target_shape should be a list of sizes; got {given!r:.80}.")
    return [reshaped(layer, layer.one(inputs), open_as_number)]


def _permute(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = layer.one(inputs)
    order = layer.config.integers("dims", x.rank - 1)
    if sorted(order) != list(range(1, x.rank)):
        raise FileFormatError(f"{layer.label}: dims should be an order of 1 to {x.rank - 1}; got {order}.")
    return [layer.emit.transpose(x, [0, *order])]


def _repeat_vector(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, emit = layer.rank(layer.one(inputs), 2), layer.emit
    n = layer.config.integer("n")
    y = emit.node(
        "Expand", emit.unsqueeze(x, 1), emit.ints([1, n, 1]), shape=(x.shape[0], n, x.shape[1]), dtype=x.dtype
    )
    return [y]


def _pairs(layer: Layer, key: str, count: int) -> list[tuple[int, int]]:
    """Return what to put or cut before and after each of `count` axes."""
    given = layer.config.get(key, 1)
    if isinstance(given, int):
        given = [given] * count
    if count == 1 and isinstance(given, list) and len(given) == 2:
        given = [given]
    pairs = [(item, item) if isinstance(item, int) else item for item in given] if isinstance(given, list) else []
    if len(pairs) != count or any(
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or any(type(size) is not int or not 0 <= size < 1 << 31 for size in pair)
        for pair in pairs
    ):
        raise FileFormatError(f"{layer.label}: {key} should be {counted(count, 'pair')} of sizes; got {given!r:.80}.")
    return [(int(before), int(after)) for before, after in pairs]


def _padding(axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        x, emit = layer.rank(layer.one(inputs), axes + 2), layer.emit
        first = 2 if layer.channels_first() else 1
        pairs = [(0, 0)] * x.rank
        pairs[first : first + axes] = _pairs(layer, "padding", axes)
        pads = [before for before, _ in pairs] + [after for _, after in pairs]
        shape = [dims.add(size, sum(pair)) for size, pair in zip(x.shape, pairs, strict=True)]
        return [emit.node("Pad", x, emit.ints(pads), emit.number(0.0, x.dtype), shape=shape, dtype=x.dtype)]

    return convert


def _cropping(axes: int) -> Convert:
    def convert(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
        x, emit = layer.rank(layer.one(inputs), axes + 2), layer.emit
        first = 2 if layer.channels_first() else 1
        pairs = _pairs(layer, "cropping", axes)
        shape = list(x.shape)
        for axis, pair in enumerate(pairs, start=first):
            shape[axis] = dims.add(shape[axis], -sum(pair))
            size = shape[axis]
            if isinstance(size, int) and size <= 0:
                raise FileFormatError(f"{layer.label}: nothing is left of axis {axis}.")
        starts = [before for before, _ in pairs]
        ends = [-after if after else _END for _, after in pairs]
        where = emit.ints(range(first, first + axes))
        return [emit.node("Slice", x, emit.ints(starts), emit.ints(ends), where, shape=shape, dtype=x.dtype)]

    return convert


def _repeated(layer: Layer, x: Tensor, axis: int, times: int) -> Tensor:
    """Return `x` with every slice along `axis` `times` times in a row."""
    emit = layer.emit
    stacked = emit.unsqueeze(x, axis + 1)
    shape = [*x.shape[: axis + 1], times, *x.shape[axis + 1 :]]
    ones = [times if i == axis + 1 else 1 for i in range(x.rank + 1)]
    stacked = emit.node("Expand", stacked, emit.ints(ones), shape=shape, dtype=x.dtype)
    size = dims.multiply(x.shape[axis], times)
    target: list[int] = []
    for i, length in enumerate(x.shape):
        if i == axis:
            target.append(size if isinstance(size, int) else -1)
        elif i < axis:
            target.append(0)
        elif isinstance(length, int):
            target.append(length)
        else:
            raise UnsupportedError(f"{layer.label}: the sizes behind the axis that is repeated must be known.")
    return emit.reshape(stacked, target, [*x.shape[:axis], size, *x.shape[axis + 1 :]])


def _up_sampling_1d(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = layer.rank(layer.one(inputs), 3)
    return [_repeated(layer, x, 1, layer.config.integers("size", 1, 2)[0])]


def _up_sampling_2d(layer: Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = layer.rank(layer.one(inputs), 4)
    first = 2 if layer.channels_first() else 1
    layer.config.choice("interpolation", ["nearest"], "nearest")
    rows, columns = layer.config.integers("size", 2, 2)
    return [_repeated(layer, _repeated(layer, x, first + 1, columns), first, rows)]


KINDS: Mapping[str, Kind] = {
    "Flatten": Kind(_flatten, options="data_format"),
    "Reshape": Kind(_reshape, options="one size may be left open"),
    "Permute": Kind(_permute),
    "RepeatVector": Kind(_repeat_vector),
    "UpSampling1D": Kind(_up_sampling_1d),
    "UpSampling2D": Kind(_up_sampling_2d, options="data_format, interpolation nearest", refused="other interpolations"),
    "ZeroPadding1D": Kind(_padding(1), options="padding, data_format"),
    "ZeroPadding2D": Kind(_padding(2), options="padding, data_format"),
    "Cropping1D": Kind(_cropping(1)),
    "Cropping2D": Kind(_cropping(2), options="cropping, data_format"),
}
"""Layers that move data. None of them hands on a mask."""
