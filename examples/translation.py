"""Translate English numbers into German ones: an encoder-decoder with attention, decoded greedily.

"forty two" is "zwei und vierzig": the order differs, so the decoder has to look back at the source. Encoder
and one step of the decoder are exported by PyTorch as two ONNX files; the loop between them is the program's.
The decoder's LSTM state goes in and out of every call, from one word to the next.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fastlstm

UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EINER = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ZEHNER = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
ENGLISH = [*UNITS, *TENS, "hundred", "and"]
GERMAN = ["<start>", "<end>", *EINER, *ZEHNER, "hundert", "und"]


def make_pair(hundreds: int, tens: int, units: int) -> tuple[list[str], list[str]]:
    """Return a number such as (3, 4, 2) in English and in German words."""
    english = [UNITS[hundreds - 1], "hundred", "and", TENS[tens - 2], UNITS[units - 1]]
    german = [EINER[hundreds - 1], "hundert", EINER[units - 1], "und", ZEHNER[tens - 2]]
    return english, german


class Encoder(nn.Module):
    """Source words [batch, time] -> what stands at each of them [batch, time, hidden], last h and c."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ENGLISH), hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the memory and the state."""
        memory, (h, c) = self.lstm(self.embedding(words))
        return memory, h, c


class Decoder(nn.Module):
    """Previous words [batch, time], memory, state -> scores of the next words, new state."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(GERMAN), hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)
        self.head = nn.Linear(2 * hidden_size, len(GERMAN))

    def forward(
        self, words: torch.Tensor, memory: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend to the memory with the LSTM's output (dot product), then score every word."""
        query, (h, c) = self.lstm(self.embedding(words), (h, c))
        weights = torch.softmax(query @ memory.transpose(1, 2), dim=-1)
        return self.head(torch.cat([query, weights @ memory], dim=-1)), h, c


def train(steps: int = 150, hidden_size: int = 32) -> tuple[Encoder, Decoder]:
    """Return an encoder and a decoder trained for some seconds on random numbers."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder, decoder = Encoder(hidden_size), Decoder(hidden_size)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    for _ in range(steps):
        pairs = [make_pair(*rng.integers((1, 2, 1), 10)) for _ in range(64)]
        source = torch.tensor([[ENGLISH.index(word) for word in english] for english, _ in pairs])
        target = torch.tensor([[GERMAN.index(w) for w in ["<start>", *german, "<end>"]] for _, german in pairs])
        scores, _, _ = decoder(target[:, :-1], *encoder(source))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder.eval(), decoder.eval()


def export(encoder: Encoder, decoder: Decoder, folder: Path) -> None:
    """Write encoder.onnx and decoder.onnx, the decoder for one word a call."""
    words = torch.zeros(1, 5, dtype=torch.int64)
    memory, h, c = encoder(words)
    state_axes = {"memory": {0: "batch", 1: "source"}, "h": {1: "batch"}, "c": {1: "batch"}}
    torch.onnx.export(
        encoder,
        (words,),
        str(folder / "encoder.onnx"),
        input_names=["words"],
        output_names=["memory", "h", "c"],
        dynamic_axes={"words": {0: "batch", 1: "source"}, **state_axes},
        dynamo=False,
    )
    torch.onnx.export(
        decoder,
        (words[:, :1], memory, h, c),
        str(folder / "decoder.onnx"),
        input_names=["word", "memory", "h", "c"],
        output_names=["scores", "h_next", "c_next"],
        dynamic_axes={"word": {0: "batch"}, **state_axes, "h_next": {1: "batch"}, "c_next": {1: "batch"}},
        dynamo=False,
    )


def translate(encoder: fastlstm.Model, decoder: fastlstm.Model, english: str) -> tuple[str, np.ndarray]:
    """Return the German words, and the scores they were chosen by [words, vocabulary]."""
    source = np.array([[ENGLISH.index(word) for word in english.split()]])
    memory, h, c = encoder(source)
    words, all_scores = ["<start>"], []
    while words[-1] != "<end>" and len(words) < 10:
        scores, h, c = decoder(np.array([[GERMAN.index(words[-1])]]), memory, h, c)
        words.append(GERMAN[scores[0, 0].argmax()])
        all_scores.append(scores[0, 0])
    return " ".join(words[1:-1]), np.stack(all_scores)


def main(folder: Path) -> float:
    """Train, export, translate, and return the largest difference from PyTorch."""
    torch_encoder, torch_decoder = train()
    export(torch_encoder, torch_decoder, folder)
    encoder, decoder = fastlstm.load(folder / "encoder.onnx"), fastlstm.load(folder / "decoder.onnx")
    differences = []
    for english in ("three hundred and forty two", "seven hundred and twenty one"):
        german, scores = translate(encoder, decoder, english)
        print(f"{english}: {german}")
        source = torch.tensor([[ENGLISH.index(word) for word in english.split()]])
        target = torch.tensor([[GERMAN.index(word) for word in ["<start>", *german.split()]]])
        with torch.no_grad():
            expected, _, _ = torch_decoder(target, *torch_encoder(source))
        differences.append(float(np.abs(scores - expected[0].numpy()).max()))
    print(f"largest difference from PyTorch: {max(differences):.1e}")
    return max(differences)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
