"""The process of one wheel in ``python -m bench.compare A.whl B.whl``: it loads models and times calls as it is told.

Of the benchmark it knows nothing: models and inputs are files, and fastlstm is used through its public functions alone,
so that any version can be told the same. ``python -m bench.wheel_worker`` answers each line of JSON from stdin with one
on stdout; with a description as its argument it loads that model, runs it once, and says how long that took.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np

Call = Callable[[], Any]


def prepare(told: dict[str, Any]) -> Call:
    """Return a call of the model that `told` describes: "kind" is "call", "step" (of a stream) or "states"."""
    import fastlstm

    model = fastlstm.load(told["model"], threads=told["threads"], **told["options"])
    x = np.load(told["x"])
    if told["kind"] == "step":
        step, frame = model.stream(batch=x.shape[1]).step, x[0, 0] if x.shape[1] == 1 else x[0]
        return lambda: step(frame)
    if told["kind"] == "call":
        return lambda: model(x)
    feed = {"x": x} | {spec.name: np.zeros([int(n) for n in spec.shape], np.float32) for spec in model.inputs[1:]}
    pairs = list(zip(list(feed)[1:], [spec.name for spec in model.outputs[1:]], strict=True))

    def call() -> Any:
        results = model.run(feed)
        for given, found in pairs:
            feed[given] = results[found]
        return results

    return call


def start(told: dict[str, Any]) -> dict[str, float]:
    """Return the seconds from importing fastlstm to the first result; NumPy's import is not counted."""
    begin = time.perf_counter()
    prepare(told)()
    return {"seconds": time.perf_counter() - begin}


def opened(told: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Return the call, a hash of its first result, and how many calls last `told["sample"]` seconds."""
    call = prepare(told)
    bits, calls = fingerprint(call()), 1
    while True:
        elapsed = timed(call, calls)
        if elapsed >= told["sample"] / 4:
            return call, {"bits": bits, "calls": max(1, round(calls * told["sample"] / elapsed))}
        calls *= 4


def timed(call: Call, calls: int) -> float:
    """Return the seconds that so many calls take."""
    begin = time.perf_counter()
    for _ in repeat(None, calls):
        call()
    return time.perf_counter() - begin


def fingerprint(found: Any) -> str:
    """Return a hash of an array, or of several in a tuple or dict."""
    arrays = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def serve() -> None:
    """Answer "open" (a model, instead of the one before) and "time" (so many calls, after a quarter unmeasured)."""
    call: Call | None = None
    for line in sys.stdin:
        told = json.loads(line)
        answer: dict[str, Any]
        if told["do"] == "open":
            call = None
            gc.enable()
            gc.collect()
            call, answer = opened(told)
            gc.disable()
        else:
            assert call is not None
            timed(call, max(1, told["calls"] // 4))
            answer = {"seconds": timed(call, told["calls"]) / told["calls"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(start(json.loads(sys.argv[1]))))
    else:
        serve()
