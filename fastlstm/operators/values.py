"""What is known of a value before any input is given: shape, dtype, content.

`Operands` is what a shape rule sees of one node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.graph import Node, TensorSpec
from fastlstm.operators.dims import Dim, Shape, opaque
from fastlstm.operators.dtypes import dtype_of
from fastlstm.typing import Array

__all__ = ["CONTENT_LIMIT", "UNKNOWN", "Operands", "ValueInfo", "normal_axis"]

Content = tuple[Dim | None, ...]

CONTENT_LIMIT = 256
"""Integer tensors of more elements than this are not followed element by element."""


@dataclass(frozen=True)
class ValueInfo:
    """What is known of a value.

    Attributes
    ----------
    shape : tuple of int or str, or None
        Equal strings are equal dimensions (see `fastlstm.operators.dims`); None if the rank is not known.
    dtype : str or None
        NumPy's name.
    const : tuple of int, str or None, or None
        The elements of a small tensor of integers (rank 0 or 1), each a number, a symbolic dimension, or
        None where it is not known; None if nothing is known.
    fill : float, str or None
        The one number that every element equals, if that is known.
    """

    shape: Shape | None = None
    dtype: str | None = None
    const: Content | None = None
    fill: float | str | None = None

    def __str__(self) -> str:
        shape = "..." if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.dtype or ''}[{shape}]"

    @property
    def rank(self) -> int | None:
        """The number of axes, None if it is not known."""
        return None if self.shape is None else len(self.shape)

    @property
    def numbers(self) -> list[int] | None:
        """The content as plain ints if every element is known to be one."""
        if self.const is None or not all(isinstance(v, int) for v in self.const):
            return None
        return [int(v) for v in self.const if v is not None]

    def but(self, **changes: Any) -> ValueInfo:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    @classmethod
    def of_spec(cls, spec: TensorSpec) -> ValueInfo:
        """Return what a description says; ``"..."`` is an unknown rank, ``""`` an unnamed dimension."""
        if "..." in spec.shape:
            return cls(None, spec.dtype or None)
        return cls(
            tuple(d or opaque(spec.name, i) if d != 0 else 0 for i, d in enumerate(spec.shape)),
            spec.dtype or None,
        )

    @classmethod
    def of_array(cls, array: Array) -> ValueInfo:
        """Return what a constant is."""
        const: Content | None = None
        fill: float | None = None
        if array.dtype.kind in "iubf" and array.size:
            first = array.flat[0]
            # Weights, which may be large, are told by their first and last element.
            if np.isfinite(first) and array.flat[array.size - 1] == first and bool(np.all(array == first)):
                fill = float(first) if array.dtype.kind == "f" else int(first)
            if array.ndim <= 1 and array.size <= CONTENT_LIMIT and _is_whole(array):
                const = tuple(int(v) for v in array.ravel())
        elif array.size == 0 and array.ndim == 1:
            const = ()
        return cls(tuple(array.shape), array.dtype.name, const, fill)

    @classmethod
    def of_content(cls, content: Content, shape: Shape, dtype: str | None) -> ValueInfo:
        """Return a value of rank 0 or 1 with known elements."""
        same = len(set(content)) == 1 and content[0] is not None
        return cls(shape, dtype, content, content[0] if same else None)


def _is_whole(array: Array) -> bool:
    """Whether all elements are integers that float64 holds exactly."""
    if array.dtype.kind != "f":
        return True
    wide = array.astype(np.float64)  # float16 has no 2**53
    return bool(np.all(np.isfinite(wide) & (wide == np.trunc(wide)) & (abs(wide) < 2**53)))


UNKNOWN = ValueInfo()


def normal_axis(axis: int, rank: int) -> int:
    """Return `axis` counted from the front."""
    return axis + rank if axis < 0 else axis


@dataclass(frozen=True)
class Operands:
    """One node and what is known of its inputs."""

    node: Node
    infos: tuple[ValueInfo, ...]

    def __getitem__(self, position: int) -> ValueInfo:
        return self.infos[position] if position < len(self.infos) else UNKNOWN

    def only(self, *positions: int) -> Operands:
        """Return the node with nothing but some of its inputs."""
        return Operands(self.node, tuple(self[position] for position in positions))

    def given(self, position: int) -> bool:
        """Tell whether the optional input at `position` is there."""
        return self.node.input(position) != ""

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute or its default."""
        value = self.node.attrs.get(name)
        return default if value is None else value

    def axis(self, rank: int, default: int = 0) -> int:
        """Return the attribute ``axis``, counted from the front."""
        return normal_axis(int(self.attr("axis", default)), rank)

    def cast_to(self) -> str | None:
        """Return the dtype that the attribute ``to`` names."""
        try:
            return dtype_of(self.attr("to", "")).name
        except ValueError:
            return None

    def fresh(self, axis: int, output: int = 0) -> str:
        """Return the name of a dimension that nothing is known of."""
        return opaque(self.node.output(output) or f"{self.node.output(0)}#{output}", axis)

    def unknown_shape(self, rank: int | None, dtype: str | None, output: int = 0) -> ValueInfo:
        """Return a value of known rank (or None) and unknown dimensions."""
        if rank is None:
            return ValueInfo(None, dtype)
        return ValueInfo(tuple(self.fresh(i, output) for i in range(rank)), dtype)
