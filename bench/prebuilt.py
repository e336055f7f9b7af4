"""``python -m bench.prebuilt WHEEL``: what a wheel's compiled kernels promise, held to it on this machine.

The wheel is installed beside NumPy and safetensors and nothing else, into an environment of its own with an empty home:
no Numba, no llvmlite. Six models start there, as files that this environment has made out of PyTorch modules and ONNX.
Their first results have to come in time and to be, bit for bit, those of kernels compiled here; then processes of both
kinds take turns at calls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.onnx_models import recurrent_model
from fastlstm import Model, from_onnx, from_torch

HERE = Path(__file__).parent
STARTS, ROUNDS, TURNS, SAMPLE = 5, 3, 20, 0.01
FROM_PYTHON, FROM_LOAD, SLOWER = 1.0, 0.5, 0.03  # seconds, seconds, and the part by which calls may be slower


def models() -> Iterator[tuple[str, Model, np.ndarray]]:
    """Yield names, models and inputs."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Forecaster(nn.Module):
        def __init__(self, inputs: int, units: int, outputs: int, **options: Any) -> None:
            super().__init__()
            self.layers = nn.LSTM(inputs, units, batch_first=True, **options)
            self.head = nn.Linear(units * (1 + self.layers.bidirectional), outputs)

        def forward(self, x: Any) -> Any:
            return self.head(self.layers(x)[0])

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Sequential(nn.Conv1d(40, 64, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))
            self.rest = Forecaster(64, 128, 10)

        def forward(self, x: Any) -> Any:
            return self.rest(self.front(x).transpose(1, 2)).log_softmax(-1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.LSTM(32, 64, batch_first=True, bidirectional=True)
            self.decoder = nn.LSTM(128, 128, batch_first=True)
            self.head = nn.Linear(256, 100)

        def forward(self, x: Any) -> Any:
            seen = self.encoder(x)[0]
            asked = self.decoder(seen)[0]
            shares = (asked @ seen.transpose(1, 2)).softmax(-1)
            return self.head(torch.cat([asked, shares @ seen], -1))

    def given(*shape: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    for name, module, x in (
        ("LSTM(1 -> 20), Dense", Forecaster(1, 20, 1), given(1, 50, 1)),
        ("LSTM 2 x 128", Forecaster(32, 128, 8, num_layers=2), given(1, 100, 32)),
        ("bidirectional LSTM 256", Forecaster(64, 256, 16, bidirectional=True), given(3, 20, 64)),
        ("convolution, LSTM 128", Convolutions(), given(1, 40, 100)),
        ("attention", Attention(), given(1, 20, 32)),
    ):
        yield name, from_torch(module.eval(), (torch.from_numpy(x),)), x
    case = Case("sequence", "GRU", 50, 1, 16, 64)
    yield "GRU 64", from_onnx(recurrent_model(case)), case.x()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a model; return 1 if one of them breaks a promise."""
    parser = argparse.ArgumentParser(
        "python -m bench.prebuilt", description="Hold a wheel's kernels to their promises."
    )
    parser.add_argument("wheel", type=Path, help="with the pack of this machine's level (make wheel)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sides = {"prebuilt": _environment(arguments.wheel.resolve(), scratch), "compiled": _here()}
        broken = [line for told in _written(scratch) for line in _judged(told, sides)]
    for line in broken:
        print(line, file=sys.stderr)
    return int(bool(broken))


def _environment(wheel: Path, scratch: Path) -> tuple[str, dict[str, str]]:
    """Return the Python of an environment that has the wheel, NumPy and safetensors, and the variables of its home."""
    folder, home = scratch / "venv", scratch / "home"
    venv.create(folder, with_pip=True)
    home.mkdir()
    python = str(folder / "bin" / "python")
    install = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *(f"{name}=={version(name)}" for name in ("numpy", "safetensors"))], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    return python, {"PATH": os.environ["PATH"], "HOME": str(home)}


def _here() -> tuple[str, dict[str, str]]:
    # In the checkout there are no packs, so kernels come from the compiler, or are those that it made before.
    return sys.executable, {**os.environ, "PYTHONPATH": str(HERE.parent)}


def _written(scratch: Path) -> Iterator[dict[str, Any]]:
    for number, (name, model, x) in enumerate(models()):
        path = scratch / f"{number}.fastlstm"
        model.save(path)
        np.save(path.with_suffix(".npy"), x)
        np.savez(path.with_suffix(".npz"), **{model.inputs[0].name: x})
        files = {"model": str(path), "x": str(path.with_suffix(".npy"))}
        yield {"name": name, "kind": "call", "threads": 1, "options": {}, **files}


def _judged(told: Mapping[str, Any], sides: Mapping[str, tuple[str, dict[str, str]]]) -> Iterator[str]:
    """Print what was measured of one model, and yield a sentence for each promise that it breaks."""
    python, environment = sides["prebuilt"]
    starts = []
    for _ in range(STARTS):
        inputs = str(Path(told["x"]).with_suffix(".npz"))
        command = [python, str(HERE / "start_worker.py"), "fastlstm", told["model"], inputs, repr(time.time())]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        starts.append(json.loads(done.stdout))
    total, load = (float(np.median([one[key] for one in starts])) for key in ("total", "from_load"))
    bits, ratio = _beside(told, sides)
    words = "the same bits" if bits else "OTHER BITS"
    print(f"{told['name']:24} first result {total:.3f} s from Python, {load:.3f} s from load; {words}; "
          f"time of a call {ratio:.3f} of compiled", flush=True)  # fmt: skip
    written = [file for file in Path(environment["HOME"]).rglob("*") if file.is_file() and file.parent.name != "models"]
    if written:  # first calls are kept, compiled code should not be there
        yield f"{told['name']}: {written[0].name} was written into the home folder."
    if total > FROM_PYTHON or load > FROM_LOAD:
        yield f"{told['name']}: the first result took {total:.2f} s, {load:.2f} s from load."
    if not bits:
        yield f"{told['name']}: prebuilt and compiled kernels give other bits."
    if ratio > 1 + SLOWER:
        yield f"{told['name']}: prebuilt kernels take {ratio:.3f} times as long."


def _beside(told: Mapping[str, Any], sides: Mapping[str, tuple[str, dict[str, str]]]) -> tuple[bool, float]:
    """Return whether both kinds give the same bits, and the median ratio of their times, turn by turn."""
    bits, ratios = True, []
    for _ in range(ROUNDS):  # new processes: where memory happens to lie makes percents
        with ExitStack() as stack:
            workers = {
                side: stack.enter_context(
                    subprocess.Popen([python, str(HERE / "wheel_worker.py")], env=environment, text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                )
                for side, (python, environment) in sides.items()
            }  # fmt: skip
            opened = {side: _ask(worker, do="open", sample=SAMPLE, **told) for side, worker in workers.items()}
            bits &= opened["prebuilt"]["bits"] == opened["compiled"]["bits"]
            for turn in range(TURNS):
                order = list(workers)[:: 1 if turn % 2 else -1]
                took = {s: _ask(workers[s], do="time", calls=opened["compiled"]["calls"])["seconds"] for s in order}
                ratios.append(took["prebuilt"] / took["compiled"])
    return bits, float(np.median(ratios))


def _ask(worker: subprocess.Popen[str], **told: Any) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(told) + "\n")
    worker.stdin.flush()
    found: dict[str, Any] = json.loads(worker.stdout.readline())
    return found


if __name__ == "__main__":
    sys.exit(main())
