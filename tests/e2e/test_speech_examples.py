"""The examples with real speech models: right beside onnxruntime, and doing what they are for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest

from fastlstm.cli import main

pytestmark = pytest.mark.models

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = 16_000


@pytest.fixture(autouse=True)
def beside_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an example import another one, as it can where scripts are run."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def voice() -> np.ndarray:
    """Return a second of silence, two of vowels (pulses of a voice through three resonances), and one of silence."""
    time = np.arange(2 * RATE) / RATE
    pitch = 120 + 20 * np.sin(2 * np.pi * 3 * time)
    pulses = (np.diff(np.floor(np.cumsum(pitch / RATE)), prepend=0) > 0).astype(float)
    spoken = np.zeros_like(time)
    for frequency, width in ((700, 90), (1200, 110), (2600, 160)):
        tail = np.exp(-np.pi * width * time[:800]) * np.sin(2 * np.pi * frequency * time[:800])
        spoken += np.convolve(pulses, tail)[: len(time)]
    spoken *= np.clip(np.sin(2 * np.pi * 2 * time), 0, 1) ** 0.5
    return np.pad(0.4 * spoken / np.abs(spoken).max(), RATE)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    audio = voice() + 0.02 * np.random.default_rng(0).standard_normal(4 * RATE)
    example("audio_blocks").write_wav(tmp_path / "noisy.wav", audio, RATE)
    return tmp_path / "noisy.wav"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_voices_are_found_and_drawn(noisy: Path, tmp_path: Path) -> None:
    module = example("voice_activity")
    speech = module.main(noisy, tmp_path / "speech.svg")
    peer, state, expected = session(module.weights()), np.zeros((2, 1, 128), np.float32), []
    names = [item.name for item in peer.get_inputs()]
    for chunk in module.chunks_of(module.read_wav(noisy)[0]):
        given = {"input": chunk, "state": state, "sr": np.array(RATE)}
        probability, state = peer.run(None, {name: given[name] for name in names})
        expected.append(float(probability.reshape(-1)[0]))
    np.testing.assert_allclose(speech, expected, atol=1e-4)  # of a probability, after 125 steps of the LSTM
    assert max(expected[32:90]) > 10 * max(expected[:24])
    assert (tmp_path / "speech.svg").read_text().startswith("<svg")
    words = ["score", module.weights(), noisy, "-o", tmp_path / "out", "--stream", "--overlap", module.BEFORE]
    assert main([*map(str, words), "--state", "state=stateN"]) == 0
    found = pq.read_table(tmp_path / "out" / "part-00000000.parquet").column("output").to_pylist()
    assert np.array_equal(np.float32([value for block in found for value in block]), speech)


def test_the_server_of_many_streams_hears_each_client_by_itself(noisy: Path) -> None:
    module, heard = example("many_streams"), example("voice_activity")
    chunks = heard.chunks_of(heard.read_wav(noisy)[0])[:, 0]  # with the 64 samples before them
    engine, later = module.Speech(3), 20
    streams = np.array([engine.open() for _ in range(3)])[::-1]
    got = [engine.step(streams[:2], np.stack([chunks[t], chunks[t + later]])) for t in range(60)]
    peer = session(module.weights())
    for client in range(2):
        state = np.zeros((2, 1, 128), np.float32)
        for t in range(60):
            given = {"input": chunks[None, t + client * later], "state": state, "sr": np.array(RATE)}
            expected, state = peer.run(["output", "stateN"], given)
            np.testing.assert_allclose(got[t][client], expected[0, 0], atol=1e-4)


def test_dtln_takes_noise_out(noisy: Path, tmp_path: Path) -> None:
    module = example("denoise_dtln")
    clean = module.main(noisy, tmp_path / "clean.wav")
    audio, first, second = module.read_wav(noisy)[0], *map(session, module.weights())
    states, block, total = [np.zeros((1, 2, 128, 2), np.float32)] * 2, np.zeros(512, np.float32), np.zeros(512)
    expected = []
    for at in range(0, len(audio) - 127, 128):
        block = np.concatenate([block[128:], audio[at : at + 128]])
        spectrum = np.fft.rfft(block)
        size = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
        mask, states[0] = first.run(None, {"input_2": size, "input_3": states[0]})
        masked = np.fft.irfft(spectrum * mask.reshape(-1)).astype(np.float32).reshape(1, 1, -1)
        made, states[1] = second.run(None, {"input_4": masked, "input_5": states[1]})
        total = np.concatenate([total[128:], np.zeros(128)]) + made.reshape(-1)
        expected.append(total[:128])
    np.testing.assert_allclose(clean, np.concatenate(expected), atol=2e-4)  # samples in -1..1, 500 steps of two LSTMs
    assert np.std(clean[4000:14000]) < 0.2 * np.std(audio[4000:14000])


def test_nsnet2_takes_noise_out(noisy: Path, tmp_path: Path) -> None:
    module = example("denoise_nsnet2")
    clean = module.main(noisy, tmp_path / "clean.wav")
    audio, peer = module.read_wav(noisy)[0], session(module.weights())
    spectra = module.spectra_of(audio)
    features = np.log10(np.maximum(np.square(np.abs(spectra)), 1e-12)).astype(np.float32)
    (gains,) = peer.run(None, {"input": features[None]})
    expected = module.audio_of(spectra * np.clip(gains[0], module.LEAST_GAIN, 1))[: len(audio)]
    np.testing.assert_allclose(clean, expected, atol=1e-4)
    assert np.std(clean[4000:14000]) < 0.2 * np.std(audio[4000:14000])
    assert np.corrcoef(clean, voice())[0, 1] > 0.8
