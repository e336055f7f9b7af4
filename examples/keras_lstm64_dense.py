"""A Keras classifier, `LSTM(64)` and `Dense(1, sigmoid)` on (100, 10), read directly and through ONNX.

To read `.keras` and `.h5`, fastlstm needs neither Keras nor TensorFlow: h5py is enough. Where TensorFlow and tf2onnx
are installed, the model goes through an ONNX file too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow" if importlib.util.find_spec("tensorflow") else "torch")
import keras

import fastlstm

THROUGH_ONNX = keras.backend.backend() == "tensorflow" and importlib.util.find_spec("tf2onnx") is not None


def main(folder: Path) -> float:
    """Write the files into `folder`, run them, and return the largest difference from Keras."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((100, 10)), keras.layers.LSTM(64), keras.layers.Dense(1, activation="sigmoid")]
    )
    x = np.random.default_rng(0).normal(size=(8, 100, 10)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(network(x))

    files = [folder / "network.keras", folder / "network.h5"]
    for file in files:
        network.save(file)
    if THROUGH_ONNX:
        files.append(folder / "network.onnx")
        write_onnx(network, files[-1])

    differences = []
    for file in files:
        difference = float(np.abs(fastlstm.load(file)(x) - expected).max())
        print(f"{file.name:14} largest difference from Keras: {difference:.1e}")
        differences.append(difference)
    return max(differences)


def write_onnx(network: keras.Model, file: Path) -> None:
    """Write the network as tf2onnx does."""
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, 100, 10), tf.float32, name="x")]
    function = tf.function(network, input_signature=signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=18, output_path=str(file))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
