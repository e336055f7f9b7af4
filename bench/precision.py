"""``python -m bench.precision``: narrow weights beside the peers' own: time and error of each, in one picture.

One LSTM layer with as many inputs as units, weights as PyTorch initialises them; all but PyTorch load the same ONNX
model. Errors are the largest ones against the float64 oracle. onnxruntime's int8 is `quantize_dynamic` with its
defaults. Engines take turns, and ratios are medians over the rounds. All share a process: with more than one thread
peers that pin or spin slow each other down (onnxruntime's int8 took up to twice what it takes alone, fastlstm's as
long as alone).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from bench.measure import Budget, Samples, measure
from fastlstm.operators import reference

Array = npt.NDArray[Any]
Call = Callable[[], Any]
Row = dict[str, Any]

CELLS = ((128, 1, 100), (256, 1, 100), (512, 1, 100), (1024, 1, 100), (256, 32, 100))
"""Units, batch rows and time steps."""

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and the ratios, write the picture; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("--svg", type=Path, default=RESULTS / "precision.local.svg")
    parser.add_argument("--json", type=Path, default=RESULTS / "precision.local.json")
    parser.add_argument("--threads", default="1", help="thread counts, as 1,2 (default: %(default)s)")
    parser.add_argument("--cells", default="", help="only cells whose name matches this regular expression")
    parser.add_argument("--seconds", type=float, default=2.0, help="the time that a cell's rounds take, about")
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # onnxruntime's quantiser recommends its own preparations
    rows = []
    for threads in map(int, options.threads.split(",")):
        for cell in CELLS:
            name = f"H={cell[0]} B={cell[1]}, {threads} thread{'s' * (threads > 1)}"
            if re.search(options.cells, name):
                found, said = compare(*cell, threads=threads, seconds=options.seconds)
                for row in found:
                    row["cell"] = name
                    print(f"{name:<24} {row['engine']:<20} {row['us']:9.2f} us a step   error {row['error']:.1e}")
                print("".join(f"{name:<24} {line}\n" for line in said), flush=True)
                rows += found
    options.svg.parent.mkdir(parents=True, exist_ok=True)
    options.svg.write_text(picture(rows))
    options.json.write_text(json.dumps({"version": fastlstm.__version__, "rows": rows}, indent=1))
    print(f"wrote {options.svg} and {options.json}", file=sys.stderr)
    return 0


def compare(units: int, batch: int, steps: int, threads: int, seconds: float) -> tuple[list[Row], list[str]]:
    """Return time a step and error of every engine for one layer, and the ratios that matter."""
    rng, bound = np.random.default_rng(1), units**-0.5
    weights = [rng.uniform(-bound, bound, (4 * units, units)).astype(np.float32) for _ in range(2)]
    bias = rng.uniform(-bound, bound, 4 * units).astype(np.float32)
    x = rng.standard_normal((steps, batch, units)).astype(np.float32)
    expected = reference.lstm(x, weights[0][None], weights[1][None], bias[None])[0]
    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = _models(weights, bias, x, Path(folder))
        calls = {
            **_ours(wide, x, threads),
            **_onnxruntime(wide, narrow, x, threads),
            **_openvino(wide, x, threads),
            **_torch(weights, bias, x, threads),
        }
        outputs = {name: np.asarray(call()).reshape(expected.shape) for name, call in calls.items()}
        samples = measure(calls, Budget(seconds=seconds))
    rows = [
        {
            "engine": name,
            "us": float(np.median(samples[name].wall)) / 1e3 / steps,
            "error": float(np.abs(output - expected).max()),
        }
        for name, output in outputs.items()
    ]
    return rows, _ratios(samples, {row["engine"]: row["error"] for row in rows})


def _ratios(samples: Mapping[str, Samples], errors: Mapping[str, float]) -> list[str]:
    def ratio(slow: list[str], fast: str) -> float:
        best = np.min([samples[name].wall for name in slow], axis=0)
        return float(np.median(best / np.array(samples[fast].wall)))

    peers = [name for name in samples if name.endswith("float32") and not name.startswith("fastlstm")]
    share = errors["fastlstm int8"] / errors["onnxruntime int8"]
    return [
        f"int16 is {ratio(['fastlstm float32'], 'fastlstm int16'):.2f} times as fast as float32, "
        f"{ratio(peers, 'fastlstm int16'):.2f} times as fast as the best float32 peer",
        f"int8 is {ratio(['onnxruntime int8'], 'fastlstm int8'):.2f} times as fast as onnxruntime's int8, "
        f"with {share:.2f} of its error",
    ]


def _ours(path: str, x: Array, threads: int) -> dict[str, Call]:
    models = {p: fastlstm.load(path, precision=p, threads=threads) for p in ("float32", "int16", "int8")}
    return {f"fastlstm {p}": lambda model=model: model(x) for p, model in models.items()}


def _models(weights: list[Array], bias: Array, x: Array, folder: Path) -> tuple[str, str]:
    """Write the layer as ONNX, in float32 and as onnxruntime quantises it; return the paths."""
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import quantize_dynamic

    def gates(array: Array) -> Array:  # ONNX's order is i, o, f, g
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])[None]

    constants = {"W": gates(weights[0]), "R": gates(weights[1])}
    constants["B"] = np.concatenate([gates(bias), np.zeros_like(bias)[None]], axis=1)
    units = weights[1].shape[1]
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=units)],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [len(x), 1, x.shape[1], units])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    wide, narrow = str(folder / "wide.onnx"), str(folder / "narrow.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), wide)
    quantize_dynamic(wide, narrow)
    return wide, narrow


def _onnxruntime(wide: str, narrow: str, x: Array, threads: int) -> Mapping[str, Call]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    calls: dict[str, Call] = {}
    for name, path in (("float32", wide), ("int8", narrow)):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        calls[f"onnxruntime {name}"] = lambda session=session: session.run(None, {"x": x})[0]
    return calls


def _openvino(path: str, x: Array, threads: int) -> Mapping[str, Call]:
    import openvino

    core = openvino.Core()
    calls: dict[str, Call] = {}
    for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
        calls[f"OpenVINO {name}"] = lambda request=request: request.infer([x], share_inputs=True, share_outputs=True)[0]
    return calls


def _torch(weights: list[Array], bias: Array, x: Array, threads: int) -> dict[str, Call]:
    import torch

    torch.set_num_threads(threads)
    units = weights[1].shape[1]
    module = torch.nn.LSTM(units, units).eval()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    arrays = (*weights, bias, np.zeros_like(bias))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of functions that a later release may not have
        holder = torch.nn.Sequential(module)
        int8 = torch.ao.quantization.quantize_dynamic(holder, {torch.nn.LSTM}, dtype=torch.qint8)
    half = torch.nn.LSTM(units, units).eval()
    half.load_state_dict(module.state_dict())
    half = half.to(torch.bfloat16)
    given = torch.from_numpy(x)
    given_half = given.to(torch.bfloat16)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(layer: Any, value: Any) -> Array:
        return np.asarray(layer(value)[0].float().numpy())

    return {
        "PyTorch float32": lambda: run(module, given),
        "PyTorch int8": lambda: run(int8, given),
        "PyTorch bfloat16": lambda: run(half, given_half),
    }


def picture(rows: list[Row]) -> str:
    """Return error against time, both logarithmic, as SVG: a panel a cell, a labelled dot an engine."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    width, height = 620, 300
    columns = 2 if len(cells) > 1 else 1
    parts = []
    for number, cell in enumerate(cells):
        mine = [row for row in rows if row["cell"] == cell]
        spans = [[math.log10(max(row[key], 1e-9)) for row in mine] for key in ("us", "error")]
        left, top = number % columns * width, number // columns * height
        title = f"{cell}: error against µs a step"
        parts.append(f'<text x="{left + 10}" y="{top + 18}" font-weight="bold">{escape(title)}</text>')
        places = [
            (
                left + 30 + 400 * (x - min(spans[0])) / ((max(spans[0]) - min(spans[0])) or 1),
                top + height - 30 - (height - 70) * (y - min(spans[1])) / ((max(spans[1]) - min(spans[1])) or 1),
            )
            for x, y in zip(*spans, strict=True)
        ]
        labels = _apart([y for _, y in places])
        for row, (x, y), label_y in zip(mine, places, labels, strict=True):
            colour = "#c33" if row["engine"].startswith("fastlstm") else "#468"
            label = f"{row['engine']} ({row['us']:.1f} µs, {row['error']:.0e})"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{x + 7:.1f}" y="{label_y + 4:.1f}" font-size="10">{escape(label)}</text>')
    box = f"0 0 {width * columns} {height * -(-len(cells) // columns)}"
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {style}>{"".join(parts)}</svg>\n'


def _apart(heights: list[float], least: float = 11.0) -> list[float]:
    """Return the heights moved down until no two labels overlap."""
    placed = list(heights)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + least)
    return placed


if __name__ == "__main__":
    sys.exit(main())
