"""The layout of a target's state struct.

::

    header | states | room of a routine: scratch, integers, slots, tables

Routines never run at the same time, so they share their memory. Padding at the end allows loads of whole vectors.
"""

from __future__ import annotations

from collections.abc import Hashable

from fastlstm.target import Target

__all__ = ["LEVEL", "RUNS", "STATUS", "Struct", "alignment"]

LEVEL, STATUS, RUNS = 0, 4, 8
"""Byte offsets of 32-bit words in the header: the level of code that runs, the kernels' status, the steps so far."""


def alignment(target: Target) -> int:
    """Return the alignment of regions: a cache line on processors with vectors that profit from it."""
    return 64 if target.lanes > 1 else 8


class Struct:
    """Allocates regions of the struct.

    Attributes
    ----------
    align : int
    states : int
        Offset of the states.
    size : int
        Bytes allocated so far.
    """

    def __init__(self, target: Target, state_bytes: int) -> None:
        self.align = alignment(target)
        # Loads of whole vectors go past the last row of a buffer; what they read there reaches no result.
        self._behind = 0 if target.lanes == 1 else 4 * target.slack
        self.states = self._up(RUNS + 4)
        self._room = self.states + self._up(state_bytes)
        self._most = self._room
        self._routine: Hashable = None
        self._ends: dict[Hashable, int] = {}
        self._places: dict[Hashable, int] = {}

    def _up(self, size: int) -> int:
        return -(-size // self.align) * self.align

    def begin(self, routine: Hashable) -> None:
        """Allocate for another routine from here on; the memory of all begins at the same place."""
        self._routine = routine
        self._ends.setdefault(routine, self._room)

    def room(self, key: Hashable, size: int) -> int:
        """Return the offset of a region of the routine's memory; the same key gives the same region."""
        place = (self._routine, key)
        if place not in self._places:
            self._places[place] = self._ends[self._routine]
            self._ends[self._routine] += self._up(size)
            self._most = max(self._most, self._ends[self._routine])
        return self._places[place]

    @property
    def size(self) -> int:
        """Size of the struct in bytes."""
        return self._up(self._most + self._behind)
