"""The frames that a stream keeps until there are enough for the first call of a model that looks ahead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastlstm.streaming.flow import ROWS, Carried, Unrolled
from fastlstm.streaming.ports import Port
from fastlstm.typing import Array

__all__ = ["HOPS", "Waiting", "cut"]

HOPS = "stream.hops"
"""The state that counts the hops of a stream, until it has reached its steady state."""


class Waiting:
    """Keeps the frames of the first hops, which one call then processes faster than one call per hop would.

    The first call takes `hops` hops; after it, every hop is a call.

    Attributes
    ----------
    labels : dict of str to str
        The state that holds an input's frames, by input.
    latest_labels : dict of str to str
        The state that holds an input's latest value, by input, for inputs without a time axis that are read at the
        end.
    """

    def __init__(self, unrolled: Unrolled, inputs: Mapping[str, Port]) -> None:
        self.hops = unrolled.waiting
        self._hop, self._inputs = unrolled.hop, inputs
        self.labels = {name: f"{name}.waiting" for name, port in inputs.items() if "T" in port.axes}
        last = unrolled.last.graph.inputs if unrolled.last is not None else ()
        read = {spec.name for spec in (*last, *(unrolled.whole.inputs if unrolled.whole is not None else ()))}
        self.latest_labels = {name: f"{name}.latest" for name in inputs if name not in self.labels and name in read}
        frames = (self.hops - 1) * self._hop
        kept = [self._carried(label, name, frames) for name, label in self.labels.items() if frames]
        kept += [self._carried(label, name, frames) for name, label in self.latest_labels.items()]
        self.carried = (Carried(HOPS, HOPS, "", (ROWS, 1), "int64"), *kept)

    def _carried(self, label: str, name: str, frames: int) -> Carried:
        """Return the state that holds an input's frames, or the latest value of an input without a time axis."""
        port = self._inputs[name]
        shape: list[int | str] = [
            ROWS if axis == "B" else frames if axis == "T" else size or 1
            for axis, size in zip(port.axes, port.sizes, strict=True)
        ]
        return Carried(label, label, "", tuple(shape) if ROWS in shape else (ROWS, *shape), port.dtype)

    def stored(self, states: Mapping[str, Array], arrays: Mapping[str, Array], done: int) -> dict[str, Array]:
        """Return the states with frames added."""
        after = dict(states)
        for name, label in self.labels.items():
            kept, axis = states[label].copy(), self._inputs[name].axes.index("T")
            rows = self._plain(name, kept)
            at = done * self._hop
            cut(rows, self._inputs[name].axes, at, at + arrays[name].shape[axis])[...] = arrays[name]
            after[label] = kept
        return after

    def gathered(
        self, states: Mapping[str, Array], arrays: Mapping[str, Array], done: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the frames of the first call, and those after them."""
        first, rest = dict(arrays), dict(arrays)
        split = (self.hops - done) * self._hop
        for name, label in self.labels.items():
            axes, now = self._inputs[name].axes, cut(arrays[name], self._inputs[name].axes, 0, split)
            if done:
                before = cut(self._plain(name, states[label]), axes, 0, done * self._hop)
                now = np.concatenate([before, now], axes.index("T"))
            first[name] = np.ascontiguousarray(now)
            rest[name] = np.ascontiguousarray(cut(arrays[name], axes, split, arrays[name].shape[axes.index("T")]))
        return first, rest

    def so_far(self, states: Mapping[str, Array], done: int) -> dict[str, Array]:
        """Return the frames of the hops so far, and the latest values of other inputs."""
        found = {name: self._plain(name, states[label]) for name, label in self.latest_labels.items()}
        if done:
            for name, label in self.labels.items():
                kept = cut(self._plain(name, states[label]), self._inputs[name].axes, 0, done * self._hop)
                found[name] = np.ascontiguousarray(kept)
        return found

    def latest(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the states that hold the latest values of inputs without a time axis."""
        return {
            label: arrays[name] if "B" in self._inputs[name].axes else np.asarray(arrays[name])[None]
            for name, label in self.latest_labels.items()
        }

    def _plain(self, name: str, kept: Array) -> Array:
        """Return what is kept of an input, with the input's own axes."""
        return kept if "B" in self._inputs[name].axes else kept[0, ...]


def cut(array: Array, axes: str, start: int, stop: int) -> Array:
    """Return a range of an array's frames; the whole array if none of its axes is time."""
    if "T" not in axes:
        return array
    return array[(slice(None),) * axes.index("T") + (slice(start, stop),)]
