"""Streams as an audio plug-in uses them: LSTM(1 -> H) and a dense layer, in blocks and sample by sample.

The peers have no streams. Beside ours stand onnxruntime running 2048 samples at once, which no real-time
use could wait for, and onnxruntime running blocks of 64 with the state fed in and out, which is the same job;
and, where there is a C++ compiler, a real-time implementation with its sizes compiled in.

``python -m bench.streaming`` prints this section alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from bench.cases import Case
from bench.grid import ABSOLUTE, RELATIVE
from bench.measure import Budget, measure
from bench.onnx_models import recurrent_dense_model
from bench.peers import Call, realtime
from bench.peers.onnxruntime_ import OnnxRuntime
from fastlstm import reference

Array = npt.NDArray[Any]

SIZES = (8, 16, 20, 24, 32, 40, 64)
WHOLE, BLOCK = 2048, 64


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
    for name, (samples, run) in runs.items():
        ys = [np.array(run(x[t : t + samples])).reshape(-1) for t in range(0, WHOLE, samples)]
        error = np.abs(np.concatenate(ys) - expected)
        engines[name] = {"samples": samples, "error": float(error.max())}
        if np.any(error > ABSOLUTE + RELATIVE * np.abs(expected)):
            engines[name]["missing"] = f"wrong result: off by {error.max():.1e}"
        else:
            calls[name] = lambda run=run, chunk=x[:samples]: run(chunk)
    for name, found in measure(calls, Budget()).items():
        summary = found.summary()
        engines[name] |= summary | {"sample_us": summary["median_us"] / engines[name]["samples"]}
    return {"name": f"LSTM(1->{H}) + Dense(1)", "H": H, "threads": threads, "engines": engines}


def _runs(case: Case, dense: Array, threads: int) -> dict[str, tuple[int, Callable[[Array], Any]]]:
    """Return by name how many samples a call takes, and the call: x [n, 1, 1] -> y."""
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

    found: dict[str, tuple[int, Callable[[Array], Any]]] = {
        f"fastlstm push {BLOCK}": (BLOCK, lambda x: pushed.push(x[:, 0])),
        "fastlstm step": (1, lambda x: stepped.step(x[0, 0])),
        f"onnxruntime T={WHOLE}": (WHOLE, lambda x: at_once.run(None, {"x": x})),
        f"onnxruntime T={BLOCK} with state": (BLOCK, onnxruntime_block),
    }
    native = realtime.runner(case, dense)
    if native is not None:
        found[f"{realtime.NAME} n={WHOLE}"] = (WHOLE, native)
    return found


def main() -> None:
    """Print microseconds a sample for every size and engine, and how often ours fits into each peer's time."""
    for name, measure_row in rows(1):
        engines = measure_row()["engines"]
        ours = engines[f"fastlstm push {BLOCK}"]["sample_us"]
        print(name)
        for engine, found in engines.items():
            note = f"{found['sample_us']:8.4f} us  {found['sample_us'] / ours:6.2f}" if "sample_us" in found else ""
            print(f"  {engine:32} {note or found['missing']}")


if __name__ == "__main__":
    main()
