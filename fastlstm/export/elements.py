"""Elements of tapes' arrays and of C's buffers: where they lie, and how they are copied from one place to another."""

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
    """An array in the state struct, on a tape or in C.

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
        """Return the elements of a tape's array."""
        at = place(array)
        return cls(Seat(at.memory, at.offset), str(array.dtype), array.shape, array.strides)

    @classmethod
    def packed(cls, seat: Seat, kind: str, shape: Sequence[int]) -> Elements:
        """Return contiguous elements."""
        size = np.dtype(kind).itemsize
        strides = tuple(size * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cls(seat, kind, tuple(shape), strides)

    @classmethod
    def of_port(cls, port: Port, shape: Sequence[int], offset: int = 0) -> Elements:
        """Return the elements behind a pointer that C passes, from a byte offset on."""
        return cls.packed(Seat(port.parameter, offset), port.dtype, shape)

    def led_by(self, axis: int | None) -> Elements:
        """Return the same elements with an axis moved to the front; unchanged if it is None."""
        if axis is None:
            return self
        order = [axis, *(i for i in range(len(self.shape)) if i != axis)]
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def cut(self, start: int, stop: int) -> Elements:
        """Return part of the first axis."""
        seat = replace(self.seat, offset=self.seat.offset + start * self.strides[0])
        return replace(self, seat=seat, shape=(stop - start, *self.shape[1:]))

    def to(self, target: Elements) -> Copy:
        """Return the copy of these elements to others of the same shape."""
        return Copy(self.shape, self.seat, self.kind, self.strides, target.seat, target.kind, target.strides, False)


def port_type(dtype: Any) -> str:
    """Return the type in which C sees elements."""
    return "float32" if np.dtype(dtype) == np.float32 else "int32"
