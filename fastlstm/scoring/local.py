"""Parts of a run, scored by threads of this process: one reads, several run the model, one writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from fastlstm.errors import InputError
from fastlstm.scoring.parts import REJECTED, OutputFolder
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Scorer, Task
from fastlstm.scoring.sources import Source, slices
from fastlstm.typing import Array

__all__ = ["score_parts"]

_COPIES = 3  # most memory for reading, gathering and outputs, as a multiple of a slice's bytes


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

    Slices of parts are read here and divided into batches, which the workers take one by one from any slice: all are
    busy to the end, and a slice may be large enough to contain many rows of the same length. Two slices are in memory,
    or more if they are small and hold fewer batches than there are workers, and the one being read.
    """
    columns = _needed(scorer, source.schema)
    most = max(1, int(memory / (_COPIES * (2 * workers + 1) * scorer.growth)))
    known = source.rows is not None
    crew = _Crew(scorer, output, part_rows, workers, stop, progress)
    seen: dict[int, int] = {}
    with crew.at_work():
        for part, table, last in slices(source, columns, part_rows, most, lambda n: not (known and n in done)):
            seen[part] = seen.get(part, 0) + table.num_rows
            if part not in done:
                crew.add(part, table, last)
                del table  # the next slice is read into its memory
                continue
            progress.before += table.num_rows
            if last:
                _check_found(output, part, seen.pop(part))
    if not known:
        progress.total = progress.before + progress.scored + progress.rejected


def _needed(scorer: Scorer, schema: Any) -> list[str]:
    used = [column for columns in scorer.input_columns(schema).values() for column in columns]
    return list(dict.fromkeys([*scorer.kept_columns(schema), *used]))


def _check_found(output: OutputFolder, part: int, rows: int) -> None:
    """Raise InputError unless a stream that is read again has as many rows of a part as before."""
    found = output.rows(part) + (output.rows(part, REJECTED) if part in set(output.numbers(REJECTED)) else 0)
    if found != rows:
        raise InputError(
            f"The input has changed: part {part} of '{output.path}' holds {found} rows of it, and {rows} came now. "
            "Score it into another folder."
        )


@dataclass
class _Part:
    """A part during scoring."""

    number: int
    rows: int = 0  # of its slices so far
    slices: list[_Slice] = field(default_factory=list)
    whole: bool = False  # whether the last slice has been read


@dataclass
class _Slice:
    """Rows of a part that were read together."""

    part: _Part
    first_row: int  # of the input
    kept: Any  # a table of the columns to keep
    task: Task
    left: int  # number of batches to run
    room: int  # that it takes
    result: tuple[Any, Any] | None = None  # tables of the scored and the rejected rows, None if there are no such


class _Stopped(Exception):  # noqa: N818 - the error that it follows is told
    """Another thread has failed."""


class _Crew:
    """Threads that run batches and write parts."""

    def __init__(
        self, scorer: Scorer, output: OutputFolder, part_rows: int, workers: int, stop: bool, progress: Progress
    ) -> None:
        self._scorer, self._output, self._progress = scorer, output, progress
        self._part_rows, self._workers, self._stop = part_rows, workers, stop
        self._batches: SimpleQueue[tuple[_Slice, Array] | None] = SimpleQueue()
        self._finished: SimpleQueue[tuple[_Part, int] | None] = SimpleQueue()
        self._room = threading.Semaphore(2 * workers)
        self._lock = threading.Lock()
        self._part = _Part(-1)
        self._failed = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the threads work; on leaving, everything that was added is done, or the first error is raised."""
        with ThreadPoolExecutor(self._workers + 1, "fastlstm-score") as threads:
            running = [threads.submit(self._guarded, self._run) for _ in range(self._workers)]
            writer = threads.submit(self._guarded, self._write)
            try:
                yield
                self._send_home()
                for future in running:
                    future.exception()
            except _Stopped:
                pass
            except BaseException:
                self._failed = True
                raise
            finally:
                self._send_home()
                self._finished.put(None)
        for future in (*running, writer):
            future.result()

    def _send_home(self) -> None:
        for _ in range(self._workers):
            self._batches.put(None)

    def _guarded(self, work: Any) -> None:
        """Run a thread's work; if it fails, the other threads stop, and those that wait for space are woken."""
        try:
            work()
        except BaseException:
            self._failed = True
            self._room.release(self._workers)
            raise

    def add(self, part: int, table: Any, last: bool) -> None:
        """Divide a slice into batches and pass them to the workers as soon as there is space."""
        if part != self._part.number:
            self._part = _Part(part)
        mine = self._part
        task = self._scorer.begin(table)
        kept = table.select(self._scorer.kept_columns(table.schema))
        left = len(task.work.groups)
        room = max(1, min(self._workers, left))
        slice_ = _Slice(mine, part * self._part_rows + mine.rows, kept, task, left, room)
        with self._lock:
            mine.rows += table.num_rows
            mine.slices.append(slice_)
            mine.whole = last
        for _ in range(room):
            self._room.acquire()
        if self._failed:
            raise _Stopped
        self._progress.add(0, len(task.reasons))
        for rows in task.work.groups:
            self._batches.put((slice_, rows))
        if not left:
            self._end(slice_)

    def _run(self) -> None:
        """Run batches until there are no more."""
        while (taken := self._batches.get()) is not None and not self._failed:
            slice_, rows = taken
            scored = slice_.task.work.run(rows)
            self._progress.add(scored, len(rows) - scored)
            with self._lock:
                slice_.left -= 1
                ended = not slice_.left
            if ended:
                self._end(slice_)
            del taken, slice_, rows

    def _end(self, slice_: _Slice) -> None:
        """Make the tables of a finished slice, and let its part be written if it was the part's last one."""
        result = self._tables(slice_)
        part = slice_.part
        with self._lock:
            slice_.result = result
            complete = part.whole and all(other.result for other in part.slices)
        if complete:
            self._finished.put((part, slice_.room))  # which is given back when it is written
        else:
            self._room.release(slice_.room)

    def _tables(self, slice_: _Slice) -> tuple[Any, Any]:
        """Return the scored and the rejected rows of a slice, None if none is, and release its inputs."""
        found, kept = slice_.task.end(), slice_.kept
        del slice_.task, slice_.kept
        if found.reasons and self._stop:
            row = min(found.reasons)
            raise InputError(
                f"Row {slice_.first_row + row} cannot be scored: {found.reasons[row]}. Parts before it may be written; "
                'on_error="aside" (--on-error aside) puts such rows into a file of their own.'
            )
        rows = sorted(found.reasons)
        good = kept.take(pa.array(found.rows)) if rows else kept
        for column, values in zip(found.outputs.schema, found.outputs.columns, strict=True):
            good = good.append_column(column, values)
        if not rows:
            return good, None
        bad = kept.take(pa.array(rows, pa.int64()))
        bad = bad.add_column(0, "reason", pa.array([found.reasons[row] for row in rows], pa.string()))
        bad = bad.add_column(0, "row", pa.array([slice_.first_row + row for row in rows], pa.int64()))
        return good, bad

    def _write(self) -> None:
        """Write parts until there are no more, in a separate thread, which waits for the disk."""
        while (taken := self._finished.get()) is not None and not self._failed:
            part, room = taken
            results = [slice_.result for slice_ in part.slices if slice_.result]
            scored = pa.concat_tables([good for good, _ in results]).combine_chunks()
            bad = [rejected for _, rejected in results if rejected is not None]
            self._output.write(part.number, scored, pa.concat_tables(bad).combine_chunks() if bad else None)
            self._room.release(room)
            del taken, part, results, scored, bad
