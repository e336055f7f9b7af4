"""What an exported model looks like from C: its inputs, outputs and states."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastlstm.typing import Array

__all__ = ["VERSION", "Interface", "Port", "StateField"]

VERSION = 1
"""Version of the C interface, raised by every change that a program compiled against an older header would notice;
new functions and macros do not raise it."""


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes
    ----------
    name : str
        Its name in the model.
    parameter : str
        Its name in C: ``x0``, ``x1``, ... for inputs, ``y0``, ... for outputs; ``x`` and ``y`` if there is only one.
    dtype : str
        "float32" or "int32".
    shape : tuple of int
        Shape for one step, or one call.
    moves : bool
        Whether every step has its own values; if not, all steps of a call share them.
    frames : int
        Frames per step.
    """

    name: str
    parameter: str
    dtype: str
    shape: tuple[int, ...]
    moves: bool = True
    frames: int = 1

    @property
    def elements(self) -> int:
        """Elements of one step or one call."""
        return math.prod(self.shape)

    @property
    def frame_elements(self) -> int:
        """Elements of one frame."""
        return self.elements // self.frames

    @property
    def c_type(self) -> str:
        """C's type of an element."""
        return {"float32": "float", "int32": "int32_t"}[self.dtype]


@dataclass(frozen=True)
class StateField:
    """A state: where it lies among the states, and how the C functions show it.

    Attributes
    ----------
    name : str
    shape : tuple of int
        As a stream in Python shows it.
    dtype : str
        In memory; C shows float32.
    offset : int
        Bytes from the first state.
    strides : tuple of int
        Bytes from one element to the next, for each axis.
    initial : array
        Of the same shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    strides: tuple[int, ...]
    initial: Array = field(compare=False)

    @property
    def elements(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    @property
    def is_zero(self) -> bool:
        """Whether its initial bits are all zero."""
        return not np.any(np.ascontiguousarray(self.initial).view(np.uint8))


@dataclass(frozen=True)
class Interface:
    """The C interface of a model."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape
    model_hash: str
    streams: bool
    hop: int = 1
    delay: int = 0
    tail: int = 0  # most frames that `finish` returns
    batch: int = 1
    apart: bool = False  # whether the weights are a separate file

    @property
    def ports(self) -> tuple[Port, ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)

    @property
    def state_size(self) -> int:
        """Elements of all states together."""
        return sum(math.prod(shape) for _, shape in self.states)
