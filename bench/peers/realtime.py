"""A real-time C++ LSTM with compile-time sizes, compiled where there is a compiler: see realtime.cpp beside this."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.cases import Case

Array = npt.NDArray[Any]

NAME = "C++ -ffast-math"
FLAGS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")

__all__ = ["FLAGS", "NAME", "runner"]


def runner(case: Case, dense: Array) -> Callable[[Array], Array] | None:
    """Return a call x [n, 1, 1] -> y [n] that keeps its state, None if there is no C++ compiler."""
    library = _library()
    if library is None:
        return None
    H = case.H
    (layer,) = case.weights()[0]
    rows = np.concatenate([layer["weight_hh"].T, layer["weight_ih"].T, (layer["bias_ih"] + layer["bias_hh"])[None]])
    weights = np.concatenate([rows.reshape(-1), dense.reshape(-1)]).astype(np.float32)
    state, out = np.zeros(2 * H, np.float32), np.empty(case.T, np.float32)
    function = library[f"run_{H}"]

    def call(x: Array) -> Array:
        addresses = (ctypes.c_void_p(array.ctypes.data) for array in (weights, state, x, out))
        function(*addresses, len(x))
        return out[: len(x)]

    return call


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled library, None if there is no compiler or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "realtime.so"
        source = Path(__file__).with_name("realtime.cpp")
        done = subprocess.run([compiler, *FLAGS, "-o", target, source], capture_output=True, check=False)
        return ctypes.CDLL(str(target)) if done.returncode == 0 else None
