"""Processes from the start of Python to the first result, and the memory they hold then (see `bench.start_worker`).

onnxruntime loads a model as ``.onnx``; fastlstm does, and as ``.fastlstm``, with all kernels compiled before. Processes
of all kinds take turns. Modules are compiled before too, as those of an installed package are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case

CASES = (Case("sequence", "LSTM", 100, 1, 32, 64), Case("sequence", "LSTM", 10, 1, 512, 1024, layers=2))
"""A layer of 100 KB, and two of 56 MB."""

ROUNDS = 7
KINDS = {
    "fastlstm, .fastlstm": ("fastlstm", ".fastlstm"),
    "fastlstm, .onnx": ("fastlstm", ".onnx"),
    "onnxruntime, .onnx": ("onnxruntime", ".onnx"),
}


def rows(threads: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the rows of this section, which are those of one thread: their names and what measures them."""
    if threads != 1 or not Path("/proc/self/status").exists():
        return []
    return [(f"from the start of Python: {case.name}", lambda case=case: measured(case, ROUNDS)) for case in CASES]


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """Return the medians of each kind of process over some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        _write(case, Path(folder))
        return {"name": f"from the start of Python: {case.name}", "engines": processes(Path(folder), rounds)}


def processes(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of each kind of process over a model.onnx, a model.fastlstm and an inputs.npz in a folder."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/modules"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for number in range(rounds + 1):  # the first compiles, and reads files into the system's cache
        order = list(KINDS)[number % len(KINDS) :] + list(KINDS)[: number % len(KINDS)]
        for kind in order:
            engine, ending = KINDS[kind]
            command = [
                sys.executable,
                "-m",
                "bench.start_worker",
                engine,
                f"{folder}/model{ending}",
                f"{folder}/inputs.npz",
            ]
            done = subprocess.run([*command, repr(time.time())], check=True, stdout=subprocess.PIPE, env=environment)
            if number:
                found[kind].append(json.loads(done.stdout))
    return {
        kind: {key: float(np.median([one[key] for one in each])) for key in each[0]} for kind, each in found.items()
    }


def _write(case: Case, folder: Path) -> None:
    from bench.onnx_models import recurrent_model
    from fastlstm import from_onnx

    proto = recurrent_model(case)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    from_onnx(proto).save(folder / "model.fastlstm")
    np.savez(folder / "inputs.npz", x=case.x())
