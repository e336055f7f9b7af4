"""From a whole Keras model, Sequential or functional, to a graph: layer after layer, called on its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.converters.keras.config import Config, class_and_config, is_custom, policy_name
from fastlstm.converters.keras.file import KerasFile
from fastlstm.converters.keras.functional import Call, Reference, read_wiring
from fastlstm.converters.keras.layer import Arguments, Kind, Layer, flatten
from fastlstm.converters.keras.tensor import Emitter, Tensor
from fastlstm.converters.keras.tensorflow import FUNCTION_LAYERS, as_operation
from fastlstm.converters.keras.weights import (
    MODELS,
    Weights,
    group_names,
    inner_layers,
    is_operation,
    layer_data,
    layer_name,
)
from fastlstm.errors import FileFormatError, UnsupportedError, counted
from fastlstm.graph import Graph
from fastlstm.operators.dims import Dim

__all__ = ["ModelReader"]

_OTHER_FLOATS = ("bfloat16", "float16", "float64", "mixed_bfloat16", "mixed_float16")
_INPUT_DTYPES = {
    "float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float32",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8", "bool": "bool",
}  # fmt: skip
_LARGEST_SIZE = 1 << 31
_MOST_AXES = 16
_LONGEST_NAME = 1000
_MOST_LAYERS = 20_000
_MODEL_KEYS = ("layers", "build_input_shape", "input_layers", "output_layers")

Values = dict[tuple[str, int], list[Tensor]]


class ModelReader:
    """Translates one model.

    Parameters
    ----------
    file : KerasFile
    kinds : mapping of str to Kind
        The supported layers.
    operations : mapping of str to Kind
        The supported bare operations of Keras 3, such as ``x + y``.

    Raises
    ------
    FileFormatError
        If arrays are missing or left over.
    UnsupportedError
        If a layer, one of its options or the way in which it is called is not supported.
    """

    def __init__(self, file: KerasFile, kinds: Mapping[str, Kind], operations: Mapping[str, Kind]) -> None:
        self._model = file.config
        self._major = file.major
        self._kinds = kinds
        self._operations = operations
        kind, _ = class_and_config(file.config, "model")
        if kind not in MODELS:
            raise UnsupportedError(
                f"The model's class '{kind}' is not supported; supported: {', '.join(sorted(MODELS))}. "
                "A subclassed model's file does not say what it computes: export the model to ONNX."
            )
        self._count = 0
        self._check_classes(file.config)
        self._emit = Emitter(layer_name(file.config) or "model")
        self._unmasked: dict[int, Tensor] = {}
        self._weights = Weights(file, {kind: row.slots for kind, row in kinds.items()})

    def graph(self) -> Graph:
        """Return the model as a graph whose inputs and outputs are named as in Keras."""
        kind, config = class_and_config(self._model, "model")
        self._config(kind, layer_name(self._model), config, _MODEL_KEYS).finish()
        layers = layer_data(config, layer_name(self._model))
        if _is_chain(kind, config):
            inputs = [self._first_input(layers, config)]
            names = [layer_name(layers[-1])] if layers else []
        else:
            by_name = {layer_name(layer): layer for layer in layers}
            wiring = read_wiring(config, self._major)
            several = len(wiring.inputs) > 1
            inputs = [self._input(by_name[reference.layer], several) for reference in wiring.inputs]
            names = [reference.layer for reference in wiring.outputs]
        outputs = self._run(self._model, "", inputs)
        if len(names) != len(outputs):  # the last layer of a Sequential returns its states too
            names = names * len(outputs)
        for name, value in zip(names, outputs, strict=True):
            self._emit.builder.output(value.name, name, value.shape, value.dtype)
        return self._emit.builder.graph()

    def call(self, data: dict[str, Any], owner: str, inputs: Sequence[Tensor], arguments: Arguments) -> list[Tensor]:
        """Return the outputs of a serialised layer or model, whose weights are at `owner`."""
        kind, config = class_and_config(data, owner)
        name = layer_name(data) or owner
        if kind in MODELS and not is_operation(data):
            self._config(kind, name, config, _MODEL_KEYS).finish()
            masks = arguments.masks("mask", inputs)
            arguments.finish()
            # The same tensor as outside as long as its mask is: an attention inside may take it away.
            given = [x if mask is x.mask else x.with_mask(mask) for x, mask in zip(inputs, masks, strict=True)]
            return self._run(data, owner, given)
        read = Config(f"operation '{name}'", config) if is_operation(data) else self._config(kind, name, config)
        layer = Layer(
            kind, name, owner, read, self._emit, self._weights, self._major, self,
            arguments,
        )  # fmt: skip
        around, self._emit.layer = self._emit.layer, name
        outputs = self._kind(data).convert(layer, inputs)
        self._emit.layer = around
        layer.config.finish()
        arguments.finish()
        return outputs

    def take_mask(self, x: Tensor) -> None:
        """Take the mask away from a tensor: layers that read it from now on see none."""
        if x.mask is not None:
            self._unmasked[id(x)] = x  # kept, so that no other tensor gets its identity

    def _run(self, data: dict[str, Any], owner: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of a model called on `inputs`."""
        kind, config = class_and_config(data, owner or "model")
        owners = {id(layer): path for path, layer in group_names(data, owner)}
        if not _is_chain(kind, config):
            return self._run_calls(config, owners, inputs)
        values = list(inputs)
        for layer in layer_data(config, layer_name(data)):
            if layer.get("class_name") != "InputLayer":
                label = f"The layer '{layer_name(layer)}'"
                values = self.call(layer, owners.get(id(layer), ""), values, Arguments(label, {}))
        return values

    def _run_calls(
        self, config: Mapping[str, Any], owners: Mapping[int, str], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        wiring = read_wiring(config, self._major)
        if len(wiring.inputs) != len(inputs):
            raise FileFormatError(
                f"The model '{config.get('name')}' has {counted(len(wiring.inputs), 'input')} "
                f"but is called on {len(inputs)}."
            )
        values: Values = {(reference.layer, 0): [value] for reference, value in zip(wiring.inputs, inputs, strict=True)}
        for call in wiring.calls:
            values[call.name, call.number] = self._run_call(call, owners.get(id(call.layer), ""), values)
        return [self._lookup(reference, values) for reference in wiring.outputs]

    def _run_call(self, call: Call, owner: str, values: Values) -> list[Tensor]:
        args, kwargs = self._filled(call.args, values), self._filled(call.kwargs, values)
        label = f"The layer '{call.name}'"
        if is_operation(call.layer):
            return self.call(call.layer, owner, [], Arguments(label, {**kwargs, "args": args}))
        if call.layer["class_name"] in FUNCTION_LAYERS:
            return self._call_function(call.layer, label, args, kwargs)
        return self.call(call.layer, owner, flatten(args, label), Arguments(label, kwargs))

    def _call_function(self, data: dict[str, Any], label: str, args: list[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the outputs of a layer that stands for a function of TensorFlow."""
        _, config = class_and_config(data, label)
        operation, renamed = as_operation(config.get("function"), label, args, kwargs)
        own = {"class_name": operation, "module": "keras.ops", "config": {"name": layer_name(data)}}
        return self.call(own, "", [], Arguments(label, renamed))

    def _lookup(self, reference: Reference, values: Values) -> Tensor:
        made = values.get((reference.layer, reference.call))
        if made is None or not 0 <= reference.output < len(made):
            raise FileFormatError(
                f"The model refers to output {reference.output} of call {reference.call} of '{reference.layer}', "
                f"which has {counted(len(made or []), 'output')}."
            )
        x = made[reference.output]
        if id(x) not in self._unmasked:
            return x
        self._emit.note(
            "A MultiHeadAttention of Keras 3 takes the masks away from the tensors that it is called on: layers that "
            f"Keras runs after it and that read the same tensor, here that of '{reference.layer}', see no mask."
        )
        return x.with_mask(None)

    def _filled(self, item: Any, values: Values) -> Any:
        """Return arguments with the tensors in place of the references to them."""
        if isinstance(item, Reference):
            return self._lookup(item, values)
        if isinstance(item, list):
            return [self._filled(part, values) for part in item]
        if isinstance(item, dict):
            return {key: self._filled(part, values) for key, part in item.items()}
        return item

    def _kind(self, data: dict[str, Any]) -> Kind:
        """Return the row of a serialised layer's class, which must be one of Keras's own.

        Raises
        ------
        UnsupportedError
            If it is not, or not supported.
        """
        kind, _ = class_and_config(data, "model")
        what, table = ("operation", self._operations) if is_operation(data) else ("layer", self._kinds)
        if is_custom(data):
            raise UnsupportedError(
                f"The {what} '{layer_name(data)}' of class '{kind}' ({data.get('registered_name') or data['module']}) "
                "is not one of Keras's own, so what it computes is not known."
            )
        if kind in FUNCTION_LAYERS:
            return _FUNCTION
        if kind == "Lambda":
            raise UnsupportedError(
                f"The layer '{layer_name(data)}' of class '{kind}' stands for code that a file cannot show; "
                "write it with Keras's own layers or keras.ops, or export the model to ONNX."
            )
        if kind not in table:
            raise UnsupportedError(
                f"The {what} '{layer_name(data)}' of class '{kind}' is not supported; "
                f"supported {what}s: {', '.join(sorted(table))}."
            )
        return table[kind]

    def _check_classes(self, data: dict[str, Any]) -> None:
        """Refuse the model if it holds a layer, at any depth, that is not supported."""
        kind, config = class_and_config(data, "model")
        self._count += 1
        if self._count > _MOST_LAYERS:
            raise UnsupportedError(f"The model has more than {_MOST_LAYERS} layers.")
        if len(layer_name(data)) > _LONGEST_NAME:
            raise FileFormatError(
                f"A layer's name has {len(layer_name(data))} letters; at most {_LONGEST_NAME} are read."
            )
        if kind in MODELS and not is_operation(data):
            inner = layer_data(config, layer_name(data))
        else:
            self._kind(data)
            inner = [child for _, child in inner_layers(kind, config, layer_name(data))]
        for child in inner:
            self._check_classes(child)

    def _config(self, kind: str, name: str, config: dict[str, Any], ignored: Sequence[str] = ()) -> Config:
        """Return a layer's configuration, its dtype policy looked at."""
        read = Config(f"{kind} layer '{name}'", config)
        policy = policy_name(config.get("dtype"))
        if policy in _OTHER_FLOATS:
            self._emit.note(f"The layer '{name}' has the dtype policy {policy}; it is computed in float32.")
        elif policy != "float32" and kind not in ("InputLayer", *MODELS):
            raise UnsupportedError(
                f"{read.label}: the dtype policy '{policy}' is not supported; supported: float32, and "
                f"{', '.join(_OTHER_FLOATS)} computed in float32."
            )
        read.choice("quantization_config", [None])
        read.ignore(*ignored)
        return read

    def _first_input(self, layers: Sequence[dict[str, Any]], config: Mapping[str, Any]) -> Tensor:
        """Return the input of a Sequential model; old files say its shape in the first layer."""
        if not layers:
            raise FileFormatError("The model has no layers.")
        first = layers[0]
        if first.get("class_name") == "InputLayer":
            return self._input(first, several=False)
        _, own = class_and_config(first, "model")
        while own.get("layers"):
            _, own = class_and_config(own["layers"][0], "model")
        shape = own.get("batch_input_shape") or own.get("batch_shape") or config.get("build_input_shape")
        data = {"name": f"{layer_name(first)}_input", "batch_shape": shape, "dtype": own.get("dtype")}
        return self._input({"class_name": "InputLayer", "config": data}, several=False)

    def _input(self, data: dict[str, Any], several: bool) -> Tensor:
        """Add an input of the model."""
        kind, config = class_and_config(data, "model")
        name = layer_name(data)
        read = Config(f"{kind} layer '{name}'", config)
        shape = read.get("batch_shape", read.get("batch_input_shape"))
        read.ignore("batch_input_shape")
        read.choice("sparse", [False, None], False)
        read.choice("ragged", [False, None], False)
        read.choice("optional", [False, None], False)
        dtype = policy_name(read.get("dtype"))
        read.finish()
        if kind != "InputLayer" or dtype not in _INPUT_DTYPES:
            raise UnsupportedError(
                f"The input '{name}' ({kind}, dtype {dtype}) is not supported; "
                f"supported dtypes: {', '.join(_INPUT_DTYPES)}."
            )
        if not isinstance(shape, list) or len(shape) < 2:
            raise UnsupportedError(
                f"The input '{name}' has no known shape ({shape!r:.40}); build the model before saving it."
            )
        if shape[0] is not None:
            self._emit.note(f"The model fixes the batch of '{name}' to {shape[0]}; any batch is accepted here.")
        prefix = f"{name}_" if several else ""
        dims: list[Dim] = ["batch"]
        for axis, size in enumerate(shape[1:], start=1):
            if size is None:
                dims.append(f"{prefix}time" if axis == 1 else f"{prefix}dim{axis}")
            elif isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _LARGEST_SIZE:
                dims.append(size)
            else:
                raise FileFormatError(f"The input '{name}' has the size {size!r:.40} along axis {axis}.")
        if len(dims) > _MOST_AXES:
            raise UnsupportedError(f"The input '{name}' has {len(dims)} axes; at most {_MOST_AXES} are supported.")
        made = self._emit.builder.input(name, dims, _INPUT_DTYPES[dtype])
        return Tensor(made, tuple(dims), _INPUT_DTYPES[dtype])


def _outside_a_functional_model(layer: Layer, _inputs: Sequence[Tensor]) -> list[Tensor]:
    raise UnsupportedError(f"{layer.label}: a function of TensorFlow is supported in a functional model only.")


_FUNCTION = Kind(_outside_a_functional_model)


def _is_chain(kind: str, config: Mapping[str, Any]) -> bool:
    return kind == "Sequential" and "input_layers" not in config
