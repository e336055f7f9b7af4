"""Which tests run on other machines, and how: those that need neither a framework nor a compiler of C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["QUICK", "REQUIREMENTS", "TESTS", "run"]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100")
QUICK = ("tests/engine/test_known_bits.py", "tests/engine/test_imports.py")
_KERNELS = ("activations", "small", "integer_tile", "cache")
_ENGINE = ("stream", "stream_calls", "pool", "team", "forking", "native", "entries", "precision", "masks", "hop",
           "programs", "nan")  # fmt: skip
TESTS = (
    *QUICK,
    *(f"tests/kernels/test_{name}.py" for name in _KERNELS),
    *(f"tests/engine/test_{name}.py" for name in _ENGINE),
)
"""Kernels, bits, streams, pools, threads, imports."""


def run(python: Path | str, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> bool:
    """Run tests with a Python outside the checkout, so that what is installed there is tested; whether all passed."""
    found = [str(ROOT / word) if word.startswith("tests/") else word for word in words]
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    command = [str(python), "-m", "pytest", *settings, *found]
    sys.stdout.flush()
    return subprocess.run(command, env=environment, cwd=folder).returncode == 0
