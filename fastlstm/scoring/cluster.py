"""Scoring on Ray: the same parts, computed by Ray Data's actors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastlstm.errors import DependencyError, FastLSTMError, InputError
from fastlstm.scoring.local import score_parts
from fastlstm.scoring.parts import OutputFolder
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Scorer
from fastlstm.scoring.sources import open_source

__all__ = ["score_dataset", "score_parts_on_ray"]

_PARTS = 4  # of a task at most: what a lost worker takes with it is little
_ROUNDS = 8  # tasks for each worker, if there are parts enough: in the end none waits long for the others


def import_ray() -> Any:
    """Return Ray; DependencyError if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError.missing("ray", "ray", "Scoring on more than one machine") from error
    return ray


class _BatchActor:
    """Scores the batches that Ray hands over."""

    def __init__(self, reference: Any) -> None:
        self._scorer: Scorer = import_ray().get(reference)

    def __call__(self, batch: Any) -> Any:
        return self._scorer(batch)


class _PartActor:
    """Scores parts from and to storage that all workers share."""

    def __init__(self, reference: Any) -> None:
        self._setup: dict[str, Any] = import_ray().get(reference)
        self._source = open_source(self._setup["source"])

    def __call__(self, task: Mapping[str, Any]) -> dict[str, list[Any]]:
        setup, source = self._setup, self._source
        first, last = int(task["first"][0]), int(task["last"][0])
        others = set(range(-(-(source.rows or 0) // setup["part_rows"]))) - set(range(first, last))
        output: OutputFolder = setup["output"]
        done = others | (set(range(first, last)) & set(output.numbers()))  # by this task, before its worker was lost
        progress = Progress(source.rows)
        error = ""
        try:
            score_parts(
                setup["scorer"], source, output, done, setup["part_rows"], 1, setup["memory"], setup["stop"], progress
            )
        except FastLSTMError as found:  # said to the user by the driver: Ray would try again
            error = str(found)
        return {"scored": [progress.scored], "rejected": [progress.rejected], "error": [error]}


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
    """Score and write the parts that are not done, each by one of the actors.

    A task is a few parts. An actor that is lost is started anew by Ray and its task given to another; parts that it had
    written are found there. What the driver knows stands in the output folder, so it may be lost as well.
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
    workers = min(workers, len(tasks))
    setup = {
        "scorer": scorer, "source": _everywhere(source), "output": output, "part_rows": part_rows,
        "memory": memory, "stop": on_error == "stop",
    }  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    results = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _PartActor,
        fn_constructor_args=(ray.put(setup),),
        batch_size=1,
        concurrency=workers,
        num_cpus=threads,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in results.iter_rows():
        progress.add(int(row["scored"]), int(row["rejected"]))
        if row["error"]:
            raise InputError(str(row["error"]))


def _tasks(parts: list[int], workers: int) -> list[dict[str, int]]:
    """Return ranges of neighbouring parts."""
    most = max(1, min(_PARTS, len(parts) // (_ROUNDS * workers)))
    tasks: list[dict[str, int]] = []
    for part in parts:
        if tasks and tasks[-1]["last"] == part and part - tasks[-1]["first"] < most:
            tasks[-1]["last"] = part + 1
        else:
            tasks.append({"first": part, "last": part + 1})
    return tasks


def _everywhere(source: Any) -> Any:
    """Return paths that mean the same in a worker's working folder."""
    if isinstance(source, list | tuple):
        return [_everywhere(path) for path in source]
    path = os.fspath(source)
    return path if "://" in path else os.path.abspath(path)
