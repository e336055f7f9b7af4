"""Every recurrent kernel compiled for a plainer processor than this one: right numbers, the same bits however run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.target import machine

AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,+fma"
TARGETS = {"SSE": ("x86-64", "+sse,+sse2", 4), "AVX2": ("haswell", AVX2, 8)}

SCRIPT = """
import numpy as np
import fastlstm
from fastlstm.target import machine
from fastlstm.operators import reference
from fastlstm.runtime import bound, segment

segment.WORTH_A_WORKER, bound.WORTH_A_TEAM = 1, 0  # a team for the smallest call
rng = np.random.default_rng(0)
T, B, F, H, P = 7, 5, 3, 45, 21  # some whole panels and a part of one, more rows than a tile has
both = ["forward", "reverse"]

def weight(*shape):
    return rng.uniform(-0.4, 0.4, (2, *shape)).astype(np.float32)

kinds = {
    "LSTM": (fastlstm.LSTM, reference.lstm, 4, {}),
    "projected": (fastlstm.LSTM, reference.lstm, 4, {"w_hr": weight(P, H)}),
    "GRU": (fastlstm.GRU, reference.gru, 3, {"reset_after": 1}),
    "GRU before": (fastlstm.GRU, reference.gru, 3, {"reset_after": 0}),
    "RNN": (fastlstm.RNN, reference.rnn, 1, {}),
}
x, lengths = rng.standard_normal((T, B, F)).astype(np.float32), np.array([7, 3, 0, 5, 7])
for name, (layer, exact, gates, more) in kinds.items():
    size = P if "w_hr" in more else H
    w = weight(gates * H, F), weight(gates * H, size), weight((4 if gates == 3 else gates) * H)
    ours = {"weight_hr" if key == "w_hr" else key: value for key, value in more.items()}
    alone, shared = (layer(*w, directions=both, threads=n, **ours) for n in (1, 2))
    y, wanted = alone(x, lengths=lengths)[0], exact(x, *w, lengths, directions=both, **more)[0]
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(shared(x, lengths=lengths)[0], y, err_msg=name)
    for b in range(B):
        row = slice(b, b + 1)
        np.testing.assert_array_equal(alone(x[:, row], lengths=lengths[row])[0], y[:, row], err_msg=name)
    bad = x.copy()
    bad[2, 3] = np.nan
    z = alone(bad, lengths=lengths)[0]
    np.testing.assert_array_equal(np.delete(z, 3, axis=1), np.delete(y, 3, axis=1), err_msg=name)
    np.testing.assert_array_equal(z[:2, 3, :size], y[:2, 3, :size], err_msg=name)
    assert np.isnan(z[2:5, 3, :size]).all() and np.isnan(z[:3, 3, size:]).all(), name
print(machine.detect().lanes)
"""


def narrower() -> list[str]:
    """Return the targets with shorter vectors than this machine's, whose code it runs."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [name for name, (_, _, lanes) in TARGETS.items() if x86 and lanes < machine.detect().lanes]


@pytest.mark.parametrize("name", narrower())
def test_recurrent_kernels_on_plainer_processors(name: str, tmp_path: Path) -> None:
    cpu, features, lanes = TARGETS[name]
    narrow = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "FASTLSTM_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | narrow,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(lanes)]
