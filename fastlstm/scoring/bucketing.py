"""Which rows run together: those of the same length, or of similar ones where the model takes lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FRAMES", "ROWS", "buckets"]

Array = npt.NDArray[Any]

ROWS = 128
"""Rows of a batch at most: LSTM(64) and GRU(128) run as fast with 32 as with 192; Python has less to do with more."""

FRAMES = 1 << 15
"""Time steps of a batch at most, padding counted: what one call holds in memory."""


def buckets(lengths: Array, ragged: bool, rows: int = ROWS, frames: int = FRAMES) -> Iterator[Array]:
    """Yield the numbers of the rows of each batch, every row once.

    Parameters
    ----------
    lengths : array [sequences, rows] of int
        Of each sequence that the model takes.
    ragged : bool
        Whether a batch may hold rows of several lengths.
    rows, frames : int
        Most rows, and most time steps, of a batch; a row that is longer runs alone.
    """
    if lengths.shape[1] == 0:
        return
    order = np.lexsort(lengths[::-1]) if len(lengths) else np.arange(lengths.shape[1])
    ordered = lengths[:, order]
    changes = np.flatnonzero((np.diff(ordered, axis=1) != 0).any(axis=0)) + 1
    groups = [order] if ragged or not len(lengths) else np.split(order, changes)
    for group in groups:
        yield from _pieces(group, lengths, rows, frames)


def _pieces(group: Array, lengths: Array, rows: int, frames: int) -> Iterator[Array]:
    """Yield pieces of nearly equal size: no last batch of one row."""
    longest = int(lengths[:, group].max(initial=1))
    if len(group) > 2 * rows and longest > frames // rows:  # sorted: the shorter half need not suffer from the longer
        half = len(group) // 2
        yield from _pieces(group[:half], lengths, rows, frames)
        yield from _pieces(group[half:], lengths, rows, frames)
        return
    most = max(1, min(rows, frames // max(longest, 1)))
    yield from np.array_split(group, -(-len(group) // most))
