"""A run over a data set: one thread reads, several score, parts are written as they are complete."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from fastlstm.errors import InputError
from fastlstm.machine import cores
from fastlstm.model import Model
from fastlstm.scoring.bucketing import FRAMES, ROWS
from fastlstm.scoring.parts import REJECTED, OutputFolder, model_hash
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Columns, Scorer
from fastlstm.scoring.sources import Source, open_source, slices
from fastlstm.version import __version__

__all__ = ["MEMORY", "Summary", "manifest", "part_rows_for", "score", "score_parts", "summarised"]

MEMORY = 1 << 30
"""Bytes that a run takes beside the model, about, if nothing else is said."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    out : str
    rows : int
        Of the input; each is in a part or among the rejected.
    rejected : int
        Rows that could not be scored.
    scored_now : int
        Rows that this run scored itself, and did not find done.
    seconds, rows_per_second : float
        Of this run.
    """

    out: str
    rows: int
    rejected: int
    scored_now: int
    seconds: float
    rows_per_second: float

    def as_data(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def score(
    model: Model | str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | Mapping[str, str] | None = None,
    keep: Sequence[str] | None = None,
    max_length: int | None = None,
    on_error: str = "aside",
    resume: bool | None = None,
    part_rows: int | None = None,
    workers: int | None = None,
    memory: int = MEMORY,
    batch_rows: int = ROWS,
    batch_frames: int = FRAMES,
    ray: str | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Score a data set; see `fastlstm.score`."""
    if on_error not in ("aside", "stop"):
        raise InputError(f'on_error should be "aside" or "stop"; got {on_error!r}.')
    for name, value in (("part_rows", part_rows), ("workers", workers), ("memory", memory)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name} should be a whole number from 1 on; got {value!r}.")
    scorer = Scorer(
        model, columns, constants=constants, outputs=outputs, keep=keep, max_length=max_length,
        batch_rows=batch_rows, batch_frames=batch_frames,
    )  # fmt: skip
    opened = open_source(source)
    chosen = scorer.input_columns(opened.schema)
    scorer.kept_columns(opened.schema)
    part_rows = part_rows or part_rows_for(scorer)
    output = OutputFolder(out, manifest(scorer, opened, chosen, part_rows))
    done = output.begin(resume)
    progress = Progress(opened.rows, _rows_of(done, opened.rows, part_rows))
    if watch is not None:
        watch(progress)
    if ray is None:
        if workers is None:
            workers = max(1, cores() // (scorer.model.threads or cores()))
        score_parts(scorer, opened, output, done, part_rows, workers, memory, on_error == "stop", progress)
    else:
        from fastlstm.scoring.cluster import score_parts_on_ray

        if opened.rows is None or not isinstance(source, str | os.PathLike | list | tuple):
            raise InputError("On Ray the input is Parquet files where all workers can read them; convert it first.")
        score_parts_on_ray(
            scorer, source, output, done, opened.rows, part_rows, workers, memory, on_error, ray, progress
        )
    output.end()
    return summarised(output, progress)


def part_rows_for(scorer: Scorer) -> int:
    """Return the rows of a part if nothing is said: fewer where outputs are whole sequences."""
    return 1 << 11 if any(port.time is not None for port in scorer.ports.outputs.values()) else 1 << 14


def manifest(scorer: Scorer, source: Source, chosen: Mapping[str, Any], part_rows: int) -> dict[str, Any]:
    """Return what decides the contents of the parts: batch sizes, threads and workers do not."""
    return {
        "version": __version__,
        "model": model_hash(scorer.model.graph),
        "input": source.identity,
        "columns": dict(chosen),
        "constants": {name: _plain(value) for name, value in scorer.ports.values.items()},
        "outputs": scorer.output_columns,
        "kept": scorer.kept_columns(source.schema),
        "max_length": scorer.max_length,
        "part_rows": part_rows,
    }


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _rows_of(parts: set[int], total: int | None, part_rows: int) -> int:
    if total is None:
        return 0  # counted as they come by
    return sum(max(0, min(part_rows, total - part * part_rows)) for part in parts)


def summarised(output: OutputFolder, progress: Progress) -> Summary:
    """Return what a run that has ended did."""
    rejected = sum(output.rows(number, REJECTED) for number in output.numbers(REJECTED))
    now = progress.scored + progress.rejected
    rows = progress.total if progress.total is not None else progress.before + now
    return Summary(output.path, rows, rejected, now, progress.seconds, progress.rate)


def score_parts(
    scorer: Scorer,
    source: Source,
    output: OutputFolder,
    done: set[int],
    part_rows: int,
    workers: int,
    memory: int,
    stop: bool,
    progress: Progress,
) -> None:
    """Score and write all parts that are not done.

    A slice of a part is read here and handed to a thread. The threads share the model; one that finishes a part
    writes it. At most `workers` + 2 slices are in memory: those in work, one that waits, and one that is being read.
    """
    columns = _needed(scorer, source.schema)
    most = max(1, memory // (3 * (workers + 2)))
    known = source.rows is not None
    assembly = _Assembly(scorer, output, part_rows, stop, progress)
    room = threading.Semaphore(workers + 1)
    futures: set[Future[None]] = set()
    seen: dict[int, int] = {}
    with ThreadPoolExecutor(workers, "fastlstm-score") as threads:
        try:
            for part, table, last in slices(source, columns, part_rows, most, lambda n: not (known and n in done)):
                seen[part] = seen.get(part, 0) + table.num_rows
                if part in done:
                    progress.before += table.num_rows
                    if last:
                        _check_found(output, part, seen.pop(part))
                    continue
                room.acquire()
                number = assembly.expect(part, table.num_rows, last)
                future = threads.submit(assembly.score, number, table)
                future.add_done_callback(lambda _: room.release())
                futures.add(future)
                futures = _without_finished(futures)
            wait(futures, return_when=FIRST_EXCEPTION)
            _without_finished(futures)
        except BaseException:
            assembly.cancelled = True
            threads.shutdown(cancel_futures=True)
            raise
    if not known:
        progress.total = progress.before + progress.scored + progress.rejected


def _needed(scorer: Scorer, schema: Any) -> list[str]:
    used = [column for columns in scorer.input_columns(schema).values() for column in columns]
    return list(dict.fromkeys([*scorer.kept_columns(schema), *used]))


def _without_finished(futures: set[Future[None]]) -> set[Future[None]]:
    """Return the futures that are not done; raise the error of one that failed."""
    for future in futures:
        if future.done():
            future.result()
    return {future for future in futures if not future.done()}


def _check_found(output: OutputFolder, part: int, rows: int) -> None:
    """InputError unless a stream that is read again brings as many rows of a part as it did before."""
    found = output.rows(part) + (output.rows(part, REJECTED) if part in set(output.numbers(REJECTED)) else 0)
    if found != rows:
        raise InputError(
            f"The input has changed: part {part} of '{output.path}' holds {found} rows of it, and {rows} came now. "
            "Score it into another folder."
        )


class _Assembly:
    """Puts the slices of each part together and writes what is complete."""

    def __init__(self, scorer: Scorer, output: OutputFolder, part_rows: int, stop: bool, progress: Progress) -> None:
        self._scorer, self._output, self._progress = scorer, output, progress
        self._part_rows, self._stop = part_rows, stop
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}  # of each part so far
        self._pieces: dict[int, list[tuple[Any, Any] | None]] = {}
        self._ended: set[int] = set()
        self.cancelled = False

    def expect(self, part: int, rows: int, last: bool) -> tuple[int, int, int]:
        """Make room for a slice; return its part, its place in it and the number of its first row."""
        with self._lock:
            before = self._rows.setdefault(part, 0)
            self._rows[part] += rows
            pieces = self._pieces.setdefault(part, [])
            pieces.append(None)
            if last:
                self._ended.add(part)
            return part, len(pieces) - 1, part * self._part_rows + before

    def score(self, number: tuple[int, int, int], table: Any) -> None:
        """Score a slice, and write the part if it was the last one of it to be done."""
        if self.cancelled:
            return
        part, place, first_row = number
        result = self._scored(table, first_row)
        with self._lock:
            pieces = self._pieces[part]
            pieces[place] = result
            complete = part in self._ended and None not in [piece and 1 for piece in pieces]
            if complete:
                del self._pieces[part], self._rows[part]
                self._ended.discard(part)
        if complete and not self.cancelled:
            self._write(part, [piece for piece in pieces if piece is not None])
        rejected = result[1].num_rows
        self._progress.add(result[0].num_rows, rejected)

    def _scored(self, table: Any, first_row: int) -> tuple[Any, Any]:
        """Return the scored and the rejected rows of a slice."""
        found = self._scorer.score(table)
        if found.reasons and self._stop:
            row = min(found.reasons)
            raise InputError(
                f"Row {first_row + row} cannot be scored: {found.reasons[row]}. Parts before it may be written; "
                'on_error="aside" (--on-error aside) puts such rows into a file of their own.'
            )
        kept = table.select(self._scorer.kept_columns(table.schema))
        rows = sorted(found.reasons)
        good = kept.take(pa.array(found.rows)) if rows else kept
        for field, column in zip(found.outputs.schema, found.outputs.columns, strict=True):
            good = good.append_column(field, column)
        bad = kept.take(pa.array(rows, pa.int64()))
        bad = bad.add_column(0, "reason", pa.array([found.reasons[row] for row in rows], pa.string()))
        bad = bad.add_column(0, "row", pa.array([first_row + row for row in rows], pa.int64()))
        return good, bad

    def _write(self, part: int, pieces: list[tuple[Any, Any]]) -> None:
        scored, rejected = (pa.concat_tables(tables).combine_chunks() for tables in zip(*pieces, strict=True))
        self._output.write(part, scored, rejected if rejected.num_rows else None)
