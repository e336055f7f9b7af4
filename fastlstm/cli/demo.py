"""``fastlstm demo [--out FOLDER]``: the main job on a real model and real data, without a download.

A forecaster trained on three centuries of sunspots (``examples/train_forecaster.py``), as PyTorch exported
it: an ONNX file and a state dict. Both are converted and verified, the record is streamed month by month, the
time compared, the forecast drawn; and the model is exported as C, built and replayed where there is a compiler.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm.cli.chart import Bars, Line, line_chart
from fastlstm.export.folder import export
from fastlstm.export.replay import replay_export
from fastlstm.files import fileformat
from fastlstm.graph import Graph
from fastlstm.model import Model
from fastlstm.reporting.benchmark import Contest, Timing, compare
from fastlstm.target import machine
from fastlstm.target.machine import detect
from fastlstm.typing import Array
from fastlstm.verification.comparison import Verification, check_stored, compare_runs, expected_runner
from fastlstm.verification.runners import Runner, reference_runner, torch_runner

Series = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "demo_data"
HORIZON = 12  # months that the forecaster looks ahead
HELD_OUT = 1930  # the first year that it was not trained on


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("fastlstm-demo"), metavar="FOLDER", help="where the files go (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if everything held."""
    return 0 if run_demo(arguments.out) else 1


def run_demo(folder: Path) -> bool:
    """Do the main job, writing into `folder` and to stdout; return whether everything held."""
    folder.mkdir(parents=True, exist_ok=True)
    years, numbers = read_series()
    x = (np.sqrt(numbers) / 10).astype(np.float32)[None, :, None]  # [1, months, 1], as it was trained

    print(f"A forecaster of two LSTM layers, {x.shape[1]} months of sunspots from 1749 to 2008.\n")
    model, onnx_holds = convert(DATA / "forecaster.onnx", folder / "forecaster.fastlstm", x)
    _, weights_hold = convert(
        DATA / "forecaster.safetensors",
        folder / "from_state_dict.fastlstm",
        x,
        layers="lstm | linear",
        batch_first=True,
    )
    streamed = stream_months(model, x)
    contests = compare_speed(model, x)
    exported = export_to_c(model, folder / "forecaster-c")
    draw(years, numbers, model(x), contests, folder)
    print(f"\nThe files are in {folder}: two models, the folder forecaster-c, forecast.svg and forecast.csv.")
    print(f"Look inside one:  fastlstm inspect {folder / 'forecaster.fastlstm'}")
    return onnx_holds and weights_hold and streamed and exported


def read_series() -> tuple[Series, Series]:
    """Return the time of every month in years and its mean sunspot number, [months] each."""
    table = np.loadtxt(DATA / "sunspots.csv", delimiter=",", skiprows=1, dtype=str)
    years = [int(month[:4]) + (int(month[5:]) - 0.5) / 12 for month in table[:, 0]]
    return np.array(years), table[:, 1].astype(np.float64)


def convert(source: Path, target: Path, x: Array, **options: Any) -> tuple[fastlstm.Model, bool]:
    """Load `source`, verify it over the whole record, and write it with what was verified to `target`."""
    model = fastlstm.load(source, **options)
    expected, reason = (
        weights_runner(source, model.graph) if source.suffix == ".safetensors" else expected_runner(source, model.graph)
    )
    verification = compare_runs(model.graph, expected, model.run, given=[{model.inputs[0].name: x}], reason=reason)
    fileformat.write(
        target,
        model.graph,
        verification.samples,
        fileformat.Source.of(source),
        check=lambda stored: check_stored(stored, Model(stored.graph).run),
    )
    print(f"Converted {source.name} to {target.name}: {describe(verification)}")
    return model, verification.holds


def weights_runner(path: Path, graph: Graph) -> tuple[Runner, str]:
    """Return the forecaster of a state dict in PyTorch's own layers, or the reference and the reason why."""
    if find_spec("torch") is None:
        return reference_runner(graph), "PyTorch is not installed"
    import torch
    from safetensors.torch import load_file

    lstm, head = torch.nn.LSTM(1, 32, num_layers=2, batch_first=True), torch.nn.Linear(32, 1)
    tensors = load_file(path)
    for prefix, layer in {"lstm.": lstm, "head.": head}.items():
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return torch_runner(lambda series: head(lstm(series)[0]), graph), ""


def describe(verification: Verification) -> str:
    """Return how far the outputs are from what computed the expected ones."""
    worst = max(output.max_abs for output in verification.worst.outputs)
    verdict = "" if verification.holds else ", which is TOO FAR"
    because = f" ({verification.reason})" if verification.reason else ""
    return f"largest difference {worst:.1e} from {verification.expected_from}{verdict}{because}"


def stream_months(model: fastlstm.Model, x: Array) -> bool:
    """Step through the record a month at a time; return whether the bits are those of one run."""
    stream = model.stream()
    streamed = np.stack([stream.step(frame) for frame in x[0]])
    same = np.array_equal(streamed, model(x)[0])
    verdict = "the same bits as in one run" if same else "NOT the bits of one run"
    print(f"Streamed {len(streamed)} months, one at a time: {verdict}.")
    return same


def compare_speed(model: fastlstm.Model, x: Array) -> dict[str, Contest]:
    """Print and return the time of a step and of the whole record, beside onnxruntime where it is installed."""
    stream, frame, out = model.stream(), x[0, 0].copy(), np.empty(1, np.float32)
    ours = {
        "one month": (partial(stream.step, frame, out=out), 1),
        "the whole record": (partial(model, x), x.shape[1]),
    }
    session, contests = onnxruntime_session(), {}
    for what, (call, steps) in ours.items():
        runnables: dict[str, Callable[[], object]] = {"fastlstm": call}
        if session is not None:
            runnables["onnxruntime"] = partial(session.run, None, {"x": x[:, :steps].copy()})
        contests[what] = compare(runnables, steps=steps, rounds=15, round_seconds=0.03)
        print(f"Timed {what}: {describe_contest(contests[what])}")
    if session is not None:
        print("  (medians of 15 rounds in turns, one thread each; onnxruntime keeps no state between months)")
    return contests


def export_to_c(model: fastlstm.Model, folder: Path) -> bool:
    """Export the model for this machine's processor, build and replay it; return whether nothing spoke against it."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier demo
    target = detect().name.removesuffix("-vnni")
    manifest = export(model, folder, (target,), "forecaster")
    sizes = manifest["targets"][target]["bytes"]
    print(f"Exported for {target}: {sizes['code']:,} bytes of code, {sizes['weights']:,} of weights, one C header.")
    (result,) = replay_export(folder)
    print(f"  {result}")
    return result.agrees is not False


def onnxruntime_session() -> Any:
    """Return the ONNX file in onnxruntime, on one thread as this engine is, or None without onnxruntime."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = str(DATA / "forecaster.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def microseconds(timing: Timing) -> str:
    """Return the median time in words."""
    return f"{timing.median * 1e6:,.1f} µs"


def describe_contest(contest: Contest) -> str:
    """Return the median times, and who is faster by how much."""
    ours = microseconds(contest.timings["fastlstm"])
    if "onnxruntime" not in contest.timings:
        return ours
    theirs = microseconds(contest.timings["onnxruntime"])
    ratio = contest.ratio("onnxruntime", "fastlstm")
    return f"{ours}, onnxruntime {theirs}: {ratio:.1f} times as fast"


def draw(years: Series, numbers: Series, output: Array, contests: Mapping[str, Contest], folder: Path) -> None:
    """Write forecast.csv and forecast.svg, and print the error over the years not trained on."""
    forecast = (10 * output[0, :-HORIZON, 0].astype(np.float64)) ** 2  # for a year after each month
    table = np.stack([years[HORIZON:], numbers[HORIZON:], forecast], axis=1)
    np.savetxt(
        folder / "forecast.csv",
        table,
        fmt="%.2f",
        delimiter=",",
        header="year,sunspots,forecast",
        comments="",
    )
    years, truth, forecast = table[table[:, 0] >= HELD_OUT].T
    latest = numbers[:-HORIZON][-len(truth) :]  # the number of a year before
    errors = [math.sqrt(np.mean((guess - truth) ** 2)) for guess in (forecast, latest)]
    print(
        f"Forecast {HELD_OUT}-2008 a year ahead, not seen in training: error {errors[0]:.1f} sunspots "
        f"({errors[1]:.1f} if the latest month is the forecast)."
    )
    lines = [
        Line("monthly sunspot number", years, truth, "#b8b8b8"),
        Line("forecast, made a year earlier", years, forecast, "#c2410c"),
    ]
    title = f"Sunspots, forecast a year ahead month by month, {HELD_OUT}-2008"
    bars = [
        Bars(f"Time of {what}", {name: (t.median, microseconds(t)) for name, t in contest.timings.items()})
        for what, contest in contests.items()
    ]
    where = machine.processor_name() or machine.detect().cpu
    foot = f"Measured on {where}, {date.today().isoformat()}, one thread; fastlstm {fastlstm.__version__}"
    chart = line_chart(title, lines, range(HELD_OUT, 2010, 10), range(0, 301, 50), bars, f"{foot}; made by: make demo")
    (folder / "forecast.svg").write_text(chart, encoding="utf-8")
