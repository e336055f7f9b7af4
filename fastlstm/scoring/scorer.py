"""The function at the core of scoring: a batch of Arrow rows in, the same rows with the model's outputs out."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fastlstm.errors import InputError
from fastlstm.model import Model
from fastlstm.scoring.arrow import arrow_column, arrow_type
from fastlstm.scoring.batches import Rows
from fastlstm.scoring.bucketing import FRAMES, ROWS
from fastlstm.scoring.columns import Wanted, check_type, read_column
from fastlstm.scoring.ports import Ports, find_ports, takes_lengths
from fastlstm.scoring.work import Work
from fastlstm.typing import Array

__all__ = ["ERROR_COLUMN", "Columns", "Scored", "Scorer", "Task"]

Columns = Mapping[str, str | Sequence[str]]

ERROR_COLUMN = "fastlstm_error"
"""The column that tells why a row has no outputs."""


@dataclass(frozen=True)
class Scored:
    """The result of a batch.

    Attributes
    ----------
    outputs : pyarrow.RecordBatch
        The model's outputs for the rows that could be scored, in order.
    rows : array of int
        The numbers of those rows within the batch.
    reasons : dict of int to str
        Why each other row could not be scored.
    """

    outputs: Any
    rows: Array
    reasons: dict[int, str]


@dataclass
class Task:
    """A batch during scoring.

    Attributes
    ----------
    work : Work
        The rows that fit, to be run; nothing may be left of it when the task ends.
    reasons : dict of int to str
        Why the others cannot be scored.
    """

    scorer: Scorer
    work: Work
    fits: Array
    reasons: dict[int, str]

    def end(self) -> Scored:
        """Return the result of the batch."""
        rows, outputs = self.work.outputs()
        reasons = {**self.reasons, **{int(self.fits[row]): reason for row, reason in self.work.failed.items()}}
        arrays = [arrow_column(port, *outputs[name]) for name, port in self.scorer.ports.outputs.items()]
        fields = pa.schema(self.scorer.output_fields())
        return Scored(pa.RecordBatch.from_arrays(arrays, schema=fields), self.fits[rows], reasons)


class Scorer:
    """A model as a function from Arrow rows to Arrow rows.

    ``scorer(batch)`` returns the batch with the columns that hold the model's inputs replaced by its outputs. A row's
    bits are the same in any batch. A scorer can be pickled and called from several threads, and fits Ray's
    ``map_batches``, Spark's ``mapInArrow`` and Dask's ``map_partitions``.

    Parameters
    ----------
    model : Model or path
    columns : mapping of str to str or sequence of str, optional
        The column of each input; several (patterns such as ``"sensor_*"`` among them) become features side by side.
        An input without an entry takes the column of its own name; a model's only input, else the only column of a
        type that fits.
    constants : mapping of str to number or array, optional
        Values of inputs that are the same for every row.
    outputs : sequence of str, or mapping of str to str, optional
        The outputs to compute, and the columns they become; all, under their own names, if not given.
    keep : sequence of str, optional
        The other columns to keep; all if not given.
    max_length : int, optional
        Longer sequences are not scored.
    on_error : "null" or "stop"
        What to do with a row that cannot be scored: give null outputs, with the reason in the column
        ``fastlstm_error``, or raise an `InputError`.
    batch_rows, batch_frames : int
        The most rows, and the most time steps, that the model runs at once.

    Raises
    ------
    InputError, UnsupportedError
        If the model cannot be scored row by row; a call raises InputError if a column's type does not fit.

    Examples
    --------
    >>> import fastlstm, numpy as np, pyarrow as pa
    >>> weights = {"gru.weight_ih_l0": np.ones((6, 1)), "gru.weight_hh_l0": np.ones((6, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="gru | last", batch_first=True)
    >>> scorer = fastlstm.Scorer(model, {"input": "history"})
    >>> rows = pa.RecordBatch.from_pydict({"id": [7, 8], "history": [[1.0, 2.0, 3.0], [4.0]]})
    >>> scorer(rows).schema.names
    ['id', 'output', 'fastlstm_error']
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        columns: Columns | None = None,
        *,
        constants: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        max_length: int | None = None,
        on_error: str = "null",
        batch_rows: int = ROWS,
        batch_frames: int = FRAMES,
    ) -> None:
        if not isinstance(model, Model):
            from fastlstm.loading import load

            model = load(model)
        for name, value in (("max_length", max_length), ("batch_rows", batch_rows), ("batch_frames", batch_frames)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name} should be a positive integer; got {value!r}.")
        if on_error not in ("null", "stop"):
            raise InputError(f'on_error should be "null" or "stop"; got {on_error!r}.')
        self.model = model
        self.columns = {
            name: [value] if isinstance(value, str) else [str(v) for v in value]
            for name, value in (columns or {}).items()
        }
        self.max_length, self.on_error = max_length, on_error
        self.batch_rows, self.batch_frames = batch_rows, batch_frames
        self.keep = None if keep is None else list(keep)
        names = [spec.name for spec in model.outputs]
        renamed = outputs if isinstance(outputs, Mapping) else {name: name for name in outputs or names}
        self._check_names(names, renamed)
        self.output_columns = dict(renamed)
        constants = dict(constants or {})
        mapped = self._mapped(set(constants))
        self.ports: Ports = find_ports(model, mapped, constants, set(renamed))
        self._wanted = {
            name: Wanted(name, port.dims, port.spec.dtype, port.time is not None)
            for name, port in self.ports.inputs.items()
        }
        self._check_times()

    def _check_names(self, outputs: list[str], renamed: Mapping[str, str]) -> None:
        inputs = [spec.name for spec in self.model.inputs]
        for name in self.columns:
            if name not in inputs:
                raise InputError(f"columns: there is no input '{name}'; the model's are {', '.join(inputs)}.")
        for name in renamed:
            if name not in outputs:
                raise InputError(f"outputs: there is no output '{name}'; the model's are {', '.join(outputs)}.")

    def _mapped(self, constants: set[str]) -> set[str]:
        """Return the inputs that columns are mapped to: all but constants and the lengths of sequences."""
        if both := constants & set(self.columns):
            raise InputError(f"Input '{both.pop()}' has a column and a constant; it takes one of them.")
        free = [spec.name for spec in self.model.inputs if spec.name not in constants]
        return {name for name in free if name in self.columns or not takes_lengths(self.model.graph, name)}

    def _check_times(self) -> None:
        times = {port.spec.shape[port.time] for port in self.ports.inputs.values() if port.time is not None}
        if self.ports.lengths and len(times) != 1:
            raise InputError(
                f"Input '{self.ports.lengths[0]}' takes the lengths of sequences, and the model has {len(times)} kinds "
                "of them: map a column to it."
            )

    # ------------------------------------------------------------------ columns

    def input_columns(self, schema: Any) -> dict[str, list[str]]:
        """Return the columns of each input in this Arrow schema; InputError if they are missing or do not fit."""
        names = list(schema.names)
        found: dict[str, list[str]] = {}
        for name, wanted in self._wanted.items():
            given = self.columns.get(name)
            if given is None:
                fitting = [field.name for field in schema if _fits(field, wanted)]
                only = fitting if len(self._wanted) == 1 and len(fitting) == 1 else []
                given = [name] if name in names else only
                if not given:
                    raise InputError(
                        f"Which column is the input '{name}'? Say it (columns={{'{name}': ...}}, --column {name}=...) "
                        f"or give one value for all rows (constants={{'{name}': 0}}, --constant {name}=0); the columns "
                        f"are: {_listed(schema)}."
                    )
            chosen = [column for pattern in given for column in _matching(pattern, names)]
            if not chosen or len(set(chosen)) < len(chosen):
                raise InputError(
                    f"Input '{name}': expected the columns {', '.join(given)}, each once; there are: {_listed(schema)}."
                )
            check_type(", ".join(chosen), _joined_type(schema, chosen), wanted)
            found[name] = chosen
        return found

    def kept_columns(self, schema: Any) -> list[str]:
        """Return the columns that are kept as they are."""
        used = {column for columns in self.input_columns(schema).values() for column in columns}
        kept = [name for name in schema.names if name not in used] if self.keep is None else self.keep
        for name in kept:
            if name not in schema.names:
                raise InputError(f"keep: there is no column '{name}'; the columns are: {_listed(schema)}.")
        if both := {*kept, ERROR_COLUMN} & set(self.output_columns.values()) or {ERROR_COLUMN} & set(kept):
            name = sorted(both)[0]
            raise InputError(
                f"A column '{name}' is kept and written, too: leave it out (keep=[...]) or call the output otherwise "
                f"(outputs={{'{name}': 'score'}}, --output {name}=score)."
            )
        return kept

    @property
    def growth(self) -> float:
        """How large outputs may be compared with their slice of the input, at least 1."""
        taken = [
            _step_bytes(port.spec.dtype, port.dims) for port in self.ports.inputs.values() if port.time is not None
        ]
        given = [_step_bytes(port.dtype, port.dims) for port in self.ports.outputs.values() if port.time is not None]
        return max(1.0, sum(given) / sum(taken)) if taken else 1.0

    def output_fields(self) -> list[Any]:
        """Return the Arrow fields of the outputs, which depend only on the model."""
        return [pa.field(self.output_columns[name], arrow_type(port)) for name, port in self.ports.outputs.items()]

    # ------------------------------------------------------------------ scoring

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the model's outputs in place of its inputs.

        Parameters
        ----------
        batch : pyarrow.RecordBatch, pyarrow.Table or pandas.DataFrame

        Returns
        -------
        The same kind, with as many rows in the same order; a frame keeps its index.
        """
        if (pandas := sys.modules.get("pandas")) and isinstance(batch, pandas.DataFrame):
            return self(pa.Table.from_pandas(batch, preserve_index=False)).to_pandas().set_axis(batch.index)
        if not isinstance(batch, pa.RecordBatch | pa.Table):
            raise InputError(
                f"A scorer takes an Arrow RecordBatch or Table or a pandas DataFrame; got {type(batch).__name__}."
            )
        kept = self.kept_columns(batch.schema)
        scored = self.score(batch)
        if scored.reasons and self.on_error == "stop":
            row = min(scored.reasons)
            raise InputError(f"Row {row} cannot be scored: {scored.reasons[row]}.")
        outputs = list(scored.outputs.columns)
        if scored.reasons:
            places = np.full(batch.num_rows, -1)
            places[scored.rows] = np.arange(len(scored.rows))
            where = pa.array(places, mask=places < 0)
            outputs = [column.take(where) for column in outputs]
        fields = [*(batch.schema.field(name) for name in kept), *self.output_fields()]
        arrays = [*(batch.column(name) for name in kept), *outputs]
        if self.on_error == "null":
            fields.append(pa.field(ERROR_COLUMN, pa.string()))
            arrays.append(pa.array([scored.reasons.get(row) for row in range(batch.num_rows)], pa.string()))
        return type(batch).from_arrays(arrays, schema=pa.schema(fields))

    def score(self, batch: Any) -> Scored:
        """Return the outputs of a batch, and why some rows have none."""
        task = self.begin(batch)
        for rows in task.work.groups:
            task.work.run(rows)
        return task.end()

    def begin(self, batch: Any) -> Task:
        """Read a batch's inputs, for callers whose threads share the work."""
        chosen = self.input_columns(batch.schema)
        fits = np.arange(batch.num_rows)
        reasons: dict[int, str] = {}
        while True:
            read, wrong = self._read(batch, chosen, fits)
            if not wrong:
                break
            reasons.update({int(fits[row]): reason for row, reason in wrong.items()})
            fits = np.delete(fits, list(wrong))
        work = Work(self.model, self.ports, read, len(fits), self.batch_rows, self.batch_frames)
        return Task(self, work, fits, reasons)

    def _read(self, batch: Any, chosen: Mapping[str, list[str]], rows: Array) -> tuple[dict[str, Rows], dict[int, str]]:
        """Return the inputs of some rows, and which of these rows do not fit."""
        used = batch.select(list(dict.fromkeys(column for names in chosen.values() for column in names)))
        pieces = _pieces(used if len(rows) == batch.num_rows else used.take(pa.array(rows)))
        columns: dict[str, Rows] = {}
        wrong: dict[int, str] = {}
        for name, names in chosen.items():
            arrays = [_joined([piece.column(column) for column in names], names) for piece in pieces]
            read, misfits = read_column(arrays, self._wanted[name])
            columns[name] = Rows(read, self._wanted[name].has_time)
            for row, reason in misfits.items():
                wrong.setdefault(row, f"{_called(names)}: {reason}")
        if not wrong:
            wrong = self._wrong_lengths(columns, chosen)
        return columns, wrong

    def _wrong_lengths(self, columns: Mapping[str, Rows], chosen: Mapping[str, list[str]]) -> dict[int, str]:
        wrong: dict[int, str] = {}
        first: dict[Any, str] = {}
        for name, column in columns.items():
            port, lengths = self.ports.inputs[name], column.lengths
            if port.time is None:
                continue
            called = _called(chosen[name])
            if not self.ports.ragged:
                for row in np.flatnonzero(lengths == 0):
                    wrong.setdefault(int(row), f"{called}: a sequence without steps")
            if self.max_length is not None:
                for row in np.flatnonzero(lengths > self.max_length):
                    wrong.setdefault(int(row), f"{called}: {lengths[row]} steps, more than {self.max_length}")
            other = first.setdefault(port.spec.shape[port.time], name)
            for row in np.flatnonzero(lengths != columns[other].lengths):
                text = (
                    f"{called}: {lengths[row]} steps where {_called(chosen[other])} has {columns[other].lengths[row]}"
                )
                wrong.setdefault(int(row), text)
        return wrong


# --- Arrow's side -------------------------------------------------------------------------------------------


def _step_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    return int(np.dtype(dtype).itemsize * np.prod(dims, dtype=int))


def _fits(field: Any, wanted: Wanted) -> bool:
    try:
        check_type(field.name, field.type, wanted)
    except InputError:
        return False
    return True


def _matching(pattern: str, names: list[str]) -> list[str]:
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _joined_type(schema: Any, names: list[str]) -> Any:
    return schema.field(names[0]).type if len(names) == 1 else pa.struct([schema.field(name) for name in names])


def _pieces(batch: Any) -> list[Any]:
    """Return a table's batches, at least one, or the batch."""
    if isinstance(batch, pa.RecordBatch):
        return [batch]
    return batch.to_batches() or [pa.RecordBatch.from_pylist([], batch.schema)]


def _joined(arrays: list[Any], names: list[str]) -> Any:
    """Return one array of a batch's columns: several as the fields of a struct."""
    return arrays[0] if len(arrays) == 1 else pa.StructArray.from_arrays(arrays, names)


def _called(names: list[str]) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"'{names[0]}' to '{names[-1]}'"


def _listed(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
