"""Exported programs become graphs: each aten operation is added as the nodes that mean the same.

`AtenGraph` keeps what the handlers of operations share: which graph value stands for which tensor or
integer of the program, casts, and shapes. Sizes known only at run time are int64 values of one element.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.common.builder import GraphBuilder
from fastlstm.converters.torch.aten.arguments import CallArguments
from fastlstm.converters.torch.kept_state import kept
from fastlstm.converters.torch.program import Call, Program, SymInt, Tensor, TensorMeta, short_name
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.typing import Array

__all__ = ["CHECKS", "Arguments", "AtenGraph", "Handler"]

_END = (1 << 63) - 1
_NARROW = {"float64": "float32", "float16": "float32", "bfloat16": "float32"}
CHECKS = frozenset(
    {
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
        "aten._assert_async.msg",
    }
)
"""Operations that only check what torch.export assumed."""


class Arguments(CallArguments):
    """The arguments of one call, and what they are in the graph."""

    def __init__(self, graph: AtenGraph, call: Call) -> None:
        super().__init__(call)
        self._graph = graph

    @property
    def label(self) -> str:
        """The call, for errors."""
        return f"{self.call.target} ('{self.call.outputs[0] if self.call.outputs else ''}')"

    def misfit(self, reason: str) -> FileFormatError:
        """Return the error that the arguments do not fit the operation, for a reason."""
        return FileFormatError(f"The arguments of {self.label} do not fit it: {reason}.")

    def unsupported(self, reason: str) -> UnsupportedError:
        """Return the error that this call is not supported, for a reason."""
        return UnsupportedError(f"{self.label}: {reason}.")

    def value(self, name: str) -> str:
        """Return the graph value of a tensor argument, ``""`` if it is None."""
        return "" if self.get(name) is None else self._graph.value(self.tensor(name))

    def meta(self, name: str) -> TensorMeta:
        """Return dtype and shape of a tensor argument."""
        return self._graph.meta(self.tensor(name).name)

    def out(self, position: int = 0) -> TensorMeta:
        """Return dtype and shape of an output."""
        self.expect(position < len(self.call.outputs), f"it should give {position + 1} tensors")
        name = self.call.outputs[position]
        if not isinstance(name, str):
            raise self.unsupported("it should give one tensor")
        return self._graph.meta(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors in the list that the call gives."""
        names = self.call.outputs[0] if self.call.outputs else ""
        if not isinstance(names, tuple):
            raise self.unsupported("it should give a list of tensors")
        return names

    def rank(self, name: str) -> int:
        """Return the number of dimensions of a tensor argument."""
        return len(self.meta(name).shape)

    def size(self, name: str, axis: int) -> int:
        """Return the size of an axis of a tensor argument, which has to be known when loading."""
        shape = self.meta(name).shape
        self.expect(-len(shape) <= axis < len(shape), f"'{name}' has {len(shape)} axes")
        size = shape[axis]
        if not isinstance(size, int):
            raise self.unsupported(f"the size of axis {axis} of '{name}' should be known")
        return size

    def axis(self, name: str = "dim", of: str = "self", default: int = 0, extra: int = 0) -> int:
        """Return an axis argument counted from the front; `extra` is 1 where the result has one more."""
        return self.axis_of(self.rank(of) + extra, name, default)

    def axes(self, name: str = "dim", of: str = "self") -> list[int]:
        """Return some axes of a tensor argument counted from the front."""
        return self.axes_of(self.rank(of), name)


Handler = Callable[["AtenGraph", Arguments], "str | Sequence[str]"]
"""Adds a call's nodes and returns the values of its outputs in order; a list of tensors is spread out."""


class AtenGraph:
    """Builds the graph of an exported program.

    Parameters
    ----------
    program : Program
    name : str
        The graph's name.
    handlers : mapping of str to Handler
        By the operation's full name, such as ``aten.linear.default``.
    """

    def __init__(self, program: Program, name: str, handlers: Mapping[str, Handler]) -> None:
        self.program = program
        self.builder = GraphBuilder(name)
        self.handlers = handlers
        self.zeros: set[str] = set()
        """Values that are known to hold zeros only."""
        self.depth = 0
        """How many loops are being built around the calls."""
        self.rounds: dict[str, str] = {}
        """The numbers of the rounds of loops that are being built: values of no dimensions."""
        self._values: dict[str, str] = {}
        self._numbers: dict[str, str] = {}
        self._constants = {key: self._narrowed(array) for key, array in program.constants.items()}

    def build(self) -> Graph:
        """Return the graph.

        Raises
        ------
        UnsupportedError
            If an operation or one of its arguments is not understood; the message names it.
        """
        sizes = _size_names(self.program)
        for name in self.program.inputs:
            meta = self.meta(name)
            self._values[name] = self.builder.input(name, _named(meta.shape, sizes), meta.dtype)
        self.add_calls()
        outputs = self.program.outputs
        for position, name in enumerate(outputs):
            meta = self.meta(name)
            label = "output" if len(outputs) == 1 else f"output_{position}"
            self.builder.output(self.value(Tensor(name)), label, _named(meta.shape, sizes), meta.dtype)
        if any(meta.dtype in _NARROW for meta in self.program.metas.values()):
            self.builder.note("Numbers that are not float32 in the program are computed in float32.")
        for note in self.program.notes:
            self.builder.note(note)
        return self.builder.graph_of_needed()

    def add_calls(self) -> None:
        """Add the nodes of all calls of the program."""
        for position, call in enumerate(self.program.calls):
            if call.target not in CHECKS:
                self._add(position, call)

    @contextlib.contextmanager
    def within(self, builder: GraphBuilder, program: Program) -> Iterator[None]:
        """Build a part of the program as a graph of its own, which reads what is around it."""
        kept = self.builder, self.program, dict(self._values), dict(self._numbers)
        self.builder, self.program = builder, program
        self.depth += 1
        try:
            yield
        finally:
            self.builder, self.program, self._values, self._numbers = kept
            self.depth -= 1

    def bind(self, name: str, value: str) -> None:
        """Say which value of the graph a tensor of the program is."""
        self._values[name] = value

    def _add(self, position: int, call: Call) -> None:
        inplace = re.fullmatch(r"(aten\.[a-z]\w*?)_(\.\w+)", call.target)
        handler = self.handlers.get(call.target)
        arguments = Arguments(self, call)
        if handler is None and inplace is not None:
            handler = self.handlers.get(inplace[1] + inplace[2])
            self._check_in_place(position, call, arguments.tensor("self").name)
        if handler is None:
            raise UnsupportedError(
                f"The operation {arguments.label} is not supported. See "
                "fastlstm.converters.torch.export.supported() for those that are; exporting to ONNX may break it up "
                "into simpler ones."
            )
        made = handler(self, arguments)
        values = [made] if isinstance(made, str) else list(made)
        names = [n for output in call.outputs for n in (output if isinstance(output, tuple) else (output,))]
        for name, value in zip(names, values, strict=False):
            if name:
                (self._numbers if name not in self.program.metas else self._values)[name] = value
        if inplace is not None and call.target not in self.handlers:
            self._values[arguments.tensor("self").name] = values[0]

    def _check_in_place(self, position: int, call: Call, target: str) -> None:
        """An operation that overwrites its input is as good as one that does not if nothing else sees it."""
        views = [
            (source.name, {n for o in earlier.outputs for n in (o if isinstance(o, tuple) else (o,))})
            for earlier in self.program.calls[:position]
            if isinstance(source := earlier.arguments.get("self"), Tensor) and short_name(earlier.target) in _VIEWS
        ]
        family, size, upwards = {target}, 0, set()
        while (
            len(family) != size
        ):  # what it is a view of, and other views of that; but not what was split off beside it
            size = len(family)
            for number, (source_name, names) in enumerate(views):
                if names & family and source_name not in family:
                    family.add(source_name)
                    upwards.add(number)
                elif source_name in family and number not in upwards:
                    family |= names
        seen = {n for later in self.program.calls[position + 1 :] for n in _tensors(later.arguments.values())}
        made_here = {n for c in self.program.calls for o in c.outputs for n in (o if isinstance(o, tuple) else (o,))}
        elsewhere = self.depth > 0 and not family <= made_here
        if stored := sorted(family & set(self.program.constants)):
            raise kept(call.target, re.sub("^[bcp]_", "", stored[0]))
        if (family - {target}) & (seen | set(self.program.outputs)) or target in self._constants or elsewhere:
            raise UnsupportedError(
                f"{call.target} writes into a tensor that is seen under another name; save "
                "exported_program.run_decompositions({}) instead, where nothing is overwritten."
            )

    def _narrowed(self, array: Array) -> Array:
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def meta(self, name: str) -> TensorMeta:
        """Return dtype (as the graph has it) and shape of a tensor."""
        meta = self.program.meta(name)
        return TensorMeta(_NARROW.get(meta.dtype, meta.dtype), meta.shape)

    def constant(self, argument: Any) -> Array | None:
        """Return a tensor's numbers if it is a parameter, buffer or constant of the program."""
        return self._constants.get(argument.name) if isinstance(argument, Tensor) else None

    def value(self, tensor: Tensor) -> str:
        """Return the graph value of a tensor."""
        name = tensor.name
        if name not in self._values:
            if name not in self._constants:
                raise UnsupportedError(f"The tensor '{name}' is read, but what makes it is not supported.")
            self._values[name] = self.builder.constant(name, self._constants[name])
        return self._values[name]

    def scalar(self, number: float, dtype: str) -> str:
        """Return a constant of no dimensions."""
        return self.builder.constant("scalar", self.filled((), number, dtype))

    def filled(self, shape: Sequence[int], number: float, dtype: str) -> Array:
        """Return an array of one number.

        Raises
        ------
        FileFormatError
            If the dtype does not hold it, or the shape is none.
        """
        kind = np.dtype(dtype)
        limits = np.iinfo(kind) if kind.kind in "iu" else None
        holds = limits is None or limits.min <= number <= limits.max
        if not holds or any(not 0 <= size <= _END for size in shape):
            raise FileFormatError(f"The program asks for {list(shape)} times {number} as {dtype}, which cannot be.")
        return np.full(shape, number, kind)

    def operand(self, argument: Any, dtype: str) -> str:
        """Return a tensor, a number or a size as a value of the given dtype.

        Raises
        ------
        FileFormatError
            If it is something else.
        """
        if isinstance(argument, Tensor):
            return self.cast(self.value(argument), self.meta(argument.name).dtype, dtype)
        if isinstance(argument, SymInt):
            if argument.name in self.rounds:
                return self.cast(self.rounds[argument.name], "int64", dtype)
            axes = self.builder.constant("axes", np.array([0], np.int64))
            return self.cast(self.builder.node("Squeeze", self.number(argument), axes), "int64", dtype)
        if not isinstance(argument, (int, float)):
            raise FileFormatError(f"The program calculates with {argument!r:.40}, which is no tensor and no number.")
        return self.scalar(argument, dtype)

    def cast(self, value: str, have: str, want: str) -> str:
        """Return the value with another dtype."""
        return value if have == want else self.builder.node("Cast", value, to=want)

    def number(self, argument: Any) -> str:
        """Return an integer as an int64 value of one element."""
        if isinstance(argument, SymInt):
            if argument.name in self.rounds:
                return self.builder.node("Unsqueeze", self.rounds[argument.name], self.ints([0]))
            if argument.name not in self._numbers:
                raise UnsupportedError(f"The number '{argument.name}' is read, but what makes it is not supported.")
            return self._numbers[argument.name]
        return self.ints([argument])

    def ints(self, numbers: Sequence[int]) -> str:
        """Return a constant list of int64."""
        for number in numbers:
            if not isinstance(number, int) or not -_END - 1 <= number <= _END:
                raise FileFormatError(f"The program has {number!r:.40} where an integer of 64 bits is expected.")
        return self.builder.constant("ints", np.array(numbers, np.int64))

    def sizes(self, numbers: Sequence[Any]) -> str:
        """Return a list of numbers, some known at run time only, as an int64 vector."""
        if not any(isinstance(number, SymInt) for number in numbers):
            return self.ints(numbers)
        parts = [self.number(number) for number in numbers]
        return parts[0] if len(parts) == 1 else self.builder.node("Concat", *parts, axis=0)


def _size_names(program: Program) -> dict[str, str]:
    """Give the symbols of the inputs' shapes, such as s77, names that mean something."""
    time_first = any(call.arguments.get("batch_first") is False for call in program.calls)
    names = ["time", "batch"] if time_first else ["batch", "time"]
    given: dict[str, str] = {}
    for shape in (program.meta(name).shape for name in program.inputs):
        for symbol in (size for size in shape if isinstance(size, str) and size.isidentifier()):
            given.setdefault(symbol, names[len(given)] if len(given) < 2 else f"size_{len(given)}")
    return given


def _named(shape: Sequence[int | str], names: Mapping[str, str]) -> list[int | str]:
    def name(match: re.Match[str]) -> str:
        return names.get(match[0], match[0])

    return [re.sub(r"[A-Za-z_]\w*", name, size) if isinstance(size, str) else size for size in shape]


def _tensors(arguments: Any) -> set[str]:
    items = [item for a in arguments for item in (a if isinstance(a, list) else [a])]
    return {item.name for item in items if isinstance(item, Tensor)}


_VIEWS = frozenset(
    {
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
        "expand", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias",
        "contiguous", "movedim", "to", "view_as", "expand_as", "numpy_T", "mT",
    }
)  # fmt: skip
"""Operations whose output may share memory with their input."""
