"""A pool's step by a tape: states go from their stores into its inputs, and from its outputs back into the stores."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.streaming.stores import Store
from fastlstm.tapes.by_shape import Tapes, give
from fastlstm.tapes.steps import SizesChangedError, Tape

__all__ = ["TapedStep"]

Array = npt.NDArray[Any]


class TapedStep:
    """One call of the model for so many streams.

    Parameters
    ----------
    tapes, key, names
        What `Tapes.find` says of the call's inputs.
    stores : mapping of str to Store
        The states by the names of their inputs, as they follow the frames and, among the results, the outputs.
    """

    def __init__(self, tapes: Tapes, key: Hashable, names: tuple[str, ...], stores: Mapping[str, Store]) -> None:
        self._tapes, self._key, self._names, self._stores = tapes, key, names, stores
        self._known: Tape | None = None

    def run(self, numbers: Array, frames: Mapping[str, Array]) -> list[Array] | None:
        """Advance streams by frames as the model takes them; return the outputs, or None if there is no tape for it.

        States change once everything has been computed.
        """
        tape = self._tapes.take(self._key)
        if tape is None:
            return None
        try:
            return self._played(tape, numbers, frames)
        except SizesChangedError as changed:
            self._tapes.forget(self._key, tape, changed)  # it is recorded anew
            return None
        finally:
            give(tape)

    def _played(self, tape: Tape, numbers: Array, frames: Mapping[str, Array]) -> list[Array]:
        if tape is not self._known:
            self._look_at(tape)
        for target, name in self._given:
            np.copyto(target, frames[name])
        for target, store in self._taken:
            store.take(numbers, target)
        tape.play()
        shown = [np.array(array) for array in self._shown]
        for store, array, cells in self._put:
            if cells is None:
                store.put(numbers, store.fitting(array, len(numbers)))
            else:
                store.put_cells(numbers, cells)
        return shown

    def _look_at(self, tape: Tape) -> None:
        """Note where a tape has what goes in and what comes out."""
        places = dict(zip(self._names, tape.inputs, strict=True))
        self._given = [(place, name) for name, place in places.items() if name not in self._stores]
        self._taken = [(places[name], store) for name, store in self._stores.items()]
        arrays = [cell.array for cell in tape.outputs]
        self._shown = arrays[: len(arrays) - len(self._stores)]
        after = arrays[len(self._shown) :]
        self._put = [(s, a, s.cells(a)) for s, a in zip(self._stores.values(), after, strict=True)]
        self._known = tape
