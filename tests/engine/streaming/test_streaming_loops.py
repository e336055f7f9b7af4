"""A loop that runs once for each frame streams, whatever its body computes; any other is refused by what it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from written_out import CELLS, FEATURES, H, Writer, looped

import fastlstm
from fastlstm.graph import Graph

rng = np.random.default_rng(0)
WEIGHT = rng.standard_normal((FEATURES, H)).astype(np.float32)


def leaky(_: object, at: Writer, x: str, h: str, *rest: str) -> list[str]:
    """``h' = sin(x @ W) + h / 2``: no cell that is known, and one state more that only repeats."""
    seen = at("Sin", at("MatMul", x, at.constant(WEIGHT)))
    return [at("Add", seen, at("Mul", h, at.constant(0.5))), *rest]


def numbered(_: object, at: Writer, x: str, h: str, *rest: str) -> list[str]:
    """The same, with the number of the frame added."""
    (y, *_) = leaky(_, at, x, h)
    return [at("Add", y, at("Cast", "b.i", to="float32")), *rest]


def peeking(_: object, at: Writer, x: str, h: str, *rest: str) -> list[str]:
    """The same, with the first frame of the sequence added."""
    (y, *_) = leaky(_, at, x, h)
    first = at("Gather", "x", at.constant(0, np.int64), axis=0)
    return [at("Add", y, at("MatMul", first, at.constant(WEIGHT))), *rest]


def loop(step: Callable[..., list[str]], **options: object) -> Graph:
    return looped([CELLS["gru"]], step=step, **options)


def test_steps_and_chunks_and_pools_have_the_bits_of_the_whole_loop() -> None:
    model = fastlstm.Model(loop(leaky))
    assert any(node.op == "Loop" for node in model.plan.graph.nodes)
    x = rng.standard_normal((7, 2, FEATURES)).astype(np.float32)
    whole = {name: y for name, y in model.run({"x": x}).items() if y.shape[0] == 7}
    (name,) = whole
    stream, pool = model.stream(batch=2), model.streams(2)
    ids = [pool.open() for _ in range(2)]
    shown = [np.asarray(by_name(y, name)) for y in map(stream.step, x)]
    np.testing.assert_array_equal(np.stack(shown), whole[name])
    stream.reset()
    pushed = [by_name(stream.push(part), name) for part in (x[:3], x[3:4], x[4:])]
    np.testing.assert_array_equal(np.concatenate(pushed), whole[name])
    np.testing.assert_array_equal(np.stack([by_name(pool.step(ids, frame), name) for frame in x]), whole[name])


def by_name(y: object, name: str) -> np.ndarray:
    return y[name] if isinstance(y, dict) else y


def test_the_state_of_a_loop_goes_on_in_another_stream() -> None:
    model = fastlstm.Model(loop(leaky))
    x = rng.standard_normal((6, FEATURES)).astype(np.float32)
    first, second = model.stream(), model.stream()
    for frame in x[:3]:
        first.step(frame)
    second.state = first.state
    for frame in x[3:]:
        np.testing.assert_equal(first.step(frame), second.step(frame))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (loop(numbered), "computes with the frame's number"),
        (loop(peeking), "reads 'x' at other positions than the iteration's own frame"),
        (loop(leaky, backwards=True), "runs backwards in time"),
        (loop(leaky, trips=1), "is not known to run once for each frame"),
    ],
    ids=["numbered", "peeking", "backwards", "longer"],
)
def test_other_loops_are_refused_by_what_they_do(graph: Graph, reason: str) -> None:
    with pytest.raises(fastlstm.UnsupportedError, match=reason):
        fastlstm.Model(graph).stream()
