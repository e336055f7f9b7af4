"""One call of an aten operation with the shapes of its tensors: what the rules in `shapes_*.py` are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlstm.converters.torch.program import Call, SymInt, Tensor
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["CallShapes", "Rule", "Shape", "UnknownShapeError", "broadcast", "first"]

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
