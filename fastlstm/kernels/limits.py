"""How far integers go in quantised products; no Numba is imported here, so that packing can read it too."""

from __future__ import annotations

__all__ = ["BLOCK", "BYTE_LIMIT", "BYTE_OFFSET", "SUM_LIMIT", "VALUE_LIMIT"]

SUM_LIMIT = (1 << 31) - 1

BLOCK = 256
"""Values of k whose products are summed in 32 bits where rows have 14 bits. Longer blocks leave the weights fewer
bits, shorter ones cost time: 128 halves the error of int16 and is up to a tenth slower."""

VALUE_LIMIT = 1 << 13
"""Largest magnitude of a quantised value. With 256 in a block, 14 bits for it and what is left for the weights
gave the smallest errors of all splits tried (random LSTMs of 128 to 1024 units)."""

BYTE_LIMIT = 127
"""The same where rows have 8 bits. Their sums with 8-bit weights are not cut into blocks."""

BYTE_OFFSET = 128
"""What is added to values of 8 bits where an instruction wants them without a sign."""
