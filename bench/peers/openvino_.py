"""OpenVINO: the CPU plug-in with the latency hint.

Settings as in https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/
cpu-device/performance-hint-and-thread-scheduling.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.peers.engine import Call, Engine, Refused


class OpenVino(Engine):
    """An infer request on the exact-shape ONNX model, sharing its inputs and outputs with NumPy."""

    name = package = "openvino"

    def settings(self, threads: int) -> dict[str, str]:
        """Describe the compiled model."""
        return {
            "threads": f"INFERENCE_NUM_THREADS={threads}, PERFORMANCE_HINT=LATENCY, "
            "INFERENCE_PRECISION_HINT=f32, share_inputs and share_outputs",
            "affinity": "ENABLE_CPU_PINNING as the hint chooses it",
            "spinning": "oneTBB's own default" if threads > 1 else "no second thread",
        }

    def compiled(self, model: bytes | Path, threads: int) -> Any:
        """Return an ONNX model, compiled with the settings above."""
        import openvino

        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        return core.compile_model(core.read_model(model), "CPU", hints | {"INFERENCE_NUM_THREADS": threads})

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the request; a stateful case feeds its states back."""
        from bench.onnx_models import recurrent_model

        if case.projection:
            raise Refused("ONNX's LSTM has no projection")
        compiled = self.compiled(recurrent_model(case).SerializeToString(), threads)
        request = compiled.create_infer_request()
        state = [np.zeros((1, case.B, case.H), np.float32) for _ in compiled.inputs[1:]]
        feed = dict(enumerate([case.x(), *state]))

        def call() -> Any:
            outputs = request.infer(feed, share_inputs=True, share_outputs=True)
            for position in range(1, len(feed)):
                np.copyto(feed[position], outputs[position])
            return outputs[0]

        return call
