"""Random TorchScript archives beside PyTorch itself."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_cases

import fastlstm

__all__ = ["difference", "draw"]

TOLERANCE = 2e-4
draw = torch_cases.draw


def difference(case: torch_cases.Case) -> str:
    """Return what is wrong with the archive of a case, "" if all results agree."""
    torch.set_num_threads(1)
    module = torch_cases.Stack(case).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "case.pt"
        scripted = torch.jit.script(module)
        (torch.jit.freeze(scripted) if case.seed % 3 == 0 else scripted).save(str(path))
        shapes = f"x: float32[{'batch, time' if case.batch_first else 'time, batch'}, {case.size}]"
        if case.fixed:
            first, second = (case.B, "time") if case.batch_first else ("time", case.B)
            shapes = f"x: float32[{first}, {second}, {case.size}]"
        shapes += f", lengths: int64[{len(case.layers) + 1}, {case.B if case.fixed else 'batch'}]"
        model = fastlstm.load(path, shapes=f"{shapes}, states: float32[{len(case.layers)}]")
    sizes = [(case.T, case.B)] if case.fixed else [(case.T, case.B), (case.T + 3, case.B % 3 + 1)]
    for run, (steps, batch) in enumerate(sizes):
        made = torch.Generator().manual_seed(case.seed + run)
        x = torch.randn(*((batch, steps) if case.batch_first else (steps, batch)), case.size, generator=made)
        lengths = torch.randint(1, steps + 1, (len(case.layers) + 1, batch), generator=made)
        if any(layer.ordered for layer in case.layers):
            lengths = lengths.sort(descending=True).values
        inputs = x, lengths, torch.rand(len(case.layers), generator=made)
        feeds = {spec.name: value.numpy() for spec, value in zip(model.inputs, inputs, strict=False)}
        with torch.no_grad():
            expected = module(*inputs)
        found = list(model.run(feeds).values())
        if len(found) != len(expected):
            return f"{len(found)} results instead of {len(expected)}"
        for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            if ours.shape != tuple(theirs.shape):
                return f"result {number}: the shape {list(ours.shape)}, {list(theirs.shape)} of PyTorch"
            error = float(np.abs(ours - theirs.numpy()).max(initial=0))
            if not error <= TOLERANCE:
                return f"result {number}: {error:.2g} off PyTorch"
    return ""
