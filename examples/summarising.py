"""Headlines for weather reports: a Keras encoder-decoder with attention, decoded greedily through a stream.

"on monday strong winds bring heavy rain to the coast" becomes "coast monday rain". Reports differ in length, so in
training they are padded and masked. Encoder and decoder are saved as two `.keras` files; the decoder takes one
word a step, and a stream keeps its LSTM's state from one word to the next. The reports are made up by this script.
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")  # either backend will do; TensorFlow is not needed
import keras
from keras import layers

import fastlstm

DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
PLACES = ["coast", "north", "south", "hills", "valley"]
WEATHER = ["rain", "snow", "fog", "sun", "storms"]
REPORTS = [
    "on {day} strong winds bring heavy {weather} to the {place}",
    "the {place} can expect {weather} on {day}",
    "{weather} is likely in the {place} by {day} evening at the latest",
    "after a quiet start to the week {day} ends with {weather} over the {place}",
]
START, END = "<start>", "<end>"
WORDS = ["<padding>", *sorted({word for report in REPORTS for word in report.split() if "{" not in word})]
SOURCE = [*WORDS, *DAYS, *PLACES, *WEATHER]
TARGET = [START, END, *DAYS, *PLACES, *WEATHER]
STEPS = 4  # three words and the end
UNITS = 32


def make_reports() -> tuple[list[list[str]], list[list[str]]]:
    """Return all reports and their headlines, in words, in a random order."""
    facts = list(product(REPORTS, DAYS, WEATHER, PLACES))
    pairs = [
        (report.format(day=day, weather=weather, place=place).split(), [place, day, weather])
        for report, day, weather, place in facts
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


def numbered(texts: list[list[str]], vocabulary: list[str]) -> np.ndarray:
    """Return word numbers [texts, words], 0 for padding at the end."""
    numbers = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(numbers, texts, strict=True):
        row[: len(text)] = [vocabulary.index(word) for word in text]
    return numbers


def build() -> tuple[keras.Model, keras.Model, keras.Model]:
    """Return the model to train, and its encoder and its decoder for one step, all on the same layers."""
    report = keras.Input((None,), dtype="int32", name="report")
    encode = layers.Bidirectional(layers.LSTM(UNITS // 2, return_sequences=True, return_state=True))
    memory, h, c, h_back, c_back = encode(layers.Embedding(len(SOURCE), UNITS, mask_zero=True)(report))
    h, c = layers.Concatenate()([h, h_back]), layers.Concatenate()([c, c_back])
    encoder = keras.Model(report, [memory, h, c], name="encoder")

    embed = layers.Embedding(len(TARGET), UNITS)
    decode = layers.LSTM(UNITS, return_sequences=True, return_state=True)
    attend, join = layers.Attention(name="attention"), layers.Concatenate()
    score = layers.Dense(len(TARGET), name="scores")

    words = keras.Input((None,), dtype="int32", name="words")
    query, _, _ = decode(embed(words), initial_state=[h, c])
    trained = keras.Model([report, words], score(join([query, attend([query, memory])])))

    word = keras.Input((1,), dtype="int32", name="word")
    seen = keras.Input((None, UNITS), name="memory")
    states = [keras.Input((UNITS,), name=name) for name in ("h", "c")]
    query, *after = decode(embed(word), initial_state=states)
    scores = score(join([query, attend([query, seen])]))
    return trained, encoder, keras.Model([word, seen, *states], [scores, *after], name="decoder")


def train(model: keras.Model, reports: list[list[str]], headlines: list[list[str]]) -> None:
    """Teach the model to give the next word of the headline."""
    source, target = numbered(reports, SOURCE), numbered([[START, *words, END] for words in headlines], TARGET)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit([source, target[:, :-1]], target[:, 1:], batch_size=110, epochs=7, verbose=0)


def summarise(encoder: fastlstm.Model, decoder: fastlstm.Model, report: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the headline's words, and the scores by which they were chosen [steps, vocabulary]."""
    memory, h, c = encoder(numbered([report], SOURCE))
    _, h_next, c_next = (spec.name for spec in decoder.outputs)
    stream = decoder.stream(state={"h": h_next, "c": c_next})  # which output becomes which input of the next step
    stream.state = {"h": h, "c": c}
    words, chosen_by = [START], []
    while words[-1] != END and len(words) <= STEPS:
        scores = stream.step({"word": numbered([words[-1:]], TARGET), "memory": memory})
        words.append(TARGET[scores.argmax()])
        chosen_by.append(scores.ravel())
    return [word for word in words if word not in (START, END)], np.stack(chosen_by)


def main(folder: Path) -> float:
    """Train, save, summarise, and return the largest difference from Keras."""
    keras.utils.set_random_seed(0)
    reports, headlines = make_reports()
    held_back = 40  # reports that training does not see
    trained, keras_encoder, keras_decoder = build()
    train(trained, reports[held_back:], headlines[held_back:])
    keras_encoder.save(folder / "encoder.keras")
    keras_decoder.save(folder / "decoder.keras")

    encoder, decoder = fastlstm.load(folder / "encoder.keras"), fastlstm.load(folder / "decoder.keras")
    right, differences = 0, []
    for number, report in enumerate(reports[:held_back]):
        words, scores = summarise(encoder, decoder, report)
        right += words == headlines[number]
        if number < 3:
            print(f"{' '.join(report)}: {' '.join(words)}")
            asked = numbered([[START, *words]], TARGET)[:, : len(scores)]
            expected = keras.ops.convert_to_numpy(trained([numbered([report], SOURCE), asked]))
            differences.append(float(np.abs(scores - expected[0]).max()))
    print(f"right headlines for {right} of {held_back} new reports")
    print(f"largest difference from Keras: {max(differences):.1e}")
    return max(differences)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
