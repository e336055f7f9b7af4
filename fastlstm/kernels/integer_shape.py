"""The compile-time parameters of a product with integer weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shape"]


@dataclass(frozen=True)
class Shape:
    """The compile-time parameters of a product with integer weights.

    Attributes
    ----------
    lanes, vectors, max_sums : int
        As in `fastlstm.kernels.product`.
    bits : int
        Bits per weight: 16 or 8.
    together : int
        Values of k that one instruction multiplies and adds: 4, 2 or 1, or with Helium a whole vector.
    row_size : int
        Bytes per value of a row: 2, or 1 where four are multiplied together.
    blocked : bool
        Whether sums are split into blocks of k.
    offset : int
        What was added to every value of a row; each panel then holds the initial sums.
    magnitudes : bool
        Whether groups of four are multiplied in two steps, the first on the magnitudes of the row's values.
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
        """Vector registers; the sums leave four to eight of them free."""
        return 16 if self.max_sums <= 12 else 32

    @property
    def vector_bytes(self) -> int:
        """Bytes of a panel's scales; also of its initial sums, and of a row of its 32-bit sums."""
        return self.vectors * self.lanes * 4

    @property
    def header_bytes(self) -> int:
        """Bytes of a panel before its weights."""
        return self.vector_bytes * (2 if self.offset else 1)

    @property
    def k_bytes(self) -> int:
        """Bytes of a panel's weights for one k."""
        return self.vectors * self.lanes * self.bits // 8
