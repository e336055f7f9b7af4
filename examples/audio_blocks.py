"""A guitar amplifier as a plug-in runs it: a WAV file in blocks, against the offline result.

A plug-in gets 16 to 256 samples at a time and must hand back as many before the next block is due. The
state of the model, an LSTM, lives in the stream, so the blocks join without a seam: the bits are those of
one run over the whole file. The real-time factor is the time spent over the time played; it must stay well
below 1.

    python examples/audio_blocks.py [INPUT.wav [MODEL]]

Without a file, a plucked chord is made. Without a model, a small one is trained for some seconds to imitate a
soft clipper with a slow bias; any model from one sample to one sample will do.
"""

from __future__ import annotations

import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

import fastlstm

Audio = npt.NDArray[np.float32]
RATE = 48_000
BLOCKS = (16, 32, 64, 128, 256)


def pluck_chord(seconds: float) -> Audio:
    """Return an E major chord of plucked strings (Karplus and Strong, 1983), [samples]."""
    rng = np.random.default_rng(0)
    chord = np.zeros(int(seconds * RATE))
    for frequency in (82.41, 123.47, 164.81, 207.65, 246.94, 329.63):
        string = rng.uniform(-1, 1, int(RATE / frequency))
        for begin in range(0, len(chord), len(string)):
            part = chord[begin : begin + len(string)]
            part += string[: len(part)]
            string = 0.996 * (string + np.roll(string, 1)) / 2
    return (0.8 * chord / np.abs(chord).max()).astype(np.float32)


def read_wav(path: Path) -> tuple[Audio, int]:
    """Return the first channel of a 16-bit WAV file, [samples] in -1..1, and its sample rate."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path}: expected 16-bit samples; got {8 * file.getsampwidth()}-bit ones.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")[:: file.getnchannels()]
        return samples.astype(np.float32) / 32768, file.getframerate()


def write_wav(path: Path, audio: Audio, rate: int) -> None:
    """Write `audio`, [samples] in -1..1, as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())


def train_amplifier(path: Path, audio: Audio, steps: int = 80) -> None:
    """Train LSTM(1 -> 20) and Linear(20 -> 1) to bend `audio` as a clipper would; export as ONNX."""
    import torch
    from torch import nn

    class Amplifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(1, 20, batch_first=True)
            self.head = nn.Linear(20, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0]) + x

    torch.manual_seed(0)
    amplifier = Amplifier()
    optimiser = torch.optim.Adam(amplifier.parameters(), lr=5e-3)
    length = len(audio) // 512 * 512
    x = torch.from_numpy(audio[:length]).reshape(-1, 512, 1)[::4]
    target = torch.tanh(4 * x + 0.3 * x.abs().mean(1, keepdim=True)) * 0.7
    for _ in range(steps):
        loss = nn.functional.mse_loss(amplifier(x)[:, 64:], target[:, 64:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"trained an amplifier of 20 units: error {loss.item() ** 0.5:.3f}")
    torch.onnx.export(
        amplifier.eval(),
        (x[:1],),
        str(path),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch", 1: "time"}, "y": {0: "batch", 1: "time"}},
        dynamo=False,
    )


def main(folder: Path, source: Path | None = None, model_path: Path | None = None) -> bool:
    """Process in blocks of every size; return whether each has the bits of the offline result."""
    audio, rate = read_wav(source) if source else (pluck_chord(4.0), RATE)
    if model_path is None:
        model_path = folder / "amplifier.onnx"
        train_amplifier(model_path, audio)
    model = fastlstm.load(model_path)
    samples = audio[:, None]
    offline = model(samples[None])[0]
    write_wav(folder / "dry.wav", audio, rate)
    write_wav(folder / "amplified.wav", offline[:, 0], rate)

    all_same = True
    for size in BLOCKS:
        stream = model.stream()
        stream.warmup(size)  # what a first block would load and allocate is loaded and allocated now
        played = np.empty_like(offline)
        begin = time.perf_counter()
        for start in range(0, len(samples), size):
            played[start : start + size] = stream.push(samples[start : start + size])
        factor = (time.perf_counter() - begin) / (len(samples) / rate)
        same = np.array_equal(played, offline)
        all_same &= same
        print(
            f"blocks of {size:3}: real-time factor {factor:.4f}, "
            f"{'the same bits as' if same else 'NOT the bits of'} the offline result"
        )
    print(f"wrote {folder / 'dry.wav'} and {folder / 'amplified.wav'}")
    return all_same


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:3]]
    sys.exit(not main(Path(tempfile.mkdtemp(prefix="fastlstm-audio-")), *given))
