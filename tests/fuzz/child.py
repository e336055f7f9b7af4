"""Loads and runs mutated files, one after the other, in a process with bounded memory; says on stdout how it goes.

Lines are ``load SEED``, ``run SEED`` when these begin, and ``done SEED KIND TEXT`` when a seed is through, KIND
being ``model``, ``refused`` or what is wrong.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm.errors import FastLSTMError

from . import mutate

MOST_BYTES = 2 << 30
MOST_LOADED = 600 << 20
"""Resident memory of a load, less what there was before it: a folded tensor may have some of it, a blow-up has more."""

LARGEST_INPUT = 1 << 16


def limit_memory() -> None:
    """Let the process have `MOST_BYTES` of memory of its own, no more."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def peak(reset: bool = False) -> int:
    """Return the most resident memory since the last reset, 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def attempt(seed: int, files: Sequence[Path], folder: Path, say: Any = lambda _text: None) -> tuple[str, str]:
    """Load the file of a seed and run what comes of it; return the kind of the result and a text."""
    name, content = mutate.draw(seed, files)
    path = folder / name
    path.write_bytes(content)
    say(f"load {seed}")
    before = peak(reset=True)
    kind, text, model = _judged(lambda: fastlstm.load(path))
    if before and peak() - before > MOST_LOADED and kind in ("model", "refused"):
        return "memory", f"{(peak() - before) >> 20} MiB to load {name}"
    if kind != "model" or model is None:
        return kind, text
    inputs = _inputs(model)
    if inputs is None:
        return kind, text
    say(f"run {seed}")
    kind, text, _ = _judged(lambda: model.run(inputs))
    return ("model", text) if kind == "refused" else (kind, text)


def judged(content: bytes, name: str, folder: Path) -> tuple[str, str]:
    """Load a file; return the kind of the result and a text."""
    path = folder / name
    path.write_bytes(content)
    return _judged(lambda: fastlstm.load(path))[:2]


def _judged(call: Any) -> tuple[str, str, Any]:
    try:
        return "model", "", call()
    except FastLSTMError as error:
        return "refused", f"{type(error).__name__}: {error}", None
    except Exception as error:  # noqa: BLE001 - any other is what is looked for
        at = traceback.extract_tb(error.__traceback__)[-1]
        ours = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "fastlstm" in f.filename or "converters" in f.filename
        ]
        at = ours[-1] if ours else at
        return "error", f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:120]}", None


def _inputs(model: Any) -> dict[str, Any] | None:
    """Return inputs of a small size that fit, None if there are none such."""
    sizes: dict[str, int] = {}
    inputs: dict[str, Any] = {}
    for spec in model.inputs:
        if spec.dtype == "sequence" or "..." in spec.shape:
            return None
        shape = [d if isinstance(d, int) else sizes.setdefault(d, len(sizes) % 3 + 2) for d in spec.shape]
        if np.prod(shape, dtype=float) > LARGEST_INPUT or len(shape) > 8:
            return None
        inputs[spec.name] = np.ones(shape, spec.dtype or "float32")
    return inputs


def main(folder: str, first: str, count: str, step: str) -> None:
    """Go through `count` seeds from `first` on, every `step`-th."""
    limit_memory()
    files = sorted((Path(folder) / "good").iterdir())
    own = Path(folder) / f"child{first}"
    own.mkdir(exist_ok=True)

    def say(text: str) -> None:
        sys.stdout.write(text.replace("\n", " ") + "\n")
        sys.stdout.flush()

    for seed in range(int(first), int(first) + int(count) * int(step), int(step)):
        kind, text = attempt(seed, files, own, say)
        say(f"done {seed} {kind} {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
