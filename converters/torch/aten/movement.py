"""Aten operations that move, cut, join and make tensors, and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastlstm.converters.torch.aten.graph import Arguments, AtenGraph, Handler
from fastlstm.converters.torch.aten.permutations import PERMUTATIONS, Permutation
from fastlstm.converters.torch.aten.schemas import by_overload
from fastlstm.converters.torch.program import SymInt, Tensor

__all__ = ["HANDLERS"]

_END = (1 << 63) - 1
_SMALL = 1 << 12
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "floordiv": "Div"}


def _same(_graph: AtenGraph, c: Arguments) -> str:
    return c.value("self")


def _reshape(graph: AtenGraph, c: Arguments) -> str:
    """Sizes that stay keep following the input; one more that is known only at run time is worked out."""
    have, want = c.meta("self").shape, c.out().shape
    shape: list[Any] = list(want)
    open_sizes = [i for i, size in enumerate(want) if isinstance(size, str)]
    for i in list(open_sizes):
        if i < len(have) and have[i] == want[i]:
            shape[i] = 0
            open_sizes.remove(i)
    if len(open_sizes) == 1:
        shape[open_sizes[0]] = -1
    elif open_sizes:
        asked = c.get("size", c.get("shape"))
        if asked is None or len(asked) != len(want):
            raise c.unsupported("more than one size depends on the input's")
        shape = list(asked)
    if 0 in [size for size in want if not isinstance(size, str)]:
        raise c.unsupported("a tensor without elements is not supported")
    return graph.builder.node("Reshape", c.value("self"), graph.sizes(shape))


def _permuted(permutation: Permutation) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        perm = permutation(c, c.rank("self"))
        return graph.builder.node("Transpose", c.value("self"), perm=perm) if len(perm) > 1 else c.value("self")

    return handler


def _squeeze(graph: AtenGraph, c: Arguments) -> str:
    shape = c.meta("self").shape
    candidates = range(len(shape)) if c.get("dim") is None else c.axes()
    axes = [axis for axis in candidates if shape[axis : axis + 1] == (1,)]
    return graph.builder.node("Squeeze", c.value("self"), graph.ints(axes)) if axes else c.value("self")


def _unsqueeze(graph: AtenGraph, c: Arguments) -> str:
    value = graph.builder.node("Unsqueeze", c.value("self"), graph.ints([c.axis(extra=1)]))
    return _keep_zero(graph, c.value("self"), value)


def _keep_zero(graph: AtenGraph, source: str, value: str) -> str:
    if source in graph.zeros:
        graph.zeros.add(value)
    return value


def _expand(graph: AtenGraph, c: Arguments) -> str:
    sizes = [1 if not isinstance(size, SymInt) and size == -1 else size for size in c.items("size")]
    value = graph.builder.node("Expand", c.value("self"), graph.sizes(sizes))
    return _keep_zero(graph, c.value("self"), value)


def _expand_as(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Expand", c.value("self"), graph.builder.node("Shape", c.value("other")))


def _repeat(graph: AtenGraph, c: Arguments) -> str:
    value, repeats = c.value("self"), c.items("repeats")
    extra = len(repeats) - c.rank("self")
    tiled = graph.builder.node("Unsqueeze", value, graph.ints(range(extra))) if extra else value
    return _keep_zero(graph, value, graph.builder.node("Tile", tiled, graph.sizes(repeats)))


def _repeat_interleave(graph: AtenGraph, c: Arguments) -> str:
    """Repeat each element along an axis."""
    builder, value, repeats, rank = graph.builder, c.value("self"), c.integer("repeats"), c.rank("self")
    if c.get("dim") is None or repeats < 1:
        raise c.unsupported("supported: a number of repeats along an axis")
    axis = c.axis()
    times = [repeats if a == axis + 1 else 1 for a in range(rank + 1)]
    tiled = builder.node("Tile", builder.node("Unsqueeze", value, graph.ints([axis + 1])), graph.ints(times))
    sizes = [builder.node("Shape", value, start=0, end=axis)] if axis else []
    sizes.append(graph.ints([-1]))
    if axis + 1 < rank:
        sizes.append(builder.node("Shape", value, start=axis + 1, end=rank))
    whole = sizes[0] if len(sizes) == 1 else builder.node("Concat", *sizes, axis=0)
    return _keep_zero(graph, value, builder.node("Reshape", tiled, whole))


def _slice(graph: AtenGraph, c: Arguments) -> str:
    start, end, step = c.get("start", 0), c.get("end", _END), c.integer("step", 1)
    whole = isinstance(end, int) and end >= _END
    if start == 0 and step == 1 and (whole or c.meta("self").shape == c.out().shape):
        return c.value("self")
    bounds = [graph.number(start), graph.number(end), graph.ints([c.axis()]), graph.ints([step])]
    return _keep_zero(graph, c.value("self"), graph.builder.node("Slice", c.value("self"), *bounds))


def _narrow(graph: AtenGraph, c: Arguments) -> str:
    start, length = c.integer("start"), c.integer("length")
    bounds = [graph.ints([start]), graph.ints([start + length]), graph.ints([c.axis()])]
    return graph.builder.node("Slice", c.value("self"), *bounds)


def _select(graph: AtenGraph, c: Arguments) -> str:
    index = graph.operand(c.get("index"), "int64")
    value = graph.builder.node("Gather", c.value("self"), index, axis=c.axis())
    return _keep_zero(graph, c.value("self"), value)


def _split(graph: AtenGraph, c: Arguments) -> Sequence[str]:
    names, axis = c.names(), c.axis()
    shapes = [graph.meta(name).shape for name in names]
    c.expect(all(axis < len(shape) for shape in shapes), f"its outputs should have an axis {axis}")
    sizes = [size for shape in shapes if isinstance(size := shape[axis], int)]
    if len(sizes) != len(names):
        raise c.unsupported("it cuts an axis whose size depends on the input's")
    if len(names) == 1:
        return [c.value("self")]
    parts = [f"part_{i}" for i in range(len(names))]
    lengths = graph.ints(sizes)
    made = graph.builder.nodes_out("Split", [c.value("self"), lengths], parts, axis=axis)
    return [_keep_zero(graph, c.value("self"), part) for part in made]


def _unbind(graph: AtenGraph, c: Arguments) -> Sequence[str]:
    axis = c.axis()
    indices = [graph.scalar(i, "int64") for i in range(len(c.names()))]
    values = [graph.builder.node("Gather", c.value("self"), index, axis=axis) for index in indices]
    return [_keep_zero(graph, c.value("self"), value) for value in values]


def _cat(graph: AtenGraph, c: Arguments) -> str:
    dtype, rank = c.out().dtype, len(c.out().shape)
    values = [graph.operand(tensor, dtype) for tensor in c.tensors("tensors")]
    value = graph.builder.node("Concat", *values, axis=c.axis_of(rank))
    if set(values) <= graph.zeros:
        graph.zeros.add(value)
    return value


def _stack(graph: AtenGraph, c: Arguments) -> str:
    dtype, axis = c.out().dtype, c.axis_of(len(c.out().shape))
    axes = graph.ints([axis])
    values = [graph.builder.node("Unsqueeze", graph.operand(t, dtype), axes) for t in c.tensors("tensors")]
    return graph.builder.node("Concat", *values, axis=axis)


def _flip(graph: AtenGraph, c: Arguments) -> str:
    axes = c.axes("dims")
    bounds = [graph.ints([number] * len(axes)) for number in (-1, -_END, -1)]
    return graph.builder.node("Slice", c.value("self"), bounds[0], bounds[1], graph.ints(axes), bounds[2])


def _index_select(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("Gather", c.value("self"), c.value("index"), axis=c.axis())


def _gather(graph: AtenGraph, c: Arguments) -> str:
    return graph.builder.node("GatherElements", c.value("self"), c.value("index"), axis=c.axis())


def _index(graph: AtenGraph, c: Arguments) -> str:
    """x[a], x[:, a] and x[a, b] with integers."""
    given = {axis: index for axis, index in enumerate(c.items("indices")) if index is not None}
    indices = {axis: index for axis, index in given.items() if isinstance(index, Tensor)}
    c.expect(indices == given, "'indices' should be tensors")
    places = list(indices)
    metas = [graph.meta(index.name) for index in indices.values()]
    if any(meta.dtype == "bool" for meta in metas):
        raise c.unsupported("picking by a mask gives a size that is not known; supported: integers")
    if len(places) == 1:
        return graph.builder.node("Gather", c.value("self"), graph.value(indices[places[0]]), axis=places[0])
    if places != list(range(len(places))) or len({meta.shape for meta in metas}) != 1:
        raise c.unsupported("several indices should be of one shape and stand on the first axes")
    axes = graph.ints([len(metas[0].shape)])
    columns = [graph.builder.node("Unsqueeze", graph.operand(indices[axis], "int64"), axes) for axis in places]
    return graph.builder.node("GatherND", c.value("self"), graph.builder.node("Concat", *columns, axis=-1))


def _triangle(upper: int) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        diagonal = graph.scalar(c.integer("diagonal", 0), "int64")
        return graph.builder.node("Trilu", c.value("self"), diagonal, upper=upper)

    return handler


def _pad(graph: AtenGraph, c: Arguments) -> str:
    pads, rank = c.integers("pad"), c.rank("self")
    c.expect(len(pads) <= 2 * rank, f"it pads {len(pads) // 2} of {rank} axes")
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):  # torch counts from the last axis
        before[-1 - i], after[-1 - i] = pads[2 * i], pads[2 * i + 1]
    mode = c.text("mode", "constant")
    if mode not in _PAD_MODES:
        raise c.unsupported(f"the mode '{mode}' is not supported; supported: {', '.join(_PAD_MODES)}")
    fill = graph.scalar(c.number("value", 0), c.out().dtype)
    return graph.builder.node("Pad", c.value("self"), graph.ints([*before, *after]), fill, mode=_PAD_MODES[mode])


def _filled(number: float | None) -> Handler:
    """zeros, ones, full and their new_ forms; None: the number is an argument."""

    def handler(graph: AtenGraph, c: Arguments) -> str:
        dtype, sizes = c.out().dtype, c.items("size")
        fill = c.number("fill_value") if number is None else number
        known = all(isinstance(size, int) for size in sizes)
        if known and math.prod(sizes) <= _SMALL:
            value = graph.builder.constant("filled", graph.filled(sizes, fill, dtype))
        else:
            value = graph.builder.node("ConstantOfShape", graph.sizes(sizes), value=fill, dtype=dtype)
        if fill == 0:
            graph.zeros.add(value)
        return value

    return handler


def _filled_like(number: float | None) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        fill = c.number("fill_value") if number is None else number
        shape = graph.builder.node("Shape", c.value("self"))
        value = graph.builder.node("ConstantOfShape", shape, value=fill, dtype=c.out().dtype)
        if fill == 0:
            graph.zeros.add(value)
        return value

    return handler


def _arange(graph: AtenGraph, c: Arguments) -> str:
    bounds = [c.get("start", 0), c.get("end"), c.get("step", 1)]
    return graph.builder.node("Range", *(graph.operand(bound, c.out().dtype) for bound in bounds))


def _scalar_tensor(graph: AtenGraph, c: Arguments) -> str:
    return graph.operand(c.get("s"), c.out().dtype)


def _size_of(graph: AtenGraph, c: Arguments) -> str:
    axis = c.axis()
    return graph.builder.node("Shape", c.value("self"), start=axis, end=axis + 1)


def _arithmetic(op: str) -> Handler:
    def handler(graph: AtenGraph, c: Arguments) -> str:
        operands = list(c.call.arguments.values())
        if len(operands) != 2 or not all(isinstance(o, (SymInt, int)) for o in operands):
            raise c.unsupported("it should calculate with two integers")
        return graph.builder.node(op, *(graph.number(operand) for operand in operands))

    return handler


HANDLERS: dict[str, Handler] = {
    **by_overload(
        {
            **{name: _permuted(permutation) for name, permutation in PERMUTATIONS.items()},
            **dict.fromkeys(["alias", "clone", "contiguous", "detach", "lift_fresh_copy"], _same),
            **dict.fromkeys(
                ["_unsafe_view", "flatten", "reshape", "reshape_as", "unflatten", "view", "view_as"], _reshape
            ),
            **dict.fromkeys(["full", "new_full"], _filled(None)),
            **dict.fromkeys(["ones", "new_ones"], _filled(1)),
            **dict.fromkeys(["zeros", "new_zeros"], _filled(0)),
            **dict.fromkeys(["cat", "concat"], _cat),
            **dict.fromkeys(["chunk", "split", "split_with_sizes"], _split),
            **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
            "arange": _arange,
            "expand": _expand,
            "expand_as": _expand_as,
            "flip": _flip,
            "full_like": _filled_like(None),
            "gather": _gather,
            "index": _index,
            "index_select": _index_select,
            "narrow": _narrow,
            "ones_like": _filled_like(1),
            "repeat": _repeat,
            "repeat_interleave": _repeat_interleave,
            "scalar_tensor": _scalar_tensor,
            "select": _select,
            "slice": _slice,
            "squeeze": _squeeze,
            "stack": _stack,
            "tril": _triangle(0),
            "triu": _triangle(1),
            "unbind": _unbind,
            "unsqueeze": _unsqueeze,
            "zeros_like": _filled_like(0),
        }
    ),
    **{f"_operator.{name}": _arithmetic(op) for name, op in _ARITHMETIC.items()},
    "aten.sym_size.int": _size_of,
}
