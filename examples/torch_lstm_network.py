"""PyTorch's most common LSTM model, through ONNX and through its state dict.

`nn.LSTM(batch_first=True)`, the last time step, `nn.Linear`. The ONNX file says all of that; a state dict
holds the weights alone, so what lies between them is given in words.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import fastlstm


class LSTMNetwork(nn.Module):
    """[batch, time, input_size] -> [batch, output_size], from the last time step."""

    def __init__(self, input_size: int = 10, hidden_size: int = 64, output_size: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output after the last time step."""
        output, _ = self.lstm(x)
        return self.fc(output[:, -1, :])


def main(folder: Path) -> float:
    """Write the files into `folder`, run them, and return the largest difference from PyTorch."""
    torch.manual_seed(0)
    network = LSTMNetwork().eval()
    x = torch.randn(8, 100, 10)
    with torch.no_grad():
        expected = network(x).numpy()

    torch.onnx.export(
        network,
        (x,),
        str(folder / "network.onnx"),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch", 1: "time"}, "y": {0: "batch"}},
        dynamo=False,
    )
    torch.save(network.state_dict(), folder / "network.pt")
    save_file(network.state_dict(), str(folder / "network.safetensors"))

    models = {
        "ONNX": fastlstm.load(folder / "network.onnx"),
        "state dict (.pt)": fastlstm.load(folder / "network.pt", layers="lstm | last | linear"),
        "state dict (.safetensors)": fastlstm.load(folder / "network.safetensors", layers="lstm | last | linear"),
    }
    differences = {name: float(np.abs(model(x.numpy()) - expected).max()) for name, model in models.items()}
    for name, difference in differences.items():
        print(f"{name:26} largest difference from PyTorch: {difference:.1e}")
    return max(differences.values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
