"""Older and other forms of ai.onnx operators, brought to their opset-21 form.

`FORMS` names for each operator the opset before which a function applies to it. A function returns the node
to go on with, or None when it has put everything into the graph itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlstm.converters.onnx.scope import OnnxNode, Scope
from fastlstm.converters.onnx.tensors import UNKNOWN_RANK
from fastlstm.operators import onnx_reference

__all__ = ["FORMS", "current_form", "referred"]

Form = Callable[[OnnxNode, Scope], OnnxNode | None]

_ANY = 1_000_000
"""Later than every opset: the form applies always."""


def current_form(node: OnnxNode, scope: Scope) -> OnnxNode | None:
    """Return `node` in its opset-21 form, or None if it has been written into `scope` already."""
    result: OnnxNode | None = node
    for before, form in FORMS.get(node.op, ()):
        if result is not None and node.opset < before:
            result = form(result, scope)
    return result


def _as_inputs(*names: str, dtype: Any = np.int64, first: int = 1) -> Form:
    """Return the form in which the attributes `names` are the inputs from `first` on."""

    def form(node: OnnxNode, scope: Scope) -> OnnxNode:
        inputs = [*node.inputs, *[""] * first][:first]
        for name in names:
            given = node.attrs.get(name)
            inputs.append("" if given is None else scope.constant(f"{node.name}.{name}", np.array(given, dtype)))
        return node.without(*names).replace(inputs=tuple(inputs))

    return form


def _renamed(op: str) -> Form:
    return lambda node, _scope: node.replace(op=op)


def referred(node: OnnxNode, scope: Scope) -> None:
    """Write a node that ONNX's reference implementation runs, as it is."""
    attributes = onnx_reference.attribute_list(node.attrs)
    reference = {"operator": node.op, "opset": node.opset, "attributes": attributes}
    scope.define(onnx_reference.REFERENCE, node.inputs, node.outputs, node.name, **reference)


def _refused(why: str) -> Form:
    def form(node: OnnxNode, _scope: Scope) -> OnnxNode:
        raise node.unsupported(why)

    return form


def _clip(node: OnnxNode, scope: Scope) -> OnnxNode:
    # The bounds have the element type of the data, which up to opset 10 is a float.
    spec = scope.spec(node.input(0))
    dtype = spec.dtype if spec is not None and spec.dtype else "float32"
    return _as_inputs("min", "max", dtype=dtype)(node, scope) or node


def _pad(node: OnnxNode, scope: Scope) -> OnnxNode:
    spec = scope.spec(node.input(0))
    dtype = spec.dtype if spec is not None and spec.dtype else "float32"
    pads = scope.constant(f"{node.name}.pads", np.array(node.attrs["pads"], np.int64))
    inputs = [node.input(0), pads]
    if node.attrs.get("value", 0.0) != 0.0:
        inputs.append(scope.constant(f"{node.name}.value", np.array(node.attrs["value"], dtype)))
    return node.without("pads", "value").replace(inputs=tuple(inputs))


def _top_k(node: OnnxNode, scope: Scope) -> OnnxNode:
    k = scope.constant(f"{node.name}.k", np.array([node.attrs["k"]], np.int64))
    return node.without("k").replace(inputs=(node.input(0), k))


def _split(node: OnnxNode, _scope: Scope) -> OnnxNode:
    """Without sizes, the number of parts is that of the outputs."""
    if node.input(1) or "num_outputs" in node.attrs:
        return node
    return node.replace(attrs={**node.attrs, "num_outputs": len(node.outputs)})


def _softmax(node: OnnxNode, scope: Scope) -> OnnxNode | None:
    """Up to opset 12 the axes from `axis` on are one: flattened, normalised, and given their shape back."""
    axis = node.attrs.get("axis", 1)
    if axis == -1 or _is_last_axis(node, scope, axis):
        return node.replace(attrs={"axis": -1})
    shape = scope.node("Shape", node.input(0), name=f"{node.name}.shape")
    rows = scope.node("Flatten", node.input(0), name=f"{node.name}.rows", axis=axis)
    result = scope.node(node.op, rows, name=f"{node.name}.result", axis=-1)
    scope.define("Reshape", [result, shape], node.outputs, node.name)
    return None


def _is_last_axis(node: OnnxNode, scope: Scope, axis: int) -> bool:
    specs = [scope.spec(value) for value in (node.input(0), node.output(0)) if value]
    return any(s is not None and s.shape != UNKNOWN_RANK and axis == len(s.shape) - 1 for s in specs)


def _dropout(node: OnnxNode, scope: Scope) -> None:
    """In inference the data passes through; the mask, where one is asked for, is all true."""
    training = node.input(2)
    if training:
        value = scope.known(training)
        if value is None or bool(np.any(value)):
            raise node.unsupported("training_mode should be constant and false; only inference is supported.")
    if node.output(0):
        scope.define("Identity", node.inputs[:1], node.outputs[:1], node.name)
    if node.output(1):
        shape = scope.node("Shape", node.input(0), name=f"{node.name}.shape")
        scope.define("ConstantOfShape", [shape], node.outputs[1:2], node.name, value=1, dtype="bool")


def _broadcast_6(node: OnnxNode, scope: Scope) -> OnnxNode:
    """Up to opset 6 the second operand's axes stand under those of the first from `axis` on."""
    axis = node.attrs.get("axis")
    plain = node.without("axis", "broadcast")
    if axis is None or not node.attrs.get("broadcast", 0):
        return plain
    first, second = _rank(node.input(0), scope), _rank(node.input(1), scope)
    if first is None or second is None:
        raise node.unsupported("axis is supported only where the ranks of both operands are known.")
    return _padded_to(plain, scope, first - axis % first - second)


def _slope_6(node: OnnxNode, scope: Scope) -> OnnxNode:
    """Up to opset 6 a PRelu's slopes are one a channel, which is axis 1."""
    first, second = _rank(node.input(0), scope), _rank(node.input(1), scope)
    if first is None or second is None:
        raise node.unsupported("it is supported at opset 6 only where the ranks of both operands are known.")
    return _padded_to(node, scope, first - 2 if second == 1 else 0)


def _padded_to(node: OnnxNode, scope: Scope, missing: int) -> OnnxNode:
    """Return the node with so many axes of size 1 behind those of its second operand."""
    if missing <= 0:
        return node
    rank = _rank(node.input(1), scope) or 0
    axes = scope.constant(f"{node.name}.axes", np.arange(rank, rank + missing))
    wide = scope.node("Unsqueeze", node.input(1), axes, name=f"{node.name}.wide")
    return node.replace(inputs=(node.input(0), wide))


def _rank(value: str, scope: Scope) -> int | None:
    array, spec = scope.known(value), scope.spec(value)
    if array is not None:
        return int(array.ndim)
    return None if spec is None or spec.shape == UNKNOWN_RANK else len(spec.shape)


def _tested_6(node: OnnxNode, _scope: Scope) -> OnnxNode:
    """Up to opset 6 a flag says whether the node is for inference."""
    if not node.attrs.get("is_test", 0):
        raise node.unsupported("is_test=0 is not supported; only inference (is_test=1) is.")
    return node.without("is_test")


def _batch_normalization(node: OnnxNode, scope: Scope) -> OnnxNode | None:
    if node.attrs.get("training_mode", 0):
        scope.note(
            f"BatchNormalization '{node.name}' is written for training: it normalises by each call's own mean and "
            "variance, as the file says. If that is not meant, export the model in evaluation mode (model.eval())."
        )
        referred(node, scope)
        return None
    if any(node.outputs[1:]):
        raise node.unsupported("outputs for mean and variance are supported with training_mode=1 only.")
    if node.attrs.get("spatial", 1) != 1:
        raise node.unsupported("spatial=0 is not supported; supported: spatial=1.")
    return node.without("training_mode", "spatial").replace(outputs=node.outputs[:1])


def _upsample(node: OnnxNode, scope: Scope) -> OnnxNode:
    """Upsample is the Resize that floors positions measured from the left edge."""
    return _resize_10(node.replace(op="Resize"), scope)


def _upsample_6(node: OnnxNode, _scope: Scope) -> OnnxNode:
    """Up to opset 6 an image has one scale for its height and one for its width."""
    scales = [1.0, 1.0, node.attrs["height_scale"], node.attrs["width_scale"]]
    return node.without("height_scale", "width_scale").replace(
        attrs={"mode": node.attrs.get("mode", "nearest"), "scales": scales}
    )


def _upsample_scales(node: OnnxNode, scope: Scope) -> OnnxNode:
    scales = scope.constant(f"{node.name}.scales", np.array(node.attrs["scales"], np.float32))
    return node.without("scales").replace(inputs=(node.input(0), scales))


def _resize_10(node: OnnxNode, _scope: Scope) -> OnnxNode:
    attrs = {**node.attrs, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return node.replace(attrs=attrs, inputs=(node.input(0), "", node.input(1)))


def _resize(node: OnnxNode, scope: Scope) -> OnnxNode:
    """An empty tensor among roi and scales says the same as none."""
    inputs = list(node.inputs)
    for position in range(1, min(len(inputs), 3)):
        value = scope.known(inputs[position]) if inputs[position] else None
        if value is not None and value.size == 0:
            inputs[position] = ""
    return node.replace(inputs=tuple(inputs))


def _dft(node: OnnxNode, scope: Scope) -> OnnxNode:
    axis = scope.constant(f"{node.name}.axis", np.array(node.attrs.get("axis", 1), np.int64))
    return node.without("axis").replace(inputs=(node.input(0), node.input(1), axis))


def _constant(node: OnnxNode, scope: Scope) -> None:
    value = node.attrs.get("value")
    if "value_int" in node.attrs or "value_ints" in node.attrs:
        value = np.array(node.attrs.get("value_int", node.attrs.get("value_ints")), np.int64)
    elif "value_float" in node.attrs or "value_floats" in node.attrs:
        value = np.array(node.attrs.get("value_float", node.attrs.get("value_floats")), np.float32)
    if value is None or len(node.attrs) != 1:
        given = ", ".join(node.attrs) or "none"
        raise node.unsupported(f"got the attributes {given}; supported is one of value, value_float(s), value_int(s).")
    if node.output(0):
        scope.constants[node.output(0)] = value


def _constant_of_shape(node: OnnxNode, _scope: Scope) -> OnnxNode:
    """The one-element tensor becomes a plain number with its element type beside it."""
    value = node.attrs.get("value")
    if value is None:
        value = np.zeros(1, np.float32)
    if value.size != 1:
        raise node.unsupported(f"value should have one element; got {value.size}.")
    return node.replace(attrs={"value": value.reshape(()).item(), "dtype": value.dtype.name})


def _default_dtype(node: OnnxNode, _scope: Scope) -> OnnxNode:
    """0 stands for an output type that is not given."""
    return node if node.attrs.get("output_dtype", 0) else node.without("output_dtype")


def _quantize(node: OnnxNode, _scope: Scope) -> OnnxNode:
    if node.attrs.get("precision", 0):
        raise node.unsupported("the attribute precision is not supported; supported is its default.")
    return node.without("precision")


_BROADCAST = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

FORMS: Mapping[str, tuple[tuple[int, Form], ...]] = {
    **dict.fromkeys(_BROADCAST, ((7, _broadcast_6),)),
    "Gemm": ((7, lambda node, _scope: node.without("broadcast")),),
    "PRelu": ((7, _slope_6),),
    **{f"Reduce{name}": ((18, _as_inputs("axes")),) for name in _REDUCTIONS},
    "ReduceSum": ((13, _as_inputs("axes")),),
    "Squeeze": ((13, _as_inputs("axes")),),
    "Unsqueeze": ((13, _as_inputs("axes")),),
    "Slice": ((10, _as_inputs("starts", "ends", "axes")),),
    "Split": ((13, _as_inputs("split")), (_ANY, _split)),
    "Clip": ((11, _clip),),
    "Pad": ((11, _pad),),
    "TopK": ((10, _top_k),),
    "Softmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Hardmax": ((13, _softmax),),
    "Dropout": ((7, _tested_6), (_ANY, _dropout)),
    "BatchNormalization": ((7, _tested_6), (_ANY, _batch_normalization)),
    "Upsample": ((7, _upsample_6), (9, _upsample_scales), (_ANY, _upsample)),
    "Resize": ((11, _resize_10), (_ANY, _resize)),
    "Scatter": ((_ANY, _renamed("ScatterElements")),),
    "DFT": ((20, _dft),),
    "Constant": ((_ANY, _constant),),
    "ConstantOfShape": ((_ANY, _constant_of_shape),),
    "DequantizeLinear": ((_ANY, _default_dtype),),
    "QuantizeLinear": ((_ANY, _default_dtype), (_ANY, _quantize)),
    "GroupNormalization": ((21, referred),),
    "Scan": ((9, _refused("the batched Scan of opset 8 is not supported; supported: opset 9 and newer.")),),
}
"""Operator → (opset, form): it applies to nodes of an older opset; several apply one after the other."""
