"""Random recurrent models over every combination of options: against the oracle and the peers, and bit against bit.

``FASTLSTM_EXAMPLES=1000 pytest -s tests/engine/lowering/test_recurrent_options.py`` draws the options freely, that
often, and compiles every kernel that comes up; it prints how the errors compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recurrent_models import (
    COVERING,
    EXAMPLES,
    Case,
    Variant,
    as_graph_outputs,
    cases,
    onnx_has,
    onnx_model,
    onnxruntime_knows,
    run_torch,
    torch_has,
    whole,
)

import fastlstm
from fastlstm.graph import TensorSpec
from fastlstm.operators import reference
from fastlstm.runtime import bound, segment
from fastlstm.target import machine

Array = npt.NDArray[Any]


class Errors(dict[str, list[tuple[float, float]]]):
    """For each peer the largest errors of outputs against float64: ours, theirs."""

    def __repr__(self) -> str:  # it stands in every report of a failure
        return "errors"


@pytest.fixture(scope="module", autouse=True)
def errors() -> Iterator[Errors]:
    """Let a team run the smallest call, compile small tiles only, and collect errors against float64."""
    found = Errors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "WORTH_A_WORKER", 1)
        patch.setattr(bound, "WORTH_A_TEAM", 0)
        if not EXAMPLES:  # of tiles, which other tests try, as few as compile fast
            small = replace(machine.detect(), max_sums=8)
            patch.setattr(machine, "detect", lambda: small)
        yield found
    for peer, pairs in found.items():
        ours, theirs = np.array(pairs).T
        rms = [float(np.sqrt(np.mean(e**2))) for e in (ours, theirs)]
        print(f"\nbeside {peer}, {len(pairs)} outputs: largest error {ours.max():.2g} to {theirs.max():.2g}, "  # noqa: T201
              f"root mean square of the largest {rms[0]:.2g} to {rms[1]:.2g}")  # fmt: skip


def close(found: Array, expected: Array, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def check_peer(peer: str, case: Case, found: list[Array], theirs: list[Array], exact: list[Array], to: Errors) -> None:
    """Check that a peer agrees, and that our error against float64 is no larger than its own."""
    for ours, other, value in zip(found, theirs, exact, strict=True):
        close(ours, other, f"{peer}: {case}")
        close(other, value, f"the oracle and {peer}: {case}")
        size = max(1.0, float(np.abs(value).max(initial=0)))
        pair = tuple(float(np.abs(a - value).max(initial=0)) / size for a in (ours, other))
        to.setdefault(peer, []).append(pair)  # type: ignore[arg-type]


VARIANTS = [
    pytest.param(variant, marks=() if number % 3 == 0 else pytest.mark.long, id=str(variant))
    for number, variant in enumerate([None] if EXAMPLES else COVERING)
]
"""Every third of them, and all in `make test-all`: each compiles kernels of its own, some five seconds."""


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=EXAMPLES or 6, deadline=None, derandomize=not EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_models_agree_with_the_oracle_and_the_peers(variant: Variant | None, data: Any, errors: Errors) -> None:
    case: Case = data.draw(cases(variant))
    threads, layout = data.draw(st.integers(2, 3)), data.draw(st.integers(0, 1))
    graph, feeds = case.graph(), case.feeds()
    exact = list(reference.run(graph, feeds).values())
    found = list(fastlstm.Model(graph).run(feeds).values())
    for ours, value in zip(found, exact, strict=True):
        close(ours, value, str(case))
    for ours, shared in zip(found, fastlstm.Model(graph, threads=threads).run(feeds).values(), strict=True):
        np.testing.assert_array_equal(ours, shared, err_msg=f"{threads} threads: {case}")
    if onnx_has(case):
        proto, given, names = onnx_model(case, layout)
        again = fastlstm.from_onnx(proto).run(given)
        for ours, same in zip(found, as_graph_outputs(case, [again[n] for n in names], layout), strict=True):
            np.testing.assert_array_equal(ours, same, err_msg=f"from ONNX: {case}")
    if onnxruntime_knows(case):
        proto, given, names = onnx_model(case)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        check_peer("onnxruntime", case, found, as_graph_outputs(case, session.run(names, given)), exact, errors)
    if torch_has(case):
        torch.set_num_threads(1)
        check_peer("torch", case, found, run_torch(case), exact, errors)


@pytest.mark.parametrize("variant", [None] if EXAMPLES else COVERING, ids=str)
@settings(max_examples=EXAMPLES or 3, deadline=None, derandomize=not EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rows_and_chunks_have_the_bits_of_the_whole(variant: Variant | None, data: Any) -> None:
    case: Case = whole(data.draw(cases(variant)))
    model, feeds = fastlstm.Model(case.graph(), threads=data.draw(st.integers(1, 2))), case.feeds()
    found = model.run(feeds)
    batch_axis = {name: 0 if name == "lengths" else 1 for name in feeds}
    some = data.draw(st.lists(st.integers(0, case.B - 1), min_size=1, max_size=3))
    rows = model.run({name: np.take(a, some, axis=batch_axis[name]) for name, a in feeds.items()})
    for name, value in found.items():
        np.testing.assert_array_equal(rows[name], value[:, some], err_msg=f"rows {some} of {name}: {case}")
    if "reverse" in case.directions or case.variant.masked:
        return  # a mask's first steps repeat the output before, which a new chunk does not know
    cut = data.draw(st.integers(0, case.T))
    states = {name: a for name, a in feeds.items() if name not in ("x", "lengths")}
    outputs = []
    for start, stop in ((0, cut), (cut, case.T)):
        chunk = {"x": feeds["x"][start:stop], **states}
        if case.lengths:
            chunk["lengths"] = np.clip(feeds["lengths"] - start, 0, stop - start)
        part = model.run(chunk)
        states = {name: part[name.replace("_0_", "_n_")] for name in states}
        outputs.append(part)
    last = f"y_{case.layers - 1}"
    np.testing.assert_array_equal(np.concatenate([o[last] for o in outputs]), found[last], err_msg=f"{cut}: {case}")
    for name in states:
        end = name.replace("_0_", "_n_")
        np.testing.assert_array_equal(outputs[1][end], found[end], err_msg=f"{end}, cut at {cut}: {case}")


@pytest.mark.parametrize("variant", [None] if EXAMPLES else COVERING, ids=str)
@settings(max_examples=EXAMPLES or 2, deadline=None, derandomize=not EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nan_and_infinities_stay_in_their_row_and_after_their_step(variant: Variant | None, data: Any) -> None:
    case: Case = replace(whole(data.draw(cases(variant))), layers=1, T=data.draw(st.integers(2, 6)))
    model, feeds = fastlstm.Model(case.graph(), threads=data.draw(st.integers(1, 2))), case.feeds()
    clean = model.run(feeds)
    t, b = data.draw(st.integers(0, case.T - 1)), data.draw(st.integers(0, case.B - 1))
    bad = feeds["x"].copy()
    bad[t, b, data.draw(st.integers(0, case.sizes[0] - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    found = model.run({**feeds, "x": bad})
    for name, value in found.items():
        np.testing.assert_array_equal(np.delete(value, b, 1), np.delete(clean[name], b, 1), err_msg=f"{name}: {case}")
    for d, direction in enumerate(case.directions):
        before = slice(0, t) if direction == "forward" else slice(t + 1, None)
        own = slice(d * case.output_size, (d + 1) * case.output_size)
        np.testing.assert_array_equal(found["y_0"][before, b, own], clean["y_0"][before, b, own], err_msg=str(case))


@pytest.mark.parametrize("variant", [None] if EXAMPLES else [v for v in COVERING if not v.masked], ids=str)
@settings(max_examples=EXAMPLES or 2, deadline=None, derandomize=not EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_streams_have_the_bits_of_the_whole(variant: Variant | None, data: Any) -> None:
    drawn: Case = data.draw(cases(variant))
    states = tuple("absent" for _ in drawn.states)
    masked = replace(drawn.variant, masked=False)
    case = replace(drawn, variant=masked, directions=("forward",), lengths=False, states=states, variable=False)
    graph = replace(case, outputs=(True, *(False for _ in states))).graph()
    graph = graph.replace(outputs=(TensorSpec(graph.outputs[-1].name, ("time", "batch", case.output_size)),))
    model, x = fastlstm.Model(graph), case.feeds()["x"]
    stream, found = model.stream(batch=case.B), model(x)
    for frame, expected in zip(x, found, strict=True):
        np.testing.assert_array_equal(stream.step(frame), expected, err_msg=str(case))
    stream.reset()
    if case.T:
        np.testing.assert_array_equal(stream.push(x), found, err_msg=str(case))


def test_the_layer_classes_take_peepholes_and_a_direction_of_their_own() -> None:
    rng = np.random.default_rng(0)
    w_ih, w_hh, bias, peephole = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((32, 3), (32, 8), 32, 24))
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    layer = fastlstm.LSTM(w_ih, w_hh, bias, peephole=peephole, directions=["reverse"])
    output, (h_n, c_n) = layer(x)
    exact = reference.lstm(x, w_ih[None], w_hh[None], bias[None], peephole=peephole[None], directions=["reverse"])
    for ours, theirs in zip((output, h_n, c_n), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(fastlstm.InputError, match="directions should name"):
        fastlstm.LSTM(w_ih, w_hh, bias, directions=["sideways"])
    with pytest.raises(fastlstm.InputError, match="neither peepholes"):
        fastlstm.RNN(w_ih, w_hh[:, :32], peephole=peephole)


def test_parameters_that_are_not_given_are_the_defaults() -> None:
    rng = np.random.default_rng(1)
    w_ih, w_hh = rng.uniform(-1, 1, (8, 3)).astype(np.float32), rng.uniform(-1, 1, (8, 8)).astype(np.float32)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    given = fastlstm.RNN(w_ih, w_hh, activations=[[["Affine", 1.0, 0.0]]], clip=0.9)
    short = fastlstm.RNN(w_ih, w_hh, activations=[[["Affine", None, None]]], clip=0.9)
    np.testing.assert_array_equal(short(x)[0], given(x)[0])
    assert np.abs(given(x)[0]).max() > 0
