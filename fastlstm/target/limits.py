"""How far integers go in quantised products; no Numba is imported here, so that packing can read it too."""

from __future__ import annotations

import numpy as np

from fastlstm.typing import Array

__all__ = ["BLOCK", "BYTE_LIMIT", "BYTE_OFFSET", "SUM_LIMIT", "VALUE_LIMIT", "largest_sums", "value_limit"]

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


def value_limit(bits: int, recurrent: bool) -> tuple[int, int | None]:
    """Return how large the values get that meet weights of `bits` bits, and the k of a sum (None: all).

    Parameters
    ----------
    bits : int
        16 or 8.
    recurrent : bool
        Whether the weights are a layer's recurrent ones.
    """
    return (BYTE_LIMIT, None) if bits == 8 and recurrent else (VALUE_LIMIT, BLOCK)


def largest_sums(weight: Array, block: int | None) -> Array:
    """Return the largest sum of magnitudes of any block of each row, [...] for weights [..., K]."""
    size = weight.shape[-1]
    starts = range(0, size, block or max(size, 1))
    sums = [np.abs(weight[..., k : k + (block or size)]).sum(-1) for k in starts]
    return np.max(sums, axis=0) if sums else np.zeros(weight.shape[:-1], weight.dtype)
