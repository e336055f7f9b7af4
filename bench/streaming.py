"""Streams as an audio plug-in uses them: LSTM(1 -> H) and a dense layer, in blocks and sample by sample.

The peers have no streams. Beside ours stand onnxruntime running 2048 samples at once, which no real-time
use could wait for, and onnxruntime running blocks of 64 with the state fed in and out, which is the same job;
and, where there is a C++ compiler, a real-time implementation with its sizes compiled in.

A pool of 64 streams that advance by one step each stands beside the same 64 stepped one by one, and beside
onnxruntime running them as a batch of single steps: with its states kept as one array, which takes the same 64 every
time, and with the states of any 64 gathered and scattered by NumPy, which is what a pool does. Then two threads step
half of the streams each, beside one that steps all.

``python -m bench.streaming`` prints all this alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from bench.cases import Case
from bench.grid import ABSOLUTE, RELATIVE
from bench.measure import Budget, measure, ratios, rest_summary
from bench.onnx_models import recurrent_dense_model, recurrent_model
from bench.peers import Call, realtime
from bench.peers.onnxruntime_ import OnnxRuntime
from fastlstm.operators import reference

Array = npt.NDArray[Any]

SIZES = (8, 16, 20, 24, 32, 40, 64)
WHOLE, BLOCK = 2048, 64
POOL, POOLS = 64, ((1, 128), (40, 128), (1, 256), (64, 256))
STEPS = 100  # of each thread in a sample: starting them takes some 50 microseconds


def rows(threads: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the rows of this section: their names and what measures them."""
    return [(f"stream LSTM(1->{H}) + Dense(1)", lambda H=H: _stream(H, threads)) for H in SIZES]


def _stream(H: int, threads: int) -> dict[str, Any]:
    case = Case("stream", "LSTM", WHOLE, 1, 1, H)
    dense = np.random.default_rng(H).uniform(-0.3, 0.3, (H, 1)).astype(np.float32)
    runs = _runs(case, dense, threads)
    x = case.x()
    (h,) = reference.run(case.graph(), {"x": x.astype(np.float64)}).values()
    expected = (h @ dense.astype(np.float64)).reshape(-1)
    engines: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for name, (samples, shape, run) in runs.items():
        ys = [np.array(run(x[t : t + samples].reshape(shape))).reshape(-1) for t in range(0, WHOLE, samples)]
        error = np.abs(np.concatenate(ys) - expected)
        engines[name] = {"samples": samples, "error": float(error.max())}
        if np.any(error > ABSOLUTE + RELATIVE * np.abs(expected)):
            engines[name]["missing"] = f"wrong result: off by {error.max():.1e}"
        else:
            calls[name] = partial(run, x[:samples].reshape(shape))
    timed = measure(calls, Budget())
    for name, found in timed.items():
        summary = found.summary()
        engines[name] |= summary | {"sample_us": summary["median_us"] / engines[name]["samples"]}
    name = f"LSTM(1->{H}) + Dense(1)"
    return {"name": name, "H": H, "threads": threads, "engines": engines, "rest": rest_summary(timed)}


def _runs(case: Case, dense: Array, threads: int) -> dict[str, tuple[int, tuple[int, ...], Callable[[Array], Any]]]:
    """Return by name how many samples a call takes, in which shape, and the call."""
    whole = recurrent_dense_model(case, dense)
    block_case = Case("step", "LSTM", BLOCK, 1, 1, case.H)
    blocks = recurrent_dense_model(block_case, dense, weights_of=case)
    model = fastlstm.from_onnx(whole, threads=threads)
    pushed, stepped = model.stream(), model.stream()
    at_once = OnnxRuntime().session(whole.SerializeToString(), threads)
    by_block = OnnxRuntime().session(blocks.SerializeToString(), threads)
    state = {name: np.zeros((1, 1, case.H), np.float32) for name in ("h_0", "c_0")}

    def onnxruntime_block(x: Array) -> Any:
        y, state["h_0"], state["c_0"] = by_block.run(None, {"x": x, **state})
        return y

    found: dict[str, tuple[int, tuple[int, ...], Callable[[Array], Any]]] = {
        f"fastlstm push {BLOCK}": (BLOCK, (BLOCK, 1), pushed.push),
        "fastlstm step": (1, (1,), stepped.step),
        f"onnxruntime T={WHOLE}": (WHOLE, (WHOLE, 1, 1), lambda x: at_once.run(None, {"x": x})),
        f"onnxruntime T={BLOCK} with state": (BLOCK, (BLOCK, 1, 1), onnxruntime_block),
    }
    native = realtime.runner(case, dense)
    if native is not None:
        found[f"{realtime.NAME} n={WHOLE}"] = (WHOLE, (WHOLE, 1, 1), native)
    return found


def pool_row(inputs: int, hidden: int) -> dict[str, Any]:
    """Measure 64 streams that advance together; return microseconds for a step of all of them, by engine."""
    case = Case("step", "LSTM", 1, POOL, inputs, hidden)
    model = fastlstm.from_onnx(recurrent_model(Case("stream", "LSTM", 1, 1, inputs, hidden), weights_of=case))
    x = np.random.default_rng(hidden).normal(size=(POOL, inputs)).astype(np.float32)
    pool = model.streams(capacity=2 * POOL)
    ids = np.array([pool.open() for _ in range(2 * POOL)])[::2]
    streams = [model.stream() for _ in range(POOL)]
    session = OnnxRuntime().session(recurrent_model(case).SerializeToString(), 1)
    shape = (1, POOL, hidden)
    together = {"x": x[None], "h_0": np.zeros(shape, np.float32), "c_0": np.zeros(shape, np.float32)}
    apart = {name: np.zeros((2 * POOL, hidden), np.float32) for name in ("h_0", "c_0")}

    def one_by_one() -> list[Any]:
        return [stream.step(frame) for stream, frame in zip(streams, x, strict=True)]

    def batch() -> Any:
        y, together["h_0"], together["c_0"] = session.run(None, together)
        return y

    def gathered() -> Any:
        y, h, c = session.run(None, {"x": x[None], **{name: store[ids][None] for name, store in apart.items()}})
        apart["h_0"][ids], apart["c_0"][ids] = h[0], c[0]
        return y

    calls: dict[str, Call] = {
        "fastlstm pool": lambda: pool.step(ids, x),
        "fastlstm one by one": one_by_one,
        "onnxruntime batch": batch,
        "onnxruntime batch, states gathered": gathered,
    }
    results = [np.array(call()).reshape(POOL, hidden) for call in calls.values()]
    for name, result in zip(calls, results, strict=True):
        if np.any(np.abs(result - results[0]) > ABSOLUTE + RELATIVE * np.abs(results[0])):
            raise RuntimeError(f"{name}: another result than the pool's")
    found = measure(calls, Budget())
    return {name: samples.summary()["median_us"] for name, samples in found.items()}


def threads_row(inputs: int, hidden: int) -> float:
    """Return how many times as much of a pool's work two threads do, with half of the streams each, as one thread."""
    case = Case("stream", "LSTM", 1, 1, inputs, hidden)
    model = fastlstm.from_onnx(recurrent_model(case))
    x = np.random.default_rng(hidden).normal(size=(POOL, inputs)).astype(np.float32)
    pool = model.streams(capacity=POOL)
    ids = np.array([pool.open() for _ in range(POOL)])
    halves = [(ids[part], x[part]) for part in (slice(0, POOL // 2), slice(POOL // 2, POOL))]

    def steps(some: tuple[Array, Array]) -> None:
        for _ in range(STEPS):
            pool.step(*some)

    with ThreadPoolExecutor(len(halves)) as threads:
        calls: dict[str, Call] = {
            "one": lambda: steps((ids, x)),
            "two": lambda: list(threads.map(steps, halves)),
        }
        return ratios(measure(calls, Budget()), "two")["one"]


def main(argv: list[str] | None = None) -> None:
    """Print microseconds a sample for every size and engine, and how often ours fits into each peer's time."""
    argparse.ArgumentParser(
        prog="python -m bench.streaming", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    for name, measure_row in rows(1):
        engines = measure_row()["engines"]
        ours = engines[f"fastlstm push {BLOCK}"]["sample_us"]
        print(name)
        for engine, found in engines.items():
            note = f"{found['sample_us']:8.4f} us  {found['sample_us'] / ours:6.2f}" if "sample_us" in found else ""
            print(f"  {engine:32} {note or found['missing']}")
    for inputs, hidden in POOLS:
        times = pool_row(inputs, hidden)
        print(f"pool of {POOL}, LSTM({inputs}->{hidden}), one step each")
        products = POOL * 4 * hidden * (hidden + inputs)
        for engine, us in times.items():
            speed = products / us / 1e3
            print(f"  {engine:36} {us:8.1f} us  {us / times['fastlstm pool']:6.2f}  {speed:6.1f} multiply-adds a ns")
        print(f"  two threads: {threads_row(inputs, hidden):.2f} times the work of one")


if __name__ == "__main__":
    main()
