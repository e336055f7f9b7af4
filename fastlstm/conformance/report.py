"""What ``fastlstm doctor --report`` measures: whether models give the bits that they should, and how fast they are."""

from __future__ import annotations

from typing import Any

from fastlstm.conformance.known_bits import expected, fingerprint, models
from fastlstm.reporting.benchmark import time_calls

__all__ = ["measured"]

SECONDS = 0.2  # of calls, for each model


def measured() -> list[dict[str, Any]]:
    """Run the models whose bits are known, and time them.

    Returns
    -------
    list of dict
        A row a model: its "model" name, the hash of its "bits" and the "expected" one, whether it has "the same bits",
        and the median "microseconds" of a call, of so many "steps".
    """
    known, rows = expected(), []
    for model in models():
        bits = fingerprint(model.call())
        timing = time_calls(model.call, seconds=SECONDS)
        rows.append(
            {
                "model": model.name,
                "bits": bits,
                "expected": known[model.name],
                "the same bits": bits == known[model.name],
                "steps": model.steps,
                "microseconds": round(1e6 * timing.median, 2),
            }
        )
    return rows
