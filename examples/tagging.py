"""A word class for every word of a sentence: embedding, bidirectional LSTM, softmax at each token.

Trained in PyTorch on sentences that a small grammar makes up, exported by today's default ONNX exporter.
Words such as "watch" are nouns or verbs by what stands before and after: that is what two directions are for.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fastlstm

WORDS = {
    "DET": ["the", "a", "every"],
    "ADJ": ["old", "quiet", "light"],
    "NOUN": ["watch", "light", "walk", "dog", "ship"],
    "VERB": ["watch", "light", "walk", "see", "ship"],
    "PRON": ["we", "they", "you"],
}
TAGS = list(WORDS)
PATTERNS = [
    "PRON VERB DET NOUN",
    "PRON VERB DET ADJ NOUN",
    "DET NOUN PRON VERB VERB",
    "DET ADJ NOUN PRON VERB DET NOUN",
]
VOCABULARY = {word: number for number, word in enumerate(sorted({w for ws in WORDS.values() for w in ws}))}


class Tagger(nn.Module):
    """Word numbers [batch, time] -> probability of each tag [batch, time, tags]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, len(TAGS))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return the probabilities at every word."""
        hidden, _ = self.lstm(self.embedding(words))
        return torch.softmax(self.head(hidden), dim=-1)


def make_batch(rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return word and tag numbers [size, time] of sentences that follow one pattern."""
    pattern = str(rng.choice(PATTERNS)).split()
    words = [[VOCABULARY[str(rng.choice(WORDS[tag]))] for tag in pattern] for _ in range(size)]
    tags = [[TAGS.index(tag) for tag in pattern]] * size
    return torch.tensor(words), torch.tensor(tags)


def train(steps: int = 150) -> Tagger:
    """Return a tagger trained for some seconds."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tagger = Tagger()
    optimiser = torch.optim.Adam(tagger.parameters(), lr=0.01)
    for _ in range(steps):
        words, tags = make_batch(rng, 32)
        loss = nn.functional.nll_loss(torch.log(tagger(words)).flatten(0, 1), tags.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tagger.eval()


def main(folder: Path) -> float:
    """Train, export, tag, and return the largest difference from PyTorch."""
    tagger = train()
    path = folder / "tagger.onnx"
    example, _ = make_batch(np.random.default_rng(1), 2)
    # The newer exporter (dynamo=True) may fix the length of the example in the file; this one leaves it open.
    torch.onnx.export(
        tagger,
        (example,),
        str(path),
        dynamo=False,
        input_names=["words"],
        output_names=["tags"],
        dynamic_axes={"words": {0: "batch", 1: "time"}},
    )

    model = fastlstm.load(path)
    differences = []
    for sentence in ("we watch the light", "every old watch they see", "the light ship you walk"):
        words = np.array([[VOCABULARY[word] for word in sentence.split()]])
        probabilities = model(words)
        tags = (TAGS[tag] for tag in probabilities[0].argmax(-1))
        print("  ".join(f"{word}/{tag}" for word, tag in zip(sentence.split(), tags, strict=True)))
        with torch.no_grad():
            expected = tagger(torch.from_numpy(words)).numpy()
        differences.append(float(np.abs(probabilities - expected).max()))
    print(f"largest difference from PyTorch: {max(differences):.1e}")
    return max(differences)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
