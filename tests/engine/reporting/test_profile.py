"""Profiles name every layer, their shares are the whole call, and measuring changes no bit."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.pass_graphs import FEATURES, constant, ints, lstm, model, weights

import fastlstm
from fastlstm.cli import main
from fastlstm.executor import Executor
from fastlstm.graph import Graph, Node
from fastlstm.model import Model
from fastlstm.reporting.profile import measure
from fastlstm.runtime.clock import Clock
from fastlstm.target.machine import detect

X = {"x": np.random.default_rng(0).standard_normal((6, 2, FEATURES)).astype(np.float32)}
LAYERS = [lstm("x", "first"), lstm("first.y", "second")]
WEIGHTS = {**weights("first"), **weights("second", features=4)}


def graph(kind: str) -> Graph:
    """Return two layers alone, with a part in Python behind them, or with a convolution, which runs by a tape."""
    nodes, constants, last = list(LAYERS), dict(WEIGHTS), "second.y"
    if kind != "layers":
        nodes.append(Node("CumSum", (last, "axis"), ("sums",), {}, "running sum"))
        constants["axis"], last = ints(0), "sums"
    if kind == "tape":
        nodes.append(Node("Conv", (last, "kernel"), ("tail",), {}, "tail"))
        constants["kernel"], last = constant(5, 2, 2), "tail"
    return model(nodes, constants, [last], [("x", ("time", 2, FEATURES))])


@pytest.mark.parametrize("kind", ["layers", "python", "tape"])
def test_shares_of_all_layers_are_the_whole_call(kind):
    plain = Model(graph(kind))
    profile = plain.profile(X, seconds=0.02)
    layers = profile.layers()
    expected = {node.name or node.first_output for node in plain.plan.graph.nodes}
    assert {"layers": 2, "python": 3, "tape": 4}[kind] == len(expected)
    assert expected | {""} == set(layers)
    assert sum(layers.values()) == pytest.approx(1)
    assert all(share > 0 for share in layers.values())
    assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.seconds)
    order = [name for name in layers if name]
    assert order == [node.name or node.first_output for node in plain.plan.graph.nodes]


@pytest.mark.parametrize("kind", ["layers", "python", "tape"])
def test_a_clock_changes_no_bit(kind):
    plain = Model(graph(kind))
    clocked = Executor(plain.plan.graph, clock=Clock(detect()))
    wanted = list(plain.run(X).values())
    for _ in range(3):  # recorded, then run again
        for got, array in zip(clocked.run(X), wanted, strict=True):
            np.testing.assert_array_equal(got, array)


def test_a_profile_prints_draws_and_refuses(tmp_path):
    plain = Model(graph("tape"))
    profile = plain.profile(X, seconds=0.02)
    text, html = str(profile), profile._repr_html_()
    assert all(name in text and name in html for name in ("first.y", "running sum", "tail", "between kernels"))
    profile.save(tmp_path / "profile.svg")
    picture = ElementTree.parse(tmp_path / "profile.svg").getroot()
    titles = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("tail ") for title in titles)
    with pytest.raises(fastlstm.InputError, match=r"expected a file ending in \.svg"):
        profile.save(tmp_path / "profile.png")
    for seconds in (0, float("nan"), "long"):
        with pytest.raises(fastlstm.InputError, match="seconds should be above zero"):
            plain.profile(X, seconds=seconds)
    with pytest.raises(fastlstm.InputError, match="There is no input 'y'"):
        plain.profile({"y": X["x"]})


def test_one_pause_changes_no_figure(monkeypatch):
    now, ticks = [0.0], [0]

    class Ticking(Clock):
        def start(self):
            ticks[0] = 0

        def note(self, *_):
            pass

        def ticks(self):
            return {("layer", "kernel"): ticks[0], ("", "between kernels"): 1}

    def call():
        lasts = 1000 if 5 < now[0] < 900 else 1  # the process is stopped once
        now[0] += lasts
        ticks[0] += 9 * lasts

    monkeypatch.setattr("fastlstm.reporting.profile.time.perf_counter", lambda: now[0])
    profile = measure(call, Ticking(detect()), 9000.0, "x")
    assert profile.seconds == pytest.approx(1, rel=1e-3)
    assert now[0] > 1900


def test_the_only_input_may_come_by_itself():
    assert len(Model(graph("layers")).profile(X["x"], seconds=0.01).layers()) == 3


def test_inspect_profiles_a_file(tmp_path, capsys):
    path, picture = tmp_path / "two.fastlstm", tmp_path / "two.svg"
    Model(graph("layers")).save(path)
    words = ["inspect", str(path), "--profile", "--seconds", "0.02", "--size", "time=9", "--plot", str(picture)]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["inputs"] == f"x [9, 2, {FEATURES}]"
    assert {row["layer"] for row in report["rows"]} == {"first.y", "second.y", ""}
    assert main(words) == 0
    assert "first.y" in capsys.readouterr().out
    assert picture.read_text().startswith("<svg")
