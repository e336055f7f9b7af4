"""Elements of arrays and of what C gives: where they lie, and copies of them from one place to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.export.interface import Port
from fastlstm.export.source import Copy, Seat
from fastlstm.program.program import place
from fastlstm.typing import Array

__all__ = ["Elements", "port_type"]


@dataclass(frozen=True)
class Elements:
    """An array of the state struct, of a tape or of C.

    Attributes
    ----------
    seat : Seat
    kind : str
        Their type.
    shape, strides : tuple of int
        Strides are in bytes.
    """

    seat: Seat
    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> Elements:
        """Return those of a tape's array."""
        at = place(array)
        return cls(Seat(at.memory, at.offset), str(array.dtype), array.shape, array.strides)

    @classmethod
    def packed(cls, seat: Seat, kind: str, shape: Sequence[int]) -> Elements:
        """Return elements without gaps."""
        size = np.dtype(kind).itemsize
        strides = tuple(size * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cls(seat, kind, tuple(shape), strides)

    @classmethod
    def of_port(cls, port: Port, shape: Sequence[int], offset: int = 0) -> Elements:
        """Return those behind a pointer that C gives, so many bytes after the first."""
        return cls.packed(Seat(port.parameter, offset), port.dtype, shape)

    def led_by(self, axis: int | None) -> Elements:
        """Return the same with an axis in front; as they are, if there is none."""
        if axis is None:
            return self
        order = [axis, *(i for i in range(len(self.shape)) if i != axis)]
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def cut(self, start: int, stop: int) -> Elements:
        """Return some of the first axis."""
        seat = replace(self.seat, offset=self.seat.offset + start * self.strides[0])
        return replace(self, seat=seat, shape=(stop - start, *self.shape[1:]))

    def to(self, target: Elements) -> Copy:
        """Return the copy to elements that are as many on each axis."""
        return Copy(self.shape, self.seat, self.kind, self.strides, target.seat, target.kind, target.strides, False)


def port_type(dtype: Any) -> str:
    """Return how C sees elements of a type."""
    return "float32" if np.dtype(dtype) == np.float32 else "int32"
