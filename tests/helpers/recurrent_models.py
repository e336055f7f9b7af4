"""Random recurrent models over the full product of options: as graphs, as ONNX models, as PyTorch modules.

A `Variant` is what a kernel is compiled for. Every one costs about a second of compiling, so tests draw from
`COVERING`, a fixed list in which every activation stands at every place and every pair of switches has all four
settings; with ``FASTLSTM_EXAMPLES`` set they draw each option freely, and so many models. All else about a `Case` is
free anyway.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec
from fastlstm.operators.activations import ACTIVATIONS

Array = npt.NDArray[Any]
Triple = tuple[str, ...]

EXAMPLES = int(os.environ.get("FASTLSTM_EXAMPLES", "0"))

COUNTS = {"LSTM": 3, "GRU": 2, "RNN": 1}  # activations of a direction
STATES = {"LSTM": ("h_0", "c_0"), "GRU": ("h_0",), "RNN": ("h_0",)}
OUTPUTS = {"LSTM": ("y", "h_n", "c_n"), "GRU": ("y", "h_n"), "RNN": ("y", "h_n")}
PLAIN = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
OF_ONNX = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu",
           "Softsign", "Softplus")  # fmt: skip
OF_KERAS = ("Linear", "Selu", "Gelu", "GeluTanh", "Silu", "Exp")
BOUNDED = {"Sigmoid", "Tanh", "HardSigmoid", "Softsign", "ScaledTanh"}
# Parameters that are not the defaults; Keras 3's hard_sigmoid is among them.
GIVEN = {
    "Affine": (0.6, 0.1), "LeakyRelu": (0.1, None), "ThresholdedRelu": (0.3, None), "ScaledTanh": (1.3, 0.7),
    "HardSigmoid": (1 / 6, 0.5), "Elu": (0.8, None),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What kernels are compiled for; `activations` of the first direction, then of the second."""

    op: str
    activations: tuple[Triple, Triple]
    given: bool = False  # parameters of the activations are GIVEN ones, not the defaults
    clip: float | None = None
    coupled: bool = False
    peephole: bool = False
    projected: bool = False
    reset_after: bool = True
    masked: bool = False

    def __str__(self) -> str:
        names = "/".join("-".join(triple) for triple in dict.fromkeys(self.activations))
        switches = [name for name in ("given", "coupled", "peephole", "projected", "masked") if getattr(self, name)]
        switches += [f"clip {self.clip}"] * (self.clip is not None) + ["reset before"] * (not self.reset_after)
        return ", ".join([self.op, names, *switches])


def plain(op: str, **switches: Any) -> Variant:
    return Variant(op, (PLAIN[op], PLAIN[op]), **switches)


def _mixed(op: str, names: tuple[str, ...], number: int) -> tuple[Triple, Triple]:
    """Return two sets of activations; from one number to the next every place takes the next two names."""

    def one(first: int) -> Triple:
        return tuple(names[(first + 4 * place) % len(names)] for place in range(COUNTS[op]))

    return one(2 * number), one(2 * number + 1)


def _covering() -> list[Variant]:
    found = [plain("LSTM"), plain("GRU"), plain("GRU", reset_after=False), plain("RNN"), plain("LSTM", projected=True)]
    # All pairs of three switches take four rows, of five switches (with those four) these five more.
    three = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    five = [(1, 0, 0, 1, 1), (0, 1, 0, 1, 0), (0, 0, 1, 1, 1), (1, 1, 1, 0, 1), (0, 1, 1, 1, 1)]
    for number in range(6):
        clip, coupled, peephole = three[number % 4]
        given = {"given": number % 2 == 0}
        lstm = {"clip": 0.7 if clip else None, "coupled": bool(coupled), "peephole": bool(peephole)}
        found += [Variant("LSTM", _mixed("LSTM", OF_ONNX, number), **given, **lstm)]
        gru = {"clip": 0.6 if coupled else None, "reset_after": bool(peephole)}
        found += [Variant("GRU", _mixed("GRU", OF_ONNX, number), **given, **gru)]
        found += [Variant("RNN", _mixed("RNN", OF_ONNX, number), **given, clip=0.9 if clip else None)]
    for number, (clip, coupled, peephole, projected, masked) in enumerate(five):
        lstm = {"clip": 0.7 if clip else None, "coupled": bool(coupled), "peephole": bool(peephole)}
        lstm |= {"projected": bool(projected), "masked": bool(masked)}
        gru = {"clip": 0.6 if clip else None, "reset_after": bool(coupled), "masked": True}
        names = [
            (PLAIN[op], PLAIN[op]) if number > 2 else _mixed(op, OF_KERAS, number) for op in ("LSTM", "GRU", "RNN")
        ]
        found += [Variant("LSTM", names[0], **lstm), Variant("GRU", names[1], **gru)]
        found += [Variant("RNN", names[2], masked=bool(masked))]
    return list(dict.fromkeys(found))


COVERING = _covering()


@st.composite
def free_variants(draw: Any) -> Variant:
    op = draw(st.sampled_from(sorted(RECURRENT_OPS)))
    names = OF_ONNX + draw(st.sampled_from([(), OF_KERAS]))
    both = [tuple(draw(st.sampled_from(names)) for _ in range(COUNTS[op])) for _ in range(2)]
    switches: dict[str, Any] = {"given": draw(st.booleans()), "clip": draw(st.sampled_from([None, 0.4, 0.9]))}
    own = {"LSTM": ("coupled", "peephole", "projected", "masked"), "GRU": ("reset_after", "masked"), "RNN": ("masked",)}
    switches |= {name: draw(st.booleans()) for name in own[op]}
    if draw(st.sampled_from([False, False, True])):
        both = [PLAIN[op], PLAIN[op]]
    return Variant(op, (both[0], both[1]), **switches)


@dataclass(frozen=True)
class Case:
    """A model and the shape of its input. States are "absent", "learned" (constants) or "given" (inputs)."""

    variant: Variant
    directions: tuple[str, ...]
    layers: int
    bias: bool
    lengths: bool
    states: tuple[str, ...]
    outputs: tuple[bool, ...]
    variable: bool  # weights are inputs of the model
    sizes: tuple[int, int, int]  # of x, of the hidden state, of a projection
    T: int
    B: int
    seed: int

    @property
    def output_size(self) -> int:
        return self.sizes[2] if self.variant.projected else self.sizes[1]

    def parameters(self, name: str) -> tuple[float | None, float | None]:
        """Return alpha and beta; None where the activation takes none."""
        return GIVEN.get(name, ACTIVATIONS[name].defaults) if self.variant.given else ACTIVATIONS[name].defaults

    def arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return weights (and learned states) by name, and inputs by name."""
        rng, v = np.random.default_rng(self.seed), self.variant
        D, G, (size, H, _), P = len(self.directions), RECURRENT_OPS[v.op], self.sizes, self.output_size
        # What grows without bound feeds on itself: sums of large numbers would cancel, and lose their digits.
        used = {n for names in v.activations for n in names}
        scale = 0.8 if used <= BOUNDED else 0.1 if "Exp" in used else 0.3

        def random(*shape: int) -> Array:
            return rng.uniform(-scale, scale, shape).astype(np.float32)

        weights: dict[str, Array] = {}
        inputs = {"x": rng.standard_normal((self.T, self.B, size)).astype(np.float32)}
        for layer in range(self.layers):
            own = {"w_ih": random(D, G * H, size), "w_hh": random(D, G * H, P) / np.float32(P**0.5)}
            own |= {"bias": random(D, (4 if v.op == "GRU" else G) * H)} if self.bias else {}
            own |= {"peephole": random(D, 3 * H)} if v.peephole else {}
            own |= {"w_hr": random(D, P, H) / np.float32(H**0.5)} if v.projected else {}
            weights |= {f"{name}_{layer}": array for name, array in own.items()}
            for name, kind, width in zip(STATES[v.op], self.states, (P, H), strict=False):
                state = random(D, self.B, width)
                target = {"absent": {}, "learned": weights, "given": inputs}[kind]
                target[f"{name}_{layer}"] = state
            size = D * P
        lengths = rng.integers(0, self.T + 1, self.B)
        inputs |= {"lengths": lengths} if self.lengths else {}
        inputs |= {"mask": rng.random((self.T, self.B)) < 0.7} if v.masked else {}
        return weights, inputs

    def graph(self) -> Graph:
        """Return the model as a graph; layer by layer its outputs are those asked for, and the last one's y."""
        v, (weights, inputs) = self.variant, self.arrays()
        attrs: dict[str, Any] = {"hidden_size": self.sizes[1], "directions": list(self.directions), "clip": v.clip}
        used = v.activations if len(self.directions) == 2 else v.activations[:1]
        attrs["activations"] = [[[name, *self.parameters(name)] for name in names] for names in used]
        attrs |= {"LSTM": {"input_forget": int(v.coupled)}, "GRU": {"reset_after": int(v.reset_after)}, "RNN": {}}[v.op]
        nodes, outputs, x = [], [], "x"
        for layer in range(self.layers):

            def known(name: str, layer: int = layer) -> str:
                return f"{name}_{layer}" if f"{name}_{layer}" in weights or f"{name}_{layer}" in inputs else ""

            own = [x, *map(known, ("w_ih", "w_hh", "bias")), *(n if n in inputs else "" for n in ("lengths", "mask"))]
            own += [known(name) for name in ("h_0", "c_0", "peephole", "w_hr")[: 4 if v.op == "LSTM" else 1]]
            last = layer == self.layers - 1
            results = [
                f"{name}_{layer}" if asked else "" for name, asked in zip(OUTPUTS[v.op], self.outputs, strict=True)
            ]
            outputs += [name for name in results if name and (last or not name.startswith("y"))]
            x = results[0] = results[0] or ("" if last else f"y_{layer}")
            nodes.append(Node(v.op, tuple(own), tuple(results), attrs, f"layer{layer}"))
        given = {**inputs, **(weights if self.variable else {})}
        return Graph(
            tuple(TensorSpec(name, tuple(f"{name}.{i}" for i in range(a.ndim)) if name != "x" else ("time", "batch",
                  self.sizes[0]), a.dtype.name) for name, a in given.items()),
            tuple(TensorSpec(name, ("...",)) for name in outputs),
            tuple(nodes),
            {} if self.variable else weights,
        )  # fmt: skip

    def feeds(self) -> dict[str, Array]:
        weights, inputs = self.arrays()
        return {**inputs, **(weights if self.variable else {})}


@st.composite
def cases(draw: Any, variant: Variant | None) -> Case:
    """Draw a case of the variant, or of any."""
    variant = variant or draw(free_variants())
    op = variant.op
    sizes = st.integers(1, 80) if EXAMPLES else st.sampled_from([21, 70])  # each small size may cost a kernel
    outputs = st.lists(st.booleans(), min_size=len(OUTPUTS[op]), max_size=len(OUTPUTS[op])).filter(any)
    return Case(
        variant,
        draw(st.sampled_from([("forward",), ("reverse",), ("forward", "reverse")])),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
        tuple(draw(st.sampled_from(["absent", "learned", "given"])) for _ in STATES[op]),
        tuple(draw(outputs)),
        draw(st.sampled_from([False, False, True])),
        (draw(st.integers(1, 7)), draw(sizes), draw(st.integers(1, 20))),
        draw(st.integers(0, 6)),
        draw(st.integers(1, 8)),
        draw(st.integers(0, 999)),
    )  # fmt: skip


# ---------------------------------------------------------------- ONNX

_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # ONNX's gates as positions in ours
_ONNX_NAMES = {"y": "Y", "h_n": "Y_h", "c_n": "Y_c"}


def onnx_has(case: Case) -> bool:
    """Whether ONNX can say it."""
    v = case.variant
    return not (v.projected or v.masked) and {n for names in v.activations for n in names} <= set(OF_ONNX)


def onnxruntime_knows(case: Case) -> bool:
    """Whether onnxruntime computes what ONNX says: it does not take an RNN's zero lengths, nor keep given states."""
    empty = case.lengths and not case.feeds()["lengths"].all()
    return (
        onnx_has(case) and case.T > 0 and not (empty and (case.variant.op == "RNN" or set(case.states) != {"absent"}))
    )


def onnx_model(case: Case, layout: int = 0) -> tuple[Any, dict[str, Array], list[str]]:
    """Return the case as an ONNX model, its inputs, and its outputs' names in the order of the graph's."""
    v, D, H = case.variant, len(case.directions), case.sizes[1]
    weights, inputs = case.arrays()

    def gates(array: Array) -> Array:
        parts = np.split(array, len(_ORDER[v.op]), axis=1)
        return np.concatenate([parts[i] for i in _ORDER[v.op]], axis=1)

    def batch_first(array: Array) -> Array:
        return np.ascontiguousarray(array.swapaxes(0, 1)) if layout else array

    tensors: dict[str, Array] = {}
    nodes, names, x = [], [], "x"
    for layer in range(case.layers):
        tensors[f"W{layer}"], tensors[f"R{layer}"] = gates(weights[f"w_ih_{layer}"]), gates(weights[f"w_hh_{layer}"])
        bias = weights.get(f"bias_{layer}")
        if bias is not None:
            ours, theirs = bias, np.zeros_like(weights[f"w_ih_{layer}"][:, :, 0])
            if v.op == "GRU":
                ours, theirs[:, 2 * H :] = bias[:, : 3 * H], bias[:, 3 * H :]
            tensors[f"B{layer}"] = np.concatenate([gates(ours), gates(theirs)], axis=1)
        if v.peephole:
            i, f, o = np.split(weights[f"peephole_{layer}"], 3, axis=1)
            tensors[f"P{layer}"] = np.concatenate([i, o, f], axis=1)
        for name in STATES[v.op]:
            for source in (weights, inputs):
                if f"{name}_{layer}" in source:
                    tensors[f"{name}_{layer}"] = batch_first(source[f"{name}_{layer}"])
        own = [x, *(n if n in tensors else "" for n in (f"W{layer}", f"R{layer}", f"B{layer}"))]
        own += ["lengths" if case.lengths else ""]
        more = [f"{name}_{layer}" for name in STATES[v.op]] + [f"P{layer}"] * (v.op == "LSTM")
        own += [name if name in tensors else "" for name in more]
        last = layer == case.layers - 1
        asked = dict(zip(OUTPUTS[v.op], case.outputs, strict=True))
        results = [f"{_ONNX_NAMES[n]}{layer}" if yes else "" for n, yes in asked.items()]
        names += [name for name in results if name and (last or not name.startswith("Y" + str(layer)))]
        results[0] = results[0] or ("" if last else f"Y{layer}")
        used = [name for triple in v.activations[:D] for name in triple]
        alphas, betas = ([p for n in used if (p := case.parameters(n)[i]) is not None] for i in (0, 1))
        options: dict[str, Any] = {"activations": used, "activation_alpha": alphas, "activation_beta": betas}
        options |= {"clip": v.clip} if v.clip is not None else {}
        options |= {"input_forget": 1} if v.coupled else {}
        options |= {"linear_before_reset": int(v.reset_after)} if v.op == "GRU" else {}
        direction = "bidirectional" if D == 2 else case.directions[0]
        nodes.append(
            helper.make_node(
                v.op,
                own,
                results,
                f"layer{layer}",
                hidden_size=H,
                direction=direction,
                layout=layout,
                **{key: value for key, value in options.items() if value != []},
            )
        )
        if not last:
            x, turned = f"x{layer + 1}", f"turned{layer}"
            tensors["rows"] = np.array([0, 0, -1], np.int64)
            perm = [0, 1, 2, 3] if layout else [0, 2, 1, 3]
            nodes += [
                helper.make_node("Transpose", [results[0]], [turned], perm=perm),
                helper.make_node("Reshape", [turned, "rows"], [x]),
            ]
    feeds = {"x": batch_first(inputs["x"])}
    feeds |= {"lengths": inputs["lengths"].astype(np.int32)} if case.lengths else {}
    fed = [n for n in tensors if n in inputs or (case.variable and n != "rows")]
    feeds |= {name: tensors.pop(name) for name in fed}
    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(n, types[a.dtype.name], a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), feeds, names


def as_graph_outputs(case: Case, found: list[Array], layout: int = 0) -> list[Array]:
    """Return ONNX's outputs in the shapes of the graph's."""
    results = []
    for array in found:
        if array.ndim == 4:
            time_major = array.swapaxes(0, 1) if layout else array.swapaxes(1, 2)
            results.append(time_major.reshape(*time_major.shape[:2], time_major.shape[2] * time_major.shape[3]))
        else:
            results.append(array.swapaxes(0, 1) if layout else array)
    return results


# ---------------------------------------------------------------- PyTorch


def torch_has(case: Case) -> bool:
    """Whether PyTorch has such a layer and runs it on this input."""
    v = case.variant
    kinds = {PLAIN[v.op]} | ({("Relu",)} if v.op == "RNN" else set())
    same = v.activations[0] == v.activations[1] and v.activations[0] in kinds
    switched = v.clip is not None or v.coupled or v.peephole or v.masked or not v.reset_after
    projected = not v.projected or case.output_size < case.sizes[1]
    full = not case.lengths or bool(case.feeds()["lengths"].all())
    known = len(set(case.states)) == 1 and case.directions != ("reverse",) and case.T > 0
    return same and not switched and projected and full and known


def run_torch(case: Case) -> list[Array]:
    """Return PyTorch's outputs, in the order of the graph's."""
    import torch

    v, (weights, inputs), D = case.variant, case.arrays(), len(case.directions)
    size, H, P = case.sizes
    more: dict[str, Any] = {"proj_size": P} if v.projected else {}
    more |= {"nonlinearity": v.activations[0][0].lower()} if v.op == "RNN" else {}
    module = getattr(torch.nn, v.op)(size, H, case.layers, bias=case.bias, bidirectional=D == 2, **more)
    state = {}
    for layer in range(case.layers):
        for d, end in enumerate(("", "_reverse")[:D]):
            own = {"weight_ih": weights[f"w_ih_{layer}"][d], "weight_hh": weights[f"w_hh_{layer}"][d]}
            if case.bias:
                bias = weights[f"bias_{layer}"][d]
                ours, theirs = bias, np.zeros_like(own["weight_ih"][:, 0])
                if v.op == "GRU":
                    ours, theirs[2 * H :] = bias[: 3 * H], bias[3 * H :]
                own |= {"bias_ih": ours, "bias_hh": theirs}
            own |= {"weight_hr": weights[f"w_hr_{layer}"][d]} if v.projected else {}
            state |= {f"{name}_l{layer}{end}": torch.from_numpy(array.copy()) for name, array in own.items()}
    module.load_state_dict(state)
    x = torch.from_numpy(inputs["x"])
    if case.lengths:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(inputs["lengths"]), enforce_sorted=False)
    start = None
    if case.states[0] != "absent":
        source = {**weights, **inputs}
        start = [
            torch.from_numpy(np.concatenate([source[f"{name}_{layer}"] for layer in range(case.layers)]))
            for name in STATES[v.op]
        ]
    with torch.inference_mode():
        y, ends = module(x, start if start is None or v.op == "LSTM" else start[0])
    if case.lengths:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=case.T)
    values = {"y": y.numpy(), **dict(zip(("h_n", "c_n"), ends if v.op == "LSTM" else (ends,), strict=False))}
    asked = [name for name, yes in zip(OUTPUTS[v.op], case.outputs, strict=True) if yes]
    results = []
    for layer in range(case.layers):
        last = layer == case.layers - 1
        for name in asked:
            if name != "y":
                results.append(np.asarray(values[name])[D * layer : D * (layer + 1)])
            elif last:
                results.append(values["y"])
    return results


def whole(case: Case) -> Case:
    """Return the case with every state given and every output shown, weights as constants."""
    given = tuple("given" for _ in case.states)
    return replace(case, states=given, outputs=tuple(True for _ in case.outputs), variable=False)
