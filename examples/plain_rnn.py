"""A plain `nn.RNN` that knows one verse by heart and says it, a letter a step, from a stream.

Every letter it says is fed back as its next input, so the stream's state is all the memory there is.
PyTorch's default ONNX exporter unrolls `nn.RNN` over the length of the example input; from the state dict it
is read as the layer it is, so length and batch stay open.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

import fastlstm

VERSE = """twinkle, twinkle, little star,
how i wonder what you are!
up above the world so high,
like a diamond in the sky.
"""
LETTERS = sorted(set(VERSE))


class Reciter(nn.Module):
    """One-hot letters [batch, time, letters] -> scores of the next letter [batch, time, letters]."""

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.rnn = nn.RNN(len(LETTERS), hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, len(LETTERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores at every step."""
        hidden, _ = self.rnn(x)
        return self.head(hidden)


def train(letters: torch.Tensor, steps: int = 200) -> Reciter:
    """Return a reciter trained on the one verse, [time, letters] one-hot."""
    torch.manual_seed(0)
    reciter = Reciter()
    optimiser = torch.optim.Adam(reciter.parameters(), lr=0.01)
    for _ in range(steps):
        scores = reciter(letters[None, :-1])[0]
        loss = nn.functional.cross_entropy(scores, letters[1:].argmax(-1))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reciter.parameters(), 1.0)
        optimiser.step()
    return reciter.eval()


def main() -> float:
    """Train, recite, and return the largest difference from PyTorch over the verse."""
    one_hot = np.eye(len(LETTERS), dtype=np.float32)
    verse = one_hot[[LETTERS.index(letter) for letter in VERSE]]
    reciter = train(torch.from_numpy(verse))

    model = fastlstm.from_state_dict(reciter.state_dict(), layers="rnn | linear")
    stream = model.stream()
    said = VERSE[0]
    while len(said) < len(VERSE):
        scores = stream.step(one_hot[LETTERS.index(said[-1])])
        said += LETTERS[scores.argmax()]
    print(said)

    with torch.no_grad():
        expected = reciter(torch.from_numpy(verse[None])).numpy()
    difference = float(np.abs(model(verse[None]) - expected).max())
    print(f"largest difference from PyTorch: {difference:.1e}")
    return difference


if __name__ == "__main__":
    sys.exit(main() > 1e-4)
