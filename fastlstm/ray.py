"""Scoring on Ray: ``fastlstm.ray.score(dataset, model, ...)`` (``pip install 'fastlstm[ray]'``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlstm.model import Model
    from fastlstm.scoring.scorer import Columns

__all__ = ["score"]


def score(
    dataset: Any,
    model: Model | str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    workers: int | tuple[int, int] = 1,
    batch_rows: int = 4096,
    **options: Any,
) -> Any:
    """Score a Ray dataset.

    The model is put into the object store once and built once by each actor. A row's bits do not depend on the
    batches, so any number of actors gives the same rows. To have parts and a manifest as well, and to go on where a run
    was stopped, score files: ``fastlstm.score(model, source, out, ray=ADDRESS)``.

    Parameters
    ----------
    dataset : ray.data.Dataset
    model : Model or path
    columns : mapping of str to str or sequence of str, optional
        The column of each input, as for `fastlstm.score`.
    workers : int or (int, int)
        Actors, or the least and the most of them. Each keeps a processor for each thread of the model to itself: leave
        one for what comes before, reading files for instance.
    batch_rows : int
        Rows that Ray hands over at once; within them the model runs rows of one length together.
    **options
        ``constants``, ``outputs``, ``keep``, ``max_length`` and ``on_error`` ("null" or "stop") of
        `fastlstm.scoring.scorer.Scorer`.

    Returns
    -------
    ray.data.Dataset
        As lazy as Ray's own: rows are scored when they are consumed or written.
    """
    from fastlstm.scoring.cluster import score_dataset
    from fastlstm.scoring.scorer import Scorer

    return score_dataset(dataset, Scorer(model, columns, **options), workers, batch_rows)
