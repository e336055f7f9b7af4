"""OpenVINO: the CPU plug-in with the latency hint.

Settings as in https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/
cpu-device/performance-hint-and-thread-scheduling.html.
"""

from __future__ import annotations

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

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the request; a stateful case feeds its states back."""
        import openvino

        from bench.onnx_models import recurrent_model

        if case.projection:
            raise Refused("ONNX's LSTM has no projection")
        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        model = core.read_model(recurrent_model(case).SerializeToString())
        compiled = core.compile_model(model, "CPU", hints | {"INFERENCE_NUM_THREADS": threads})
        request = compiled.create_infer_request()
        state = [np.zeros((1, case.B, case.H), np.float32) for _ in compiled.inputs[1:]]
        feed = dict(enumerate([case.x(), *state]))

        def call() -> Any:
            outputs = request.infer(feed, share_inputs=True, share_outputs=True)
            for position in range(1, len(feed)):
                np.copyto(feed[position], outputs[position])
            return outputs[0]

        return call
