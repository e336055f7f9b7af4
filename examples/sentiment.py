"""Is a review glad or cross? Embedding, masked bidirectional LSTM, sigmoid: a `.keras` file.

Reviews differ in length, so they are padded with zeros and masked (`mask_zero=True`): a padded step must
not touch the state, in either direction. The data is two dozen made-up sentences: enough to see the
numbers agree, not to judge a film by.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")  # either backend will do; TensorFlow is not needed
import keras

import fastlstm

GLAD = """a wonderful warm film | i loved every minute | great acting and a clever story | simply brilliant
| the best film this year | funny and warm and clever | what a great little film | i loved the story
| brilliant acting | a clever and funny film | every minute is wonderful | warm and simply great"""
CROSS = """a dull and tired film | i hated every minute | poor acting and a silly story | simply awful
| the worst film this year | slow and dull and silly | what a poor little film | i hated the story
| awful acting | a slow and tired film | every minute is dull | silly and simply poor"""


def read_reviews() -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return word numbers [reviews, words], 0 for padding, labels [reviews, 1] and the vocabulary."""
    reviews = [review.split() for text in (GLAD, CROSS) for review in text.split("|")]
    vocabulary = {word: number for number, word in enumerate(sorted({w for r in reviews for w in r}), 1)}
    tokens = np.zeros((len(reviews), max(map(len, reviews))), np.int32)
    for row, review in zip(tokens, reviews, strict=True):
        row[: len(review)] = [vocabulary[word] for word in review]
    labels = np.repeat([[1.0], [0.0]], len(reviews) // 2, axis=0).astype(np.float32)
    return tokens, labels, vocabulary


def main(folder: Path) -> float:
    """Train, save, load, and return the largest difference from Keras."""
    tokens, labels, vocabulary = read_reviews()
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(len(vocabulary) + 1, 16, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.LSTM(16)),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(keras.optimizers.Adam(0.02), "binary_crossentropy")
    network.fit(tokens, labels, batch_size=len(tokens), epochs=15, verbose=0)
    network.save(folder / "sentiment.keras")

    model = fastlstm.load(folder / "sentiment.keras")
    glad = model(tokens)
    for review in ("a wonderful story", "awful and slow"):
        one = np.array([[vocabulary[word] for word in review.split()]], np.int32)
        print(f"{review!r}: {model(one).item():.2f} glad")
    print(f"right in {np.mean((glad > 0.5) == labels):.0%} of the reviews that it was trained on")
    difference = float(np.abs(glad - network.predict(tokens, verbose=0)).max())
    print(f"largest difference from Keras: {difference:.1e}")
    return difference


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
