"""onnxruntime: the CPU execution provider with a fixed number of intra-op threads.

Settings as in https://onnxruntime.ai/docs/performance/tune-performance/threading.html.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import Case
from bench.peers.engine import Call, Engine, Refused


class OnnxRuntime(Engine):
    """InferenceSession on the exact-shape ONNX model."""

    name = package = "onnxruntime"

    def settings(self, threads: int) -> dict[str, str]:
        """Describe the session."""
        return {
            "threads": f"intra_op_num_threads={threads}, inter_op_num_threads=1, sequential execution",
            "affinity": "none (onnxruntime pins threads only when it chooses their number itself)",
            "spinning": "allowed (the default)" if threads > 1 else "no second thread",
        }

    def session(self, model: bytes, threads: int) -> Any:
        """Return a session with the settings above."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the session; a stateful case feeds its states back."""
        from bench.onnx_models import recurrent_model

        if case.projection:
            raise Refused("ONNX's LSTM has no projection")
        session = self.session(recurrent_model(case).SerializeToString(), threads)
        states = [spec.name for spec in session.get_inputs()[1:]]
        feed = {"x": case.x()} | {name: np.zeros((1, case.B, case.H), np.float32) for name in states}

        def call() -> Any:
            y, *after = session.run(None, feed)
            feed.update(zip(states, after, strict=True))
            return y

        return call
