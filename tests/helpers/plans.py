"""What a plan would run."""

from __future__ import annotations

import fastlstm
from fastlstm.runtime.segment import Segment

__all__ = ["kernels_of"]


def kernels_of(model: fastlstm.Model, batch: int) -> set[str]:
    """Return the names of the kernels that a model's segments run for so many batch rows."""
    parts = (part for part in model.plan.parts if isinstance(part, Segment))
    return {name for part in parts for name, _ in part.program.kernels(batch)}
