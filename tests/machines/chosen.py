"""Which tests run on other machines, and how: those that need neither a framework nor a compiler of C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["QUICK", "REQUIREMENTS", "ROOT", "TESTS", "command"]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100")
QUICK = ("tests/engine/conformance/test_known_bits.py",)
_KERNELS = ("activations", "small", "integer_tile", "cache")
_ENGINE = (
    "test_imports", "runtime/test_team", "runtime/test_forking", "runtime/test_native", "lowering/test_programs",
    "lowering/test_nan",
    "segments/test_entries", "segments/test_masks", "streaming/test_stream", "streaming/test_stream_calls",
    "streaming/test_pool", "streaming/test_turns", "streaming/test_hop",
)  # fmt: skip
TESTS = (
    *QUICK,
    *(f"tests/kernels/test_{name}.py" for name in _KERNELS),
    *(f"tests/engine/{name}.py" for name in _ENGINE),
)
"""Kernels, bits, streams, pools, threads, imports."""


def command(python: Path | str, words: Sequence[str], processes: int) -> list[str]:
    """Return the command that runs tests, started outside the checkout, so that what is installed there is tested."""
    found = [str(ROOT / word) if word.startswith("tests/") else word for word in words]
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    several = ["-n", str(processes)] if processes > 1 else ["-p", "no:xdist"]
    return [str(python), "-m", "pytest", *settings, *several, *found]
