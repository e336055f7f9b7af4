"""Parts of a run, scored by threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import pyarrow as pa

from fastlstm.errors import InputError
from fastlstm.scoring.parts import REJECTED, OutputFolder
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Scorer
from fastlstm.scoring.sources import Source, slices

__all__ = ["score_parts"]


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
