"""Two amplifiers for the audio example: ``python models.py FOLDER TARGET`` exports FOLDER/clean and FOLDER/drive.

Their weights are drawn, not trained: they stand for a capture of a real amplifier, which has this very shape.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import fastlstm

UNITS = 20


def amplifier(seed: int, gain: float) -> fastlstm.Model:
    """Return LSTM(1→20) and Linear with random weights; `gain` drives its gates."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, scale: float) -> np.ndarray:
        return (random.normal(size=shape) * scale).astype(np.float32)

    weights = {
        "lstm.weight_ih_l0": draw(4 * UNITS, 1, scale=gain),
        "lstm.weight_hh_l0": draw(4 * UNITS, UNITS, scale=0.5 / np.sqrt(UNITS)),
        "lstm.bias_ih_l0": draw(4 * UNITS, scale=0.1),
        "lstm.bias_hh_l0": np.zeros(4 * UNITS, np.float32),
        "head.weight": draw(1, UNITS, scale=1 / np.sqrt(UNITS)),
        "head.bias": np.zeros(1, np.float32),
    }
    return fastlstm.from_state_dict(weights, layers="lstm | linear")


def main() -> None:
    """Export both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("target")
    arguments = parser.parse_args()
    for name, seed, gain in (("clean", 1, 0.5), ("drive", 2, 4.0)):
        fastlstm.export(amplifier(seed, gain), arguments.folder / name, targets=(arguments.target,), name=name)


if __name__ == "__main__":
    main()
