"""``python -m bench.features``: what each engine does with each option of recurrent layers, tried here and now.

A cell of the table is the outcome of a run against the float64 oracle: "yes" if every output is within
``1e-5 + 1e-4 * |b|``, "refused" if the engine raises, "wrong" with the largest difference otherwise, "–" where the
engine has no way to say it. ``--docs`` puts the table between its marks in docs/coming-from.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.graph import RECURRENT_OPS
from fastlstm.operators import reference

__all__ = ["FEATURES", "main", "render"]

Array = npt.NDArray[Any]
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- features:begin -->", "<!-- features:end -->"
T, B, F, H, P = 6, 4, 3, 8, 5
RAGGED, EMPTY = [6, 2, 5, 1], [4, 0, 6, 2]
HARD = {"activations": ["HardSigmoid", "Softsign", "ScaledTanh"]}
HARD |= {"activation_alpha": [0.3, 1.3], "activation_beta": [0.4, 0.7]}

# What a feature is called, the operator, and what `model` takes.
FEATURES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("LSTM, bidirectional", "LSTM", {"direction": "bidirectional"}),
    ("LSTM, peepholes", "LSTM", {"names": ("P",)}),
    ("LSTM, `clip`", "LSTM", {"clip": 0.4}),
    ("LSTM, `input_forget` (coupled gates)", "LSTM", {"input_forget": 1}),
    ("LSTM, activations with alpha and beta", "LSTM", HARD),
    ("LSTM, default alpha of `Affine` and `ThresholdedRelu`", "LSTM",
     {"activations": ["Sigmoid", "Affine", "ThresholdedRelu"]}),
    ("LSTM, projection (`proj_size`)", "LSTM", {"projection": True}),
    ("GRU, reset before the product", "GRU", {"linear_before_reset": 0}),
    ("GRU, reset after the product", "GRU", {"linear_before_reset": 1}),
    ("GRU, `clip` and other activations", "GRU",
     {"clip": 0.5, "activations": ["HardSigmoid", "Elu"], "activation_alpha": [0.3, 0.8], "activation_beta": [0.4]}),
    ("RNN, Relu", "RNN", {"activations": ["Relu"]}),
    ("RNN, another activation in each direction", "RNN",
     {"direction": "bidirectional", "activations": ["Relu", "Tanh"]}),
    ("activation names in lower case", "GRU", {"activations": ["relu", "hardsigmoid"]}),
    ("RNN, a NaN stays a NaN through Relu", "RNN", {"activations": ["Relu"], "bad": np.nan}),
    ("`layout=1` (batch first)", "LSTM", {"layout": 1}),
    ("ragged batch, reverse from each row's own end", "LSTM", {"direction": "bidirectional", "lengths": RAGGED}),
    ("ragged batch with peepholes", "LSTM", {"direction": "bidirectional", "lengths": RAGGED, "names": ("P",)}),
    ("ragged batch, GRU", "GRU", {"direction": "bidirectional", "lengths": RAGGED, "linear_before_reset": 1}),
    ("ragged batch, RNN with an empty row", "RNN", {"lengths": EMPTY}),
    ("an empty row keeps the state it was given", "LSTM", {"lengths": EMPTY, "names": ("initial_h", "initial_c")}),
    ("every row empty", "LSTM", {"lengths": [0] * B}),
    ("one output alone (Y_c)", "LSTM", {"outputs": ["", "", "Y_c"]}),
    ("weights as inputs of the model", "LSTM", {"variable": True}),
    ("infinite inputs saturate", "LSTM", {"bad": -np.inf}),
)  # fmt: skip


class UnsaidError(Exception):
    """An engine has no way to say a feature."""


@dataclass(frozen=True)
class Trial:
    """One feature as a model of one layer: what `model` took, the ONNX model, its inputs."""

    op: str
    options: dict[str, Any]
    proto: Any
    feeds: dict[str, Array]


def model(
    op: str,
    names: tuple[str, ...] = (),
    lengths: list[int] | None = None,
    outputs: list[str] | None = None,
    variable: bool = False,
    bad: float | None = None,
    **attrs: Any,
) -> tuple[Any, dict[str, Array]]:
    """Return an ONNX model of one layer and its inputs."""
    rng, G, D = np.random.default_rng(0), RECURRENT_OPS[op], 1 + (attrs.get("direction") == "bidirectional")

    def random(*shape: int) -> Array:
        return rng.uniform(-0.9, 0.9, shape).astype(np.float32)

    batch_first = bool(attrs.get("layout"))
    # One feature where an infinity goes in: a sum of opposite infinities would be a NaN by right.
    features = F if bad is None else 1
    arrays = {"X": random(*((B, T, features) if batch_first else (T, B, features)))}
    if bad is not None:
        arrays["X"][2, 1] = bad
    arrays |= {"W": random(D, G * H, features), "R": random(D, G * H, H), "B": random(D, 2 * G * H)}
    arrays |= {"sequence_lens": np.array(lengths or [T] * B, np.int32), "P": random(D, 3 * H)}
    arrays |= {"initial_h": random(D, B, H), "initial_c": random(D, B, H)}
    given = {"X", "W", "R", "B", *names, *(["sequence_lens"] if lengths else [])}
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", *(["initial_c", "P"] if op == "LSTM" else [])]
    inputs = [name if name in given else "" for name in order]
    results = outputs or ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    feeds = {n: arrays[n] for n in order if n in given and (variable or n in ("X", "sequence_lens"))}
    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node(op, inputs, results, "layer", hidden_size=H, **attrs)],
        "feature",
        [helper.make_tensor_value_info(n, types[a.dtype.name], a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results if n],
        [numpy_helper.from_array(arrays[n], n) for n in order if n in given and n not in feeds],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), feeds


Outputs = Mapping[str, Array]
Engine = Callable[[Trial], Outputs]


def _fastlstm(trial: Trial) -> Outputs:
    return fastlstm.from_onnx(trial.proto).run(trial.feeds)


def _onnxruntime(trial: Trial) -> Outputs:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        trial.proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, trial.feeds), strict=True))


def _openvino(trial: Trial) -> Outputs:
    import openvino

    core = openvino.Core()
    read = core.read_model(trial.proto.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(trial.feeds)
    return {name: np.array(found[name]) for name in (o.name for o in trial.proto.graph.output)}


def _torch(trial: Trial) -> Outputs:
    """Run the layer with torch.nn's of the same weights, ragged batches packed."""
    import torch

    op, options, feeds = trial.op, trial.options, trial.feeds
    known = {"direction", "layout", "lengths", "names", "outputs", "bad", "linear_before_reset", "activations"}
    silent = {"P"} & set(options.get("names", ()))
    plain = options.get("activations") in (None, ["Relu"] if op == "RNN" else None)
    if set(options) - known or silent or not plain or options.get("linear_before_reset", 1) == 0:
        raise UnsaidError
    arrays = {t.name: numpy_helper.to_array(t) for t in trial.proto.graph.initializer}
    both, first = options.get("direction") == "bidirectional", bool(options.get("layout"))
    more = {"nonlinearity": "relu"} if op == "RNN" and options.get("activations") else {}
    size = arrays["W"].shape[2]
    module = getattr(torch.nn, op)(size, H, bidirectional=both, batch_first=first, **more)
    _fill(module, op, arrays)
    x = torch.from_numpy(feeds["X"].copy())
    lengths = options.get("lengths")
    if lengths:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
    states = [torch.from_numpy(arrays[n].copy()) for n in ("initial_h", "initial_c") if n in arrays]
    with torch.inference_mode():
        y, state = module(x, tuple(states) if states else None)
    if lengths:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=first, total_length=T)
    split = y.numpy().reshape(*y.shape[:2], 1 + both, H)
    found = {"Y": split if first else split.transpose(0, 2, 1, 3)}
    for name, value in zip(("Y_h", "Y_c"), state if op == "LSTM" else (state,), strict=False):
        found[name] = value.numpy().transpose(1, 0, 2) if first else value.numpy()
    return found


def _fill(module: Any, op: str, arrays: Mapping[str, Array]) -> None:
    """Put ONNX's weights into a PyTorch layer."""
    import torch

    order = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}[op]

    def sorted_gates(array: Array) -> Any:
        gates = np.split(array, len(order))
        return torch.from_numpy(np.concatenate([gates[g] for g in order]))

    state = {}
    for d, end in enumerate(("l0", "l0_reverse")[: len(arrays["W"])]):
        state[f"weight_ih_{end}"] = sorted_gates(arrays["W"][d])
        state[f"weight_hh_{end}"] = sorted_gates(arrays["R"][d])
        ih, hh = np.split(arrays["B"][d], 2)
        state[f"bias_ih_{end}"], state[f"bias_hh_{end}"] = sorted_gates(ih), sorted_gates(hh)
    module.load_state_dict(state)


ENGINES: dict[str, Engine] = {
    "fastlstm": _fastlstm,
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "openvino": _openvino,
}


def _cell(engine: Engine, op: str, options: dict[str, Any]) -> str:
    proto, feeds = model(op, **options)
    try:
        with np.errstate(all="ignore"):
            found = engine(Trial(op, options, proto, feeds))
    except UnsaidError:
        return "–"
    except Exception:  # noqa: BLE001 - engines raise what they like
        return "refused"
    exact = reference.run(from_onnx(proto), feeds)
    worst = 0.0
    for name, value in exact.items():
        if found[name].shape != value.shape:
            return "wrong shape"
        close = np.isclose(found[name], value, rtol=1e-4, atol=1e-5, equal_nan=True)
        off = np.abs(np.where(close, 0.0, found[name] - value))
        worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off))))
    return "yes" if worst == 0 else "wrong (NaN)" if np.isinf(worst) else f"wrong (by {worst:.2g})"


def _projection(name: str) -> str:
    """Try PyTorch's projected LSTM: ONNX has none, so engines that read ONNX have no way to say it."""
    if name not in ("fastlstm", "torch"):
        return "–"
    import torch

    torch.manual_seed(0)
    module = torch.nn.LSTM(F, H, proj_size=P)
    x = torch.randn(T, B, F)
    with torch.inference_mode():
        theirs = module(x)[0].numpy()
    weights = {key: value.detach().numpy() for key, value in module.named_parameters()}
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    exact, _, _ = reference.lstm(
        x.numpy(), weights["weight_ih_l0"][None], weights["weight_hh_l0"][None], bias[None],
        w_hr=weights["weight_hr_l0"][None],
    )  # fmt: skip
    if name == "fastlstm":
        layer = fastlstm.LSTM(weights["weight_ih_l0"], weights["weight_hh_l0"], bias, weight_hr=weights["weight_hr_l0"])
        theirs = layer(x.numpy())[0]
    return "yes" if np.allclose(theirs, exact, rtol=1e-4, atol=1e-5) else "wrong"


def render() -> str:
    """Try everything and return the table as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ENGINES if name != "fastlstm")
    lines = [
        f"Each cell is a run against the float64 oracle (`python -m bench.features`): {versions}, onnx "
        f"{onnx.__version__}. PyTorch runs `torch.nn` layers, the others ONNX models; – where an engine has no way "
        "to say it.",
        "",
        f"| | {' | '.join(ENGINES)} |",
        f"|---|{'---|' * len(ENGINES)}",
    ]
    for title, op, options in FEATURES:
        if options.get("projection"):
            cells = [_projection(name) for name in ENGINES]
        else:
            cells = [_cell(engine, op, options) for engine in ENGINES.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table, or put it into the documentation; 0 if fastlstm has no cell but "yes"."""
    parser = argparse.ArgumentParser("python -m bench.features", description=__doc__)
    parser.add_argument("--docs", action="store_true", help="put the table between its marks in docs/coming-from.md")
    options = parser.parse_args(argv)
    text = render()
    if options.docs:
        page = ROOT / "docs" / "coming-from.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    else:
        print(text)
    ours = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")][1:]
    return 0 if set(ours) == {"yes"} else 1


if __name__ == "__main__":
    sys.exit(main())
