"""Small layers: one row through the kernel of its own has the bits of that row in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from plans import kernels_of

import fastlstm
from fastlstm.lowering.segments import small_gru
from fastlstm.lowering.segments.small import MOST_INPUTS, packed, passes_of
from fastlstm.target import machine

MACHINE = machine.detect()
LANES = MACHINE.lanes
# A tail of a quarter, of half a vector, whole panels, both, several passes, several passes and a tail.
UNITS = (LANES // 4, LANES // 2 - 1, 2 * LANES, LANES + LANES // 2, 64, 3 * LANES + LANES // 4)


def make_layer(inputs: int, units: int, directions: tuple[str, ...] = ("forward",)) -> fastlstm.LSTM:
    rng = np.random.default_rng(units)
    shapes = ((4 * units, inputs), (4 * units, units), (4 * units,))
    weights = [rng.uniform(-0.5, 0.5, (len(directions), *shape)).astype(np.float32) for shape in shapes]
    return fastlstm.LSTM(*weights, directions=directions)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(
    ("inputs", "directions"),
    [(1, ("forward",)), (MOST_INPUTS + 1, ("forward", "reverse")), (MOST_INPUTS, ("reverse",))],
)
def test_a_row_alone_has_the_bits_of_that_row_in_a_batch(units: int, inputs: int, directions: tuple[str, ...]) -> None:
    layer = make_layer(inputs, units, directions)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(150, 2, inputs)).astype(np.float32)
    h, c = (rng.normal(size=(len(directions), 2, units)).astype(np.float32) for _ in range(2))
    y, (h_n, c_n) = layer(x, (h, c))
    for b in range(2):
        one = slice(b, b + 1)
        got, (got_h, got_c) = layer(x[:, one], (h[:, one], c[:, one]))
        np.testing.assert_array_equal(got, y[:, one])
        np.testing.assert_array_equal(got_h, h_n[:, one])
        np.testing.assert_array_equal(got_c, c_n[:, one])
    model = layer._model(True, False)
    assert ["small.lstm" in kernels_of(model, rows) for rows in (1, 2)] == [True, False]


@pytest.mark.parametrize("units", [1, LANES, LANES + 3, 3 * LANES - 1])
@pytest.mark.parametrize(
    ("op", "lengths", "directions"),
    [("GRU", (9, 40), ("forward", "reverse")), ("GRU", (0, 40), ("forward",)), ("RNN", (40, 33), ("reverse",))],
)
def test_a_row_of_a_gru_or_rnn_alone_has_the_bits_of_that_row_in_a_batch(
    units: int, op: str, lengths: tuple[int, int], directions: tuple[str, ...]
) -> None:
    rng, gates = np.random.default_rng(units), {"GRU": 3, "RNN": 1}[op]
    shapes = ((gates * units, 5), (gates * units, units), ((4 if gates == 3 else 1) * units,))
    weights = [rng.uniform(-0.5, 0.5, (len(directions), *shape)).astype(np.float32) for shape in shapes]
    layer = getattr(fastlstm, op)(*weights, directions=directions)
    x, h = (rng.normal(size=s).astype(np.float32) for s in ((40, 2, 5), (len(directions), 2, units)))
    y, h_n = layer(x, h, lengths=np.array(lengths))
    for b in range(2):
        one = slice(b, b + 1)
        got, got_h = layer(x[:, one], h[:, one], lengths=np.array(lengths[b : b + 1]))
        np.testing.assert_array_equal(got, y[:, one])
        np.testing.assert_array_equal(got_h, h_n[:, one])
    model = layer._model(True, True)
    assert [f"small_gru.{op.lower()}" in kernels_of(model, rows) for rows in (1, 2)] == [True, False]


@pytest.mark.parametrize("panels", range(1, 17))
@pytest.mark.parametrize("gates", [1, 3])
def test_panels_are_divided_without_loss(gates: int, panels: int) -> None:
    full, each, last = small_gru.passes_of(panels, gates, MACHINE)
    assert full * each + last == panels
    assert 0 < last * gates <= MACHINE.max_sums
    assert each * gates <= MACHINE.max_sums


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("length", [0, 5, 137])
def test_a_short_row_alone_stops_at_its_length(direction: str, length: int) -> None:
    layer = make_layer(2, UNITS[3], (direction,))
    x = np.random.default_rng(2).normal(size=(150, 2, 2)).astype(np.float32)
    y, (h, c) = layer(x, lengths=np.array([length, 150]))
    got, (got_h, got_c) = layer(x[:, :1], lengths=np.array([length]))
    for a, b in ((got, y[:, :1]), (got_h, h[:, :1]), (got_c, c[:, :1])):
        np.testing.assert_array_equal(a, b)


def test_a_nan_stays_in_its_time_and_infinities_saturate() -> None:
    layer = make_layer(1, UNITS[3])
    x = np.zeros((8, 1, 1), np.float32)
    x[2], x[5] = np.inf, np.nan
    y, _ = layer(x)
    assert np.isfinite(y[:5]).all()
    assert np.isnan(y[5:]).all()


@pytest.mark.parametrize("units", range(1, 65))
def test_weights_are_divided_without_loss(units: int) -> None:
    passes = passes_of(units, MACHINE)
    weight = np.arange(1, 4 * units * 3 + 1, dtype=np.float32).reshape(4 * units, 3)
    flat = packed(weight, passes)
    assert flat.size == 3 * LANES * passes.vectors
    assert sorted(flat[flat != 0]) == sorted(weight.reshape(-1))
    assert 4 * passes.panels <= MACHINE.max_sums
    assert 0 < 4 * passes.last + passes.tail <= MACHINE.max_sums
    assert passes.vectors <= -(-units // LANES) * 4
