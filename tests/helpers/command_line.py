"""The command line called as a function, and the models that the demo ships."""

from __future__ import annotations

import json

from fastlstm.cli import main
from fastlstm.cli.demo import DATA

ONNX, WEIGHTS = str(DATA / "forecaster.onnx"), str(DATA / "forecaster.safetensors")


def told(capsys, *words, status=2) -> str:
    """Run a command that should not succeed and return its one sentence."""
    assert main([str(word) for word in words]) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.strip()
    return captured.err


def data(capsys, *words, status=0):
    """Run a command with --json and return what it printed: stdout holds nothing else."""
    assert main([str(word) for word in [*words, "--json"]]) == status
    return json.loads(capsys.readouterr().out)
