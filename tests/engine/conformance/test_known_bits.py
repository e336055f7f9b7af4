"""Models whose results are known: every processor, Python, NumPy and Numba computes them bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.conformance.known_bits import Known, expected, fingerprint, models

MODELS = list(models())


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_a_model_gives_the_bits_that_are_known(model: Known) -> None:
    results = model.call()
    assert np.isfinite(results).all()
    assert results.std() > 1e-3
    assert fingerprint(results) == fingerprint(model.call()) == expected()[model.name]


def test_steps_and_pools_are_known_by_the_bits_of_the_whole() -> None:
    whole, steps, pool = (
        expected()[name] for name in ("LSTM 1 -> 20, Dense", "the same by steps", "the same in a pool")
    )
    assert whole == steps == pool
    assert list(expected()) == [model.name for model in MODELS]
