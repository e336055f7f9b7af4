"""Manners of a stream with a deadline: nothing grows, nothing is asked of the system, nothing is denormal."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastlstm

UNITS = 20


def amplifier(threads: int = 1, units: int = UNITS) -> fastlstm.Model:
    """Return LSTM(1 -> units) and Linear(units -> 1), as an audio effect has them."""
    rng = np.random.default_rng(units)
    shapes = {
        "lstm.weight_ih_l0": (4 * units, 1),
        "lstm.weight_hh_l0": (4 * units, units),
        "lstm.bias_ih_l0": (4 * units,),
        "lstm.bias_hh_l0": (4 * units,),
        "head.weight": (1, units),
        "head.bias": (1,),
    }
    weights = {name: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return fastlstm.from_state_dict(weights, layers="lstm | linear", threads=threads)


MODEL = amplifier()


def calls() -> dict[str, Callable[[], object]]:
    """Return ways to advance a stream, warm and with the memory they write to."""
    stream, pool = MODEL.stream(), MODEL.streams(capacity=8)
    stream.warmup(64, 48)
    ids = np.array([pool.open() for _ in range(5)])
    frame, frames = np.ones(1, np.float32), np.ones((5, 1), np.float32)
    block, other = np.ones((64, 1), np.float32), np.ones((48, 1), np.float32)
    y, ys, out = np.empty(1, np.float32), np.empty((5, 1), np.float32), np.empty((64, 1), np.float32)
    return {
        "step": lambda: stream.step(frame),
        "step into out": lambda: stream.step(frame, out=y),
        "push": lambda: stream.push(block),
        "push into out": lambda: stream.push(block, out=out),
        "blocks of two lengths": lambda: (stream.push(block), stream.push(other)),
        "pool": lambda: pool.step(ids, frames),
        "pool into out": lambda: pool.step(ids, frames, out=ys),
    }


@pytest.mark.parametrize("name", calls())
def test_a_thousand_calls_retain_nothing(name: str) -> None:
    call = calls()[name]
    for _ in range(1100):  # Python 3.10 makes memory for a function's look-ups at its 1024th call
        call()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            call()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    # What a call makes (a view, a frame) is gone after it; 1000 calls that kept 8 bytes each would show.
    assert after - before < 2000
    assert peak - before < 20_000


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="counts pages as Linux shows them")
@pytest.mark.parametrize("name", ["step into out", "push into out", "pool into out"])
def test_memory_does_not_grow_by_a_page(name: str) -> None:
    call = calls()[name]

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    pages(), [call() for _ in range(2000)]
    grown = []
    for _ in range(3):
        before = pages()
        for _ in range(5000):
            call()
        grown.append(pages() - before)
    assert min(grown) <= 0, grown


def test_compiled_code_of_a_step_holds_no_lock() -> None:
    # Code refers to nothing outside of itself (tests/kernels/test_image.py); locks are what a team's kernels are given.
    # In a process of its own: `loaded` names what a stream and a pool need and nothing else.
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_real_time as t\n"
        "from fastlstm.kernels import compiler\n"
        "[call() for call in t.calls().values()]\n"
        "print(*(kernel.name for kernel in compiler.loaded()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert {"drive.drive", "small.lstm", "gather.gather"} <= set(names)
    assert not [name for name in names if name.startswith(("team.", "shares."))]


def test_decaying_states_are_zero_or_normal_but_never_denormal() -> None:
    weights = {
        "lstm.weight_ih_l0": np.zeros((32, 1), np.float32),
        "lstm.weight_hh_l0": np.zeros((32, 8), np.float32),
        # The forget gate is a half, the others are closed or pass zeros: c halves at every step.
        "lstm.bias_ih_l0": np.repeat(np.float32([-200, 0, 0, 0]), 8),
        "lstm.bias_hh_l0": np.zeros(32, np.float32),
    }
    for rows in (1, 2):
        stream = fastlstm.from_state_dict(weights, layers="lstm").stream(batch=rows)
        stream.state = {name: np.full_like(value, 0.5) for name, value in stream.state.items()}
        tiny = np.finfo(np.float32).tiny
        frame = np.zeros((rows, 1), np.float32)
        for _ in range(200):
            stream.step(frame)
            for value in stream.state.values():
                assert np.all((value == 0) | (np.abs(value) >= tiny))
        assert not any(value.any() for value in stream.state.values())


def test_the_mode_of_the_processor_is_put_back() -> None:
    stream = MODEL.stream()
    denormal = np.float32(1e-40)
    stream.step(np.ones(1, np.float32))
    assert denormal * np.float32(0.5) > 0


def test_a_state_goes_on_in_another_process_and_on_other_thread_counts() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 1)).astype(np.float32)
    model = amplifier(units=300)
    stream = model.stream()
    stream.push(x[:200])
    kept = pickle.dumps(stream.state)
    expected = stream.push(x[200:])
    script = (
        "import sys, pickle, numpy as np; sys.path.insert(0, sys.argv[1]); import test_real_time as t\n"
        "state, x = pickle.loads(sys.stdin.buffer.read())\n"
        "stream = t.amplifier(threads=2, units=300).stream(); stream.state = pickle.loads(state)\n"
        "sys.stdout.buffer.write(stream.push(x).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        input=pickle.dumps((kept, x[200:])),
        capture_output=True,
        check=True,
    )
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), expected[:, 0])


def test_streams_of_one_model_run_on_threads_of_their_own() -> None:
    rng = np.random.default_rng(4)
    inputs = [rng.normal(size=(500, 1)).astype(np.float32) for _ in range(4)]
    results: list[np.ndarray | None] = [None] * 4

    def play(i: int) -> None:
        stream = MODEL.stream()
        results[i] = np.concatenate([stream.push(inputs[i][t : t + 20]) for t in range(0, 500, 20)])

    threads = [threading.Thread(target=play, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(y, MODEL.stream().push(x))


def test_warming_up_leaves_the_state_alone() -> None:
    x = np.random.default_rng(5).normal(size=(50, 1)).astype(np.float32)
    warm, plain = MODEL.stream(), MODEL.stream()
    first = warm.push(x[:20])
    warm.warmup(16, 32)
    np.testing.assert_array_equal(np.concatenate([first, warm.push(x[20:])]), plain.push(x))
