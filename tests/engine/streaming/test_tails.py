"""LSTMs whose last units do not fill a panel: their gates share vectors, and nobody can tell from the results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastlstm
from fastlstm.lowering.pack import tail_vectors
from fastlstm.lowering.segments.small import MOST_UNITS
from fastlstm.runtime import bound, segment
from fastlstm.target.machine import detect

LANES = detect().lanes
FEATURES, STEPS = 7, 19


def weights(hidden: int, directions: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(hidden)
    shapes = (4 * hidden, FEATURES), (4 * hidden, hidden), (4 * hidden,)
    return tuple(rng.uniform(-0.4, 0.4, (directions, *shape)).astype(np.float32) for shape in shapes)


def by_torch(x: np.ndarray, arrays: tuple[np.ndarray, ...], hidden: int) -> np.ndarray:
    directions = len(arrays[0])
    layer = torch.nn.LSTM(FEATURES, hidden, bidirectional=directions == 2)
    names = ("weight_ih", "weight_hh", "bias_ih")
    with torch.no_grad():
        for d in range(directions):
            suffix = "_l0" + "_reverse" * d
            for name, array in zip(names, arrays, strict=True):
                getattr(layer, name + suffix).copy_(torch.from_numpy(array[d]))
            getattr(layer, "bias_hh" + suffix).zero_()
        return layer(torch.from_numpy(x))[0].numpy()


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("rest", [LANES // 8 or 1, LANES // 4, LANES // 4 + 1, LANES // 2])
def test_a_tail_agrees_with_torch_in_any_batch_and_chunk(rest: int, directions: int) -> None:
    hidden = 5 * LANES + rest  # more units than the kernel for one row of a small layer takes
    assert tail_vectors(hidden, 4, LANES)
    arrays, batch = weights(hidden, directions), 9
    layer = fastlstm.LSTM(*arrays)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS, batch, FEATURES)).astype(np.float32)
    y, (h, _) = layer(x)
    np.testing.assert_allclose(y, by_torch(x, arrays, hidden), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(h[0], y[-1, :, :hidden])
    for b in range(batch):
        np.testing.assert_array_equal(layer(x[:, b : b + 1])[0], y[:, b : b + 1])
    lengths = rng.integers(0, STEPS + 1, batch)
    ragged = layer(x, lengths=lengths)[0]
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(ragged[:length, b], layer(x[:length, b : b + 1])[0][:, 0])
        assert not ragged[length:, b].any()
    if directions == 1:
        first, state = layer(x[:8])
        np.testing.assert_array_equal(np.concatenate([first, layer(x[8:], state)[0]]), y)


def test_a_small_layer_with_a_tail_gives_one_row_the_bits_it_has_in_a_batch() -> None:
    hidden = LANES + LANES // 4
    for directions in (1, 2):
        layer = fastlstm.LSTM(*weights(hidden, directions))
        x = np.random.default_rng(2).normal(size=(STEPS, 3, FEATURES)).astype(np.float32)
        alone = [layer(x[:, b : b + 1])[0] for b in range(3)]
        np.testing.assert_array_equal(np.concatenate(alone, axis=1), layer(x)[0])


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_a_tail_is_one_workers_share_also_where_workers_outnumber_panels(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "WORTH_A_WORKER", 1)
    monkeypatch.setattr(bound, "WORTH_A_TEAM", 0)
    hidden = LANES + LANES // 4
    for directions in (1, 2):
        alone, shared = (fastlstm.LSTM(*weights(hidden, directions), threads=n) for n in (1, threads))
        x = np.random.default_rng(3).normal(size=(STEPS, 3, FEATURES)).astype(np.float32)
        y, (h, c) = alone(x)
        for _ in range(30):
            other, (h_n, c_n) = shared(x)
            np.testing.assert_array_equal(other, y)
            np.testing.assert_array_equal(h_n, h)
            np.testing.assert_array_equal(c_n, c)


def test_the_plan_says_that_gates_share_vectors() -> None:
    units = (MOST_UNITS // LANES + 1) * LANES + LANES // 4  # more than the kernels of one row take
    plan = fastlstm.LSTM(*weights(units, 1))._model(False, False).plan
    assert any("share 1 vector" in row["note"] for row in plan.as_data())
