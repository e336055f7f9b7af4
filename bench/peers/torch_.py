"""PyTorch: torch.nn.LSTM, GRU and RNN, eager, in inference mode.

Threads as in https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html.
"""

from __future__ import annotations

from typing import Any

from bench.cases import Case
from bench.peers.engine import Call, Engine


class Torch(Engine):
    """A module of torch.nn with tensors made once."""

    name = package = "torch"

    def settings(self, threads: int) -> dict[str, str]:
        """Describe how the module is called."""
        return {
            "threads": f"torch.set_num_threads({threads}), eager in inference_mode",
            "affinity": "none",
            "spinning": "OpenMP's own default" if threads > 1 else "no second thread",
        }

    def prepare(self, case: Case, threads: int) -> Call:
        """Return a call of the module; a ragged batch is packed and padded again inside the call."""
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        torch.set_num_threads(threads)
        options = {"proj_size": case.projection} if case.projection else {}
        module = getattr(torch.nn, case.op)(
            case.I, case.H, case.layers, bidirectional=case.directions == 2, **options
        ).eval()
        module.load_state_dict({name: torch.from_numpy(a) for name, a in case.state_dict().items()})
        x, lengths, state = torch.from_numpy(case.x()), torch.tensor(case.lengths), None

        @torch.inference_mode()  # type: ignore[untyped-decorator]
        def call() -> Any:
            nonlocal state
            if case.lengths:
                packed, _ = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
                return pad_packed_sequence(packed, total_length=case.T)[0]
            y, after = module(x, state)
            state = after if case.stateful else None
            return y

        return call
