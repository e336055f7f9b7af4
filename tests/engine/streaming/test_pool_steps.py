"""Steps of pools over models that run by tapes: native where a tape is, with the bits of single streams always."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import InputError, Model
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.runtime.native import never

CHANNELS, HIDDEN = 5, 9
LSTM = {"hidden_size": HIDDEN, "directions": ["forward"], "activations": default_activations("LSTM", 1)}
RNG = np.random.default_rng(2)


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape, scale=0.3).astype(np.float32)


def convolved(before: int, after: int, stride: int = 1, several: bool = False, turned: bool = False) -> Model:
    """A convolution over three frames and an LSTM; `several` inputs, outputs `turned` so that time comes last."""
    window = {"kernel_shape": [3], "strides": [stride], "pads": [before, after], "group": 1}
    constants = {"a": weight(4, CHANNELS, 3), "w": weight(1, 4 * HIDDEN, 4), "r": weight(1, 4 * HIDDEN, HIDDEN)}
    nodes = [
        Node("Conv", ("x", "a"), ("c",), window),
        Node("Transpose", ("c",), ("f",), {"perm": [2, 0, 1]}),
        Node("LSTM", ("f", "w", "r"), ("h",), LSTM),
    ]
    inputs = [TensorSpec("x", ("batch", CHANNELS, "time"))]
    last = "h"
    if several:
        inputs += [TensorSpec("gain", ()), TensorSpec("shift", ("batch", HIDDEN))]
        nodes += [Node("Mul", (last, "gain"), ("m",)), Node("Add", ("m", "shift"), ("s",))]
        last = "s"
    if turned:
        nodes += [Node("Transpose", (last,), ("t",), {"perm": [1, 2, 0]})]
        last = "t"
    outputs = (TensorSpec(last, ("batch", HIDDEN, "out") if turned else ("out", "batch", HIDDEN)),)
    return Model(Graph(tuple(inputs), outputs, tuple(nodes), constants))


MODELS: dict[str, Callable[[], Model]] = {
    "causal": lambda: convolved(2, 0),
    "looking ahead": lambda: convolved(1, 1),
    "stride": lambda: convolved(1, 0, stride=2),
    "stride and looking ahead": lambda: convolved(0, 2, stride=2),
    "several inputs": lambda: convolved(2, 0, several=True),
    "outputs turned": lambda: convolved(2, 0, turned=True),
    "stride, outputs turned": lambda: convolved(1, 0, stride=2, turned=True),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("count", [1, 3, 8, 13, 70])
def test_steps_have_the_bits_of_single_streams(kind: str, count: int) -> None:
    model = MODELS[kind]()
    pool, rng = model.streams(count), np.random.default_rng(count)
    names = [spec.name for spec in model.inputs]

    def frames(streams: int) -> Any:
        size = (streams, CHANNELS) if pool.hop == 1 else (streams, pool.hop, CHANNELS)
        x = rng.normal(size=size).astype(np.float32)
        if len(names) == 1:
            return x
        gain, shift = np.array(0.5, np.float32), rng.normal(size=(streams, HIDDEN)).astype(np.float32)
        return {"x": x, "gain": gain, "shift": shift}

    def of(given: Any, row: int) -> Any:
        return given[row] if len(names) == 1 else {n: a[row] if a.ndim else a for n, a in given.items()}

    alone: dict[int, fastlstm.Stream] = {}
    got: Any = None
    for turn in range(9):
        for _ in range(count if turn == 4 else -(-count // 2) if turn == 0 else 0):  # half of them come later
            if len(pool) < count:
                alone[pool.open()] = model.stream()
        ids = rng.permutation(list(alone)) if turn % 3 else np.array(sorted(alone))
        given = frames(len(ids))
        out = np.zeros_like(got) if turn == 8 else None
        got = pool.step(ids, given) if out is None else pool.step(ids, given, out=out)
        assert out is None or got is out
        for row, number in enumerate(ids):
            np.testing.assert_array_equal(got[row], alone[number].step(of(given, row)))
    native = [taped for taped in pool._rows._taped[0].values() if taped.call is not never]
    assert native
    tails = pool.finish(list(alone))
    for tail, stream in zip(tails, alone.values(), strict=True):
        end = stream.finish()  # in the model's own layout
        np.testing.assert_array_equal(tail, end.T if "turned" in kind else end)
    with pytest.raises(InputError, match="has finished"):
        pool.step([next(iter(alone))], frames(1))


def test_streams_whose_first_hops_wait_are_told_apart_from_those_that_are_not_there() -> None:
    model = MODELS["looking ahead"]()
    pool, x = model.streams(4), np.ones((3, CHANNELS), np.float32)
    a, b = pool.open(), pool.open()
    for wrong, why in (([a, 3], "no open stream 3"), ([a, a], "more than once"), ([a, 9], "no open stream 9")):
        with pytest.raises(InputError, match=why):
            pool.step(wrong, x[:2])
    for _ in range(4):
        pool.step(np.array([a]), x[:1])
    y = pool.step(np.array([a, b]), x[:2])  # one in full swing and one at its beginning
    single = model.stream()
    assert np.array_equal(y[1], single.step(x[0]))
    copied = pool.clone()
    np.testing.assert_array_equal(copied.step([b, a], x[:2]), pool.step([b, a], x[:2]))
    pool.reset(a)
    again = [pool.step(np.array([a]), x[:1])[0] for _ in range(3)]
    fresh = model.stream()
    np.testing.assert_array_equal(again, [fresh.step(x[0]) for _ in range(3)])
