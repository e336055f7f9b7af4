"""Which rows run together: those of the same length, or of similar lengths if the model takes lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastlstm.typing import Array

__all__ = ["FRAMES", "ROWS", "buckets"]

ROWS = 128
"""Most rows of a batch: LSTM(64) and GRU(128) run as fast with 32 as with 192, and more rows mean less Python."""

FRAMES = 1 << 15
"""Most time steps of a batch including padding, which bounds the memory of a call."""


def buckets(lengths: Array, ragged: bool, rows: int = ROWS, frames: int = FRAMES) -> Iterator[Array]:
    """Yield the numbers of the rows of each batch, every row once.

    Parameters
    ----------
    lengths : array [sequences, rows] of int
        For each sequence that the model takes.
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
    """Yield pieces of nearly equal size, so that no batch of a single row is left over."""
    longest = int(lengths[:, group].max(initial=1))
    if len(group) > 2 * rows and longest > frames // rows:  # sorted: the shorter half is not padded to the longer
        half = len(group) // 2
        yield from _pieces(group[:half], lengths, rows, frames)
        yield from _pieces(group[half:], lengths, rows, frames)
        return
    most = max(1, min(rows, frames // max(longest, 1)))
    yield from np.array_split(group, -(-len(group) // most))
