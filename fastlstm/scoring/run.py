"""A run over a data set: one thread reads, several score, and parts are written as they are completed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastlstm.errors import InputError
from fastlstm.model import Model
from fastlstm.scoring.bucketing import FRAMES, ROWS
from fastlstm.scoring.local import score_parts
from fastlstm.scoring.parts import REJECTED, OutputFolder, model_hash
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.scorer import Columns, Scorer
from fastlstm.scoring.sources import Source, open_source
from fastlstm.target.machine import cores
from fastlstm.version import __version__

__all__ = ["MEMORY", "Summary", "manifest", "part_rows_for", "score", "score_parts", "summarised"]

MEMORY = 1 << 30
"""Default memory of a run in bytes, approximately, besides the model."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    out : str
    rows : int
        Rows of the input; each is in a part or among the rejected.
    rejected : int
        Rows that could not be scored.
    scored_now : int
        Rows scored by this run, not by an earlier one.
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
            raise InputError(f"{name} should be a positive integer; got {value!r}.")
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
    """Return the default rows of a part, which are fewer if outputs are whole sequences."""
    return 1 << 11 if any(port.time is not None for port in scorer.ports.outputs.values()) else 1 << 14


def manifest(scorer: Scorer, source: Source, chosen: Mapping[str, Any], part_rows: int) -> dict[str, Any]:
    """Return what determines the contents of the parts; batch sizes, threads and workers do not."""
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
        return 0  # counted as they pass
    return sum(max(0, min(part_rows, total - part * part_rows)) for part in parts)


def summarised(output: OutputFolder, progress: Progress) -> Summary:
    """Return the summary of a finished run."""
    rejected = sum(output.rows(number, REJECTED) for number in output.numbers(REJECTED))
    now = progress.scored + progress.rejected
    rows = progress.total if progress.total is not None else progress.before + now
    return Summary(output.path, rows, rejected, now, progress.seconds, progress.rate)
