"""fastlstm itself: the model that onnxruntime loads, through the public API."""

from __future__ import annotations

from typing import Any

import fastlstm
from bench.cases import Case
from bench.peers.engine import Call, Engine


class FastLSTM(Engine):
    """`Model` called with the input; a stateful case is a stream's step."""

    name = package = "fastlstm"

    def settings(self, threads: int) -> dict[str, str]:
        """Describe the model."""
        return {
            "threads": f"threads={threads}",
            "affinity": "none",
            "spinning": "up to 80 microseconds, then asleep" if threads > 1 else "no second thread",
        }

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the model, or of a stream's step for a stateful case."""
        model = self.model(case, threads)
        x = case.x()
        if case.stateful:
            step, frame = model.stream(batch=case.B).step, x[0, 0]
            return lambda: step(frame)
        if len(model.outputs) > 1:  # a state dict's lone layer also gives its states, as PyTorch's does
            return lambda: model(x)[0]
        return lambda: model(x)

    def model(self, case: Case, threads: int) -> Any:
        """Return the model: read from ONNX where ONNX has the layer, from a state dict otherwise."""
        if case.projection:
            return fastlstm.from_state_dict(case.state_dict(), threads=threads, batch_first=False)

        from bench.onnx_models import recurrent_model

        return fastlstm.from_onnx(recurrent_model(case), threads=threads)
