"""The examples of models without Python, built and run as their README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.cli.demo import DATA, read_series

EXAMPLES = Path(__file__).parents[2] / "examples" / "embedded"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def make(build: Path, *words: str) -> str:
    fastlstm_ = f'{sys.executable} -c "from fastlstm.cli import main; raise SystemExit(main())"'
    command = ["make", "-C", str(EXAMPLES), f"BUILD={build}", f"PYTHON={sys.executable}", f"FASTLSTM={fastlstm_}"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def forecasts() -> np.ndarray:
    """Return what the engine makes of the whole record, in spots."""
    x = (np.sqrt(read_series()[1].astype(np.float32)) / np.float32(10))[None, :, None]
    y = fastlstm.load(DATA / "forecaster.onnx")(x)[0, :, 0]
    return 100 * y.astype(np.float64) ** 2


def test_the_c_program_forecasts_what_python_does(build: Path) -> None:
    rows = [line.split(",") for line in make(build, "desktop").splitlines() if line.count(",") == 2]
    found = np.array([float(row[2]) for row in rows])
    np.testing.assert_allclose(found, forecasts()[-len(found) :], rtol=2e-6)  # the program squares in float32
    assert len(found) == 12


def test_the_bare_cortex_m4_forecasts_the_next_year(build: Path) -> None:
    lines = make(build, "cortex_m4").splitlines()
    assert sum("spots a year later" in line for line in lines) == 12
    assert any("bytes of state" in line for line in lines)


def test_the_audio_callback_is_clean_under_sanitizer_trap_and_valgrind(build: Path) -> None:
    assert make(build, "audio-checks").count("changes of model") == 3


def test_the_allocation_trap_springs(build: Path, tmp_path: Path) -> None:
    """A trap that never springs would show nothing."""
    (tmp_path / "main.cpp").write_text(
        "thread_local bool on_audio_thread = true;\nint main() { int *volatile x = new int(3); delete x; }\n"
    )
    program = tmp_path / "trapped"
    sources = [str(tmp_path / "main.cpp"), str(EXAMPLES / "audio" / "alone.cpp")]
    subprocess.run(["c++", "-std=c++17", *sources, "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=False, capture_output=True).returncode == 3
