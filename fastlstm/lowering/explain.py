"""Why a plan is as it is: what bounds each step, and how threads divide the work.

A step is bound by its arithmetic, or by reading its weights from the smallest cache that holds them, which every time
step has to do again. The rates are those of recent processors, in cycles of a core; they tell which of the two bounds a
step, not how long it takes, which `bench/` measures.
"""

from __future__ import annotations

from typing import Any

from fastlstm.program.program import Instruction
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target

__all__ = ["as_data", "bound", "division"]

MULTIPLY_ADDS = 2  # vectors per cycle
CACHE_BYTES = {"L1": 128, "L2": 32, "L3": 24, "memory": 10}  # per cycle


def bound(step: Instruction, rows: int, workers: int, target: Target) -> str:
    """Return what bounds a step of `rows` rows, "" if it multiplies nothing."""
    if not step.macs:
        return ""
    share = step.weight_bytes / workers
    sizes = {"L1": target.l1_bytes, "L2": target.l2_bytes, "L3": target.l3_bytes}
    level = next((name for name, size in sizes.items() if share <= size), "memory")
    arithmetic = step.macs * rows / (MULTIPLY_ADDS * target.lanes)
    if arithmetic >= step.weight_bytes / CACHE_BYTES[level]:
        return "arithmetic"
    return f"weights from {level}, {step.weight_bytes / 1024:,.0f} KiB a step"


def division(segment: Segment, batch: int) -> str:
    """Return how threads divide a batch of `rows` rows."""
    workers = segment.workers(batch)
    if workers == 1:
        return "one thread" + (": a time step is too short to share" if segment.threads > 1 else "")
    if segment.splits(batch):
        return f"{workers} threads, each with its rows of the batch, which divide better than hidden units"
    return f"{workers} threads share the hidden units of every step"


def _rows(step: Instruction, stage_rows: int, batch: int) -> int:
    """Return how many rows use a step's weights at once: all of a block's if it does not depend on the step before."""
    return stage_rows if step.kernel.startswith("linear.") else batch


def as_data(segment: Segment, batch: int, target: Target) -> list[dict[str, Any]]:
    """Return the rows of a segment's plan, each with its bound."""
    workers = segment.workers(batch)
    steps = [(stage, step) for stage in segment.program.stages for step in stage.instructions]
    return [
        row | {"bound": bound(step, _rows(step, stage.rows, batch), workers, target)}
        for row, (stage, step) in zip(segment.as_data(), steps, strict=True)
    ]
