"""The example page: a real voice-activity detector, from the weights of its own package, hears speech in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from browser import page, served

import fastlstm

MAKE_PAGE = Path(__file__).parents[2] / "examples" / "embedded" / "web" / "make_page.py"
RATE, BLOCK, BEFORE = 16000, 512, 64


def recording(folder: Path) -> np.ndarray:
    """Write speech.wav, a second of silence before and after a spoken sentence; return its samples."""
    subprocess.run(
        ["espeak-ng", "-w", str(folder / "spoken.wav"), "Who is speaking here, one frame at a time?"], check=True
    )
    with wave.open(str(folder / "spoken.wav")) as file:
        rate, spoken = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
    times = np.arange(int(len(spoken) * RATE / rate)) * rate / RATE
    spoken = np.interp(times, np.arange(len(spoken)), spoken)
    quiet = np.zeros(RATE)
    samples = np.concatenate([quiet, spoken, quiet])
    samples = samples[: len(samples) // BLOCK * BLOCK].astype(np.int16)
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, RATE, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return samples.astype(np.float32) / 32768


def probabilities(samples: np.ndarray) -> np.ndarray:
    """Return what the engine in Python hears, a number a block."""
    weights = Path(str(find_spec("silero_vad").origin)).parent / "data" / "silero_vad_openvino_16k.onnx"
    stream = fastlstm.load(weights).stream(state={"state": "stateN"})
    padded = np.concatenate([np.zeros(BEFORE, np.float32), samples])
    windows = [padded[at : at + BEFORE + BLOCK][None] for at in range(0, len(samples), BLOCK)]
    return np.array([float(np.asarray(stream.step(window)).reshape(-1)[0]) for window in windows])


def test_the_page_hears_speech_and_silence_as_python_does(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    subprocess.run([sys.executable, str(MAKE_PAGE), str(folder)], check=True)
    wanted = probabilities(recording(folder))[-300:]
    with served(folder) as address:
        shown = re.search(
            r'data-speech="([^"]*)"', page(f"{address}/speech.html?play=speech.wav", tmp_path / "profile")
        )
    assert shown is not None
    found = np.array(shown[1].split(), np.float64)
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # no fma here: 1.4e-5 was seen, through the state
    second = RATE // BLOCK
    assert found[: second - 4].max() < 0.5
    assert found[second + 4 : -second].max() > 0.9
