"""The state struct of a target: which piece begins where.

::

    header | states | room of a routine: scratch, integers, slots, tables

The routines take turns, so their rooms are the same memory. Behind the end lies what loads of whole vectors may touch.
"""

from __future__ import annotations

from collections.abc import Hashable

from fastlstm.target import Target

__all__ = ["LEVEL", "RUNS", "STATUS", "Struct", "alignment"]

LEVEL, STATUS, RUNS = 0, 4, 8
"""Bytes from the struct's start to words of 32 bits: which of several codes runs it, what kernels complain of, steps
so far."""


def alignment(target: Target) -> int:
    """Return where pieces begin: on cache lines, where the processor has vectors that profit."""
    return 64 if target.lanes > 1 else 8


class Struct:
    """Gives out pieces of the struct.

    Attributes
    ----------
    align : int
    states : int
        Where the states begin.
    size : int
        Bytes so far.
    """

    def __init__(self, target: Target, state_bytes: int) -> None:
        self.align = alignment(target)
        # Reads of whole vectors go past the last row of a buffer; what they find there reaches no result.
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
        """Go on with the room of a routine; they all begin at the same place."""
        self._routine = routine
        self._ends.setdefault(routine, self._room)

    def room(self, key: Hashable, size: int) -> int:
        """Return where a piece of the routine's room begins, the same for the same key."""
        place = (self._routine, key)
        if place not in self._places:
            self._places[place] = self._ends[self._routine]
            self._ends[self._routine] += self._up(size)
            self._most = max(self._most, self._ends[self._routine])
        return self._places[place]

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return self._up(self._most + self._behind)
