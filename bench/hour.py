"""An hour of audio through a stream, block by block: does anything grow, and how late is the slowest block?

LSTM(1 -> 20) and a dense layer at 48,000 samples a second, in blocks of 64: 2.7 million calls. After the first minute
the process may not grow by a page, nor the C library's heap by a byte; in a last minute tracemalloc looks on.

``python -m bench.hour`` takes about a quarter of a minute (``--seconds`` for less).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from bench.cases import Case
from bench.onnx_models import recurrent_dense_model

RATE, BLOCK, UNITS = 48_000, 64, 20
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # of mallinfo2


class _HeapInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS.split())


@cache
def _mallinfo() -> Any:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _HeapInfo
    return function


def heap_bytes() -> int | None:
    """Return the bytes that the C library has handed out, None where it does not say."""
    function = _mallinfo()
    if function is None:
        return None
    info = function()
    return int(info.uordblks + info.hblkhd)


def pages() -> int | None:
    """Return the pages of memory that the process holds, None where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) if path.exists() else None


def run(seconds: int, block: int) -> dict[str, Any]:
    """Play so many seconds; return what was seen."""
    case = Case("stream", "LSTM", block, 1, 1, UNITS)
    dense = np.random.default_rng(0).uniform(-0.3, 0.3, (UNITS, 1)).astype(np.float32)
    stream = fastlstm.from_onnx(recurrent_dense_model(case, dense)).stream()
    stream.warmup(block)
    rng = np.random.default_rng(1)
    audio = [rng.normal(scale=0.3, size=(block, 1)).astype(np.float32) for _ in range(64)]
    out = np.empty((block, 1), np.float32)
    minute = 60 * RATE // block
    slowest, clock, push = 0, time.perf_counter_ns, stream.push

    def play(blocks: int) -> None:
        nonlocal slowest
        for number in range(blocks):
            begin = clock()
            push(audio[number & 63], out)
            took = clock() - begin
            if took > slowest:
                slowest = took

    gc.collect()
    play(minute)
    play(minute // 60)
    pages(), heap_bytes()  # once before they count
    slowest, before = 0, (pages(), heap_bytes())
    begin = time.perf_counter()
    play((seconds - 60) * RATE // block)
    spent = time.perf_counter() - begin
    after = pages(), heap_bytes()
    found = {
        "seconds of audio": seconds,
        "block": block,
        "real-time factor": spent / (seconds - 60),
        "us a sample": 1e6 * spent / ((seconds - 60) * RATE),
        "slowest block, us": slowest / 1e3,
        "pages grown": None if before[0] is None or after[0] is None else after[0] - before[0],
        "heap bytes grown": None if before[1] is None or after[1] is None else after[1] - before[1],
    }
    tracemalloc.start()
    play(100)
    traced = tracemalloc.get_traced_memory()[0]
    play(minute)
    found["bytes that tracemalloc sees retained"] = tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    return found


def main() -> int:
    """Print what was seen; the status says whether nothing grew."""
    parser = argparse.ArgumentParser("python -m bench.hour", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600, help="of audio, at least 61 (%(default)s)")
    parser.add_argument("--block", type=int, default=BLOCK, help="samples (%(default)s)")
    arguments = parser.parse_args()
    found = run(max(61, arguments.seconds), arguments.block)
    for name, value in found.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")
    return int(any((found[name] or 0) > 0 for name in ("pages grown", "heap bytes grown")))


if __name__ == "__main__":
    sys.exit(main())
