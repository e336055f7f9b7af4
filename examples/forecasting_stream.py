"""Forecast as the observations come in: one month of sunspots at a time, the past kept in the stream.

The stream is interrupted on the way: its state is plain arrays, so it can be stored and picked up later.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import fastlstm

DATA = Path(fastlstm.__file__).parent / "cli" / "demo_data"


def main(folder: Path) -> bool:
    """Forecast 1749-2008 step by step; return whether the bits equal those of one run over it all."""
    months = np.loadtxt(DATA / "sunspots.csv", delimiter=",", skiprows=1, usecols=0, dtype=str)
    numbers = np.loadtxt(DATA / "sunspots.csv", delimiter=",", skiprows=1, usecols=1)
    frames = np.sqrt(numbers).astype(np.float32)[:, None] / 10  # [months, 1], as the model was trained

    model = fastlstm.load(DATA / "forecaster.onnx")
    stream = model.stream()
    forecasts = [stream.step(frame) for frame in frames[:2000]]

    np.savez(folder / "state.npz", **stream.state)
    stream = model.stream()
    with np.load(folder / "state.npz") as stored:
        stream.state = dict(stored)
    forecasts += [stream.step(frame) for frame in frames[2000:]]

    for position in range(-36, 0, 12):
        expected = (10 * forecasts[position].item()) ** 2
        print(f"in {months[position]}, with {numbers[position]:5.1f} sunspots: {expected:5.1f} a year later")
    whole = model(frames[None])[0]
    same = np.array_equal(np.stack(forecasts), whole)
    print(f"{len(frames)} steps, {'the same bits as' if same else 'NOT the bits of'} one run over the series")
    return same


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(not main(Path(scratch)))
