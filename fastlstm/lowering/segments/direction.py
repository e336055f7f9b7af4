"""One direction of a recurrent layer during lowering."""

from __future__ import annotations

from dataclasses import dataclass

from fastlstm.graph import Recurrent
from fastlstm.lowering.pack import panels_of, tail_vectors
from fastlstm.typing import Array

__all__ = ["Activations", "Direction"]

Activations = tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True)
class Direction:
    """Weights and slots of one direction.

    Attributes
    ----------
    layer : Recurrent
    d : int
        The direction's number.
    w_ih, w_hh, bias : array
        Its weights [gates * H, K], and the bias of the input projection [gates * H].
    activations : tuple
        With all their parameters.
    x, z, y, h, c, mask : int
        Slots: input, input projection, output, states, codes of the mask (-1: none).
    y_bytes, last_width : int
        The offset of its outputs in a row in bytes, and how many lanes of their last vector are stored.
    """

    layer: Recurrent
    d: int
    w_ih: Array
    w_hh: Array
    bias: Array
    activations: Activations
    x: int
    z: int
    y: int
    h: int
    c: int
    mask: int
    y_bytes: int
    last_width: int

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self.layer.hidden_size

    @property
    def size(self) -> int:
        """Features of the output."""
        return int(self.w_hh.shape[1])

    @property
    def gates(self) -> int:
        """Gates of a cell."""
        return self.layer.gates

    @property
    def reverse(self) -> int:
        """1 if time runs backwards."""
        return int(self.layer.directions[self.d] == "reverse")

    @property
    def clip(self) -> float | None:
        """The clipping bound of the activations' arguments, if there is one."""
        return self.layer.clip

    def panels(self, lanes: int) -> int:
        """Panels of hidden units."""
        return panels_of(self.hidden, lanes)

    def tail(self, lanes: int) -> int:
        """Vectors that hold the last units' gates, 0 if the last panel is padded instead."""
        layer, read = self.layer, self.layer.inputs
        plain = not (read.mask or read.peephole or read.w_hr or read.w_ih_scale or read.norm or layer.input_forget)
        return tail_vectors(self.hidden, 4, lanes) if layer.op == "LSTM" and plain else 0
