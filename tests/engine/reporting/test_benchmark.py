"""The timing core: figures mean what their names say."""

from __future__ import annotations

import json
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from fastlstm.commands.latency import Latency
from fastlstm.errors import InputError
from fastlstm.reporting import benchmark
from fastlstm.reporting.benchmark import Timing
from fastlstm.reporting.tables import time_text


def timing(seconds, steps=1):
    return Timing("a", np.array(seconds, np.float64), 0.5, steps)


def test_figures_of_a_known_distribution():
    known = timing(np.arange(1, 1001) * 1e-6, steps=10)
    assert known.median == pytest.approx(500.5e-6)
    assert known.p99 == pytest.approx(990.01e-6)
    assert known.p999 == pytest.approx(999.001e-6)
    assert known.max == pytest.approx(1e-3)
    assert known.per_step == pytest.approx(50.05e-6)
    data = json.loads(json.dumps(known.as_data()))
    assert data["steps_per_second"] == pytest.approx(10 / 500.5e-6)
    assert data["calls"] == 1000


def test_calls_are_counted_and_warm_up_is_not():
    called = []
    found = benchmark.time_calls(
        lambda: called.append(None), seconds=0, min_samples=7, max_samples=7, warmup=2, calls=5
    )
    assert len(found.seconds) == 7
    assert len(called) == 2 + 7 * 5


def test_times_are_those_of_the_clock():
    # sleeping never ends early, and half as long again is far above its usual lateness
    found = benchmark.time_calls(lambda: time.sleep(0.004), seconds=0, min_samples=5)
    assert 0.004 <= found.median < 0.006
    assert found.cpu_seconds < found.median


class Clock:
    """In place of the module time: as much time passes as is said."""

    now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter


def test_everyone_takes_turns_and_ratios_compare_rounds(monkeypatch):
    clock, order = Clock(), []
    monkeypatch.setattr(benchmark, "time", clock)

    def runner(name, takes):
        def run():
            if not order or order[-1] != name:
                order.append(name)
            clock.now += takes

        return run

    runnables = {"fast": runner("fast", 0.001), "slow": runner("slow", 0.003)}
    contest = benchmark.compare(runnables, rounds=4, round_seconds=0.004, steps=3)
    # warm-up, then fast slow, slow fast, fast slow, slow fast
    assert order == ["fast", "slow", "fast", "slow", "fast", "slow", "fast"]
    assert contest.ratio("slow", to="fast") == pytest.approx(3)
    assert contest.timings["slow"].steps == 3
    data = json.loads(json.dumps(contest.as_data(to="fast")))
    assert data["fast"]["ratio"] == 1
    assert len(data["slow"]["ratio_per_round"]) == 4


def test_histogram_shows_a_single_slow_call():
    lines = benchmark.histogram(timing([1e-6] * 1000 + [5e-4])).splitlines()
    assert len(lines) == 16
    assert lines[0].split()[5] == "1000"
    assert lines[-1].split()[5] == "1"
    assert "█" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (58.20819256, "58.21 s"),
        (0.9999996, "1000 ms"),
        (1.5e-3, "1.5 ms"),
        (2.7e-6, "2.7 µs"),
        (3e-8, "30 ns"),
        (0, "0 ns"),
    ],
)
def test_times_have_a_unit_that_fits(seconds, text):
    assert time_text(seconds) == text


def test_a_pause_is_not_a_row_of_digits():
    last = benchmark.histogram(timing([1e-6] * 1000 + [58.20819256])).splitlines()[-1]
    assert "58.21 s" in last
    assert "58.21 s" in str(Latency(timing([1e-6, 58.20819256]), "a step", 1))


def test_histogram_of_equal_times():
    assert "20" in benchmark.histogram(timing([2e-6] * 20))


def test_a_picture_shows_every_call_and_needs_nothing(tmp_path):
    benchmark.plot_histogram(timing([1e-6] * 1000 + [2e-6, 3e-3]), tmp_path / "a.svg", title="<steps>")
    picture = ElementTree.parse(tmp_path / "a.svg").getroot()
    tips = [tip.text for tip in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(int(tip.split(": ")[1].split()[0].replace(",", "")) for tip in tips) == 1002
    bars = [float(bar.get("height")) for bar in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert min(bars) > 10


def test_other_pictures_are_drawn_by_matplotlib(tmp_path):
    benchmark.plot_histogram(timing([1e-6, 2e-6, 3e-6]), tmp_path / "a.png", title="steps")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="cannot be drawn"):
        benchmark.plot_histogram(timing([1e-6]), tmp_path / "a.xyz")


def test_settings_are_plain_data():
    assert json.loads(json.dumps(benchmark.settings()))["cpus"] >= 1
