"""What a product with integer weights is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shape"]


@dataclass(frozen=True)
class Shape:
    """What a product with integer weights is compiled for.

    Attributes
    ----------
    lanes, vectors, max_sums : int
        As in `fastlstm.kernels.product`.
    bits : int
        Of a weight: 16 or 8.
    together : int
        Values of k that an instruction multiplies and adds: 4, 2 or 1.
    row_size : int
        Bytes of a row's value: 2, or 1 where four are multiplied together.
    blocked : bool
        Whether sums are cut into blocks.
    offset : int
        What was added to every value of a row; each panel then holds the sums to start from.
    magnitudes : bool
        Whether four values are multiplied in steps, the first with magnitudes.
    """

    lanes: int
    vectors: int
    max_sums: int
    bits: int
    together: int
    row_size: int
    blocked: bool
    offset: int
    magnitudes: bool = False

    @property
    def registers(self) -> int:
        """Vector registers: sums leave four to eight of them."""
        return 16 if self.max_sums <= 12 else 32

    @property
    def vector_bytes(self) -> int:
        """Bytes of a panel's scales, of its first sums, and of 32-bit sums."""
        return self.vectors * self.lanes * 4

    @property
    def header_bytes(self) -> int:
        """Bytes of a panel before its weights."""
        return self.vector_bytes * (2 if self.offset else 1)

    @property
    def k_bytes(self) -> int:
        """Bytes of a panel's weights for one k."""
        return self.vectors * self.lanes * self.bits // 8
