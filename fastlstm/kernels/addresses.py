"""Where kernels stand in this process; one that is not there yet is found or compiled."""

from __future__ import annotations

from fastlstm.kernels.kernel import Kernel, known, listings
from fastlstm.target import Target

__all__ = ["address"]


def address(kernel: Kernel, target: Target) -> int:
    """Return where a kernel stands in this process, compiled for `target`.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it, or is needed and not installed; or if the system runs no code from memory.
    """
    found = known.get((kernel, target.code)) if not listings else None
    if found is None:
        from fastlstm.kernels.compiler import load  # most of what a start would import

        found = load(kernel, target)
    return found
