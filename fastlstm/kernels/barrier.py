"""The barrier at which workers meet, and how long one waits.

Two words of memory, each on a cache line of its own: how many have come, and how often all have. The last to
come resets the count and moves the other word on. Who waits spins a bounded time, then gives the processor away
between looks: on an oversubscribed machine the one waited for may need it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm.kernels.pipeline import inlined
from fastlstm.simd import I32, I64, pointer

__all__ = ["BARRIER_WORDS", "pause", "wait", "yield_processor"]

ROUND = 8  # words from the count to the round: 64 bytes, one cache line
BARRIER_WORDS = 16
SPINS = 2000  # looks before the processor is given away: some 20 to 50 microseconds


@intrinsic
def add_atomic(typingctx: Any, address: Any, value: Any) -> Any:
    """add_atomic(address, n) adds to the word there and returns what it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_atomic(typingctx: Any, address: Any) -> Any:
    """load_atomic(address) -> the word there, with everything written before it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_atomic(typingctx: Any, address: Any, value: Any) -> Any:
    """store_atomic(address, n) writes the word, after everything written before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], pointer(builder, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """pause() tells the processor that this is a waiting loop."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if builder.module.triple.startswith("x86_64"):
            name = "llvm.x86.sse2.pause"
            module = builder.module
            function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), []), name)
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_processor(typingctx: Any) -> Any:
    """yield_processor() lets another thread run (POSIX; elsewhere it only pauses)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if "windows" not in builder.module.triple:
            module = builder.module
            function = module.globals.get("sched_yield") or ir.Function(module, ir.FunctionType(I32, []), "sched_yield")
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@inlined
def wait(barrier, workers):
    """Return when `workers` workers have called this."""
    turn = load_atomic(barrier + 8 * ROUND)
    if add_atomic(barrier, 1) == workers - 1:
        store_atomic(barrier, 0)
        store_atomic(barrier + 8 * ROUND, turn + 1)
        return
    spins = 0
    while load_atomic(barrier + 8 * ROUND) == turn:
        spins += 1
        if spins > SPINS:
            yield_processor()
        else:
            pause()
