"""Scoring on Ray: the same parts, computed by actors; and scoring of Ray's own datasets."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import DependencyError, FastLSTMError
from fastlstm.scoring.local import score_parts
from fastlstm.scoring.parts import REJECTED, OutputFolder
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Scorer
from fastlstm.scoring.sources import Source, open_source

__all__ = ["score_dataset", "score_parts_on_ray"]

_PARTS = 4  # most of a task, so that little is lost with a worker
_LOST = 5  # workers that may be lost with a task before the task is blamed
_ROUNDS = 8  # tasks per worker, if there are enough parts, so that workers finish at about the same time


def import_ray() -> Any:
    """Return Ray; DependencyError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise DependencyError.missing("ray", "ray", "Scoring on more than one machine") from error
    return ray


_Found = tuple[int, int, Exception | None]
"""Rows scored, rows rejected, and what was wrong."""


class _BatchActor:
    """Scores the batches that Ray passes."""

    def __init__(self, reference: Any) -> None:
        self._scorer: Scorer = import_ray().get(reference)

    def __call__(self, batch: Any) -> Any:
        return self._scorer(batch)


class _PartActor:
    """Scores parts from and to storage that all workers share."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._setup = setup
        self._source: Source | None = None

    def score(self, first: int, last: int) -> _Found:
        """Score the parts from `first` up to, not including, `last`.

        Errors for the user are returned; if raised, they would reach the driver wrapped in an error of Ray's.
        """
        setup, mine, progress = self._setup, set(range(first, last)), Progress()
        if not mine:
            return 0, 0, None
        output: OutputFolder = setup["output"]
        try:
            source = self._source = self._source or open_source(setup["source"])
            found = mine & set(output.numbers())  # of a worker that was lost
            rejected = found & set(output.numbers(REJECTED))
            progress.add(sum(map(output.rows, found)), sum(output.rows(part, REJECTED) for part in rejected))
            done = set(range(-(-(source.rows or 0) // setup["part_rows"]))) - mine | found
            score_parts(
                setup["scorer"], source, output, done, setup["part_rows"], 1, setup["memory"], setup["stop"], progress
            )
        except (FastLSTMError, OSError) as error:
            return progress.scored, progress.rejected, error
        return progress.scored, progress.rejected, None


def score_dataset(dataset: Any, scorer: Scorer, workers: int | tuple[int, int], batch_rows: int) -> Any:
    """Return a Ray dataset with the outputs in place of the inputs."""
    ray = import_ray()
    return dataset.map_batches(
        _BatchActor,
        fn_constructor_args=(ray.put(scorer),),
        batch_size=batch_rows,
        batch_format="pyarrow",
        zero_copy_batch=True,
        concurrency=workers,
        num_cpus=scorer.model.threads or 1,
    )


def score_parts_on_ray(
    scorer: Scorer,
    source: Any,
    output: OutputFolder,
    done: set[int],
    rows: int,
    part_rows: int,
    workers: int | None,
    memory: int,
    on_error: str,
    address: str,
    progress: Progress,
) -> None:
    """Score and write the parts that are not done, each by one of the workers, which are actors.

    A task is a few parts. If a worker is lost, another one gets its task, and finds the parts that were written. The
    driver keeps its state in the output folder, so it may be lost as well.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level="error")
    parts = [part for part in range(max(1, -(-rows // part_rows))) if part not in done]
    if not parts:
        return
    threads = scorer.model.threads or 1
    if workers is None:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
    tasks = _tasks(parts, workers)
    setup = {
        "scorer": scorer, "source": _everywhere(source), "output": output, "part_rows": part_rows,
        "memory": memory, "stop": on_error == "stop",
    }  # fmt: skip
    crew = _Crew(ray, threads, ray.put(setup))
    try:
        for scored, rejected, error in crew.results(tasks, min(workers, len(tasks))):
            progress.add(scored, rejected)
            if error is not None:
                raise error
    finally:
        crew.end()


@dataclass
class _Task:
    """Parts that a worker scores one after another; none if the worker only has to start."""

    first: int
    last: int
    lost: int = 0  # workers that had this task


class _Crew:
    """Workers on a cluster, each with one task at a time."""

    def __init__(self, ray: Any, threads: int, setup: Any) -> None:
        self._ray, self._setup = ray, setup
        self._actor = ray.remote(num_cpus=threads)(_PartActor)
        self._waiting: deque[_Task] = deque()
        self._running: dict[Any, tuple[Any, _Task]] = {}  # by what the worker will return

    def results(self, tasks: Sequence[_Task], workers: int) -> Iterator[_Found]:
        """Yield the result of each task. Workers get a task once the cluster has placed them."""
        self._waiting.extend(tasks)
        for _ in range(workers):
            self._start(_Task(0, 0))
        left = len(tasks)
        while left:
            (ready,), _ = self._ray.wait(list(self._running), num_returns=1)
            worker, task = self._running.pop(ready)
            try:
                found = self._ray.get(ready)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
                self._replace(task, error)
                continue
            if self._waiting:
                self._give(worker, self._waiting.popleft())
            if task.first < task.last:
                left -= 1
                yield found

    def _start(self, task: _Task) -> None:
        self._give(self._actor.remote(self._setup), task)

    def _give(self, worker: Any, task: _Task) -> None:
        self._running[worker.score.remote(task.first, task.last)] = worker, task

    def _replace(self, task: _Task, error: Exception) -> None:
        """Start a worker in place of a lost one; the first free worker gets the lost one's task."""
        task.lost += 1
        if task.lost == _LOST:
            what = f"scored the parts {task.first} to {task.last - 1}" if task.first < task.last else "began"
            raise FastLSTMError(f"{_LOST} workers were lost while they {what}; the last one: {error}") from error
        if task.first < task.last:
            self._waiting.appendleft(task)
            task = _Task(0, 0)
        self._start(task)

    def end(self) -> None:
        """End the workers."""
        for worker, _ in self._running.values():
            self._ray.kill(worker)


def _tasks(parts: list[int], workers: int) -> list[_Task]:
    """Return ranges of neighbouring parts."""
    most = max(1, min(_PARTS, len(parts) // (_ROUNDS * workers)))
    tasks: list[_Task] = []
    for part in parts:
        if tasks and tasks[-1].last == part and part - tasks[-1].first < most:
            tasks[-1].last = part + 1
        else:
            tasks.append(_Task(part, part + 1))
    return tasks


def _everywhere(source: Any) -> Any:
    """Return paths that are valid in any working folder."""
    if isinstance(source, list | tuple):
        return [_everywhere(path) for path in source]
    path = os.fspath(source)
    return path if "://" in path else os.path.abspath(path)
