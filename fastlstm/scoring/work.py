"""Rows on their way through the model: cut into batches that any threads may run, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from fastlstm.errors import FastLSTMError
from fastlstm.model import Model
from fastlstm.scoring.bucketing import buckets
from fastlstm.scoring.columns import Column
from fastlstm.scoring.ports import Ports

__all__ = ["Work"]

Array = npt.NDArray[Any]


class Work:
    """Rows that are read, and what the model says of them.

    Parameters
    ----------
    model : Model
    ports : Ports
    columns : mapping of str to Column
        The inputs of all rows.
    count : int
        The number of rows.
    batch_rows, batch_frames : int
        As for `Scorer`.

    Attributes
    ----------
    batches : list of array of int
        The rows of each batch, long ones first: the short ones fill what is left of the workers' time. `run` has to
        be called once for each, from any thread.
    failed : dict of int to str
        The rows that the model refused, and why.
    """

    def __init__(
        self, model: Model, ports: Ports, columns: Mapping[str, Column], count: int, batch_rows: int, batch_frames: int
    ) -> None:
        self._model, self._ports, self._columns, self._count = model, ports, columns, count
        timed = [column.lengths for name, column in columns.items() if ports.inputs[name].time is not None]
        self._lengths = np.stack(timed) if timed else np.zeros((0, count), np.int64)
        self.batches = list(buckets(self._lengths, ports.ragged, ports.batch or batch_rows, batch_frames))[::-1]
        self.failed: dict[int, str] = {}
        self._single = {n: np.zeros((count, *p.dims), p.dtype) for n, p in ports.outputs.items() if p.time is None}
        self._pieces: list[tuple[Array, Array | None, dict[str, Array]]] = []

    def run(self, rows: Array) -> int:
        """Run one batch; return how many of its rows the model took."""
        lengths = self._lengths[0, rows] if len(self._lengths) else None
        filled = rows if self._ports.batch is None else np.resize(rows, self._ports.batch)
        arrays = {name: self._gathered(name, filled) for name in self._columns}
        given = None if lengths is None else np.resize(lengths, len(filled))
        try:
            outputs = self._ports.call(self._model, arrays, len(filled), given)
        except FastLSTMError as error:  # it refuses a value, an id beyond its table say: whose is it?
            if len(rows) == 1:
                self.failed[int(rows[0])] = str(error).rstrip(".")
                return 0
            return self.run(rows[: len(rows) // 2]) + self.run(rows[len(rows) // 2 :])
        sequences = {}
        for name, port in self._ports.outputs.items():
            if port.time is None:
                self._single[name][rows] = np.moveaxis(outputs[name], port.rows, 0)[: len(rows)]
            else:
                sequences[name] = np.moveaxis(outputs[name], (port.rows, port.time), (0, 1))[: len(rows)]
        if sequences:
            self._pieces.append((rows, lengths if self._ports.ragged else None, sequences))
        return len(rows)

    def _gathered(self, name: str, rows: Array) -> Array:
        """Return some rows of an input in the model's layout, zero where a shorter row has ended."""
        port, column = self._ports.inputs[name], self._columns[name]
        if port.time is None:
            array = column.values[rows]
            return array if port.rows in (0, None) else np.moveaxis(array, 0, port.rows)
        array = _padded(column.values, column.offsets[rows], column.offsets[rows + 1] - column.offsets[rows])
        if port.rows is None:
            return np.moveaxis(array[0], 0, port.time)
        return np.moveaxis(array, (0, 1), (port.rows, port.time))

    def outputs(self) -> tuple[Array, dict[str, tuple[Array, Array | None]]]:
        """Return the rows that were scored, and each output of them.

        Returns
        -------
        rows : array of int
        outputs : dict of str to (array, array or None)
            [rows, *dims] and None; with time [steps of all rows, *dims] and the number of steps of each row.
        """
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
                _windows(values, array.shape[1])[starts[rows]] = array
                continue
            for place, (start, length) in enumerate(zip(starts[rows].tolist(), lengths.tolist(), strict=True)):
                values[start : start + length] = array[place, :length]
        return values, steps


def _padded(values: Array, starts: Array, lengths: Array) -> Array:
    """Return sequences [rows, steps, *dims] that begin at `starts` of [steps of all rows, *dims]."""
    steps = max(1, int(lengths.max()))
    if (lengths == steps).all():  # in one go: half the time of copying row by row
        return _windows(values, steps)[starts]
    array = np.zeros((len(starts), steps, *values.shape[1:]), values.dtype)
    for place, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        array[place, :length] = values[start : start + length]
    return array


def _windows(values: Array, steps: int) -> Array:
    """Return a view [places, steps, *dims] of [all steps, *dims]: the steps from each place on."""
    shape = (len(values) - steps + 1, steps, *values.shape[1:])
    return as_strided(values, shape, (values.strides[0], *values.strides), writeable=values.flags.writeable)
