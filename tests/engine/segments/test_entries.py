"""Calls by entries beside the same calls by Python: the same bits, or the same error and nothing changed."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import FEATURES, ROWS, graph_of, inputs_of

from fastlstm import InputError, Model
from fastlstm.errors import FastLSTMError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.runtime import segment
from fastlstm.runtime.native import never

GRAPHS = {
    "states": {},
    "both directions": {"directions": 2},
    "gru": {"op": "GRU", "batch_first": True},
    "lengths": {"directions": 2, "lengths": "int64"},
    "short lengths": {"lengths": "int32", "last": True, "states": False},
    "mask": {"masked": True, "directions": 2},
    "mask and lengths": {"masked": True, "directions": 2, "lengths": "int32"},
    "ids": {"ids": "int64", "op": "RNN"},
    "short ids": {"ids": "int32", "lengths": "int64"},
    "ids by rows": {"ids": "int32", "batch_first": True},
    "last": {"last": True},
}


@lru_cache
def pair(name: str) -> tuple[Model, Model]:
    """Return a model with entries, and one that never has any."""
    graph = graph_of(**GRAPHS[name])
    plain = Model(graph)
    plain._executor.enter = lambda *_: None  # type: ignore[method-assign]
    plain._executor._remember = lambda _: None  # type: ignore[method-assign]
    return Model(graph), plain


def strided(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the array with gaps along an axis."""
    return np.repeat(array, 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]


def backwards(array: np.ndarray) -> np.ndarray:
    """Return the array with its first axis stored the other way round."""
    return array[::-1].copy()[::-1]


OTHER_WAYS = {
    "double": lambda a: a.astype(np.float64) if a.dtype == np.float32 else a.astype(np.int64),
    "gaps": lambda a: strided(a, 0),
    "inner gaps": lambda a: strided(a, a.ndim - 1),
    "backwards": backwards,
    "fortran": np.asfortranarray,
    "other bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
    "subclass": lambda a: a.view(np.ma.MaskedArray),
    "one row": lambda a: a[..., :1, :] if a.ndim > 1 else a[:1],
    "more": lambda a: np.concatenate([a, a]),
    "axis more": lambda a: a[None],
    "axis less": lambda a: a[0],
    "unaligned": lambda a: np.frombuffer(b"-" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "too large": lambda a: a + 100,
    "nothing": lambda a: a[:0],
    "truth": lambda a: a > 0,
}


def outcome(model: Model, arrays: Any, out: Any) -> tuple[str, Any]:
    try:
        return "", model.run(arrays, out=out)
    except FastLSTMError as error:
        return f"{type(error).__name__}: {error}", None


def assert_same(mine: Any, theirs: Any) -> None:
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype
        assert array.flags.writeable
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_an_input_without_time_steps_is_left_to_python() -> None:
    mine, theirs = pair("mask")
    arrays = inputs_of(mine, 3, 1, np.random.default_rng(12))
    mine.run(arrays)
    for name in ("x", "mask"):
        wrong = {**arrays, name: arrays[name][:0]}
        assert mine._executor.quick(wrong) is None
        assert outcome(mine, wrong, None)[0] == outcome(theirs, wrong, None)[0] != ""


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_call_does_what_python_does(data: st.DataObject) -> None:
    mine, theirs = pair(data.draw(st.sampled_from(sorted(GRAPHS))))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    batch = data.draw(st.integers(1, 4))
    mine.run(inputs_of(mine, 6, batch, rng))
    arrays = inputs_of(mine, data.draw(st.integers(1, 7)), batch, rng)
    for name in data.draw(st.lists(st.sampled_from(list(arrays)), max_size=2, unique=True)):
        arrays[name] = OTHER_WAYS[data.draw(st.sampled_from(sorted(OTHER_WAYS)))](arrays[name])
    order = data.draw(st.permutations(list(arrays)))
    arrays = {name: arrays[name] for name in order[data.draw(st.sampled_from([0] * 9 + [1])) :]}
    if data.draw(st.sampled_from([False] * 9 + [True])):
        arrays["other"] = np.zeros(3, np.float32)
    before = {name: np.array(array) for name, array in arrays.items()}
    words, want = outcome(theirs, arrays, None)
    out, filled = None, {}
    if want is not None and data.draw(st.booleans()):
        out = {name: np.full_like(array, 7) for name, array in want.items()}
        for name in data.draw(st.lists(st.sampled_from(sorted(out)), max_size=1)):
            change = data.draw(st.sampled_from(["gaps", "backwards", "more", "double", "read-only", "place", "gone"]))
            taken = [a for a in arrays.values() if isinstance(a, np.ndarray) and a.shape == out[name].shape]
            if change == "gone":
                del out[name]
            elif change == "place":
                out[name] = taken[-1] if taken and taken[-1].dtype == out[name].dtype else out[name]
            else:
                out[name] = OTHER_WAYS[change](out[name])
        filled = {name: array.copy() for name, array in out.items()}
        words, _ = outcome(theirs, arrays, {name: array.copy() for name, array in out.items()})
        if any(not array.flags.writeable for array in out.values()):
            words = outcome(theirs, arrays, out)[0]
    said, got = outcome(mine, arrays, out)
    assert said == words
    if words:
        assert all(np.array_equal(array, filled[name]) for name, array in (out or {}).items())
    else:
        assert got is out or out is None
        assert_same(got, {name: want[name] for name in got})
    written = [] if out is None else list(out.values())
    for name, array in arrays.items():
        if not any(array is other for other in written):
            np.testing.assert_array_equal(np.array(array), before[name], err_msg=name)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_every_kind_of_model_has_an_entry_for_any_length(name: str) -> None:
    mine, theirs = pair(name)
    rng = np.random.default_rng(3)
    mine.run(inputs_of(mine, 6, 2, rng))
    for steps in (1, 6, 4):
        arrays = inputs_of(mine, steps, 2, rng)
        got = mine._executor.quick(arrays)
        assert got is not None
        assert_same(got, theirs.run(arrays))
        in_order = mine._executor.quick(tuple(arrays.values()))
        assert in_order is not None
        first = in_order[0] if isinstance(in_order, tuple) else in_order
        np.testing.assert_array_equal(first, next(iter(got.values())))
        assert isinstance(in_order, tuple) == (len(got) > 1)


def test_batches_that_take_turns_each_have_their_entry() -> None:
    mine, theirs = pair("states")
    rng = np.random.default_rng(4)
    calls = [inputs_of(mine, 3, batch, rng) for batch in (1, 2, 3)]
    for arrays in calls:
        mine.run(arrays)
    for arrays in calls * 2:
        assert_same(mine.run(arrays), theirs.run(arrays))
        assert mine._executor.quick(arrays) is not None


def test_states_may_be_written_where_they_were_read() -> None:
    mine, theirs = pair("states")
    arrays = inputs_of(mine, 3, 2, np.random.default_rng(5))
    mine.run(arrays)
    want = theirs.run({name: array.copy() for name, array in arrays.items()})
    out = {"y": np.zeros_like(want["y"]), "h_n": arrays["h"], "c_n": arrays["c"]}
    assert mine._executor.quick(arrays, out) is out
    assert_same(out, want)


def test_a_model_of_several_parts_runs_as_one_native_call() -> None:
    graph = graph_of()
    halves = {"zero": np.array([0]), "two": np.array([2]), "one": np.array([0])}
    cut = Node("Slice", ("x", "zero", "two", "one"), ("kept",), {})
    (layer,) = graph.nodes
    graph = graph.replace(
        nodes=(cut, Node(layer.op, ("kept", *layer.inputs[1:]), layer.outputs, layer.attrs)),
        constants={**graph.constants, **halves},
        outputs=(*graph.outputs, TensorSpec("kept", (2, "batch", FEATURES))),
    )
    model = Model(graph)
    rng = np.random.default_rng(6)
    arrays = inputs_of(model, 5, 2, rng)
    first = model.run(arrays)
    model.run(arrays)
    got = model._executor.quick(arrays)
    assert got is not None
    assert_same(got, first)
    out = {name: np.zeros_like(array) for name, array in first.items()}
    assert model._executor.quick(arrays, out) is out
    assert_same(out, first)
    other = inputs_of(model, 6, 2, rng)
    assert model._executor.quick(other) is None
    model.run(other)
    assert_same(model.run(arrays), first)


def test_an_input_that_chooses_a_branch_has_to_be_the_same() -> None:
    graph = graph_of()
    (layer,) = graph.nodes
    bodies = {
        branch: Graph((), (TensorSpec("made", ()),), (Node(op, ("x",), ("made",), {}),), {})
        for branch, op in (("then_branch", "Neg"), ("else_branch", "Identity"))
    }
    chosen = Node("If", ("turn",), ("kept",), bodies)
    graph = graph.replace(
        inputs=(TensorSpec("turn", (1,), "bool"), *graph.inputs),
        nodes=(chosen, Node(layer.op, ("kept", *layer.inputs[1:]), layer.outputs, layer.attrs)),
    )
    model = Model(graph)
    arrays = inputs_of(model, 4, 1, np.random.default_rng(7))
    answers = {}
    for turn in (True, False, True, False):
        arrays["turn"] = np.array([turn])
        made = model.run(arrays)
        assert_same(made, answers.setdefault(turn, made))
    assert not np.array_equal(answers[True]["y"], answers[False]["y"])


def test_objects_are_counted_right_over_many_calls() -> None:
    for name in ("states", "short ids", "lengths"):
        model, _ = pair(name)
        arrays = inputs_of(model, 2, 2, np.random.default_rng(8))
        out = model.run(arrays)
        call = model._executor.quick
        values = tuple(arrays.values())
        bad = {**arrays, "x": arrays["x"][:, :1]}
        watched = [*arrays.values(), *out.values(), arrays, out, values, *arrays, np.dtype(np.float32)]
        gc.collect()
        counts = [sys.getrefcount(thing) for thing in watched]
        tracemalloc.start()
        for warm in (100, 100_000 // 3):
            for _ in range(warm // 4):
                assert call(arrays) is not None
                assert call(arrays, out) is out
                call(values)
                assert call(bad) is None
            gc.collect()
            size = tracemalloc.get_traced_memory()[0]
            if warm == 100:
                before = size
        tracemalloc.stop()
        assert size - before < 20_000
        assert all(abs(sys.getrefcount(t) - n) < 20 for t, n in zip(watched, counts, strict=True))


def test_a_call_meets_another_one_and_takes_the_long_way() -> None:
    model, plain = pair("both directions")
    rng = np.random.default_rng(9)
    arrays = inputs_of(model, 3, 2, rng)
    want = plain.run(arrays)
    model.run(arrays)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                assert_same(model.run(arrays), want)
        except BaseException as problem:  # noqa: BLE001 - shown by the test
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    flag = model._executor.plan.parts[0].programs(2)[0].busy
    del flag.free
    assert model._executor.quick(arrays) is None
    assert_same(model.run(arrays), want)
    flag.free = None


@pytest.mark.parametrize("name", GRAPHS)
def test_numbers_of_rows_that_share_a_program_have_entries_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MOST_SIZES", 0)
    model, plain = Model(graph_of(**GRAPHS[name])), pair(name)[1]
    rng = np.random.default_rng(12)
    for batch in (17, 19, 18, 17):
        arrays = inputs_of(model, 5, batch, rng)
        want = plain.run(arrays)
        for _ in range(2):
            assert_same(model.run(arrays), want)
    known = model._executor.enter(arrays)
    if {"mask", "lengths", "ids"} & set(name.split()):  # these hold memory for each number of rows
        assert known is None or name == "ids"
    else:
        assert_same(known, want)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint64"])
def test_numbers_that_the_model_cannot_hold_are_refused(dtype: str) -> None:
    model, _ = pair("short ids" if dtype[0] != "f" else "states")
    arrays = inputs_of(model, 2, 2, np.random.default_rng(11))
    arrays["x"] = np.zeros_like(arrays["x"], dtype)
    model.run(arrays)
    arrays["x"].reshape(-1)[0] = 1e39 if dtype == "float64" else np.inf if dtype == "float32" else 1 << 32
    if dtype == "float32":
        model.run(arrays)
        arrays["x"] = arrays["x"].astype(np.float64)  # what is infinite stays so
        model.run(arrays)
        return
    with pytest.raises(InputError, match=f"expected .*; got {dtype} with numbers"):
        model.run(arrays)
    if dtype == "float64":
        stream, pool = Model(graph_of(states=False)).stream(), Model(graph_of(states=False)).streams(2)
        row = arrays["x"][0, 0]
        for call in (stream.step, lambda x: stream.push(x[None]), lambda x: pool.step([pool.open()], x[None])):
            with pytest.raises(InputError, match="expected float32"):
                call(row)


def test_streams_of_ids_have_entries() -> None:
    model = Model(graph_of(ids="int64", states=False))
    stream, other = model.stream(), model.stream()
    other._one = other._chunk = other._full_chunk = never
    rng = np.random.default_rng(10)
    for _ in range(3):
        frame = np.array(rng.integers(-ROWS, ROWS), np.int64)
        np.testing.assert_array_equal(stream._one(frame), other.step(frame))
    chunk = rng.integers(-ROWS, ROWS, 9)
    np.testing.assert_array_equal(stream.push(chunk), other.push(chunk))
    for short in (chunk[:4], chunk[:, None]):
        known = [call(short) for call in (stream._chunk, stream._full_chunk)]
        np.testing.assert_array_equal(next(y for y in known if y is not None), other.push(short))
    before = stream.state
    with pytest.raises(InputError, match="outside its embedding"):
        stream.step(np.array(ROWS))
    assert_same(stream.state, before)


def test_streams_and_pools_of_several_inputs_and_outputs_have_entries() -> None:
    graph = graph_of(states=False)
    (layer,) = graph.nodes
    sizes = ("time", "batch", FEATURES)
    graph = graph.replace(
        inputs=(*graph.inputs, TensorSpec("more", sizes)),
        outputs=(*graph.outputs, TensorSpec("sum", sizes)),
        nodes=(
            Node("Add", ("x", "more"), ("sum",), {}),
            Node(layer.op, ("sum", *layer.inputs[1:]), layer.outputs, layer.attrs, layer.name),
        ),
    )
    model = Model(graph)
    stream, other, pool = model.stream(2), model.stream(2), model.streams(2)
    other._one = other._chunk = never
    opened = [pool.open(), pool.open()]
    rng = np.random.default_rng(13)
    for _ in range(3):
        frame = {name: rng.normal(size=(2, FEATURES)).astype(np.float32) for name in ("more", "x")}
        want, got = other.step(frame), stream._one(frame)
        assert_same(got, want)
        assert_same(pool._rows.quick(np.array(opened), frame, None), want)
        assert stream._one({"x": frame["x"]}) is None
        out = {name: np.zeros_like(array) for name, array in want.items()}
        assert stream._one(frame, out) is out
        assert_same(out, other.step(frame))
        assert pool.step(opened, frame, out=out) is out
