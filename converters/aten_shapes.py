"""What shape each aten operation gives, with sizes as unknowns (`fastlstm.converters.sizes`).

A rule returns the shape of each output and joins or fixes sizes where the operation asks for it. An operation
without a rule, or called in a way that its rule does not know, raises `UnknownShapeError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import aten_elementwise as elementwise
from .exported import Call, SymInt, Tensor
from .sizes import Size, Sizes

__all__ = ["RULES", "CallShapes", "Rule", "UnknownShapeError"]

_END = (1 << 63) - 1

Shape = list[Size]


class UnknownShapeError(Exception):
    """An operation is called in a way whose result is not known here."""


class CallShapes:
    """One call with the shapes of its tensors; `literals` collects the numbers that may be sizes."""

    def __init__(self, z: Sizes, call: Call, shapes: Mapping[str, Shape], numbers: Mapping[str, Size]) -> None:
        self.z = z
        self.call = call
        self._shapes = shapes
        self._numbers = numbers
        self.literals: dict[tuple[str, int], Size] = {}

    def tensors(self) -> list[Shape]:
        """Return the shapes of all tensors among the arguments."""
        items = [item for a in self.call.arguments.values() for item in (a if isinstance(a, list) else [a])]
        return [self._shapes[item.name] for item in items if isinstance(item, Tensor)]

    def sizes(self) -> list[Size]:
        """Return the sizes that are given as arguments."""
        items = [item for a in self.call.arguments.values() for item in (a if isinstance(a, list) else [a])]
        return [self._numbers[item.name] for item in items if isinstance(item, SymInt)]

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor argument."""
        return self._shapes[self.call.arguments[name].name]

    def shapes(self, name: str) -> list[Shape]:
        """Return the shapes of a list of tensors."""
        return [self._shapes[tensor.name] for tensor in self.call.arguments[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument that has to be known when loading."""
        value = self.call.arguments.get(name)
        if any(isinstance(item, SymInt) for item in (value if isinstance(value, list) else [value])):
            raise UnknownShapeError
        return default if value is None else value

    def size(self, name: str, position: int = -1) -> Size | None:
        """Return an argument, or one of a list, as a size; None if it is -1."""
        item = self.call.arguments[name]
        item = item if position < 0 else item[position]
        if isinstance(item, SymInt):
            return self._numbers[item.name]
        if item == -1:
            return None
        self.literals[name, position] = self.z.literal(item)
        return self.literals[name, position]

    def size_list(self, name: str) -> list[Size | None]:
        """Return a list of sizes."""
        return [self.size(name, position) for position in range(len(self.call.arguments[name]))]

    def axis(self, rank: int, name: str = "dim", default: int = 0) -> int:
        """Return an axis argument counted from the front."""
        return int(self.get(name, default)) % max(rank, 1)

    def axes(self, rank: int) -> list[int]:
        """Return the axes of a reduction; none given means all."""
        given = self.get("dim", [])
        return [a % max(rank, 1) for a in (given if isinstance(given, list) else [given])] or list(range(rank))


Rule = Callable[[Sizes, CallShapes], "list[Shape]"]


def _first(name: str, *fixed: int) -> Rule:
    """The result has the shape of one argument, some of whose axes belong to weights."""

    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        shape = c.shape(name)
        z.fix(*(shape[axis] for axis in fixed if -len(shape) <= axis < len(shape)))
        return [shape]

    return rule


def _broadcast(z: Sizes, shapes: Sequence[Shape]) -> Shape:
    result: Shape = []
    for shape in shapes:
        short, long = sorted((result, shape), key=len)
        extra = len(long) - len(short)
        result = [*long[:extra], *(z.broadcast(a, b) for a, b in zip(short, long[extra:], strict=True))]
    return result


def _elementwise(z: Sizes, c: CallShapes) -> list[Shape]:
    return [_broadcast(z, c.tensors())]


def _reduce(outputs: int) -> Rule:
    def rule(_z: Sizes, c: CallShapes) -> list[Shape]:
        shape = c.shape("self")
        axes = c.axes(len(shape))
        keep = bool(c.get("keepdim", False))
        kept = [Size(1, "fixed") if a in axes else s for a, s in enumerate(shape) if keep or a not in axes]
        return [kept] * (outputs if c.get("dim") is not None else 1)

    return rule


def _variance(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    z.fix(*(shape[axis] for axis in c.axes(len(shape))))
    return _reduce(1)(z, c)


def _layer_norm(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, sizes = c.shape("input"), c.get("normalized_shape")
    for have, want in zip(shape[len(shape) - len(sizes) :], sizes, strict=True):
        z.same(have, z.fixed(want))
    return [shape]


def _channels_norm(z: Sizes, c: CallShapes) -> list[Shape]:
    """Normalisation with weights or statistics for each channel on axis 1."""
    shape = c.shape("input")
    known = [c.shape(name) for name in ("weight", "running_mean") if c.get(name) is not None]
    if known:
        z.same(shape[1], known[0][0])
    z.fix(shape[1])
    return [shape]


def _linear(z: Sizes, c: CallShapes) -> list[Shape]:
    x, weight = c.shape("input"), c.shape("weight")
    z.same(x[-1], weight[-1])
    return [[*x[:-1], *weight[:-1]]]


def _product(z: Sizes, a: Shape, b: Shape) -> Shape:
    z.same(a[-1], b[-2] if len(b) > 1 else b[0])
    front = _broadcast(z, [a[:-2], b[:-2]])
    return [*front, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]


def _matmul(z: Sizes, c: CallShapes) -> list[Shape]:
    second = next(name for name in ("other", "mat2", "vec") if c.get(name) is not None)
    return [_product(z, c.shape("self"), c.shape(second))]


def _add_product(first: str, second: str) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        return [_broadcast(z, [_product(z, c.shape(first), c.shape(second)), c.shape("self")])]

    return rule


def _einsum(z: Sizes, c: CallShapes) -> list[Shape]:
    terms, _, result = c.get("equation").replace(" ", "").partition("->")
    if "." in terms or not result:
        raise UnknownShapeError
    found: dict[str, Size] = {}
    for letters, shape in zip(terms.split(","), c.shapes("tensors"), strict=True):
        for letter, size in zip(letters, shape, strict=True):
            z.same(found.setdefault(letter, size), size)
    return [[found[letter] for letter in result]]


def _attention(z: Sizes, c: CallShapes) -> list[Shape]:
    q, k, v = (c.shape(name) for name in ("query", "key", "value"))
    z.fix(q[-1], k[-1])  # the scale comes from the number of features
    z.same(k[-2], v[-2])
    if c.get("attn_mask") is not None:
        _broadcast(z, [[q[-2], k[-2]], c.shape("attn_mask")])
    return [[*_broadcast(z, [q[:-2], k[:-2], v[:-2]]), q[-2], v[-1]]]


def _embedding_bag(z: Sizes, c: CallShapes) -> list[Shape]:
    return [[c.shape("offsets")[0], c.shape("weight")[1]], *[[z.fixed(0)]] * 3]


def _glu(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    axis = c.axis(len(shape), default=-1)
    z.fix(shape[axis])
    shape[axis] = z.fixed(shape[axis].value // 2)
    return [shape]


def _movedim(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    source, destination = (
        [axis % len(shape) for axis in (e if isinstance(e, list) else [e])]
        for e in (c.get("source"), c.get("destination"))
    )
    order = [axis for axis in range(len(shape)) if axis not in source]
    for to, axis in sorted(zip(destination, source, strict=True)):
        order.insert(to, axis)
    return [[shape[axis] for axis in order]]


def _narrow(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    axis = c.axis(len(shape))
    z.fix(shape[axis])
    shape[axis] = z.fixed(c.get("length"))
    return [shape]


def _convolution_back(z: Sizes, c: CallShapes) -> list[Shape]:
    x, weight = c.shape("input"), c.shape("weight")
    count, groups = len(weight) - 2, c.get("groups", 1)
    z.same(x[1], weight[0])
    z.fix(x[1])
    stride, padding = _numbers(c.get("stride", 1), count), _numbers(c.get("padding", 0), count)
    dilation, extra = _numbers(c.get("dilation", 1), count), _numbers(c.get("output_padding", 0), count)
    sizes = []
    for i, size in enumerate(x[2:]):
        spread = z.product([size, z.fixed(stride[i])]) if stride[i] != 1 else size
        rest = dilation[i] * (weight[2 + i].value - 1) + extra[i] + 1 - 2 * padding[i] - stride[i]
        sizes.append(z.shift(spread, rest))
    return [[x[0], z.fixed(weight[1].value * groups), *sizes]]


def _embedding(_z: Sizes, c: CallShapes) -> list[Shape]:
    return [[*c.shape("indices"), *c.shape("weight")[1:]]]


def _window(z: Sizes, size: Size, kernel: int, stride: int, pads: int, dilation: int) -> Size:
    return z.shift(z.ratio(z.shift(size, pads - dilation * (kernel - 1) - 1), stride), 1)


def _numbers(value: Any, count: int) -> list[int]:
    return (
        value
        if isinstance(value, list) and len(value) == count
        else [*([value] if isinstance(value, int) else value)] * count
    )


def _convolution(z: Sizes, c: CallShapes) -> list[Shape]:
    x, weight = c.shape("input"), c.shape("weight")
    count = len(weight) - 2
    if len(x) != count + 2:
        raise UnknownShapeError
    if c.get("transposed", False):
        return _convolution_back(z, c)
    z.same(x[1], z.fixed(weight[1].value * c.get("groups", 1)))
    z.fix(x[1])
    if c.get("padding") == "same":
        return [[x[0], weight[0], *x[2:]]]
    padding = [0] * count if c.get("padding", 0) == "valid" else _numbers(c.get("padding", 0), count)
    dilation, stride = _numbers(c.get("dilation", 1), count), _numbers(c.get("stride", 1), count)
    kernels = [size.value for size in weight[2:]]
    sizes = [
        _window(z, size, k, s, 2 * p, d)
        for size, k, s, p, d in zip(x[2:], kernels, stride, padding, dilation, strict=True)
    ]
    return [[x[0], weight[0], *sizes]]


def _pool(count: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, kernel = c.shape("self"), _numbers(c.get("kernel_size"), count)
        if c.get("ceil_mode", False):
            raise UnknownShapeError
        stride = _numbers(c.get("stride") or kernel, count)
        padding, dilation = _numbers(c.get("padding", 0), count), _numbers(c.get("dilation", 1), count)
        sizes = [
            _window(z, size, k, s, 2 * p, d)
            for size, k, s, p, d in zip(x[-count:], kernel, stride, padding, dilation, strict=True)
        ]
        return [[*x[:-count], *sizes]]

    return rule


def _adaptive_pool(count: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        return [[*c.shape("self")[:-count], *(z.fixed(n) for n in _numbers(c.get("output_size"), count))]]

    return rule


def _permute(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    return [[shape[axis] for axis in c.get("dims")]]


def _transpose(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    a, b = c.axis(len(shape), "dim0"), c.axis(len(shape), "dim1")
    shape[a], shape[b] = shape[b], shape[a]
    return [shape]


def _turned(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    return [[*shape[:-2], *shape[:-3:-1]]]


def _squeeze(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    dropped = [axis for axis in c.axes(len(shape)) if shape[axis].value == 1]
    z.fix(*(shape[axis] for axis in dropped))
    return [[size for axis, size in enumerate(shape) if axis not in dropped]]


def _unsqueeze(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    shape.insert(c.axis(len(shape) + 1), z.fixed(1))
    return [shape]


def _expand(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, wanted = c.shape("self"), c.size_list("size")
    extra = len(wanted) - len(shape)
    result: Shape = []
    for have, want in zip([*[None] * extra, *shape], wanted, strict=True):
        size = want if want is not None else have
        if size is None:
            raise UnknownShapeError
        result.append(size if have is None else z.broadcast(have, size))
    return [result]


def _repeat(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, repeats = c.shape("self"), c.size_list("repeats")
    whole = [z.fixed(1)] * (len(repeats) - len(shape)) + shape
    result: Shape = []
    for size, number in zip(whole, repeats, strict=True):
        if number is None:
            raise UnknownShapeError
        result.append(size if number.value == 1 else z.product([size, number]))
    return [result]


def _view(name: str) -> Rule:
    """Axes are taken in groups of equal products, from the front: sizes stay, join or fall apart."""

    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        have, want = c.shape("self"), c.size_list(name)
        total = math.prod(size.value for size in have)
        known = math.prod(size.value for size in want if size is not None)
        missing = Size(total // max(known, 1), "literal")
        wanted = [missing if size is None else size for size in want]
        _regroup(z, list(have), list(wanted))
        return [wanted]

    return rule


def _regroup(z: Sizes, have: Shape, want: Shape) -> None:
    while have or want:
        left, right = have[:1], want[:1]
        del have[:1], want[:1]
        a, b = (math.prod(size.value for size in side) for side in (left, right))
        while a != b:
            side, rest = (left, have) if a < b else (right, want)
            if not rest:
                raise UnknownShapeError
            side.append(rest.pop(0))
            a, b = (math.prod(size.value for size in side) for side in (left, right))
        if len(left) == 1 or len(right) == 1:
            _join(z, left, right)
        elif not _shared(z, left, right) and not _spread(z, left, right):
            z.fix(*left, *right)


def _shared(z: Sizes, left: Shape, right: Shape) -> bool:
    """Heads joined with the batch: [B, F] as [B * n, F / n]; say whether it is that."""
    if len(left) != 2 or len(right) != 2 or left[1].is_open or right[1].is_open:
        return False
    times, rest = divmod(right[1].value, left[1].value)
    if rest == 0 and left[0].value == right[0].value * times:  # neighbours joined: [T, F] as [T / n, F * n]
        z.same(right[0], z.ratio(left[0], times))
        z.fix(left[1], right[1])
        return True
    if right[0].value % left[0].value:
        return False
    z.same(right[0], z.product([left[0], z.fixed(right[0].value // left[0].value)]))
    z.fix(left[1], right[1])
    return True


def _spread(z: Sizes, left: Shape, right: Shape) -> bool:
    """Give each axis on the right the open sizes on the left that it is made of; say whether there is one way."""
    open_sizes = [atom for size in left for atom in _atoms(size)]
    known, loose = [size for size in right if size.is_open], [size for size in right if not size.is_open]
    loose += [part for size in known for part in size.root.parts if part.root.kind == "literal" and part.value > 1]
    for atom in (atom for size in known for atom in _atoms(size)):
        if not any(atom is other for other in open_sizes):
            return False
        open_sizes = [other for other in open_sizes if other is not atom]
    if len(open_sizes) > 6 or len(loose) > 4:
        return False
    ways: list[list[Shape]] = []

    def place(position: int, taken: list[Shape]) -> None:
        if position == len(open_sizes):
            ways.append([list(sizes) for sizes in taken])
            return
        for size, sizes in zip(loose, taken, strict=True):
            sizes.append(open_sizes[position])
            if size.value % math.prod(s.value for s in sizes) == 0:
                place(position + 1, taken)
            sizes.pop()

    place(0, [[] for _ in loose])
    if len(ways) != 1:
        return False
    for size, sizes in zip(loose, ways[0], strict=True):
        rest = size.value // math.prod(s.value for s in sizes)
        z.same(size, z.product([*sizes, z.fixed(rest)]))
    return True


def _atoms(size: Size) -> list[Size]:
    """Return the open sizes whose product a size is, but for a number."""
    root = size.root
    if root.kind == "product":
        return [atom for part in root.parts for atom in _atoms(part)]
    return [root] if root.is_open else []


def _join(z: Sizes, left: Shape, right: Shape) -> None:
    """Say that the axes on the left are those on the right, made one or fallen apart.

    Factors find each other by their values in the example: a product does not say in which order it was taken.
    """
    whole, parts = (left[0], right) if len(left) == 1 else (right[0], left)
    factors = [size for size in whole.root.parts if size.value != 1] if whole.root.kind == "product" else [whole.root]
    matching = [size for size in parts if size.value != 1]
    factors, matching = (sorted(side, key=lambda size: size.value) for side in (factors, matching))
    if [f.value for f in factors] == [p.value for p in matching]:
        for factor, part in zip(factors, matching, strict=True):
            z.same(factor, part)
        z.fix(*(size for size in parts if size.value == 1 and len(parts) > 1))
    elif len(left) == 1 and left[0].is_open:
        z.fix(*left, *right)
    else:
        z.same(whole, z.product(parts))


def _unflatten(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, sizes = c.shape("self"), c.get("sizes")
    axis = c.axis(len(shape))
    missing = shape[axis].value // max(1, -math.prod(sizes)) if -1 in sizes else 0
    z.fix(shape[axis])
    return [[*shape[:axis], *(z.fixed(missing if n == -1 else n) for n in sizes), *shape[axis + 1 :]]]


def _flatten(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    start, end = c.axis(len(shape), "start_dim"), c.axis(len(shape), "end_dim", -1)
    return [[*shape[:start], z.product(shape[start : end + 1]), *shape[end + 1 :]]]


def _slice(z: Sizes, c: CallShapes) -> list[Shape]:
    """Of an open axis: all of it, all but a few at an end, or a few at the end."""
    shape = list(c.shape("self"))
    axis = c.axis(len(shape))
    size, start, step = shape[axis], c.get("start", 0), c.get("step", 1)
    end = c.size("end") if c.call.arguments.get("end") not in (None, -1) else None
    stop = -1 if c.call.arguments.get("end") == -1 else _END if end is None else end.value
    if end is not None and not end.is_open and (stop < 0 or stop >= _END):
        c.literals.pop(("end", -1), None)
        end = None
    if z.has_at_least(size, stop) and start == 0 and step == 1:
        shape[axis] = z.fixed(stop)
        return [shape]
    length = len(range(*slice(start, stop, step).indices(size.value)))
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


def _select(z: Sizes, c: CallShapes) -> list[Shape]:
    """A place counted from the front, other than the first, may have come from the size of the axis."""
    shape = list(c.shape("self"))
    size = shape.pop(c.axis(len(shape)))
    index = c.call.arguments["index"]
    if not isinstance(index, SymInt) and index > 0:
        z.asked(size)
    return [shape]


def _split(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = c.shape("self")
    axis = c.axis(len(shape))
    z.fix(shape[axis])
    names, total = c.call.outputs[0] if c.call.outputs else None, shape[axis].value
    if c.get("chunks") is not None:
        lengths: Any = -(-total // c.get("chunks"))
    else:
        lengths = next(c.get(name) for name in ("split_size", "split_sizes") if c.get(name) is not None)
    if isinstance(lengths, int):
        lengths = [min(lengths, total - start) for start in range(0, total, lengths)]
    if sum(lengths) != total or (names is not None and len(lengths) != len(names)):
        raise UnknownShapeError
    return [[*shape[:axis], z.fixed(length), *shape[axis + 1 :]] for length in lengths]


def _unbind(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    axis = c.axis(len(shape))
    count = shape.pop(axis)
    z.fix(count)
    return [shape] * count.value


def _cat(z: Sizes, c: CallShapes) -> list[Shape]:
    shapes = c.shapes("tensors")
    axis = c.axis(len(shapes[0]))
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i, size in enumerate(shape):
            if i != axis:
                z.same(result[i], size)
    result[axis] = z.sum([shape[axis] for shape in shapes])
    return [result]


def _stack(z: Sizes, c: CallShapes) -> list[Shape]:
    shapes = c.shapes("tensors")
    result = list(shapes[0])
    for shape in shapes[1:]:
        for a, b in zip(result, shape, strict=True):
            z.same(a, b)
    result.insert(c.axis(len(result) + 1), z.fixed(len(shapes)))
    return [result]


def _index_select(_z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self"))
    shape[c.axis(len(shape))] = c.shape("index")[0]
    return [shape]


def _gather(_z: Sizes, c: CallShapes) -> list[Shape]:
    return [c.shape("index")]


def _index(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, indices = c.shape("self"), c.call.arguments["indices"]
    places = [axis for axis, index in enumerate(indices) if index is not None]
    if places != list(range(places[0], places[0] + len(places))):
        raise UnknownShapeError
    picked = _broadcast(z, [c._shapes[indices[axis].name] for axis in places])
    return [[*shape[: places[0]], *picked, *shape[places[-1] + 1 :]]]


def _pad(z: Sizes, c: CallShapes) -> list[Shape]:
    shape, pads = list(c.shape("self")), c.get("pad")
    for i in range(len(pads) // 2):
        shape[-1 - i] = z.shift(shape[-1 - i], pads[2 * i] + pads[2 * i + 1])
    return [shape]


def _filled(_z: Sizes, c: CallShapes) -> list[Shape]:
    sizes = c.size_list("size")
    if None in sizes:
        raise UnknownShapeError
    return [[size for size in sizes if size is not None]]


def _arange(z: Sizes, c: CallShapes) -> list[Shape]:
    end, step = c.size("end"), c.size("step") if c.call.arguments.get("step") is not None else z.fixed(1)
    if c.get("start", 0) != 0 or end is None or step is None or step.value < 1:
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


def _stack_of_layers(states: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, both = c.shape("input"), bool(c.get("bidirectional"))
        initial = c.shapes("hx") if states == 2 else [c.shape("hx")]
        batch = x[0 if c.get("batch_first") else 1]
        params = c.shapes("params")
        z.same(x[2], params[0][1])
        z.fix(x[2])
        hidden = params[1][0].value // (4 if states == 2 else 3 if c.call.target.startswith("aten.gru") else 1)
        for (layers, rows, features), size in zip(initial, (params[1][1].value, hidden), strict=False):
            z.same(rows, batch)
            z.same(layers, z.fixed(c.get("num_layers") * (1 + both)))
            z.same(features, z.fixed(size))
            z.fix(layers, features)
        return [[*x[:2], z.fixed((1 + both) * initial[0][2].value)], *initial]

    return rule


def _cell(states: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, initial = c.shape("input"), c.shapes("hx") if states == 2 else [c.shape("hx")]
        z.same(x[1], c.shape("w_ih")[1])
        z.fix(x[-1])
        for state in initial:
            z.same(state[0], x[0])
            z.same(state[1], c.shape("w_hh")[1])
            z.fix(state[-1])
        return initial

    return rule


_ELEMENTWISE = [
    *elementwise.ELEMENTWISE, "div", "where", "masked_fill", "pow", "clamp", "clamp_min", "clamp_max", "elu", "gelu",
    "addcmul", "expm1", "hardtanh", "leaky_relu", "log1p", "log_sigmoid", "relu6", "rsqrt", "silu",
    "softplus", "square",
]  # fmt: skip
_SAME = [
    "to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "zeros_like",
    "ones_like", "full_like", "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "flip", "tril", "triu",
]  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SAME, _first("self")),
    **dict.fromkeys(["dropout", "alpha_dropout", "feature_dropout"], _first("input")),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "prod", "argmax", "argmin", "logsumexp"], _reduce(1)),
    "linalg_vector_norm": _reduce(1),
    **dict.fromkeys(["max", "min"], _reduce(2)),
    **dict.fromkeys(["var", "std"], _variance),
    **dict.fromkeys(["batch_norm", "group_norm"], _channels_norm),
    **dict.fromkeys(["matmul", "mm", "bmm", "mv"], _matmul),
    **dict.fromkeys(["view", "_unsafe_view"], _view("size")),
    "reshape": _view("shape"),
    "unflatten": _unflatten,
    **dict.fromkeys(["zeros", "ones", "full", "new_zeros", "new_ones", "new_full"], _filled),
    **dict.fromkeys(["conv1d", "conv2d", "convolution"], _convolution),
    **dict.fromkeys(["gru", "rnn_tanh", "rnn_relu"], _stack_of_layers(1)),
    **dict.fromkeys(["gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], _cell(1)),
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _split),
    **dict.fromkeys(["cat", "concat"], _cat),
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    **dict.fromkeys(["t", "mT"], _turned),
    "adaptive_avg_pool1d": _adaptive_pool(1), "adaptive_avg_pool2d": _adaptive_pool(2),
    "addmm": _add_product("mat1", "mat2"), "arange": _arange, "avg_pool1d": _pool(1), "avg_pool2d": _pool(2),
    "baddbmm": _add_product("batch1", "batch2"), "einsum": _einsum, "embedding": _embedding,
    "embedding_bag": _embedding_bag, "expand": _expand,
    "expand_as": _first("other"), "flatten": _flatten, "gather": _gather, "index": _index,
    "glu": _glu, "index_select": _index_select, "layer_norm": _layer_norm, "linear": _linear,
    "lstm": _stack_of_layers(2), "lstm_cell": _cell(2), "max_pool1d": _pool(1), "max_pool2d": _pool(2),
    "movedim": _movedim, "narrow": _narrow, "permute": _permute, "scalar_tensor": lambda _z, _c: [[]],
    "_prelu_kernel": _first("self", 1),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d"], _convolution_back), "_weight_norm": _first("v"),
    "prelu": _first("self", 1), "repeat": _repeat, "reshape_as": _first("other"),
    "scaled_dot_product_attention": _attention, "select": _select, "slice": _slice, "squeeze": _squeeze,
    "stack": _stack, "transpose": _transpose, "unbind": _unbind, "unsqueeze": _unsqueeze, "view_as": _first("other"),
}  # fmt: skip
"""Rules by the operation's name without its overload."""
