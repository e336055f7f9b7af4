"""Random ONNX models beside the float64 reference and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_cases
import onnxruntime

import fastlstm
from fastlstm.converters.onnx import load as onnx_loading
from fastlstm.operators import reference

Array = npt.NDArray[Any]

__all__ = ["difference", "draw"]

TOLERANCE = 2e-4  # of values within 1, or of the largest; four layers of float32 sums stay a hundred times below it
draw = onnx_cases.draw


def difference(case: onnx_cases.Case) -> str:
    """Return what is wrong with the model of a case, "" if all results agree."""
    writers = [onnx_cases.Writer(case, case.T, case.B, 0)]
    if not case.fixed:  # the same model for other sizes
        writers.append(onnx_cases.Writer(case, case.T + 2, case.B % 3 + 1, 1))
    protos = [writer.model() for writer in writers]
    graph, model, session = None, None, None
    first: dict[str, Array] = {}
    for writer in [*writers, writers[0]]:
        converted = onnx_loading.from_onnx(protos[0]) if graph is None else graph
        feeds = dict(writer.feeds)
        if case.masked:
            graph, more = onnx_cases.masked(onnx_loading.from_onnx(protos[0]), writer.masks)
            feeds |= more
        else:
            graph = converted
        if model is None:
            model = fastlstm.Model(graph, threads=1 + (case.seed % 4 == 0))
        found = model.run(feeds)
        if first and writer is writers[0]:
            for name, value in found.items():
                if not np.array_equal(value, first[name]):
                    return f"{name}: the second call has other bits"
            break
        first = first or {name: value.copy() for name, value in found.items()}
        wrong = _off("the reference", found, reference.run(graph, feeds))
        if not wrong and not case.masked and _onnxruntime_knows(case, writer):
            session = session or onnxruntime.InferenceSession(protos[0].SerializeToString(), _quiet())
            wrong = _off("onnxruntime", found, dict(zip(found, session.run(list(found), feeds), strict=True)))
        if wrong:
            return wrong
    return ""


def _off(beside: str, found: dict[str, Array], expected: dict[str, Array]) -> str:
    for name, value in found.items():
        other = np.asarray(expected[name])
        if value.shape != other.shape:
            return f"{name}: the shape {list(value.shape)}, {list(other.shape)} of {beside}"
        bound = TOLERANCE * max(1.0, float(np.abs(other).max(initial=0)))
        error = float(np.abs(value - other).max(initial=0))
        if not error <= bound:
            return f"{name}: {error:.2g} off {beside}"
    return ""


def _onnxruntime_knows(case: onnx_cases.Case, writer: onnx_cases.Writer) -> bool:
    """Whether onnxruntime computes what ONNX says: it does not take an RNN's zero lengths, nor keep given states."""
    fed = any(layer.op == "RNN" or (layer.h, layer.c) != ("none", "none") or layer.body for layer in case.layers)
    return not (writer.empty and fed)


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options
