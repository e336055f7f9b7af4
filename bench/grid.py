"""One cell of the grid: every engine made ready, checked for agreement, and timed against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.cases import Case, goal
from bench.measure import Budget, Samples, measure, ratios, rest_summary
from bench.peers import OURS, Call, Engine, Refused
from fastlstm.operators import reference

Array = npt.NDArray[Any]

ABSOLUTE, RELATIVE = 1e-5, 1e-4
"""An output agrees within ``ABSOLUTE + RELATIVE * |expected|``: some 100 float32 roundings, and far less
than any wrong gate, weight or step would cause."""

STATEFUL_CALLS = 5
"""Calls of a stateful case that are compared as one sequence, so that a lost state shows."""


def measure_cell(case: Case, threads: int, engines: Sequence[Engine], budget: Budget) -> dict[str, Any]:
    """Return the cell as JSON-able data: each engine's times or why it has none, and the ratios."""
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    expected = expected_output(case)
    for engine in engines:
        try:
            call = engine.prepare(case, threads)
            error, agrees = disagreement(case, call, expected)
        except Refused as reason:
            results[engine.name] = {"missing": str(reason)}
            continue
        except Exception as failure:  # noqa: BLE001 - a peer that fails is a result, and says why
            results[engine.name] = {"missing": f"failed: {type(failure).__name__}: {failure}"[:300]}
            continue
        results[engine.name] = {"error": error}
        if agrees:
            calls[engine.name] = call
        else:
            results[engine.name]["missing"] = f"wrong result: off by {error:.1e}"
    return {
        "name": case.name,
        "case": case.as_data(),
        "threads": threads,
        "goal": goal(case, threads),
        "engines": results,
        **timed(calls, results, budget),
    }


def timed(calls: Mapping[str, Call], results: dict[str, dict[str, Any]], budget: Budget) -> dict[str, Any]:
    """Time `calls`, add each one's summary to `results`; return the ratios to ours, and how the rests were."""
    samples: Mapping[str, Samples] = measure(calls, budget) if calls else {}
    for name, found in samples.items():
        results.setdefault(name, {}).update(found.summary())
    return {"ratios": ratios(samples, OURS) if OURS in samples else {}, "rest": rest_summary(samples)}


def expected_output(case: Case) -> Array:
    """Return what the float64 oracle says of the case (of the last of `STATEFUL_CALLS` calls with the same frames)."""
    x = case.x().astype(np.float64)
    if case.stateful:
        x = np.tile(x, (STATEFUL_CALLS, 1, 1))
    (y,) = reference.run(case.graph(len(x)), {"x": x}).values()
    return y[-case.T :] if case.stateful else y


def disagreement(case: Case, call: Call, expected: Array) -> tuple[float, bool]:
    """Return the largest error of the call's output, and whether it agrees."""
    for _ in range(STATEFUL_CALLS if case.stateful else 1):
        y = call()
    got = np.asarray(y, np.float64).reshape(expected.shape)
    difference = np.abs(got - expected)
    return float(difference.max()), bool(np.all(difference <= ABSOLUTE + RELATIVE * np.abs(expected)))
