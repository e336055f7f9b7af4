"""The benchmark's own promises: turns begin at rest, labels are whole, ratios and hashes find what differs."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.textpath import TextPath

import fastlstm

sys.path.append(str(Path(__file__).parents[2]))  # last: where fastlstm is installed as a wheel, that one is tested

from bench import __main__, compare, hashes, measure, prebuilt, publish, roofline, site, svg, wheel_worker, wheels
from bench.cases import GRID, Case
from bench.grid import disagreement, expected_output
from bench.onnx_models import recurrent_model
from bench.peers.fastlstm_ import FastLSTM
from bench.peers.onnxruntime_ import OnnxRuntime
from bench.summary import where
from fastlstm.kernels.cache import cache_folder

ROOT = Path(__file__).parents[2]

linux = pytest.mark.skipif(not measure.TASKS.is_dir(), reason="the system does not say which threads run")
STATES = Case("states", "LSTM", 3, 2, 4, 20)


def working(seconds):
    """Return a started thread that computes without the interpreter for about so long, as a spinning thread does."""
    start = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000)
    rounds = int(20_000 * seconds / (time.perf_counter() - start))
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", rounds))
    thread.start()
    return thread


@linux
def test_a_rest_lasts_until_other_threads_sleep():
    thread = working(0.3)
    found = measure.rest(longest=30.0)
    assert found.quiet
    assert found.seconds > 0.05
    assert not measure.other_threads_run()
    thread.join()


@linux
def test_a_rest_has_a_bound_and_says_that_it_was_reached():
    thread = working(0.5)
    found = measure.rest(longest=0.03)
    assert not found.quiet
    thread.join()
    samples = measure.Samples(rests=[found, measure.Rest(0.002, True)])
    assert measure.rest_summary({"a": samples}) | {"median_ms": 0, "longest_ms": 0} == {
        "turns": 2, "unquiet": 1, "median_ms": 0, "longest_ms": 0,
    }  # fmt: skip


def test_a_rest_is_fixed_where_the_system_says_nothing_of_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "TASKS", tmp_path / "absent")
    assert measure.rest(fixed=0.02).seconds >= 0.02


def test_labels_of_the_page_are_whole():
    picture = svg.dots([(case.name, {0: 2.0}) for case in GRID], "×")
    labels = re.findall(r'<text class="end" x="([0-9.]+)" y="[0-9.]+">([^<]+)</text>', picture)
    assert len(labels) == len(GRID)
    for end, label in labels:
        # an advance ends a little behind the ink
        assert TextPath((0, 0), label.replace("&gt;", ">"), size=11).get_extents().xmax + 2 < float(end), label


@pytest.mark.parametrize("engine", [FastLSTM(), OnnxRuntime()], ids=lambda engine: engine.name)
def test_states_given_and_taken_go_on_from_call_to_call(engine):
    call = engine.prepare(STATES, 1)
    error, agrees = disagreement(STATES, call, expected_output(STATES))
    assert agrees, error
    # and the next call is another step of the sequence
    assert not disagreement(STATES, call, expected_output(STATES))[1]


def test_the_worker_of_a_wheel_computes_what_it_is_told(tmp_path):
    def told(case, kind):
        path = tmp_path / f"{kind}.onnx"
        path.write_bytes(recurrent_model(case).SerializeToString())
        np.save(tmp_path / "x.npy", case.x())
        return {"model": str(path), "x": str(tmp_path / "x.npy"), "kind": kind, "threads": 1, "options": {}}

    states = wheel_worker.prepare(told(STATES, "states"))
    first, second = states()["y"], states()["y"]
    whole = expected_output(STATES)
    for _ in range(3):
        last = states()["y"]
    np.testing.assert_allclose(last, whole, atol=1e-5)
    assert np.abs(first - second).max() > 1e-3
    step = Case("step", "LSTM", 1, 1, 4, 20)
    call = wheel_worker.prepare(told(step, "step"))
    np.testing.assert_allclose([call() for _ in range(5)][-1], expected_output(step)[0, 0], atol=1e-5)
    plain = Case("call", "LSTM", 1, 1, 4, 20)
    np.testing.assert_allclose(wheel_worker.prepare(told(plain, "call"))(), expected_output(plain), atol=1e-5)


def row(name, after, again=1.0, noise=0.001):
    rng = np.random.default_rng(len(name))
    before = rng.uniform(1, 2, 60)  # what the machine does to all sides alike
    found = wheels.Row(name)
    for side, factor in (("before", 1.0), ("after", after), ("again", again)):
        found.seconds[side] = list(before * factor * (1 + noise * rng.standard_normal(60)))
    return found


def test_one_percent_is_told_from_noise():
    assert wheels.slower([row("a", 1.0), row("b", 1.005)], 0.01) == []
    assert wheels.slower([row("a", 0.9), row("b", 1.02)], 0.01) == ["b"]
    assert "the geometric mean of the cells" in wheels.slower([row("a", 1.02), row("bb", 1.02)], 0.01)
    # where the first wheel differs as much from itself, nothing is said of the second
    assert wheels.slower([row("a", 1.02, again=1.03)], 0.01) == []
    few = row("a", 1.02)
    few.seconds = {side: seconds[:4] for side, seconds in few.seconds.items()}
    assert wheels.slower([few], 0.01) == []
    middle, low, high = row("a", 1.02).ratio("after")
    assert 1.019 < low < middle < high < 1.021
    said = wheels.render([row("a", 1.02), row("bb", 1.0)])
    mean = re.search(r"geometric mean of 2: after/before ([0-9.]+)", said)
    assert float(mean[1]) == pytest.approx(1.02**0.5, abs=5e-4)


def test_every_side_is_measured_after_each_other_one_equally():
    follows = [(order[i], order[i + 1]) for order in wheels.ORDERS for i in range(2)]
    assert len(wheels.ORDERS) == 6
    assert {follows.count(pair) for pair in follows} == {2}
    for orders in (wheels.ORDERS[:3], wheels.ORDERS[3:]):
        assert all(set(place) == set(wheels.SIDES) for place in zip(*orders, strict=True))


def test_a_comparison_refuses_what_has_no_effect(tmp_path, capsys):
    for words, said in (
        (["a.json", "b.json", "--rounds", "3"], "only a comparison of wheels takes --rounds"),
        (["a.whl", "b.json"], "expected two wheels or two results"),
    ):
        with pytest.raises(SystemExit):
            compare.main(words)
        assert said in capsys.readouterr().err


def test_hashes_are_the_same_again_and_find_what_differs(monkeypatch):
    numbers = [7, 13]
    first, again = ({"models": list(hashes.hashes(7, numbers))} for _ in range(2))
    assert hashes.compare(first, again) == []
    assert all(re.fullmatch("[0-9a-f]{16}", entry["parts"]["whole"]) for entry in first["models"])
    run = fastlstm.Model.run

    def other(model, inputs):
        return {name: np.nextafter(array, np.float32(9)) for name, array in run(model, inputs).items()}

    monkeypatch.setattr(fastlstm.Model, "run", other)
    changed = {"models": list(hashes.hashes(7, numbers))}
    lines = hashes.compare(first, changed)
    assert len(lines) == 2
    assert all("whole" in line for line in lines)
    with pytest.raises(ValueError, match="other models"):
        hashes.compare(first, {"models": list(hashes.hashes(8, numbers[:1]))})


def test_the_kernels_of_the_roofline_compute():
    lanes = roofline.LANES
    numbers = np.full(13 * lanes, 2, np.float32)
    roofline._compiled(roofline._multiply_add)(3, numbers.ctypes.data, 0)
    np.testing.assert_array_equal(numbers[:lanes], np.full(lanes, 12 * (2 + 3 * 4)))
    buffer = np.ones(2 * roofline.STRIDE // 4 + lanes, np.float32)
    roofline._compiled(roofline._read)(5, buffer.ctypes.data, 2 * roofline.STRIDE)
    np.testing.assert_array_equal(buffer[-lanes:], np.full(lanes, 8 * (1 + 5 * 2)))


def test_the_page_and_the_table_get_what_they_print_of_the_machine():
    found = __main__.machine_data()
    assert found["cores"] >= 1
    assert all(found[name] for name in ("processor", "target", "isa"))


def test_readme_and_site_show_the_stored_result(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    data = json.loads(publish.REFERENCE.read_text(encoding="utf-8"))
    assert publish.publish(data, tmp_path / "README.md", tmp_path) == 0
    made = {"README.md": ROOT, **{str(name): ROOT / "docs" for name in site.files(data)}}
    for name, folder in made.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == (folder / name).read_text(encoding="utf-8"), name
    assert where(data) in (tmp_path / "README.md").read_text(encoding="utf-8")
    for picture in (tmp_path / "pictures").iterdir():
        assert ElementTree.parse(picture).getroot()[0].text


def test_models_of_prebuilt_start_and_take_turns_in_both_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("sequence", "LSTM", 5, 1, 4, 8)
    model = fastlstm.from_onnx(recurrent_model(case))
    monkeypatch.setattr(prebuilt, "models", lambda: iter([("small", model, case.x())]))
    for name in ("STARTS", "ROUNDS", "TURNS"):
        monkeypatch.setattr(prebuilt, name, 1)
    monkeypatch.setattr(prebuilt, "FROM_PYTHON", 1e9)
    monkeypatch.setattr(prebuilt, "FROM_LOAD", 1e9)
    monkeypatch.setattr(prebuilt, "SLOWER", 1e9)
    python, environment = prebuilt._here()
    (tmp_path / "home").mkdir()
    environment |= {"FASTLSTM_CACHE_DIR": str(cache_folder()), "HOME": str(tmp_path / "home")}
    sides = {"prebuilt": (python, environment), "compiled": (python, environment)}
    (told,) = prebuilt._written(tmp_path)
    assert list(prebuilt._judged(told, sides)) == []
    assert "the same bits" in capsys.readouterr().out
    (tmp_path / "home" / "kernel").touch()
    assert list(prebuilt._judged(told, sides)) == ["small: kernel was written into the home folder."]
