"""The layer classes: against PyTorch, against the float64 reference, and the same bits however they are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlstm
from fastlstm.errors import InputError
from fastlstm.operators import reference

Array = npt.NDArray[Any]
LAYERS = {
    "LSTM": (fastlstm.LSTM, torch.nn.LSTM),
    "GRU": (fastlstm.GRU, torch.nn.GRU),
    "RNN": (fastlstm.RNN, torch.nn.RNN),
}


def pair(kind: str, inputs: int, hidden: int, both: bool, **options: Any) -> tuple[Any, Any]:
    """Return a layer and the PyTorch layer it was made from."""
    ours, theirs = LAYERS[kind]
    torch.manual_seed(0)
    module = theirs(inputs, hidden, bidirectional=both, **options)
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}
    ends = ["l0", "l0_reverse"][: 1 + both]
    w_ih, w_hh = (np.stack([p[f"weight_{part}_{end}"] for end in ends]) for part in ("ih", "hh"))
    b_ih, b_hh = (np.stack([p[f"bias_{part}_{end}"] for end in ends]) for part in ("ih", "hh"))
    if kind == "GRU":
        bias = np.concatenate([(b_ih + b_hh)[:, : 2 * hidden], b_ih[:, 2 * hidden :], b_hh[:, 2 * hidden :]], axis=1)
    else:
        bias = b_ih + b_hh
    more = {"weight_hr": np.stack([p[f"weight_hr_{end}"] for end in ends])} if "proj_size" in options else {}
    return ours(w_ih, w_hh, bias, **more), module


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("inputs", "hidden", "batch", "steps", "both"),
    [(1, 20, 1, 300, False), (10, 64, 1, 40, False), (5, 37, 3, 11, True), (3, 8, 33, 7, True), (64, 100, 5, 9, False)],
)
def test_layers_agree_with_torch(kind: str, inputs: int, hidden: int, batch: int, steps: int, both: bool) -> None:
    layer, module = pair(kind, inputs, hidden, both)
    x = np.random.default_rng(1).standard_normal((steps, batch, inputs)).astype(np.float32)
    with torch.inference_mode():
        expected, state = module(torch.from_numpy(x))
    output, got = layer(x)
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(got if kind == "LSTM" else [got], state if kind == "LSTM" else [state], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("both", [False, True])
def test_projected_lstm_agrees_with_torch(both: bool) -> None:
    layer, module = pair("LSTM", 6, 40, both, proj_size=13)
    x = np.random.default_rng(2).standard_normal((9, 4, 6)).astype(np.float32)
    with torch.inference_mode():
        expected, (h, c) = module(torch.from_numpy(x))
    output, (ours_h, ours_c) = layer(x)
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours_h, h.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours_c, c.numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYERS)), hidden=st.integers(1, 40), inputs=st.integers(1, 9),
    batch=st.integers(1, 8), steps=st.integers(1, 9), both=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_ragged_batches_agree_with_the_reference_and_rows_do_not_meet(
    kind: str, hidden: int, inputs: int, batch: int, steps: int, both: bool, seed: int
) -> None:
    layer, _ = pair(kind, inputs, hidden, both)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    lengths = rng.integers(0, steps + 1, batch)
    output, state = layer(x, lengths=lengths)
    expected = reference.run(layer._model(False, True).graph, {"x": x, "lengths": lengths})
    np.testing.assert_allclose(output, expected["output"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state[0] if kind == "LSTM" else state, expected["h_n"], rtol=1e-4, atol=1e-5)
    alone = [layer(x[: lengths[b], b : b + 1])[0] for b in range(batch)]
    for b in range(batch):
        np.testing.assert_array_equal(output[: lengths[b], b], alone[b][:, 0])  # bit for bit


@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_bits_whole_and_in_chunks_alone_and_in_a_batch_of_33(kind: str) -> None:
    layer, _ = pair(kind, 4, 37, False)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((120, 33, 4)).astype(np.float32)
    whole, _ = layer(x)
    state, parts, at = None, [], 0
    while at < len(x):
        size = int(rng.integers(1, 40))
        part, state = layer(x[at : at + size], state)
        parts.append(part)
        at += size
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(np.concatenate([layer(x[:, b : b + 1])[0] for b in range(33)], axis=1), whole)


def test_a_nan_stays_in_its_row_and_before_its_step_nothing_changes() -> None:
    layer, _ = pair("LSTM", 3, 20, False)
    x = np.random.default_rng(4).standard_normal((10, 4, 3)).astype(np.float32)
    clean, _ = layer(x)
    x[5, 2, 1] = np.nan
    output, _ = layer(x)
    np.testing.assert_array_equal(np.delete(output, 2, axis=1), np.delete(clean, 2, axis=1))
    np.testing.assert_array_equal(output[:5, 2], clean[:5, 2])
    assert np.isnan(output[5:, 2]).all()


@pytest.mark.parametrize("size", [1e3, -1e20, 3e38, np.inf])
def test_saturating_inputs_agree_with_the_reference(size: float) -> None:
    layer, _ = pair("LSTM", 1, 20, False)  # one input: no sum of opposite infinities, which would be NaN
    x = np.full((3, 1, 1), size, np.float32)
    output, _ = layer(x)
    expected = reference.run(layer._model(False, False).graph, {"x": x})["output"]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_the_processors_floating_point_mode_is_put_back() -> None:
    layer, _ = pair("LSTM", 3, 8, False)
    layer(np.zeros((2, 1, 3)))
    assert np.float32(1e-39) * np.float32(0.5) != 0  # denormals still exist out here


def test_no_step_gives_an_empty_output_and_the_state_as_it_was() -> None:
    layer, _ = pair("LSTM", 3, 8, False)
    h, c = np.full((1, 2, 8), 0.25, np.float32), np.full((1, 2, 8), -0.5, np.float32)
    output, (h_n, c_n) = layer(np.zeros((0, 2, 3)), (h, c))
    assert output.shape == (0, 2, 8)
    np.testing.assert_array_equal(h_n, h)
    np.testing.assert_array_equal(c_n, c)


def test_a_batch_of_none_gives_an_output_of_none() -> None:
    layer, _ = pair("GRU", 3, 8, False)
    output, h_n = layer(np.zeros((4, 0, 3)))
    assert output.shape == (4, 0, 8)
    assert h_n.shape == (1, 0, 8)


@pytest.mark.parametrize(
    ("x", "lengths", "words"),
    [
        (np.zeros((4, 3)), None, "three axes"),
        (np.zeros((4, 2, 5)), None, "expected 3 where"),
        (np.zeros((4, 2, 3)), [1, 9], "between 0 and the 4"),
        (np.zeros((4, 2, 3)), [1.5, 2.0], "expected int64"),
        (np.zeros((4, 2, 3), complex), None, "complex128"),
    ],
)
def test_bad_input_is_told(x: Array, lengths: Any, words: str) -> None:
    layer, _ = pair("LSTM", 3, 8, False)
    with pytest.raises(InputError, match=words):
        layer(x, lengths=None if lengths is None else np.array(lengths))


def test_half_of_an_initial_state_is_told() -> None:
    layer, _ = pair("LSTM", 3, 8, False)
    with pytest.raises(InputError, match=r"a pair of arrays, \(h_0, c_0\)"):
        layer(np.zeros((2, 1, 3)), (np.zeros((1, 1, 8)),))


def test_other_strides_and_dtypes_give_the_same_numbers() -> None:
    layer, _ = pair("LSTM", 3, 8, False)
    x = np.random.default_rng(5).standard_normal((6, 4, 3)).astype(np.float32)
    expected, _ = layer(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    for other in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], read_only, x.astype(np.float64)):
        np.testing.assert_array_equal(layer(other)[0], expected)
