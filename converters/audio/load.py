"""Trained models of amplifiers and effects: RTNeural and AIDA-X JSON, GuitarML JSON, Neural Amp Modeler.

Each is a stack of recurrent layers and a dense head that runs sample by sample: the graph's input is
[batch, time, features], its output [batch, time, channels], every step.

Formats: RTNeural ``RTNeural/model_loader.h`` (weights in Keras order and layout) and ``RTNeural/torch_helpers.h``
(a PyTorch state dict in JSON), AIDA-X (the same with
``in_skip``, gains in dB and recorded samples), Automated-GuitarAmpModelling ``CoreAudioML/networks.py``
(PyTorch layout), NeuralAmpModelerCore ``NAM/lstm.cpp`` (one flat list of weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fastlstm.converters.audio.rtneural import add_layer
from fastlstm.converters.common.builder import Direction, GraphBuilder
from fastlstm.converters.common.json_fields import Fields, numbers, read_json
from fastlstm.converters.common.modules import group
from fastlstm.converters.torch.state_dict import from_state_dict
from fastlstm.errors import FileFormatError, InputError, UnsupportedError, counted
from fastlstm.graph import Graph
from fastlstm.typing import Array

__all__ = ["Sample", "load", "load_with_samples"]

Sample = tuple[dict[str, Array], dict[str, Array]]
"""Inputs by name, and the outputs by name that the model gave when it was made."""

_MOST_LAYERS = 1000

_ABOUT = frozenset({"metadata", "samplerate", "sample_rate", "version", "name", "author", "esr", "date"})
"""Fields beside a model that say nothing about how it computes."""


def load(
    path: str | Path,
    layers: str | None = None,
    batch_first: bool | None = None,
    prefix: str = "",
    lengths: bool = False,
) -> Graph:
    """Read an audio model from a ``.json``, ``.aidax`` or ``.nam`` file.

    Parameters
    ----------
    path : str or path
    layers, batch_first, prefix, lengths
        Those of `fastlstm.converters.torch.state_dict.from_state_dict`, for JSON that holds a state dict.

    Raises
    ------
    FileFormatError
        If the file is damaged, or its arrays do not have the sizes that it states.
    UnsupportedError
        If it holds a layer, an architecture or a field that is not understood.
    """
    fields = read_json(Path(path))
    if any(key.endswith(".weight_hh_l0") for key in fields.keys):
        arrays = {key: fields.array(key) for key in fields.keys}
        return from_state_dict(arrays, layers, batch_first, prefix, lengths, Path(path).stem)
    settings = {"layers": layers, "batch_first": batch_first, "prefix": prefix, "lengths": lengths}
    for name in (name for name, value in settings.items() if value):
        raise InputError(f"{name} is for state dicts; '{path}' holds a model that says it itself.")
    return load_with_samples(path)[0]


def load_with_samples(path: str | Path) -> tuple[Graph, list[Sample]]:
    """Read an audio model and the samples that its file recorded (AIDA-X files hold one).

    Returns
    -------
    graph : Graph
    samples : list of (inputs, outputs)
        For replay: the graph should give these outputs for these inputs.
    """
    path = Path(path)
    fields = read_json(path)
    for key, read in _DIALECTS.items():
        if key in fields:
            builder = GraphBuilder(path.stem)
            features, channels = read(fields, builder)
            return builder.graph(), _samples(fields, features, channels)
    raise UnsupportedError(
        f"'{path}' is JSON, but no audio model that is known: expected a field 'layers' (RTNeural, AIDA-X), "
        f"'model_data' (GuitarML) or 'architecture' (Neural Amp Modeler), or the tensors of a state dict; "
        f"found {', '.join(fields.keys) or 'none'}."
    )


def _rtneural(fields: Fields, builder: GraphBuilder) -> tuple[int, int]:
    """RTNeural and AIDA-X: a list of layers in Keras layout."""
    known = {"in_shape", "layers", "in_skip", "in_gain", "out_gain", "input_batch", "output_batch"}
    _note_unread(fields, builder, known)
    size = features = fields.size("in_shape")
    source = builder.input("input", ["batch", "time", features])
    source = _gain(builder, source, fields.number("in_gain", 0.0), "in_gain")
    value = source
    layers = fields.list("layers")
    _check_depth(fields, len(layers))
    for position, layer in enumerate(layers):
        if not isinstance(layer, dict):
            raise FileFormatError(f"{fields.where}: layer {position} should be an object.")
        value, size = add_layer(builder, value, size, Fields(layer, f"{fields.where}, layer {position}"), position)
    value = _skip(builder, fields, source, value, fields.size("in_skip", 0, least=0), size)
    value = _gain(builder, value, fields.number("out_gain", 0.0), "out_gain")
    builder.output(value, "output", ["batch", "time", size])
    return features, size


def _guitarml(fields: Fields, builder: GraphBuilder) -> tuple[int, int]:
    """Automated-GuitarAmpModelling: a PyTorch state dict and the sizes it should have."""
    data = fields.object("model_data")
    if data.text("model", "SimpleRNN") != "SimpleRNN":
        raise UnsupportedError(
            f"{data.where}: the model '{data.text('model')}' is not supported; supported: SimpleRNN."
        )
    _note_unread(fields, builder, {"model_data", "state_dict"})
    weights = fields.object("state_dict")
    modules = {m.name: m for m in group({key: weights.array(key) for key in weights.keys})}
    unit, layers = data.text("unit_type", "LSTM").lower(), data.size("num_layers", 1)
    _check_depth(data, layers)
    rec, lin = modules.get("rec"), modules.get("lin")
    if rec is None or lin is None or len(modules) != 2 or rec.words[0] != unit or "linear" not in lin.words:
        raise UnsupportedError(
            f"{weights.where} should hold a {unit} module 'rec' and a linear module 'lin'; "
            f"got {'; '.join(f'{name}: {m}' for name, m in modules.items())}."
        )
    stated = (data.size("input_size"), data.size("hidden_size"), layers, data.size("output_size", 1))
    found = (rec.input_size, rec.hidden_size, len(rec.layers), lin.output_size)
    if stated != found or len(rec.layers[0]) != 1 or lin.input_size != rec.output_size:
        raise FileFormatError(
            f"{fields.where}: the sizes (input, hidden, layers, output) are said to be {stated}, "
            f"but the weights are of {found}."
        )
    source = builder.input("input", ["batch", "time", rec.input_size])
    value = builder.swap_time_and_batch(source)
    for number, directions in enumerate(rec.layers):
        value = builder.recurrent(unit.upper(), value, directions, name=f"rec.l{number}")[0]
    value = builder.dense(builder.swap_time_and_batch(value), lin.tensors["weight"], lin.tensors.get("bias"), "lin")
    value = _skip(builder, fields, source, value, data.size("skip", 0, least=0), lin.output_size)
    builder.output(value, "output", ["batch", "time", lin.output_size])
    return rec.input_size, lin.output_size


def _nam(fields: Fields, builder: GraphBuilder) -> tuple[int, int]:
    """Neural Amp Modeler: one flat list of weights, with learned initial states."""
    if fields.text("architecture") != "LSTM":
        raise UnsupportedError(
            f"{fields.where}: the architecture '{fields.text('architecture')}' is not supported; supported: LSTM."
        )
    _note_unread(fields, builder, {"architecture", "config", "weights"})
    config = fields.object("config")
    config.only("input_size", "hidden_size", "num_layers", "in_channels", "out_channels")
    features, H, layers = config.size("input_size"), config.size("hidden_size"), config.size("num_layers")
    channels = config.size("out_channels", 1)
    _check_depth(config, layers)
    if config.size("in_channels", features) != features:
        raise UnsupportedError(f"{config.where}: in_channels should be the input_size {features}.")
    weights = _Flat(fields.array("weights", [None]), fields.where)
    first, others = (4 * H * (size + H + 1) + 2 * H for size in (features, H))
    weights.expect(first + (layers - 1) * others + channels * (H + 1))
    source = builder.input("input", ["batch", "time", features])
    batch = builder.node("Shape", source, name="batch", start=0, end=1)
    value, size = builder.swap_time_and_batch(source), features
    for number in range(layers):
        matrix, bias = weights.take(4 * H, size + H), weights.take(4 * H)
        states = [_initial(builder, weights.take(1, 1, H), batch, f"l{number}.{key}") for key in ("h_0", "c_0")]
        direction = Direction(matrix[:, :size], matrix[:, size:], bias)
        value = builder.recurrent("LSTM", value, [direction], name=f"l{number}", h_0=states[0], c_0=states[1])[0]
        size = H
    head, bias = weights.take(channels, H), weights.take(channels)
    value = builder.dense(builder.swap_time_and_batch(value), head, bias, "head")
    builder.output(value, "output", ["batch", "time", channels])
    return features, channels


_DIALECTS: Mapping[str, Callable[[Fields, GraphBuilder], tuple[int, int]]] = {
    "layers": _rtneural,
    "model_data": _guitarml,
    "architecture": _nam,
}
"""The field that only one dialect has, and its reader."""


class _Flat:
    """A list of weights that is used up from its front."""

    def __init__(self, values: Array, where: str) -> None:
        self._values = values
        self._where = where

    def expect(self, count: int) -> None:
        if len(self._values) != count:
            raise FileFormatError(
                f"{self._where}: a model of these sizes has {count} weights; the file holds {len(self._values)}."
            )

    def take(self, *shape: int) -> Array:
        count = int(np.prod(shape))
        taken, self._values = self._values[:count], self._values[count:]
        return taken.reshape(shape)


def _initial(builder: GraphBuilder, state: Array, batch: str, name: str) -> str:
    """Repeat a learned state [1, 1, H] for every row of the batch."""
    one = builder.constant(f"{name}.one", np.array([1], np.int64))
    hidden = builder.constant(f"{name}.hidden", np.array([state.shape[-1]], np.int64))
    shape = builder.node("Concat", one, batch, hidden, name=f"{name}.shape", axis=0)
    return builder.node("Expand", builder.constant(name, state), shape, name=f"{name}.rows")


def _skip(builder: GraphBuilder, fields: Fields, source: str, value: str, skip: int, size: int) -> str:
    """Add the first `skip` input channels to the output."""
    if skip == 0:
        return value
    if skip != size:
        raise UnsupportedError(
            f"{fields.where} adds {counted(skip, 'input channel')} to {counted(size, 'output channel')}; "
            "supported: as many as there are."
        )
    bounds = [
        builder.constant(f"skip.{k}", np.array([v], np.int64)) for k, v in [("start", 0), ("end", skip), ("axis", 2)]
    ]
    return builder.node("Add", value, builder.node("Slice", source, *bounds, name="skip"), name="with_skip")


def _gain(builder: GraphBuilder, value: str, decibels: float, name: str) -> str:
    if decibels == 0.0:
        return value
    if abs(decibels) > 200:
        raise FileFormatError(f"'{name}' is {decibels} dB; expected at most 200.")
    factor = builder.constant(f"{name}.factor", np.array(10 ** (decibels / 20), np.float32))
    return builder.node("Mul", value, factor, name=name)


def _note_unread(fields: Fields, builder: GraphBuilder, known: set[str]) -> None:
    unread = [key for key in fields.keys if key not in known | _ABOUT]
    if unread:
        builder.note(f"The fields {', '.join(unread)} of the file were taken for remarks and not read.")


def _check_depth(fields: Fields, layers: int) -> None:
    if layers > _MOST_LAYERS:
        raise UnsupportedError(f"{fields.where} has {layers} layers; at most {_MOST_LAYERS} are read.")


def _samples(fields: Fields, features: int, channels: int) -> list[Sample]:
    if "input_batch" not in fields or "output_batch" not in fields:
        return []
    x = numbers(fields.list("input_batch"), f"{fields.where}: 'input_batch'")
    y = numbers(fields.list("output_batch"), f"{fields.where}: 'output_batch'")
    if x.size % features or y.size % channels or x.size // features != y.size // channels or x.size == 0:
        raise FileFormatError(
            f"{fields.where}: the recorded samples have {x.size} inputs and {y.size} outputs, which do not fit "
            f"a model of {features} input and {counted(channels, 'output channel')}."
        )
    return [({"input": x.reshape(1, -1, features)}, {"output": y.reshape(1, -1, channels)})]
