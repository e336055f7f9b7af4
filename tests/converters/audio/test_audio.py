"""Audio models give what the engines they were made for give; a wrong file is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.converters.audio.load import load, load_with_samples
from fastlstm.errors import FastLSTMError, FileFormatError, InputError, UnsupportedError
from fastlstm.operators import reference

T, B = 9, 2


def close(got: np.ndarray, want: torch.Tensor) -> None:
    """The project's tolerance: the framework rounds in float32."""
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-5)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def output(path: Path, x: torch.Tensor) -> np.ndarray:
    return reference.run(load(path), {"input": x.numpy()})["output"]


def keras_order(layer: nn.LSTM | nn.GRU) -> list[Any]:
    """A PyTorch layer's weights in Keras order and layout, as RTNeural files hold them."""
    w, u, b, r = (p.detach().numpy() for p in layer.parameters())
    if isinstance(layer, nn.LSTM):
        return [w.T.tolist(), u.T.tolist(), (b + r).tolist()]
    H = layer.hidden_size
    order = np.r_[H : 2 * H, :H, 2 * H : 3 * H]  # r, z, n to z, r, h
    return [w[order].T.tolist(), u[order].T.tolist(), [b[order].tolist(), r[order].tolist()]]


def dense(layer: nn.Linear, activation: str = "") -> dict[str, Any]:
    weights = [layer.weight.T.tolist(), layer.bias.tolist()]
    shape = [None, None, layer.out_features]
    return {"type": "dense", "activation": activation, "shape": shape, "weights": weights}


def rtneural(rec: nn.LSTM | nn.GRU, head: nn.Linear, **more: Any) -> dict[str, Any]:
    kind = type(rec).__name__.lower()
    shape = [None, None, rec.hidden_size]
    recurrent = {"type": kind, "activation": "", "shape": shape, "weights": keras_order(rec)}
    return {"in_shape": [None, None, rec.input_size], "layers": [recurrent, dense(head)], **more}


def test_rtneural_layers_without_a_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rec, head = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 1, bias=False)
    layer = {"type": "dense", "activation": "", "shape": [None, None, 1], "weights": [head.weight.T.tolist()]}
    content = rtneural(rec, nn.Linear(6, 1))
    content["layers"][1] = layer
    x = torch.randn(B, T, 1)
    close(output(write(tmp_path / "m.json", content), x), head(rec(x)[0]))


def test_a_state_dict_in_json_is_read_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rec, head = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 1)
    tensors = nn.ModuleDict({"lstm": rec, "dense": head}).state_dict()
    path = write(tmp_path / "m.json", {name: tensor.tolist() for name, tensor in tensors.items()})
    x = torch.randn(B, T, 1)
    close(fastlstm.load(path, layers="lstm | relu | linear")(x.numpy()), head(rec(x)[0].relu()))
    with pytest.warns(fastlstm.AssumptionWarning, match="no activation or skip connection comes between"):
        close(fastlstm.load(path)(x.numpy()), head(rec(x)[0]))
    with pytest.raises(InputError, match="layers is for state dicts"):
        fastlstm.load(write(tmp_path / "amp.json", rtneural(rec, head)), layers="lstm")


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_rtneural_recurrent_layers_are_read_in_keras_order(tmp_path: Path, make: Callable[..., Any]) -> None:
    rec, head, x = make(1, 8, batch_first=True), nn.Linear(8, 1), torch.randn(B, T, 1)
    path = write(tmp_path / "amp.json", rtneural(rec, head))
    close(output(path, x), head(rec(x)[0]))
    assert [spec.shape for spec in load(path).inputs] == [("batch", "time", 1)]


def test_rtneural_layers_around_them(tmp_path: Path) -> None:
    first, conv, last = nn.Linear(2, 4), nn.Conv1d(4, 6, 3, dilation=2, groups=2), nn.Linear(6, 3)
    norm, slope = nn.BatchNorm1d(6, eps=1e-3).eval(), torch.rand(6)
    for parameter in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(parameter)
    norm.running_var.uniform_(0.5, 2)
    statistics = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    shape = [None, None, 6]
    kernel = conv.weight.detach().permute(2, 1, 0).tolist()
    layers = [
        {**dense(first, "elu"), "type": "time-distributed-dense"},
        {
            "type": "conv1d", "activation": "relu", "shape": shape, "kernel_size": [3], "dilation": [2],
            "groups": 2, "weights": [kernel, conv.bias.tolist()],
        },
        {"type": "batchnorm", "shape": shape, "epsilon": 1e-3, "weights": [p.tolist() for p in statistics]},
        {"type": "prelu", "shape": shape, "weights": [[slope.tolist()]]},
        {"type": "activation", "activation": "tanh", "shape": shape, "weights": []},
        dense(last, "softmax"),
    ]  # fmt: skip
    x = torch.randn(B, T, 2)
    y = nn.functional.elu(first(x)).transpose(1, 2)
    y = torch.relu(conv(nn.functional.pad(y, (4, 0))))
    y = torch.tanh(nn.functional.prelu(norm(y), slope)).transpose(1, 2)
    path = write(tmp_path / "net.json", {"in_shape": [None, None, 2], "layers": layers})
    close(output(path, x), torch.softmax(last(y), -1))
    streams_like_the_whole(path)


def test_aidax_skip_gains_and_recorded_samples(tmp_path: Path) -> None:
    rec, head, x = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 1), torch.randn(1, T, 1)
    loud = 2 * x
    want = (head(rec(loud)[0]) + loud) / 2
    decibels = 20 * np.log10(2)
    recorded = {"input_batch": x[0, :, 0].tolist(), "output_batch": want[0, :, 0].tolist()}
    model = rtneural(
        rec, head, in_skip=1, in_gain=decibels, out_gain=-decibels, metadata={"name": "x"}, colour="red", **recorded
    )
    graph, samples = load_with_samples(write(tmp_path / "amp.aidax", model))
    ((inputs, outputs),) = samples
    np.testing.assert_array_equal(inputs["input"], x.numpy())
    close(reference.run(graph, inputs)["output"], torch.from_numpy(outputs["output"]))
    assert graph.notes == ("The fields colour of the file were taken for remarks and not read.",)


def guitarml(rec: nn.Module, lin: nn.Linear, skip: int, layers: int = 1) -> dict[str, Any]:
    unit = type(rec).__name__
    data = {
        "model": "SimpleRNN", "unit_type": unit, "input_size": rec.input_size, "hidden_size": rec.hidden_size,
        "num_layers": layers, "output_size": 1, "skip": skip, "bias_fl": True,
    }  # fmt: skip
    state = {f"rec.{k}": v.tolist() for k, v in rec.state_dict().items()}
    state |= {f"lin.{k}": v.tolist() for k, v in lin.state_dict().items()}
    return {"model_data": data, "state_dict": state}


@pytest.mark.parametrize(
    ("make", "features", "skip", "layers"), [(nn.LSTM, 1, 1, 1), (nn.GRU, 2, 1, 2), (nn.LSTM, 2, 0, 2)]
)
def test_guitarml_adds_the_first_input_channel(
    tmp_path: Path, make: Callable[..., Any], features: int, skip: int, layers: int
) -> None:
    rec, lin = make(features, 8, layers, batch_first=True), nn.Linear(8, 1)
    x = torch.randn(B, T, features)
    path = write(tmp_path / "pedal.json", guitarml(rec, lin, skip, layers))
    close(output(path, x), lin(rec(x)[0]) + skip * x[:, :, :1])


def nam(rec: nn.LSTM, head: nn.Linear, h: torch.Tensor, c: torch.Tensor) -> dict[str, Any]:
    weights: list[float] = []
    for k in range(rec.num_layers):
        w, u, b, r = (getattr(rec, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        for part in (torch.cat([w, u], 1), b + r, h[k, 0], c[k, 0]):
            weights += part.flatten().tolist()
    weights += head.weight.flatten().tolist() + head.bias.tolist()
    config = {"input_size": rec.input_size, "hidden_size": rec.hidden_size, "num_layers": rec.num_layers}
    return {"version": "0.5.4", "architecture": "LSTM", "config": config, "weights": weights, "sample_rate": 48000}


def test_nam_starts_from_its_learned_state_in_every_row(tmp_path: Path) -> None:
    rec, head, x = nn.LSTM(1, 6, 2, batch_first=True), nn.Linear(6, 1), torch.randn(B, T, 1)
    h, c = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    path = write(tmp_path / "amp.nam", nam(rec, head, h, c))
    want = head(rec(x, (h.expand(-1, B, -1).contiguous(), c.expand(-1, B, -1).contiguous()))[0])
    close(output(path, x), want)


def streams_like_the_whole(path: Path) -> None:
    """Steps, chunks and a pool have the bits of one run, and start from the model's own state."""
    model = fastlstm.load(path)
    features = model.inputs[0].shape[-1]
    x = np.random.default_rng(0).normal(size=(40, int(features))).astype(np.float32)
    whole = model(x[None])[0]
    stream, pool = model.stream(), model.streams(capacity=2)
    for _ in range(2):
        parts = [stream.step(x[0])[None], stream.push(x[1:7]), stream.push(x[7:7]), stream.push(x[7:])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        stream.reset()
    numbers = [pool.open(), pool.open()]
    pool.step(numbers[:1], x[:1])
    rest, other = pool.push(numbers, [x[1:], x])
    np.testing.assert_array_equal(rest, whole[1:])
    np.testing.assert_array_equal(other, whole)


def test_a_stream_starts_from_the_learned_state(tmp_path: Path) -> None:
    rec, head = nn.LSTM(1, 6, 2, batch_first=True), nn.Linear(6, 1)
    streams_like_the_whole(write(tmp_path / "amp.nam", nam(rec, head, torch.randn(2, 1, 6), torch.randn(2, 1, 6))))


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_an_amplifier_with_its_input_added_streams(tmp_path: Path, make: Callable[..., Any]) -> None:
    rec, lin = make(2, 8, batch_first=True), nn.Linear(8, 1)
    streams_like_the_whole(write(tmp_path / "pedal.json", guitarml(rec, lin, 1)))


REC, HEAD = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)
GOOD = rtneural(REC, HEAD)
PEDAL = guitarml(REC, HEAD, 1)
AMP = nam(REC, HEAD, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))


def changed(content: Any, *path: str | int, to: Any) -> Any:
    """A copy of the content with one value replaced."""
    copy = json.loads(json.dumps(content))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return copy


REFUSED = [
    ({}, UnsupportedError, "no audio model"),
    ([1], FileFormatError, "holds a list at its top"),
    ("{", FileFormatError, "not a readable JSON"),
    ('{"layers": [NaN]}', FileFormatError, "NaN"),
    ("[" * 100_000, FileFormatError, "not a readable JSON"),
    (changed(GOOD, "layers", 0, "type", to="conv3d"), UnsupportedError, "layer 0: the type 'conv3d'"),
    (changed(GOOD, "layers", 0, "activation", to="relu"), UnsupportedError, "'relu' of a recurrent layer"),
    (changed(GOOD, "layers", 1, "activation", to="swish"), UnsupportedError, "'swish' is not supported"),
    (changed(GOOD, "layers", 1, "extra", to=1), UnsupportedError, "the field 'extra' is not understood"),
    (changed(GOOD, "layers", 0, "shape", to=[None, None, 5]), FileFormatError, r"weights 0 .*\[1, 20\]; got \[1, 16\]"),
    (changed(GOOD, "layers", 0, "shape", to=[None, None, 1 << 30]), FileFormatError, "got \\[1, 16\\]"),
    (changed(GOOD, "layers", 0, "weights", to=[[1.0]]), FileFormatError, "expected 3 arrays of weights; got 1"),
    (changed(GOOD, "layers", 1, "weights", 1, to=["a"]), FileFormatError, "should hold numbers"),
    (changed(GOOD, "layers", 1, "weights", 1, to=[[1], [2, 3]]), FileFormatError, "nested lists of numbers"),
    (changed(GOOD, "layers", 1, "weights", 1, to=[1e300]), FileFormatError, "too large for float32"),
    (changed(GOOD, "in_shape", to=[None, None, 0]), FileFormatError, "from 1 to 2147483647; got '0'"),
    (changed(GOOD, "in_skip", to=2), UnsupportedError, "2 input channel"),
    (changed(GOOD, "in_gain", to=1e9), FileFormatError, "at most 200"),
    ({**GOOD, "input_batch": [1.0], "output_batch": [1.0, 2.0]}, FileFormatError, "1 inputs and 2 outputs"),
    (changed(PEDAL, "model_data", "hidden_size", to=5), FileFormatError, "the weights are of"),
    (changed(PEDAL, "model_data", "unit_type", to="GRU"), UnsupportedError, "should hold a gru module 'rec'"),
    (changed(PEDAL, "model_data", "model", to="ConvNet"), UnsupportedError, "ConvNet"),
    (changed(PEDAL, "state_dict", "lin.extra", to=[1.0]), UnsupportedError, "lin.extra"),
    (changed(AMP, "architecture", to="WaveNet"), UnsupportedError, "WaveNet"),
    (changed(AMP, "weights", to=AMP["weights"][1:]), FileFormatError, "has 109 weights; the file holds 108"),
    (changed(AMP, "config", "num_layers", to=1000), FileFormatError, "weights; the file holds 109"),
    (changed(AMP, "config", "num_layers", to=1 << 30), UnsupportedError, "at most 1000 are read"),
    (changed(AMP, "config", "extra", to=1), UnsupportedError, "'extra' is not understood"),
    ({**GOOD, "layers": [{"type": "activation", "activation": "tanh"}] * 1001}, UnsupportedError, "at most 1000"),
    (changed(GOOD, "layers", 0, "shape", to=[1 << 40]), FileFormatError, "from 1 to 2147483647"),
]


@pytest.mark.parametrize(("content", "error", "message"), REFUSED)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(write(tmp_path / "model.json", content))


@pytest.mark.parametrize("content", [GOOD, PEDAL, AMP], ids=["rtneural", "guitarml", "nam"])
def test_cut_and_garbled_files_are_one_error_or_only_other_numbers(tmp_path: Path, content: Any) -> None:
    text, rng, path = json.dumps(content).encode(), np.random.default_rng(3), tmp_path / "model.json"
    for part in range(10):
        path.write_bytes(text[: len(text) * part // 10])
        with pytest.raises(FileFormatError):
            load(path)
    for _ in range(60):
        garbled = bytearray(text)
        garbled[rng.integers(len(garbled))] = rng.integers(256)
        path.write_bytes(garbled)
        try:
            load(path)
        except FastLSTMError:
            continue
