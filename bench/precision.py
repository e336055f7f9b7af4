"""``python -m bench.precision``: narrow weights beside the peers' own: time and error of each, in one picture.

One LSTM layer with as many inputs as units, weights as PyTorch initialises them, one thread. Errors are the largest
ones against the float64 oracle. onnxruntime's int8 is `quantize_dynamic` with its defaults.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import benchmark, reference

Array = npt.NDArray[Any]
Call = Callable[[], Any]
Row = dict[str, Any]

CELLS = ((128, 1, 100), (256, 1, 100), (512, 1, 100), (1024, 1, 30), (256, 32, 20))
"""Units, batch rows and time steps."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and write the picture; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("--svg", type=Path, default=Path(__file__).parent / "results" / "precision.local.svg")
    parser.add_argument("--rounds", type=int, default=9, help="turns that every engine takes (default: %(default)s)")
    options = parser.parse_args(argv)
    rows = [row for cell in CELLS for row in measure(*cell, rounds=options.rounds)]
    for row in rows:
        print(f"{row['cell']:<14} {row['engine']:<22} {row['us']:10.1f} us a step   error {row['error']:.1e}")
    options.svg.parent.mkdir(parents=True, exist_ok=True)
    options.svg.write_text(picture(rows))
    print(f"wrote {options.svg}", file=sys.stderr)
    return 0


def measure(units: int, batch: int, steps: int, rounds: int = 9) -> list[Row]:
    """Return time a step and error of every engine for one layer."""
    rng, bound = np.random.default_rng(1), units**-0.5
    weights = [rng.uniform(-bound, bound, (4 * units, units)).astype(np.float32) for _ in range(2)]
    bias = rng.uniform(-bound, bound, 4 * units).astype(np.float32)
    x = rng.standard_normal((steps, batch, units)).astype(np.float32)
    expected = reference.lstm(x, weights[0][None], weights[1][None], bias[None])[0]
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            **_ours(weights, bias, x),
            **_onnx_peers(weights, bias, x, Path(folder)),
            **_torch(weights, bias, x),
        }
        outputs = {name: np.asarray(call()).reshape(expected.shape) for name, call in calls.items()}
        contest = benchmark.compare(calls, steps=steps, rounds=rounds)
    return [
        {
            "cell": f"H={units} B={batch}",
            "engine": name,
            "us": 1e6 * contest.timings[name].per_step,
            "error": float(np.abs(output - expected).max()),
        }
        for name, output in outputs.items()
    ]


def _ours(weights: list[Array], bias: Array, x: Array) -> dict[str, Call]:
    layers = {p: fastlstm.LSTM(*weights, bias, precision=p) for p in ("float32", "int16", "int8")}
    return {f"fastlstm {p}": lambda layer=layer: layer(x)[0] for p, layer in layers.items()}


def _onnx_peers(weights: list[Array], bias: Array, x: Array, folder: Path) -> Mapping[str, Call]:
    import onnx
    import onnxruntime
    import openvino
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import quantize_dynamic

    units = weights[1].shape[1]

    def gates(array: Array) -> Array:  # ONNX's order is i, o, f, g
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])[None]

    constants = {"W": gates(weights[0]), "R": gates(weights[1])}
    constants["B"] = np.concatenate([gates(bias), np.zeros_like(bias)[None]], axis=1)
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=units)],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    wide, narrow = str(folder / "wide.onnx"), str(folder / "narrow.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), wide)
    quantize_dynamic(wide, narrow)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    calls: dict[str, Call] = {}
    for name, path in (("float32", wide), ("int8", narrow)):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        calls[f"onnxruntime {name}"] = lambda session=session: session.run(None, {"x": x})[0]
    core = openvino.Core()
    for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint}
        request = core.compile_model(core.read_model(wide), "CPU", settings).create_infer_request()
        calls[f"OpenVINO {name}"] = lambda request=request: request.infer([x])[0]
    return calls


def _torch(weights: list[Array], bias: Array, x: Array) -> dict[str, Call]:
    import torch

    torch.set_num_threads(1)
    units = weights[1].shape[1]
    module = torch.nn.LSTM(units, units).eval()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    arrays = (*weights, bias, np.zeros_like(bias))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)})
    given = torch.from_numpy(x)
    holder = torch.nn.Sequential(module)
    int8 = torch.ao.quantization.quantize_dynamic(holder, {torch.nn.LSTM}, dtype=torch.qint8)
    half = torch.nn.LSTM(units, units).eval()
    half.load_state_dict(module.state_dict())
    half = half.to(torch.bfloat16)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(layer: Any, value: Any) -> Array:
        return np.asarray(layer(value)[0].float().numpy())

    return {
        "PyTorch float32": lambda: run(module, given),
        "PyTorch int8": lambda: run(int8, given),
        "PyTorch bfloat16": lambda: run(half, given.to(torch.bfloat16)),
    }


def picture(rows: list[Row]) -> str:
    """Return error against time, both logarithmic, as SVG: a panel a cell, a labelled dot an engine."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    width, height = 620, 300
    parts = []
    for number, cell in enumerate(cells):
        mine = [row for row in rows if row["cell"] == cell]
        spans = [[math.log10(max(row[key], 1e-9)) for row in mine] for key in ("us", "error")]
        top = number * height
        parts.append(f'<text x="10" y="{top + 18}" font-weight="bold">{escape(cell)}: error against µs a step</text>')
        for row, x, y in zip(mine, *spans, strict=True):
            at_x = 30 + 400 * (x - min(spans[0])) / ((max(spans[0]) - min(spans[0])) or 1)
            at_y = top + height - 30 - (height - 70) * (y - min(spans[1])) / ((max(spans[1]) - min(spans[1])) or 1)
            colour = "#c33" if row["engine"].startswith("fastlstm") else "#468"
            label = f"{row['engine']} ({row['us']:.1f} µs, {row['error']:.0e})"
            parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{at_x + 7:.1f}" y="{at_y + 4:.1f}" font-size="10">{escape(label)}</text>')
    box = f"0 0 {width} {height * len(cells)}"
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {style}>{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    sys.exit(main())
