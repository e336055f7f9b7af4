"""The layouts of a step's frames: in a pool's calls, streams first, and in the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlstm.typing import Array

__all__ = ["Layout"]


class Layout(NamedTuple):
    """The layout of one input or output.

    Attributes
    ----------
    axes : str
        A letter for each of the model's axes: T for time, B for the batch rows, anything else for the rest.
    several : bool
        Whether a pool's calls have a time axis for it, after the streams.
    """

    axes: str
    several: bool

    def as_model(self, array: Array) -> Array:
        """Return the model's view of an array [streams, time, …] or [streams, …]; itself if it has no batch rows."""
        if "B" not in self.axes:
            return array
        kept = [axis for axis in self.axes if self.several or axis != "T"]
        others = iter(range(1 + self.several, array.ndim))
        view = array.transpose([0 if a == "B" else 1 if a == "T" else next(others) for a in kept])
        return view if self.several or "T" not in self.axes else np.expand_dims(view, self.axes.index("T"))

    def as_rows(self, array: Array) -> Array:
        """Return the view [streams, time, …] or [streams, …] of an array in the model's layout."""
        axes = self.axes
        if "T" in axes and not self.several:
            array = array[(slice(None),) * axes.index("T") + (0,)]
            axes = axes.replace("T", "")
        front = [axes.index("B"), *([axes.index("T")] if self.several else [])]
        return array.transpose([*front, *(i for i in range(array.ndim) if i not in front)])
