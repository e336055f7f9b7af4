"""What shape each aten operation gives that moves, picks or joins values, or makes new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastlstm.converters.torch.aten.permutations import PERMUTATIONS, Permutation
from fastlstm.converters.torch.aten.shapes_call import CallShapes, Rule, Shape, UnknownShapeError, broadcast, first
from fastlstm.converters.torch.aten.shapes_view import view
from fastlstm.converters.torch.program import SymInt, Tensor
from fastlstm.converters.torch.sizes import Sizes

__all__ = ["RULES"]

_END = (1 << 63) - 1
_PARTS = 1 << 16
"""More tensors are not made of one."""


def _permuted(permutation: Permutation) -> Rule:
    def rule(_z: Sizes, c: CallShapes) -> list[Shape]:
        shape = c.shape("self")
        return [[shape[axis] for axis in permutation(c, len(shape))]]

    return rule


def _squeeze(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    dropped = [axis for axis in c.axes_of(len(shape)) or range(len(shape)) if shape[axis].value == 1]
    z.fix(*(shape[axis] for axis in dropped))
    return [[size for axis, size in enumerate(shape) if axis not in dropped]]


def _unsqueeze(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    shape.insert(c.axis_of(len(shape) + 1), z.fixed(1))
    return [shape]


def _expand(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, wanted = c.shape("self"), c.size_list("size")
    extra = len(wanted) - len(shape)
    c.expect(extra >= 0, f"its operand has {len(shape)} axes")
    result: Shape = []
    for have, want in zip([*[None] * extra, *shape], wanted, strict=True):
        size = want if want is not None else have
        if size is None:
            raise UnknownShapeError
        result.append(size if have is None else z.broadcast(have, size))
    return [result]


def _one_hot(z: Sizes, c: CallShapes) -> list[Shape]:
    return [[*c.shape("self"), z.fixed(c.integer("num_classes", -1))]]


def _repeat_interleave(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self", least=1))
    if c.get("dim") is None:
        raise UnknownShapeError
    axis = c.axis_of(len(shape))
    shape[axis] = z.product([shape[axis], z.fixed(c.integer("repeats"))])
    return [shape]


def _repeat(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, repeats = c.shape("self"), c.size_list("repeats")
    c.expect(len(repeats) >= len(shape), f"its operand has {len(shape)} axes")
    whole = [z.fixed(1)] * (len(repeats) - len(shape)) + shape
    result: Shape = []
    for size, number in zip(whole, repeats, strict=True):
        if number is None:
            raise UnknownShapeError
        result.append(size if number.value == 1 else z.product([size, number]))
    return [result]


def _unflatten(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, sizes = c.shape("self", least=1), c.integers("sizes")
    axis = c.axis_of(len(shape))
    missing = shape[axis].value // max(1, -math.prod(sizes)) if -1 in sizes else 0
    z.fix(shape[axis])
    return [[*shape[:axis], *(z.fixed(missing if n == -1 else n) for n in sizes), *shape[axis + 1 :]]]


def _flatten(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    start, end = c.axis_of(len(shape), "start_dim"), c.axis_of(len(shape), "end_dim", -1)
    return [[*shape[:start], z.product(shape[start : end + 1]), *shape[end + 1 :]]]


def _slice(z: Sizes, c: CallShapes) -> list[Shape]:
    """Of an open axis: all of it, all but a few at an end, or a few at the end."""
    shape = list(c.shape("self", least=1))
    axis = c.axis_of(len(shape))
    size, start, step = shape[axis], c.integer("start", 0), c.integer("step", 1)
    c.expect(step > 0, f"its step is {step}")
    end = c.size("end") if c.get("end", -1) != -1 else None
    stop = -1 if c.get("end") == -1 else _END if end is None else end.value
    if end is not None and not end.is_open and (stop < 0 or stop >= _END):
        c.literals.pop(("end", -1), None)
        end = None
    if z.has_at_least(size, stop) and start == 0 and step == 1:
        shape[axis] = z.fixed(stop)
        return [shape]
    length = len(range(*slice(start, stop, step).indices(size.value)))
    if step > 1 and size.is_open and 0 <= start < size.value and stop >= _END:
        shape[axis] = z.ratio(z.shift(size, step - 1 - start), step)
        return [shape]
    if step != 1 or (size.is_open and start > 0 and 0 <= stop < _END):
        z.fix(size)
    if end is not None and start == 0 and not size.is_open and step == 1 and stop <= size.value:
        shape[axis] = end  # part of a table, as long as the input is
    elif not size.is_open or (start < 0 and stop >= _END):
        shape[axis] = z.fixed(length)
    elif start >= 0 and stop >= _END:
        shape[axis] = z.shift(size, -start)
    elif start >= 0 and stop < 0:
        shape[axis] = z.shift(size, stop - start)
    elif start == 0 and end is not None and end.is_open:
        shape[axis] = end
    else:
        z.fix(size)
        shape[axis] = z.fixed(length)
    if shape[axis].value != length:
        raise UnknownShapeError
    return [shape]


def _narrow(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self", least=1))
    axis = c.axis_of(len(shape))
    z.fix(shape[axis])
    shape[axis] = z.fixed(c.integer("length"))
    return [shape]


def _select(z: Sizes, c: CallShapes) -> list[Shape]:
    """A place counted from the front, other than the first, may have come from the size of the axis."""
    shape = list(c.shape("self", least=1))
    size = shape.pop(c.axis_of(len(shape)))
    if not isinstance(c.get("index"), SymInt) and c.integer("index") > 0:
        z.asked(size)
    return [shape]


def _split(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self", least=1)
    axis = c.axis_of(len(shape))
    z.fix(shape[axis])
    names, total = c.call.outputs[0] if c.call.outputs else None, shape[axis].value
    if c.get("chunks") is not None:
        sizes: list[int] | int = -(-total // c.steps("chunks", None, 1)[0])
    else:
        name = "split_size" if c.get("split_size") is not None else "split_sizes"
        sizes = c.integers(name) if isinstance(c.get(name), list) else c.integer(name)
    if isinstance(sizes, list):
        lengths = sizes
    else:
        c.expect(sizes > 0 and total // sizes < _PARTS, f"it gives parts of {sizes} of {total}")
        lengths = [min(sizes, total - start) for start in range(0, total, sizes)]
    if sum(lengths) != total or (names is not None and len(lengths) != len(names)):
        raise UnknownShapeError
    return [[*shape[:axis], z.fixed(length), *shape[axis + 1 :]] for length in lengths]


def _unbind(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self", least=1))
    axis = c.axis_of(len(shape))
    count = shape.pop(axis)
    z.fix(count)
    c.expect(count.value < _PARTS, f"it gives {count.value} tensors")
    return [shape] * count.value


def _cat(z: Sizes, c: CallShapes) -> list[Shape]:
    shapes = c.shapes("tensors", least=1)
    axis = c.axis_of(len(shapes[0]))
    c.expect(len(set(map(len, shapes))) == 1, "its operands should have as many axes as one another")
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i, size in enumerate(shape):
            if i != axis:
                z.same(result[i], size)
    result[axis] = z.sum([shape[axis] for shape in shapes])
    return [result]


def _stack(z: Sizes, c: CallShapes) -> list[Shape]:
    shapes = c.shapes("tensors")
    c.expect(len(set(map(len, shapes))) == 1, "its operands should have as many axes as one another")
    result = list(shapes[0])
    for shape in shapes[1:]:
        for a, b in zip(result, shape, strict=True):
            z.same(a, b)
    result.insert(c.axis_of(len(result) + 1), z.fixed(len(shapes)))
    return [result]


def _index_select(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self", least=1))
    shape[c.axis_of(len(shape))] = c.shape("index", least=1)[0]
    return [shape]


def _gather(_z: Sizes, c: CallShapes) -> list[Shape]:
    return [c.shape("index")]


def _index(z: Sizes, c: CallShapes) -> list[Shape]:
    indices = c.items("indices")
    shape, places = c.shape("self", len(indices)), [axis for axis, index in enumerate(indices) if index is not None]
    tensors = [index for index in indices if isinstance(index, Tensor)]
    c.expect(bool(places) and len(tensors) == len(places), "'indices' should be tensors")
    if places != list(range(places[0], places[0] + len(places))):
        raise UnknownShapeError
    picked = broadcast(z, [c.shape_of(tensor) for tensor in tensors])
    return [[*shape[: places[0]], *picked, *shape[places[-1] + 1 :]]]


def _pad(z: Sizes, c: CallShapes) -> list[Shape]:
    pads = c.integers("pad")
    shape = list(c.shape("self", least=len(pads) // 2))
    for i in range(len(pads) // 2):
        shape[-1 - i] = z.shift(shape[-1 - i], pads[2 * i] + pads[2 * i + 1])
    return [shape]


def _filled(_z: Sizes, c: CallShapes) -> list[Shape]:
    sizes = c.size_list("size")
    if None in sizes:
        raise UnknownShapeError
    return [[size for size in sizes if size is not None]]


def _arange(z: Sizes, c: CallShapes) -> list[Shape]:
    end, step = c.size("end"), c.size("step") if c.get("step") is not None else z.fixed(1)
    if c.integer("start", 0) != 0 or end is None or step is None or step.value < 1:
        raise UnknownShapeError
    if step.value == 1 and not step.is_open:
        return [[end]]
    parts = list(end.root.parts) if end.root.kind == "product" else []
    same = [part for part in parts if part.root is step.root or (not step.is_open and part.value == step.value)]
    if same:  # as many as the others together
        parts.remove(same[0])
        z.same(same[0], step)
        return [[z.product(parts)]]
    z.fix(end, step)
    return [[z.fixed(-(-end.value // step.value))]]


_SAME = [
    "to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "zeros_like",
    "ones_like", "full_like", "flip", "tril", "triu",
]  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME, first("self")),
    **dict.fromkeys(["expand_as", "reshape_as", "view_as"], first("other")),
    **dict.fromkeys(["view", "_unsafe_view"], view("size")),
    **dict.fromkeys(["zeros", "ones", "full", "new_zeros", "new_ones", "new_full"], _filled),
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _split),
    **dict.fromkeys(["cat", "concat"], _cat),
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    **{name: _permuted(permutation) for name, permutation in PERMUTATIONS.items()},
    "arange": _arange, "expand": _expand, "flatten": _flatten, "gather": _gather, "index": _index,
    "index_select": _index_select, "narrow": _narrow, "one_hot": _one_hot,
    "repeat": _repeat, "repeat_interleave": _repeat_interleave, "reshape": view("shape"),
    "scalar_tensor": lambda _z, _c: [[]], "select": _select, "slice": _slice,
    "squeeze": _squeeze, "stack": _stack, "unbind": _unbind, "unflatten": _unflatten,
    "unsqueeze": _unsqueeze,
}  # fmt: skip
"""Rules by the operation's name without its overload."""
