"""Who speaks when: Silero's voice-activity detector over a WAV file, drawn as a picture.

    pip install fastlstm[onnx] && pip install --no-deps silero-vad
    python examples/voice_activity.py speech.wav speech.svg

The weights come from the package `silero-vad` (MIT licence). The model takes 512 new samples of 16 kHz behind the last
64 of those before, and keeps the state of its LSTM from chunk to chunk: a stream does that. One `push` runs a whole
recording in compiled code, with the same bits as chunk by chunk.
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from audio_blocks import Audio, read_wav

import fastlstm

RATE, NEW, BEFORE = 16_000, 512, 64
WEIGHTS = "data/silero_vad_openvino_16k.onnx"  # 16 kHz alone, sizes fixed: the others have branches for 8 kHz


def weights() -> Path:
    """Return where the installed package keeps the model."""
    found = find_spec("silero_vad")
    if found is None or found.origin is None:
        raise SystemExit("The weights come from a package: pip install --no-deps silero-vad")
    return Path(found.origin).parent / WEIGHTS


def chunks_of(audio: Audio) -> Audio:
    """Return what the model takes, [chunks, 1, 576]: each 512 samples behind the 64 before them."""
    count = -(-len(audio) // NEW)
    padded = np.pad(audio, (BEFORE, count * NEW - len(audio)))
    return np.lib.stride_tricks.sliding_window_view(padded, BEFORE + NEW)[::NEW][:, None]


def draw(audio: Audio, speech: Audio) -> str:
    """Return a picture of the loudness, and above it how likely it is that somebody speaks."""
    loudness = np.sqrt(np.mean(np.square(chunks_of(audio)[:, 0, BEFORE:]), axis=1))
    loudness /= max(float(loudness.max()), 1e-9)
    curves = []
    for colour, y in (("#888", 230 - 90 * loudness), ("#c33", 120 - 100 * speech)):
        points = " ".join(f"{800 * i / len(y):.1f},{value:.1f}" for i, value in enumerate(y))
        curves.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
    label = f'<text x="4" y="14">speech, and loudness below; {len(audio) / RATE:.1f} s</text>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 240">{label}{"".join(curves)}</svg>\n'


def main(source: Path, picture: Path) -> Audio:
    """Draw the picture, and return how likely speech is in each chunk, [chunks]."""
    audio, rate = read_wav(source)
    if rate != RATE:
        raise SystemExit(f"{source}: expected {RATE} samples a second; got {rate}.")
    stream = fastlstm.load(weights()).stream(state={"state": "stateN"})
    chunks = chunks_of(audio)
    stream.warmup(len(chunks))
    begin = time.perf_counter()
    speech = np.asarray(stream.push(chunks)).reshape(-1)
    whole = time.perf_counter() - begin
    stream.reset()
    times = []
    for number, chunk in enumerate(chunks):
        begin = time.perf_counter()
        assert stream.step(chunk).reshape(-1)[0] == speech[number]  # the same bits
        times.append(time.perf_counter() - begin)
    picture.write_text(draw(audio, speech))
    print(
        f"real-time factor {whole / (len(audio) / RATE):.5f}; a chunk of 32 ms: median {1e6 * np.median(times):.0f} µs"
    )
    return speech


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
