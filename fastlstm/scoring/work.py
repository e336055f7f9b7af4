"""Rows on their way through the model: divided into batches that any thread may run, and put together again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastlstm.errors import FastLSTMError
from fastlstm.model import Model
from fastlstm.scoring.batches import Rows, windows
from fastlstm.scoring.bucketing import buckets
from fastlstm.scoring.ports import Ports
from fastlstm.typing import Array

__all__ = ["Work"]


class Work:
    """Rows that have been read, and the model's outputs for them.

    Parameters
    ----------
    model : Model
    ports : Ports
    inputs : mapping of str to Rows
        The inputs of all rows.
    count : int
        The number of rows.
    batch_rows, batch_frames : int
        As for `Scorer`.

    Attributes
    ----------
    groups : list of array of int
        The rows of each batch, long ones first, so that short ones even out the workers' time at the end.
    failed : dict of int to str
        The rows that the model refused, and why.
    """

    def __init__(
        self, model: Model, ports: Ports, inputs: Mapping[str, Rows], count: int, batch_rows: int, batch_frames: int
    ) -> None:
        self._model, self._ports, self._count = model, ports, count
        timed = [rows.lengths for rows in inputs.values() if rows.has_time]
        lengths = np.stack(timed) if timed else np.zeros((0, count), np.int64)
        self.groups = list(buckets(lengths, ports.ragged, ports.batch or batch_rows, batch_frames))[::-1]
        self.failed: dict[int, str] = {}
        self._inputs, self._lengths = inputs, lengths[0] if timed else None
        self._single = {n: np.zeros((count, *p.dims), p.dtype) for n, p in ports.outputs.items() if p.time is None}
        self._pieces: list[tuple[Array, Array | None, dict[str, Array]]] = []

    def run(self, rows: Array) -> int:
        """Run the rows of one of `groups`, from any thread; return how many of them the model took."""
        full = self._ports.batch or len(rows)
        arrays = {name: self._laid_out(name, _filled(each.batch(rows), full)) for name, each in self._inputs.items()}
        lengths = None if self._lengths is None else self._lengths[rows]
        given = None if lengths is None else _filled(lengths, full)
        try:
            outputs = self._ports.call(self._model, arrays, full, given)
        except FastLSTMError as error:  # it refuses a value, an id beyond its table say: whose is it?
            if len(rows) == 1:
                self.failed[int(rows[0])] = str(error).rstrip(".")
                return 0
            return sum(map(self.run, np.array_split(rows, 2)))
        sequences = {}
        for name, port in self._ports.outputs.items():
            if port.time is None:
                self._single[name][rows] = _moved(outputs[name], (port.rows,), (0,))[: len(rows)]
            else:
                sequences[name] = _moved(outputs[name], (port.rows, port.time), (0, 1))[: len(rows)]
        if sequences:
            self._pieces.append((rows, lengths if self._ports.ragged else None, sequences))
        return len(rows)

    def _laid_out(self, name: str, array: Array) -> Array:
        """Return an input's rows with the axes where the model has them."""
        port = self._ports.inputs[name]
        if port.rows is None:
            return array[0] if port.time is None else np.moveaxis(array[0], 0, port.time)
        if port.time is None:
            return _moved(array, (0,), (port.rows,))
        return _moved(array, (0, 1), (port.rows, port.time))

    def outputs(self) -> tuple[Array, dict[str, tuple[Array, Array | None]]]:
        """Return the rows that were scored, and each output of them, and let go of the inputs.

        Returns
        -------
        rows : array of int
        outputs : dict of str to (array, array or None)
            [rows, *dims] and None; with time [steps of all rows, *dims] and the number of steps of each row.
        """
        self._inputs = {}
        scored = np.delete(np.arange(self._count), list(self.failed)) if self.failed else np.arange(self._count)
        found: dict[str, tuple[Array, Array | None]] = {}
        for name, port in self._ports.outputs.items():
            if port.time is None:
                single = self._single[name]
                found[name] = (single[scored] if self.failed else single), None
            else:
                values, steps = self._sequence(name)
                found[name] = values, steps[scored]
        return scored, found

    def _sequence(self, name: str) -> tuple[Array, Array]:
        """Return the steps of all rows, one row after the other, and their number in each; none in rows that failed."""
        port = self._ports.outputs[name]
        steps = np.zeros(self._count, np.int64)
        for rows, lengths, arrays in self._pieces:
            steps[rows] = arrays[name].shape[1] if lengths is None else lengths
        starts = np.cumsum(steps) - steps
        values = np.empty((int(steps.sum()), *port.dims), port.dtype)
        for rows, lengths, arrays in self._pieces:
            array = arrays.pop(name)
            if lengths is None:
                count = array.shape[1]
                windows(values, count, values.strides[0], len(values) - count + 1)[starts[rows]] = array
                continue
            for place, (start, length) in enumerate(zip(starts[rows].tolist(), lengths.tolist(), strict=True)):
                values[start : start + length] = array[place, :length]
        return values, steps


def _moved(array: Array, source: tuple[int, ...], target: tuple[int, ...]) -> Array:
    """Return the array with axes moved; mostly they are in their places, and NumPy would take 50 us to find that."""
    return array if source == target else np.moveaxis(array, source, target)


def _filled(array: Array, rows: int) -> Array:
    """Return so many rows: the first ones again where there are fewer."""
    return array if len(array) == rows else array[np.resize(np.arange(len(array)), rows)]
