"""Operators that nothing here computes, through the reference implementation that comes with the package onnx.

It is written in Python to be read, one element after the other, so it is slow. Only operators of `REFERRED` run:
none of them opens files, decodes images or runs regular expressions, and each has a bound on the memory that it
takes and on the steps that it makes, checked before it starts. A model file cannot name another one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastlstm.errors import DependencyError, InputError, UnsupportedError
from fastlstm.operators.definition import Operator, table
from fastlstm.operators.sizes import checked_shape
from fastlstm.typing import Array

__all__ = ["OPERATORS", "REFERENCE", "REFERRED", "attribute_list"]

Cost = Callable[[Sequence[Any], Mapping[str, Any]], float]

REFERENCE = "OnnxReference"
"""The operator of a `fastlstm.graph.Graph` that stands for all of them; the attribute ``operator`` says which."""

MOST_STEPS = 4_000_000
"""Steps of a node: one is about a microsecond of Python, measured with onnx 1.23 on one core."""


def _elements(_inputs: Sequence[Any], _attrs: Mapping[str, Any]) -> float:
    """Whole arrays at a time."""
    return 0


def _affine_grid(inputs: Sequence[Any], _attrs: Mapping[str, Any]) -> float:
    checked_shape([8, *_whole(inputs[1])])  # coordinates in double precision, a few copies of them
    return 0


def _crop(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    x, sizes = inputs[0], _whole(inputs[1])
    shape = list(x.shape)
    for axis, size in zip(attrs.get("axes") or range(x.ndim), sizes, strict=True):
        shape[axis] = size
    checked_shape([2, *shape])
    return 0


def _grid_sample(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    x, grid = inputs[0], inputs[1]
    taps = {"nearest": 1, "cubic": 4, "bicubic": 4}.get(attrs.get("mode", "linear"), 2) ** (x.ndim - 2)
    return float(30 * (1 + taps / 4) * x.shape[1] * math.prod(grid.shape[:-1]))


def _deform_conv(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    x, w, offset = inputs[:3]
    taps = math.prod(attrs.get("kernel_shape") or w.shape[2:])
    checked_shape([2 * offset.size * max(w.shape[0], 1)])
    return float(60 * x.shape[0] * w.shape[0] * w.shape[1] * math.prod(offset.shape[2:]) * taps)


def _max_unpool(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    x, kernel = inputs[0], attrs["kernel_shape"]
    strides = attrs.get("strides") or [1] * len(kernel)
    pads = attrs.get("pads") or [0] * 2 * len(kernel)
    sizes = [
        (n - 1) * s - pads[i] - pads[len(kernel) + i] + k
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    checked_shape([2, *x.shape[:2], *sizes])
    if len(inputs) > 2 and inputs[2] is not None:
        checked_shape(_whole(inputs[2]))
    return float(x.size)


def _loss(inputs: Sequence[Any], _attrs: Mapping[str, Any]) -> float:
    return float(5 * inputs[1].size)


def _suppression(inputs: Sequence[Any], _attrs: Mapping[str, Any]) -> float:
    boxes, scores = inputs[0], inputs[1]
    chosen = max(int(_whole(inputs[2])[0]), 0) if len(inputs) > 2 and inputs[2] is not None and inputs[2].size else 0
    pairs = boxes.shape[1] * (5 + min(chosen, boxes.shape[1]))
    return float(3 * boxes.shape[0] * scores.shape[1] * pairs)


def _roi_align(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    x, rois = inputs[0], np.asarray(inputs[1], np.float64)
    height, width = int(attrs.get("output_height", 1)), int(attrs.get("output_width", 1))
    ratio = int(attrs.get("sampling_ratio", 0))
    checked_shape([len(rois), x.shape[1], height, width])
    if not np.isfinite(rois).all():
        raise ValueError("a region has a corner that is no finite number")
    if ratio > 0:
        samples = float(len(rois)) * ratio * ratio
    else:
        sides = np.abs(rois[:, 2:] - rois[:, :2]) * float(attrs.get("spatial_scale", 1.0)) + 1
        samples = float(np.sum((sides[:, 0] / width + 1) * (sides[:, 1] / height + 1)))
    return float(4 * samples * height * width * (1 + x.shape[1]))


def _linear_attention(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    query, value, heads = inputs[0], inputs[2], max(int(attrs.get("kv_num_heads", 1)), 1)
    wide = query.shape[-1] // max(int(attrs.get("q_num_heads", 1)), 1)
    checked_shape([4, query.shape[0], heads, wide, max(value.shape[-1] // heads, 1)])
    return float(60 * query.shape[1])


REFERRED: Mapping[str, Cost] = {
    "AffineGrid": _affine_grid,
    "BatchNormalization": _elements,
    "BitCast": _elements,
    "CausalConvWithState": lambda inputs, _: 30.0 * inputs[1].shape[-1] + inputs[0].shape[1],
    "CenterCropPad": _crop,
    "DeformConv": _deform_conv,
    "GridSample": _grid_sample,
    "GroupNormalization": _elements,
    "LinearAttention": _linear_attention,
    "MaxUnpool": _max_unpool,
    "NegativeLogLikelihoodLoss": _loss,
    "NonMaxSuppression": _suppression,
    "RoiAlign": _roi_align,
    "SoftmaxCrossEntropyLoss": _loss,
    "SwiGLU": _elements,
}
"""The operators, and for each what returns its steps for given inputs and attributes, or complains about sizes.

BatchNormalization stands here for what it does in training, GroupNormalization for the form of opset 18.
"""


def attribute_list(attrs: Mapping[str, Any]) -> list[list[Any]]:
    """Return a node's attributes as plain data: pairs of name and value."""
    return [[name, value] for name, value in attrs.items()]


def onnx_reference(
    *inputs: Any, operator: str, opset: int, attributes: Sequence[Sequence[Any]], count: int
) -> tuple[Any, ...]:
    """Return the `count` outputs of an operator of ai.onnx, as it is at an opset.

    Raises
    ------
    UnsupportedError
        If the operator is not one of `REFERRED`.
    InputError
        If it would take more steps than are allowed.
    DependencyError
        If the package onnx is not installed.
    ValueError
        If sizes or values do not fit.
    """
    if operator not in REFERRED:
        raise UnsupportedError(
            f"The operator '{operator}' does not run through ONNX's reference implementation; those that do: "
            f"{', '.join(REFERRED)}."
        )
    attrs = {str(name): value for name, value in attributes}
    given = [None if value is None else np.asarray(value) for value in inputs]
    steps = REFERRED[operator](given, attrs)
    if not steps <= MOST_STEPS:
        raise InputError(
            f"{operator} has no kernel and would take some {steps:.0e} steps in ONNX's reference implementation; "
            f"the most that are made are {MOST_STEPS:.0e}. Give it smaller inputs."
        )
    session = _session(operator, int(opset), json.dumps(attributes), tuple(map(_kind, given)), count)
    feeds = {f"x{i}": value for i, value in enumerate(given) if value is not None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = session.run(None, feeds)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return tuple(results)


@lru_cache(maxsize=256)
def _session(operator: str, opset: int, attributes: str, given: tuple[str, ...], count: int) -> Any:
    """Return the reference's evaluator of one node, for attributes as JSON and inputs of so many element types."""
    try:
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator
    except ImportError:
        raise DependencyError.missing("onnx", "onnx", f"Running the operator {operator}") from None
    attrs = {name: value for name, value in json.loads(attributes) if value is not None}
    inputs = [f"x{i}" if kind else "" for i, kind in enumerate(given)]
    outputs = [f"y{i}" for i in range(count)]
    node = helper.make_node(operator, inputs, outputs, **attrs)
    # Operators that are functions of others are written out for the types of the inputs; nothing asks for the outputs'.
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None)
        for name, kind in zip(inputs, given, strict=True)
        if name
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    graph = helper.make_graph([node], operator, types, results)
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def _kind(value: Array | None) -> str:
    return "" if value is None else value.dtype.name


def _whole(value: Any) -> list[int]:
    return [int(n) for n in np.asarray(value).reshape(-1)]


OPERATORS = table(
    Operator(
        REFERENCE,
        onnx_reference,
        "it stands for operators that onnx computes",
        "ONNX's reference implementation computes it",
        "runs through ONNX's reference implementation, which is not followed in time",
    )
)
