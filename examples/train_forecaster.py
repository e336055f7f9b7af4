"""Train the model behind ``fastlstm demo``: sunspot numbers one year ahead, from the months so far.

An `nn.LSTM` of two layers reads the monthly mean sunspot number and says, at every month, what it expects
twelve months later. It learns from 1749 to 1929; what follows, to 2008, is kept for the comparison. The
script writes the trained model the two ways that people export it:

    python examples/train_forecaster.py --out DIR      # DIR/forecaster.onnx, DIR/forecaster.safetensors

With the seed below it takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import fastlstm

SERIES = Path(fastlstm.__file__).parent / "cli" / "demo_data" / "sunspots.csv"
HORIZON = 12  # months ahead
TRAINING_MONTHS = (1930 - 1749) * 12
WINDOW = 40 * 12  # months of one training sequence: several solar cycles of about eleven years


class Forecaster(nn.Module):
    """Two LSTM layers and one linear layer on every step: [batch, time, 1] -> [batch, time, 1]."""

    def __init__(self, hidden_size: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the forecast at every step."""
        hidden, _ = self.lstm(x)
        return self.head(hidden)


def read_series() -> torch.Tensor:
    """Return sqrt(sunspot number) / 10 for every month, [months, 1]: the root evens out the noise."""
    numbers = np.loadtxt(SERIES, delimiter=",", skiprows=1, usecols=1, dtype=np.float32)
    return torch.from_numpy(np.sqrt(numbers) / 10)[:, None]


def train(series: torch.Tensor, steps: int, seed: int) -> Forecaster:
    """Return a forecaster trained on random windows of `series`, [months, 1]."""
    torch.manual_seed(seed)
    model = Forecaster()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        starts = torch.randint(len(series) - WINDOW - HORIZON, (16,))
        x = torch.stack([series[s : s + WINDOW] for s in starts])
        target = torch.stack([series[s + HORIZON : s + HORIZON + WINDOW] for s in starts])
        x = x + 0.03 * torch.randn_like(x)  # keeps so small a record from being learnt by heart
        warm = 24  # the first two years of a window have too little past to be judged by
        loss = nn.functional.mse_loss(model(x)[:, warm:], target[:, warm:])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss.item():.5f}")
    return model.eval()


def held_out_errors(model: Forecaster, series: torch.Tensor) -> tuple[float, float]:
    """Return the root mean square error after 1929, in sunspot numbers: the model's and persistence's."""
    with torch.no_grad():
        forecast = model(series[None])[0, TRAINING_MONTHS - HORIZON : -HORIZON]
    truth = (10 * series[TRAINING_MONTHS:]) ** 2

    def error(guess: torch.Tensor) -> float:
        return math.sqrt(float(nn.functional.mse_loss((10 * guess) ** 2, truth)))

    return error(forecast), error(series[TRAINING_MONTHS - HORIZON : -HORIZON])


def export(model: Forecaster, folder: Path) -> None:
    """Write forecaster.onnx (batch and time left open) and forecaster.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (torch.zeros(1, WINDOW, 1),),
        str(folder / "forecaster.onnx"),
        input_names=["x"],
        output_names=["forecast"],
        dynamic_axes={"x": {0: "batch", 1: "time"}, "forecast": {0: "batch", 1: "time"}},
        dynamo=False,
    )
    save_file(model.state_dict(), str(folder / "forecaster.safetensors"))


def main() -> None:
    """Train, say how good it is, export."""
    parser = argparse.ArgumentParser(description="Train and export the model of 'fastlstm demo'.")
    parser.add_argument("--out", type=Path, default=Path("forecaster"), help="folder for the two files")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1749)
    options = parser.parse_args()
    series = read_series()
    model = train(series[:TRAINING_MONTHS], options.steps, options.seed)
    ours, persistence = held_out_errors(model, series)
    print(f"error after 1929: {ours:.1f} sunspots; with the latest month as the forecast: {persistence:.1f}")
    export(model, options.out)
    print(f"wrote {options.out}/forecaster.onnx and {options.out}/forecaster.safetensors")


if __name__ == "__main__":
    main()
