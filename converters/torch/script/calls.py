"""A TorchScript program written down call by call, with the dtypes and sizes of all its tensors.

`Recorder` takes the operations that `interpreter` meets on its way through the code, works out what each gives
by the rules that exported programs are checked with, and keeps them as a `Program`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from fastlstm.converters.torch.aten.dtypes import results
from fastlstm.converters.torch.aten.schemas import SCHEMAS, SYNONYMS, bind
from fastlstm.converters.torch.aten.shapes import RULES, CallShapes, UnknownShapeError
from fastlstm.converters.torch.pickles import StoredTensor
from fastlstm.converters.torch.program import Call, Program, SymInt, Tensor, TensorMeta
from fastlstm.converters.torch.script.sizes import MismatchError, TrackedSizes
from fastlstm.converters.torch.size_calls import SizeCalls
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import UnsupportedError
from fastlstm.typing import Array

__all__ = ["Budget", "Recorder"]

_STEPS_A_CALL = 20
_ELEMENTS = 1 << 31
_LISTS = frozenset({"chunk", "split", "split_with_sizes", "unbind"})


@dataclass
class Budget:
    """How much work a program may be: damaged ones go round and round."""

    steps: int = 1_000_000

    def spend(self, steps: int) -> None:
        """Take some of it.

        Raises
        ------
        UnsupportedError
            If nothing is left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise UnsupportedError("The program takes more steps than a model does: a million, some 20 an operation.")


class Recorder:
    """The calls of one program in order, and its tensors: dtype, sizes, and the inputs that each comes from.

    Parameters
    ----------
    z : TrackedSizes
    budget : Budget
        What is left for this and further ways to follow the program.
    """

    def __init__(self, z: TrackedSizes, budget: Budget) -> None:
        self.z = z
        self.budget = budget
        self.divides_integers = False
        """Whether the quotient of integers is one, as before PyTorch 1.6."""
        self.depth = 0
        """How many loops the program is in."""
        self.calls: list[Call] = []
        self.constants: dict[str, StoredTensor | Array] = {}
        self.shapes: dict[str, list[Size]] = {}
        self.dtypes: dict[str, str] = {}
        self.sources: dict[str, frozenset[str]] = {}
        self._looked_at: list[frozenset[str]] = []
        self._numbers: dict[str, Size] = {}
        self._sizes = SizeCalls(z, self._holder, self._add_number)
        self._read: dict[int, tuple[str, int]] = {}
        self._count = 0

    def tensor(self, name: str, dtype: str, shape: Sequence[Size], sources: frozenset[str]) -> Tensor:
        """Add a tensor."""
        self.shapes[name], self.dtypes[name], self.sources[name] = list(shape), dtype, sources
        return Tensor(name)

    def constant(self, name: str, value: StoredTensor | Array) -> Tensor:
        """Add a parameter, buffer or constant, or return it if it is there."""
        while name in self.shapes and name not in self.constants:
            name += "_"
        if name not in self.constants:
            self.constants[name] = value
            dtype = "bfloat16" if value.dtype == "bfloat16" else np.dtype(value.dtype).name
            self.tensor(name, dtype, [self.z.fixed(size) for size in value.shape], frozenset())
        return Tensor(name)

    def size(self, tensor: Tensor, axis: int) -> int | Size:
        """Return the size of an axis: a number, or a `Size` if it depends on the input."""
        shape = self._shape_of(tensor)
        if not isinstance(axis, int):
            raise UnsupportedError(f"The size of an axis {axis!r:.40} is asked for, which is no number.")
        if not -len(shape) <= axis < len(shape):
            raise MismatchError(f"there is no axis {axis} among {len(shape)}", self.sources[tensor.name])
        size = shape[axis]
        if not size.is_open:
            return size.value
        self._read.setdefault(id(size.root), (tensor.name, axis % len(shape)))
        return size

    def _shape_of(self, tensor: Any) -> list[Size]:
        """Return the shape that the program looks at."""
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(f"A {type(tensor).__name__} is used where a tensor is expected.")
        if self.sources[tensor.name] not in self._looked_at[-2:]:
            self._looked_at.append(self.sources[tensor.name])
        return self.shapes[tensor.name]

    def dtype(self, tensor: Tensor) -> str:
        """Return the dtype of a tensor."""
        self._shape_of(tensor)
        return self.dtypes[tensor.name]

    def blamed(self) -> frozenset[str]:
        """Return the inputs behind the tensors whose sizes the program looked at last: two, as for h and c."""
        return frozenset().union(*self._looked_at[-2:])

    def sizes(self, tensor: Tensor) -> list[int | Size]:
        """Return the sizes of all axes."""
        return [self.size(tensor, axis) for axis in range(self.rank(tensor))]

    def rank(self, tensor: Tensor) -> int:
        """Return the number of axes."""
        return len(self._shape_of(tensor))

    def call(
        self,
        name: str,
        positional: Sequence[Any],
        keywords: Mapping[str, Any],
        further: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Any:
        """Add a call of ``aten.NAME`` and return what it gives: a tensor, or several as a tuple or list.

        `further` arguments are those that aten's own operation does not have: the lengths of packed sequences.

        Raises
        ------
        UnsupportedError
            If the operation is not supported.
        Demand
            If it asks for other inputs.
        """
        base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        canonical = SYNONYMS.get(base, base)
        if canonical not in SCHEMAS or canonical not in RULES:
            raise UnsupportedError(f"The operation 'aten.{name}' is not supported.")
        if name == "_convolution":
            positional = positional[:9]  # how it is computed
        overload, raw = bind(canonical, positional, keywords)
        arguments = {key: self._argument(value) for key, value in raw.items()}
        target = f"aten.{canonical}{'_' if base != name else ''}.{overload}"
        tensors = [
            item.name
            for value in arguments.values()
            for item in (value if isinstance(value, list) else [value])
            if isinstance(item, Tensor)
        ]
        kinds = [(self.dtypes[tensor], len(self.shapes[tensor])) for tensor in tensors]
        sources = frozenset().union(*(self.sources[tensor] for tensor in tensors))
        if self.divides_integers and canonical == "div" and not any("float" in dtype for dtype, _ in kinds):
            raise UnsupportedError("Dividing integers as PyTorch before 1.6 did is not supported.")
        self._check(canonical, kinds, tensors, sources)
        shapes = self._shapes_of(canonical, Call(target, arguments, ()), tensors)
        dtypes = results(canonical, raw, kinds, len(shapes))
        made = [self.tensor(self._fresh(canonical), d, s, sources) for d, s in zip(dtypes, shapes, strict=True)]
        names = tuple(tensor.name for tensor in made)
        self._add(Call(target, {**arguments, **further}, (names,) if canonical in _LISTS else names))
        if canonical in _LISTS:
            return made
        return made[0] if len(made) == 1 else tuple(made)

    def _shapes_of(self, name: str, call: Call, tensors: Sequence[str]) -> list[list[Size]]:
        blamed = frozenset().union(*(self.sources[tensor] for tensor in tensors))
        first = next((self.sources[tensor] for tensor in tensors if self.sources[tensor]), blamed)
        try:
            shapes = RULES[name](self.z, CallShapes(self.z, call, self.shapes, self._numbers))
        except MismatchError as error:
            raise MismatchError(f"aten.{name}: {error}", blamed) from None
        except UnknownShapeError as error:
            reason = f"aten.{name}: its arguments do not fit ({str(error) or 'no rule is known for them'})"
            raise MismatchError(reason, first if name in ("lstm", "gru", "rnn_tanh", "rnn_relu") else blamed) from None
        for shape in shapes:
            if any(size.value < 0 for size in shape):
                raise MismatchError(f"aten.{name}: it gives the shape {[s.value for s in shape]}", blamed)
            if math.prod(size.value for size in shape if not size.is_open) > _ELEMENTS:
                raise UnsupportedError(f"aten.{name} gives {[s.value for s in shape]} numbers, more than are allowed.")
        return shapes

    def _check(
        self, name: str, kinds: Sequence[tuple[str, int]], tensors: Sequence[str], sources: frozenset[str]
    ) -> None:
        """Ask inputs for dtypes that an operation needs."""
        if name in ("embedding", "embedding_bag") and "int" not in kinds[1][0]:
            raise MismatchError(f"aten.{name}: its indices should be integers", self.sources[tensors[1]])
        for tensor, (dtype, rank) in zip(tensors, kinds, strict=True) if name in _FLOAT_ONLY else ():
            if "float" not in dtype:
                raise MismatchError(f"aten.{name}: it works on floats", self.sources[tensor])
            if rank != _RANKS.get(name, rank) and self.sources[tensor]:
                raise MismatchError(f"aten.{name}: it takes {_RANKS[name]} axes", self.sources[tensor])
        if name in _PRODUCTS and len({dtype for dtype, _ in kinds}) > 1:
            raise MismatchError(f"aten.{name}: its operands should be of one dtype", sources)
        if name == "masked_fill" and kinds[1][0] != "bool":
            raise MismatchError("aten.masked_fill: its mask should be bool", self.sources[tensors[1]])
        if name == "index" and len({rank for _, rank in kinds[1:]}) > 1:
            raise MismatchError("aten.index: its indices should have as many axes as one another", sources)
        if name in ("index", "gather", "index_select") and any("float" in dtype for dtype, _ in kinds[1:]):
            raise MismatchError(f"aten.{name}: its indices should be integers", sources)

    def argument(self, size: Size) -> SymInt | int:
        """Return a size as a number of the program."""
        return self._number(size)

    def like(self, tensor: Tensor, hint: str, first: Size | None = None) -> Tensor:
        """Add a tensor of the dtype and sizes of another one, with one more axis in front if asked."""
        name = tensor.name
        shape = [*([first] if first is not None else []), *self.shapes[name]]
        return self.tensor(self._fresh(hint), self.dtypes[name], shape, self.sources[name])

    @contextlib.contextmanager
    def inside(self) -> Iterator[list[Call]]:
        """Collect the calls of a loop's body in a list of their own; numbers that are read there stay there."""
        kept, asked = self.calls, dict(self._sizes.asked)
        self.calls = []
        self.depth += 1
        try:
            yield self.calls
        finally:
            self.calls, self._sizes.asked = kept, asked
            self.depth -= 1

    def round_number(self) -> str:
        """Return a name for the number of a loop's round."""
        return self._fresh("round")

    def round_size(self, name: str) -> Size:
        """Return the number of a round: nothing may depend on what it is."""
        size = self.z.made_up(name)
        self._sizes.asked[id(size)] = name
        self._numbers[name] = size
        return size

    def add(self, call: Call) -> None:
        """Add a call as it is."""
        self._add(call)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Size):
            return self._number(value)
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return value

    def _number(self, size: Size) -> SymInt | int:
        """Return a size as a number of the program; adds the calls that read or calculate it."""
        number = self._sizes.number(size)
        if number is None:
            raise UnsupportedError(f"The size '{size}' is calculated in a way that is not supported.")
        return number

    def _add_number(self, size: Size, target: str, arguments: dict[str, object]) -> str:
        name = self._fresh("size")
        self._numbers[name] = size
        self._add(Call(target, arguments, (name,)))
        return name

    def _holder(self, size: Size) -> tuple[str, int] | None:
        if id(size) in self._read:
            return self._read[id(size)]
        places = ((name, axis) for name, shape in self.shapes.items() for axis, s in enumerate(shape) if s.root is size)
        return next(places, None)

    def trimmed(self, tensor: Tensor, lengths: Tensor, axis: int) -> Tensor:
        """Return a tensor up to the longest of the lengths along an axis of time."""
        shape = list(self.shapes[tensor.name])
        shape[axis] = self.z.leaf(shape[axis].value, "longest")
        made = self.tensor(self._fresh("trimmed"), self.dtypes[tensor.name], shape, self.sources[tensor.name])
        self._add(Call("packed.trim", {"self": tensor, "lengths": lengths, "dim": axis}, (made.name,)))
        return made

    def _add(self, call: Call) -> None:
        self.calls.append(call)
        self.budget.spend(_STEPS_A_CALL)

    def _fresh(self, hint: str) -> str:
        while True:
            self._count += 1
            name = f"{hint.strip('_')}_{self._count}"
            if name not in self.shapes:
                return name

    def program(
        self, inputs: Sequence[str], outputs: Sequence[str], arrays: Mapping[str, Array], notes: Sequence[str]
    ) -> Program:
        """Return the program with its constants as `arrays`."""
        metas = {
            name: TensorMeta(self.dtypes[name], tuple(str(s) if s.is_open else s.value for s in shape))
            for name, shape in self.shapes.items()
        }
        sizes = [size for shape in self.shapes.values() for size in shape]
        hints = {str(size): size.value for size in sizes if size.is_open}
        return Program(tuple(inputs), tuple(outputs), tuple(self.calls), arrays, metas, hints, tuple(notes))


_FLOAT_ONLY = frozenset(
    {
        "linear", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
        "conv1d", "conv2d", "convolution", "batch_norm", "layer_norm", "group_norm", "instance_norm", "softmax",
        "log_softmax", "mean",
    }
)  # fmt: skip
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum"})
_RANKS = {
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], 3),
    **dict.fromkeys(["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], 2),
}
"""Axes of the input and the states; parameters come from no input."""
