"""Every script in examples/ runs and agrees with the framework that made its model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name: str) -> ModuleType:
    """Import examples/`name`.py by its path: examples are scripts, not a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["torch_lstm_network", "tagging", "translation"])
def test_example_agrees_with_its_framework(name: str, tmp_path: Path) -> None:
    # Outputs are at most about 10 in size: float32 rounding through a few layers stays well under 1e-5.
    assert load_example(name).main(tmp_path) < 1e-5


@pytest.mark.parametrize("name", ["keras_lstm64_dense", "sentiment", "summarising"])
def test_keras_example_agrees_with_keras(name: str) -> None:
    # A process of its own: Keras settles on one back end when it is first imported.
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_rnn_recites_its_verse(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("plain_rnn")
    assert example.main() < 1e-4  # scores reach 20 in size
    assert example.VERSE in capsys.readouterr().out


def test_forecasting_stream_has_the_bits_of_one_run(tmp_path: Path) -> None:
    assert load_example("forecasting_stream").main(tmp_path)


def test_audio_in_blocks_has_the_bits_of_the_offline_result(tmp_path: Path) -> None:
    example = load_example("audio_blocks")
    example.write_wav(tmp_path / "chord.wav", example.pluck_chord(0.5), example.RATE)
    assert example.main(tmp_path, tmp_path / "chord.wav")
    assert example.read_wav(tmp_path / "amplified.wav")[0].any()


def test_the_forecaster_of_the_demo_can_be_trained_again(tmp_path: Path) -> None:
    example = load_example("train_forecaster")
    series = example.read_series()
    example.export(example.train(series[: example.TRAINING_MONTHS], steps=1, seed=0), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"forecaster.onnx", "forecaster.safetensors"}
