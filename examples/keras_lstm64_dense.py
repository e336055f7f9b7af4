"""A Keras classifier, `LSTM(64)` and `Dense(1, sigmoid)` on (100, 10), through ONNX and read directly.

Needs TensorFlow and tf2onnx to write the ONNX file. To read `.keras`, fastlstm needs neither: h5py is enough.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx

import fastlstm


def main(folder: Path) -> float:
    """Write the files into `folder`, run them, and return the largest difference from Keras."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((100, 10)), keras.layers.LSTM(64), keras.layers.Dense(1, activation="sigmoid")]
    )
    x = np.random.default_rng(0).normal(size=(8, 100, 10)).astype(np.float32)
    expected = np.asarray(network(x))

    network.save(folder / "network.keras")
    signature = [tf.TensorSpec((None, 100, 10), tf.float32, name="x")]
    function = tf.function(network, input_signature=signature)
    tf2onnx.convert.from_function(
        function, input_signature=signature, opset=18, output_path=str(folder / "network.onnx")
    )

    differences = []
    for name in ("network.onnx", "network.keras"):
        model = fastlstm.load(folder / name)
        difference = float(np.abs(model(x) - expected).max())
        print(f"{name:14} largest difference from Keras: {difference:.1e}")
        differences.append(difference)
    return max(differences)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(Path(scratch)) > 1e-5)
