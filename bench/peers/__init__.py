"""The engines that are measured, each in a file of its own; `ENGINES` is the list that everything reads.

To add another: write a class with the members of `bench.peers.engine.Engine` and name it here.
"""

from __future__ import annotations

from bench.peers.engine import Call, Engine, Refused
from bench.peers.fastlstm_ import FastLSTM
from bench.peers.jax_ import Jax
from bench.peers.onnxruntime_ import OnnxRuntime
from bench.peers.openvino_ import OpenVino
from bench.peers.torch_ import Torch

__all__ = ["ENGINES", "OURS", "Call", "Engine", "Refused"]

OURS = "fastlstm"
"""The name of the engine that the others are compared with."""

ENGINES: tuple[Engine, ...] = (FastLSTM(), OnnxRuntime(), Torch(), OpenVino(), Jax())
