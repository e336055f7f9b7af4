"""The machine's own limits, measured in the same run, and the least time that a cell can take under them.

Kernels in the project's own SIMD: chains of fused multiply-adds that touch no memory, sums over a buffer that
only reads, and sigmoid and tanh over a buffer that stays in the L1 cache. The bound of a cell is that of the two
phases of a recurrent layer, one after the other: the input projection (a product over all time steps at once)
and the recurrence (a product that every step has to wait for, which reads the recurrent weights anew each step).
Each takes the longer of

    arithmetic:  2 * multiply-adds / FMA peak, and for the recurrence its activations at their measured rate
    bytes:       weights / read bandwidth of each cache, for that part which no smaller cache has room for

Activations use the same units as multiply-adds. Theirs is the rate of the project's own functions (within 2 ulp)
side by side, so that none waits for another; other ones may be faster. The update of the state is not counted,
nor are the waits of one step for another, nor what a call costs in Python.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.cases import Case
from fastlstm.graph import RECURRENT_OPS
from fastlstm.kernels import loader
from fastlstm.kernels.activations import sigmoid, tanh
from fastlstm.kernels.emit import emit
from fastlstm.kernels.image import image_of
from fastlstm.kernels.pipeline import template
from fastlstm.kernels.simd import fma, vload, vstore
from fastlstm.target.machine import detect

__all__ = ["bound", "measure_roofline"]

LANES = detect().lanes
CHAINS = 12  # enough for two FMA units with a latency of 4 or 5 cycles, and they fit 16 registers
STREAMS = 8
STRIDE = 4 * LANES * STREAMS
REPEATS = 5
BESIDE = 4 * LANES  # of an activation side by side: four vectors
ACTIVATED = 64  # such groups in the buffer: 16 KiB where a vector has 16 lanes
ACTIVATIONS = {"LSTM": (3, 2), "GRU": (2, 1), "RNN": (0, 1)}  # sigmoids and tanhs of a unit's step
MEMORY_BYTES = 128 << 20  # a thread's buffer that no cache holds
READ_BYTES = 512 << 20  # read in one measurement


@cache
def _compiled(function: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """Return `function` compiled as kernels are, to be called with the interpreter lock given away."""
    symbol = f"roofline{function.__name__}"
    image = image_of(emit(template(function, symbol), symbol, detect()), symbol)
    return ctypes.CFUNCTYPE(*[ctypes.c_int64] * 4)(loader.place(image.code) + image.entry)


def _multiply_add(steps: int, address: int, _: int) -> int:
    """Run `steps` rounds of 12 independent fused multiply-adds on the 13 vectors at `address`."""
    v = 4 * LANES
    x = vload(LANES, address + 12 * v)  # the chains start apart: LLVM merges equal ones
    a, b, c = vload(LANES, address), vload(LANES, address + v), vload(LANES, address + 2 * v)
    d, e, f = vload(LANES, address + 3 * v), vload(LANES, address + 4 * v), vload(LANES, address + 5 * v)
    g, h, i = vload(LANES, address + 6 * v), vload(LANES, address + 7 * v), vload(LANES, address + 8 * v)
    j, k, l = vload(LANES, address + 9 * v), vload(LANES, address + 10 * v), vload(LANES, address + 11 * v)  # noqa: E741
    for _ in range(steps):
        a, b, c, d = fma(x, x, a), fma(x, x, b), fma(x, x, c), fma(x, x, d)
        e, f, g, h = fma(x, x, e), fma(x, x, f), fma(x, x, g), fma(x, x, h)
        i, j, k, l = fma(x, x, i), fma(x, x, j), fma(x, x, k), fma(x, x, l)  # noqa: E741
    vstore(address, a + b + c + d + e + f + g + h + i + j + k + l)
    return 0


def _read(passes: int, address: int, count: int) -> int:
    """Read `count` bytes (a multiple of `STRIDE`) `passes` times, in eight sums; the result goes behind them."""
    out = address + count
    a = b = c = d = e = f = g = h = vload(LANES, out)
    v = 4 * LANES
    for _ in range(passes):
        for p in range(address, address + count, STRIDE):
            a, b = a + vload(LANES, p), b + vload(LANES, p + v)
            c, d = c + vload(LANES, p + 2 * v), d + vload(LANES, p + 3 * v)
            e, f = e + vload(LANES, p + 4 * v), f + vload(LANES, p + 5 * v)
            g, h = g + vload(LANES, p + 6 * v), h + vload(LANES, p + 7 * v)
    vstore(out, a + b + c + d + e + f + g + h)
    return 0


@cache
def _activation(function: Any) -> Callable[[int, int, int], int]:
    width = 4 * BESIDE

    def activations(passes: int, address: int, _: int) -> int:
        for _ in range(passes):
            for p in range(address, address + ACTIVATED * width, width):
                vstore(p, function(vload(BESIDE, p)))
        return 0

    return _compiled(activations)


def _activation_rate(function: Any, threads: int) -> float:
    """Return how many of an activation `threads` threads compute in a nanosecond."""
    passes, run = 2_000, _activation(function)
    count = ACTIVATED * BESIDE
    buffers = [_aligned_ones(count) for _ in range(threads)]
    work = [lambda b=b: run(passes, b.ctypes.data, 0) for b in buffers]  # type: ignore[misc]
    return threads * count * passes / _together(work) / 1e9


def measure_roofline(threads: int) -> dict[str, Any]:
    """Return the FMA peak and the read bandwidths with `threads` threads at once.

    Returns
    -------
    dict
        ``gflops``; ``sigmoids`` and ``tanhs`` a nanosecond; ``levels``: a list of {name, bytes (capacity for one
        thread, None for memory), gbps}.
    """
    steps = 1_000_000
    flops = 2 * CHAINS * LANES * steps
    work, run = (
        [_aligned_ones((CHAINS + 1) * LANES) * np.float32(1e-3) for _ in range(threads)],
        _compiled(_multiply_add),
    )
    seconds = _together([lambda a=a: run(steps, a.ctypes.data, 0) for a in work])  # type: ignore[misc]
    return {
        "gflops": threads * flops / seconds / 1e9,
        "sigmoids": _activation_rate(sigmoid, threads),
        "tanhs": _activation_rate(tanh, threads),
        "levels": [_level(*c, threads) for c in _capacities()],
    }


def bound(case: Case, threads: int, roofline: dict[str, Any]) -> dict[str, float]:
    """Return the least microseconds of a call of `case`: ``projection``, ``recurrence``, and ``total``.

    ``activations`` are the part of the recurrence's arithmetic that these are.
    """
    sigmoids, tanhs = ACTIVATIONS[case.op]
    activations = case.steps * case.H * (sigmoids / roofline["sigmoids"] + tanhs / roofline["tanhs"]) / 1e9
    gates, steps = RECURRENT_OPS[case.op] * case.H, max(case.lengths, default=case.T)
    projection = recurrence = 0.0
    for inputs in case.layer_inputs():
        own = gates * inputs
        recurrent = gates * case.output_size + case.projection * case.H
        projection += _phase(case.steps * own, own, 1, own + recurrent, threads, roofline, 0.0)
        held = recurrent if steps > 1 else own + recurrent
        recurrence += _phase(case.steps * recurrent, recurrent, steps, held, threads, roofline, activations)
    projection, recurrence = case.directions * projection * 1e6, case.directions * recurrence * 1e6
    activations *= len(case.layer_inputs()) * case.directions * 1e6
    total = projection + recurrence
    return {"projection": projection, "recurrence": recurrence, "activations": activations, "total": total}


def _phase(
    multiply_adds: int,
    weights: int,
    reads: int,
    held: int,
    threads: int,
    roofline: dict[str, Any],
    activations: float,
) -> float:
    """Return the seconds of a product: `weights` numbers read `reads` times while `held` are read in turn.

    `activations` are the seconds that those behind it take. What a cache holds of what is read in turn need not
    come from the next: at best that is as much as the cache has room for.
    """
    arithmetic = 2 * multiply_adds / (roofline["gflops"] * 1e9) + activations
    read, kept, seconds = 4 * held / threads, 0, arithmetic
    for level in roofline["levels"]:
        missing = max(0.0, read - kept) / read if read else 0.0
        seconds = max(seconds, missing * 4 * weights * reads / (level["gbps"] * 1e9))
        kept = level["bytes"] or 0
    return seconds


def _capacities() -> list[tuple[str, int | None]]:
    machine = detect()
    return [("L1", machine.l1_bytes), ("L2", machine.l2_bytes), ("L3", machine.l3_bytes), ("memory", None)]


def _level(name: str, capacity: int | None, threads: int) -> dict[str, Any]:
    # A buffer of half the capacity stays there; a shared L3 is divided among the threads. A few MiB of it
    # are read, as much as weights are: all of it would measure the misses of the address translation too.
    share = 1 if name in ("L1", "L2") else threads
    size = MEMORY_BYTES if capacity is None else min(capacity // (2 * share), 4 << 20)
    count = size // STRIDE * STRIDE
    passes, run = READ_BYTES // count, _compiled(_read)
    buffers = [_aligned_ones(count // 4 + LANES) for _ in range(threads)]
    work = [lambda b=b: run(passes, b.ctypes.data, count) for b in buffers]  # type: ignore[misc]
    gbps = threads * count * passes / _together(work) / 1e9
    return {"name": name, "bytes": None if capacity is None else capacity // share, "gbps": gbps}


def _aligned_ones(count: int) -> npt.NDArray[np.float32]:
    """Return `count` ones that start a cache line: a load across two lines counts twice.

    Not zeros: pages of zeros that were never written are one and the same page, and so always in L1.
    """
    floats = np.ones(count + 16, np.float32)
    start = -floats.ctypes.data % 64 // 4
    return floats[start : start + count]


def _together(work: list[Callable[[], object]]) -> float:
    """Run each callable in a thread of its own at once; return the shortest mean time of `REPEATS`."""
    work[0]()  # compiles, and touches the pages
    times = [[0.0] * len(work) for _ in range(REPEATS)]
    barrier = threading.Barrier(len(work))

    def run(worker: int) -> None:
        work[worker]()
        for times_now in times:
            barrier.wait()
            start = time.perf_counter()
            work[worker]()
            times_now[worker] = time.perf_counter() - start

    workers = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return min(sum(t) / len(t) for t in times)
