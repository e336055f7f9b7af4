"""The addresses of kernels in this process; a kernel that is not loaded yet is found or compiled."""

from __future__ import annotations

from fastlstm.kernels.kernel import Kernel, known, listings
from fastlstm.target import Target

__all__ = ["address"]


def address(kernel: Kernel, target: Target) -> int:
    """Return the address in this process of a kernel compiled for `target`.

    Raises
    ------
    FastLSTMError
        If Numba cannot compile it, or is needed and not installed; or if the system runs no code from memory.
    """
    found = known.get((kernel, target.code)) if not listings else None
    if found is None:
        from fastlstm.kernels.compiler import load  # would be most of the imports at start

        found = load(kernel, target)
    return found
