"""Linking WebAssembly objects into a module that a browser loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from fastlstm.errors import DependencyError, FastLSTMError

__all__ = ["link", "linker"]

STACK_BYTES = 64 << 10
NAMES = ("wasm-ld", *(f"wasm-ld-{version}" for version in range(30, 13, -1)))
"""LLVM's linker; in Debian's versioned packages its name carries the version."""


def linker() -> list[str] | None:
    """Return the command of a WebAssembly linker, on the path or from the package `ziglang`; None if there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return [found]
    return [sys.executable, "-m", "ziglang", "wasm-ld"] if find_spec("ziglang") else None


def link(objects: Mapping[str, bytes], exports: Sequence[str]) -> bytes:
    """Return the module linked from objects.

    It imports nothing and exports `exports`, its ``memory``, and ``__heap_base``, from where memory belongs to the
    caller.

    Raises
    ------
    DependencyError
        If there is no linker.
    FastLSTMError
        If linking fails; the message quotes the linker.
    """
    command = linker()
    if command is None:
        raise DependencyError(
            "WebAssembly is linked by 'wasm-ld', which was not found: install LLVM's linker (Debian: apt-get install "
            "lld), or pip install 'fastlstm[wasm]', which brings one."
        )
    with tempfile.TemporaryDirectory(prefix="fastlstm-") as folder:
        module = Path(folder, "module.wasm")
        for name, data in objects.items():
            Path(folder, name).write_bytes(data)
        options = ["--no-entry", "--strip-all", "--stack-first", "-z", f"stack-size={STACK_BYTES}"]
        names = [f"--export={name}" for name in (*exports, "__heap_base")]
        done = subprocess.run(
            [*command, *options, *names, *objects, "-o", module.name],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise FastLSTMError(f"The WebAssembly module was not linked: {done.stderr.strip()}")
        return module.read_bytes()
