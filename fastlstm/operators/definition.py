"""What the engine knows of an operator: its meaning, what it makes of shapes, its kernels, how it goes on in time.

Each operator stands once, as an `Operator` in the table of its family's module. `fastlstm.operators` joins the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from fastlstm.operators.values import Operands, ValueInfo

__all__ = ["RARE", "Expectation", "Function", "Lowering", "Operation", "Operator", "ShapeRule", "Stream", "table"]

Compute = Callable[..., Any]
ShapeRule = Callable[[Operands], "ValueInfo | Sequence[ValueInfo]"]
"""From what is known of a node's inputs to what is known of its outputs: shapes, element types, small contents."""
Expectation = Callable[[Operands], str]
"""Returns what an operator expects of its inputs where that does not hold, else an empty string; what is not known
fits."""

RARE = "no model with recurrent layers is known that spends its time in it"


class Stream(Enum):
    """How an operator goes on in time; `fastlstm.streaming` has a rule for each."""

    ELEMENTS = auto()  # acts on each element of its first input alone; the other inputs are settings
    BROADCAST = auto()  # acts on the elements of several inputs that stand at the same place
    FEATURES = auto()  # multiplies the last axis by constant weights
    EINSUM = auto()  # multiplies axes that an equation names by constant weights
    ALONG_AXIS = auto()  # takes each line along the attribute `axis`, by default the last, by itself
    FROM_AXIS = auto()  # takes what lies on the axes from the attribute `axis` on, by default the last, by itself
    EXTREME = auto()  # looks for a position along the attribute `axis`, by default the first
    REDUCTION = auto()  # reduces over the axes in its second input
    CHANNELS = auto()  # scales and shifts each place along the second axis by constants
    REARRANGED = auto()  # holds the same elements on other axes
    SIZES = auto()  # gives sizes
    REPEATED = auto()  # repeats elements along axes
    JOINED = auto()  # joins values along an axis
    TAKEN = auto()  # takes slices at places along an axis
    PARTED = auto()  # cuts a value into several along an axis
    CUT = auto()  # takes a range of slices along some axes
    PADDED = auto()  # puts constants before and behind along some axes
    CONVOLUTION = auto()  # sums over windows
    TRANSPOSED_CONVOLUTION = auto()  # adds each element to several of the result
    POOLING = auto()  # takes the largest, or the mean, of each window
    FOURIER = auto()  # transforms windows of a signal
    RECURRENT = auto()  # carries states from step to step
    LOOP = auto()  # runs a body once for each frame


class Lowering(Enum):
    """Where instructions are made of operators that are no functions of single elements."""

    TAPE = auto()  # `fastlstm.lowering.tapes`, and `.segments` where values are rows around recurrent layers
    LOOP = auto()  # `fastlstm.lowering.tapes.rounds`
    RECURRENT = auto()  # `fastlstm.lowering.segments.recurrent`


@dataclass(frozen=True)
class Function:
    """A function of each element of a float32 value, as kernels compile it for vectors.

    Attributes
    ----------
    vector : callable
        From the module `fastlstm.kernels.activations`, which has what it is made of, and the parameters to the function
        of one vector. Nothing of it runs before a kernel is compiled, so that no Numba is imported here.
    parameters : tuple of (str, float)
        The attributes that are compiled in, two at most, and their defaults.
    rows : bool
        Whether segments have it too.
    """

    vector: Callable[..., Any]
    parameters: tuple[tuple[str, float], ...] = ()
    rows: bool = True

    def given(self, attrs: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """Return a node's parameters, with None for those that the function does not take."""
        first, second = [*(attrs.get(name, default) for name, default in self.parameters), None, None][:2]
        return first, second


@dataclass(frozen=True)
class Operation:
    """An operation on the elements of two float32 values that broadcast; attributes as in `Function`."""

    vector: Callable[..., Any]
    rows: bool = True


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes
    ----------
    name : str
    compute : callable or None
        Its meaning: the node's inputs in order (None where one is absent) and its attributes by keyword, NumPy arrays
        in and out. The parameters say what the operator takes (see `fastlstm.operators.signature`). None for recurrent
        layers, whose equations stand in `fastlstm.operators.reference`.
    infer : callable or str
        Its shape rule, or why nothing is known of what it gives before it runs.
    lowering : Function, Operation, Lowering or str
        What kernels it has, or why it runs in NumPy alone.
    stream : Stream or str
        How it goes on in time, or what the refusal of a stream says of it: "'name' does so and so".
    expects : callable, optional
        What it expects of its inputs.
    unused : frozenset of str
        Attributes that are understood and change nothing in what is computed here.
    """

    name: str
    compute: Compute | None
    infer: ShapeRule | str
    lowering: Function | Operation | Lowering | str
    stream: Stream | str
    expects: Expectation | None = None
    unused: frozenset[str] = field(default=frozenset())


def table(*operators: Operator) -> Mapping[str, Operator]:
    """Return operators by their names."""
    return {operator.name: operator for operator in operators}
