"""Arrays of other libraries go in; PyTorch tensors come out where tensors went in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import fastlstm
from fastlstm.errors import InputError
from fastlstm.runtime.foreign import as_array

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> fastlstm.Model:
    shapes = {"weight_ih_l0": (32, 3), "weight_hh_l0": (32, 8), "bias_ih_l0": (32,), "bias_hh_l0": (32,)}
    weights = {f"lstm.{name}": rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    return fastlstm.from_state_dict(weights, layers="lstm", batch_first=True)


@pytest.fixture(scope="module")
def want(model) -> tuple[np.ndarray, ...]:
    return model(X)


class Exported:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_what_can_be_read_as_an_array_is(model, want):
    for given in (X.tolist(), Exported(X), X.astype(np.float64), np.asfortranarray(X)):
        for got, expected in zip(model(given), want, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(list(X[0])), pl.Series(X[0].tolist()), pl.Series(X[0].tolist(), dtype=pl.Array(pl.Float32, 3)),
        pa.array(X[0].tolist()), pa.array(X[0].tolist(), pa.list_(pa.float32(), 3)), pd.DataFrame(X[0]),
        pl.DataFrame(X[0]),
    ],
    ids=lambda column: f"{type(column).__module__.split('.')[0]} {type(column).__name__}",
)  # fmt: skip
def test_columns_of_lists_are_frames(column):
    np.testing.assert_allclose(as_array(column, "x"), X[0], rtol=1e-6)


def test_tensors_come_out_where_tensors_went_in(model, want):
    results = model(torch.from_numpy(X))
    named = model.run({"input": torch.from_numpy(X)})
    for got, by_name, expected in zip(results, named.values(), want, strict=True):
        assert isinstance(got, torch.Tensor)
        np.testing.assert_array_equal(got.numpy(), expected)
        assert torch.equal(by_name, got)
    out = tuple(torch.empty(array.shape) for array in want)
    assert model(torch.from_numpy(X), out=out) is out
    assert all(torch.equal(mine, got) for mine, got in zip(out, results, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 5, 3, requires_grad=True), "requires a gradient"),
        (torch.zeros(2, 5, 3, dtype=torch.bfloat16), "bfloat16 is not supported"),
        (torch.zeros(2, 5, 3, device="meta"), "is a tensor on meta"),
        ({"a": 1}, "expected an array of numbers; got dict"),
        ([[1, 2], [3]], "cannot be read as an array"),
        ("words", "expected an array of numbers; got str"),
        (pa.array([[1.0, 2.0], [3.0]]), "cannot be read as an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_array_is_one_sentence(model, given, message):
    with pytest.raises(InputError, match=message):
        model(given)


def test_inputs_by_keyword_and_names_that_nearly_fit(model, want):
    np.testing.assert_array_equal(model(input=X)[0], want[0])
    with pytest.raises(InputError, match=r"There is no input 'inpt'\. The model takes input: float32"):
        model.run({"inpt": X})
    with pytest.raises(InputError, match="There is no input 'x'"):
        model(x=X)
    with pytest.raises(InputError, match="given twice"):
        model(X, input=X)
    with pytest.raises(InputError, match="run takes the inputs alone"):
        model.run(None, {"input": X})


def test_streams_and_pools_take_tensors(model, want):
    frames = torch.from_numpy(X[0])
    stream = model.stream()
    first = stream.step(frames[0])
    rest = stream.push(frames[1:])
    assert isinstance(first, torch.Tensor)
    np.testing.assert_array_equal(torch.cat([first[None], rest]).numpy(), want[0][0])
    stream.reset()
    out = torch.empty(want[0][0].shape)
    assert stream.push(frames, out=out) is out
    np.testing.assert_array_equal(out.numpy(), want[0][0])
    pool = model.streams(4)
    ids = [pool.open(), pool.open()]
    both = pool.step(ids, torch.from_numpy(X[:, 0]))
    np.testing.assert_array_equal(both.numpy(), want[0][:, 0])
    (chunk,) = pool.push(ids[1:], [torch.from_numpy(X[1, 1:])])
    np.testing.assert_array_equal(chunk.numpy(), want[0][1, 1:])
    with pytest.raises(InputError, match="requires a gradient"):
        stream.step(torch.zeros(3, requires_grad=True))
