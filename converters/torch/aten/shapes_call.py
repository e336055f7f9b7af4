"""One call of an aten operation with the shapes of its tensors: what the rules in `shapes_*.py` are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlstm.converters.torch.aten.arguments import CallArguments
from fastlstm.converters.torch.program import Call, SymInt, Tensor
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["CallShapes", "Rule", "Shape", "UnknownShapeError", "broadcast", "first"]

Shape = list[Size]


class UnknownShapeError(Exception):
    """An operation is called in a way whose result is not known here, or cannot be at all."""


class CallShapes(CallArguments):
    """One call with the shapes of its tensors; `literals` collects the numbers that may be sizes."""

    def __init__(self, z: Sizes, call: Call, shapes: Mapping[str, Shape], numbers: Mapping[str, Size]) -> None:
        super().__init__(call)
        self.z = z
        self._shapes = shapes
        self._numbers = numbers
        self.literals: dict[tuple[str, int], Size] = {}

    def misfit(self, reason: str) -> UnknownShapeError:
        """Return the error that the arguments do not fit the operation, for a reason."""
        return UnknownShapeError(reason)

    unsupported = misfit

    def _of_kind(self, kind: type) -> list[Any]:
        items = [item for a in self.call.arguments.values() for item in (a if isinstance(a, list) else [a])]
        return [item for item in items if isinstance(item, kind)]

    def all_shapes(self) -> list[Shape]:
        """Return the shapes of all tensors among the arguments."""
        return [self.shape_of(item) for item in self._of_kind(Tensor)]

    def all_sizes(self) -> list[Size]:
        """Return the sizes that are given as arguments."""
        return [self._number(item) for item in self._of_kind(SymInt)]

    def shape_of(self, tensor: Tensor, least: int = 0) -> Shape:
        """Return the shape of a tensor of at least so many axes."""
        shape = self._shapes.get(tensor.name)
        if shape is None or len(shape) < least:
            raise self.misfit(f"'{tensor.name}' should have {least} axes or more" if shape else "a shape is not known")
        return shape

    def shape(self, name: str, least: int = 0) -> Shape:
        """Return the shape of a tensor argument of at least so many axes."""
        return self.shape_of(self.tensor(name), least)

    def shapes(self, name: str, least: int = 0) -> list[Shape]:
        """Return the shapes of a list of tensors."""
        return [self.shape_of(tensor, least) for tensor in self.tensors(name)]

    def _number(self, number: SymInt) -> Size:
        if number.name not in self._numbers:
            raise self.misfit(f"the number '{number.name}' is not known")
        return self._numbers[number.name]

    def size(self, name: str, position: int = -1) -> Size | None:
        """Return an argument, or one of a list, as a size; None if it is -1."""
        items = self.items(name)
        self.expect(position < len(items), f"'{name}' has {len(items)} items")
        item = items[max(position, 0)]
        if isinstance(item, SymInt):
            return self._number(item)
        self.expect(isinstance(item, int), f"'{name}' should be an integer; got {item!r:.40}")
        if item == -1:
            return None
        self.literals[name, position] = self.z.literal(item)
        return self.literals[name, position]

    def size_list(self, name: str) -> list[Size | None]:
        """Return a list of sizes."""
        return [self.size(name, position) for position in range(len(self.items(name)))]

    def steps(self, name: str, default: Sequence[int] | int | None, count: int) -> list[int]:
        """Return a list of integers above zero, one an axis."""
        numbers = self.integers(name, default, count)
        self.expect(min(numbers, default=1) > 0, f"'{name}' should be above zero; got {numbers}")
        return numbers


Rule = Callable[[Sizes, CallShapes], "list[Shape]"]
"""The shape of each output; sizes that the operation asks for are joined or fixed."""


def first(name: str, *fixed: int) -> Rule:
    """The result has the shape of one argument, some of whose axes belong to weights."""

    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        shape = c.shape(name)
        z.fix(*(shape[axis] for axis in fixed if -len(shape) <= axis < len(shape)))
        return [shape]

    return rule


def broadcast(z: Sizes, shapes: Sequence[Shape]) -> Shape:
    """Return the shape that shapes are broadcast to."""
    result: Shape = []
    for shape in shapes:
        short, long = sorted((result, shape), key=len)
        extra = len(long) - len(short)
        result = [*long[:extra], *(z.broadcast(a, b) for a, b in zip(short, long[extra:], strict=True))]
    return result
