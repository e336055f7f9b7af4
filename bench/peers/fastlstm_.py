"""fastlstm itself: the model that onnxruntime loads, through the public API."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastlstm
from bench.cases import Case
from bench.peers.engine import Call, Engine


class FastLSTM(Engine):
    """`Model` called with the input; a step is a stream's, states go through `Model.run` by name."""

    name = package = "fastlstm"

    def version(self) -> str:
        """Return the version of what is imported: a checkout need not be installed."""
        return fastlstm.__version__

    def settings(self, threads: int) -> dict[str, str]:
        """Describe the model."""
        return {
            "threads": f"threads={threads}",
            "affinity": "none",
            "spinning": "up to 80 microseconds, then asleep" if threads > 1 else "no second thread",
        }

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the model, of `Model.run` with its states, or of a stream's step."""
        model = self.model(case, threads)
        x = case.x()
        if case.group == "states":
            return _with_states(model, case)
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


def _with_states(model: Any, case: Case) -> Call:
    """Return a call that takes a dict and gives one, as onnxruntime's users know it, and feeds the states back."""
    feed = {"x": case.x(), "h_0": np.zeros((1, case.B, case.H), np.float32)}
    feed["c_0"] = feed["h_0"].copy()

    def call() -> Any:
        results = model.run(feed)
        feed["h_0"], feed["c_0"] = results["h_n"], results["c_n"]
        return results["y"]

    return call
