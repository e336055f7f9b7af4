"""Engines that run a model file as somebody published it: what calls it with inputs by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.peers.onnxruntime_ import OnnxRuntime
from bench.peers.openvino_ import OpenVino

__all__ = ["PEERS", "Run"]

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], dict[str, Array]]


def _onnxruntime(path: Path, feeds: Feeds, threads: int) -> Run:  # noqa: ARG001 - sizes may stay open
    session = OnnxRuntime().session(path.read_bytes(), threads)
    names = [output.name for output in session.get_outputs()]
    taken = [item.name for item in session.get_inputs()]
    return lambda given: dict(zip(names, session.run(names, {name: given[name] for name in taken}), strict=True))


def _openvino(path: Path, feeds: Feeds, threads: int) -> Run:  # noqa: ARG001 - sizes may stay open
    compiled = OpenVino().compiled(path, threads)
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(given: Feeds) -> dict[str, Array]:
        results = request.infer(dict(given), share_inputs=True)
        return {name: results[i] for i, name in enumerate(names)}

    return run


def _tract(path: Path, feeds: Feeds, threads: int) -> Run:  # noqa: ARG001 - it runs on the thread that calls
    import onnx
    import tract

    model = tract.onnx().load(path)
    taken = [model.input_name(i) for i in range(model.input_count())]
    names = [output.name for output in onnx.load(path).graph.output]  # tract calls them as the nodes that make them
    for i, name in enumerate(taken):
        array = feeds[name]
        kind = f"{ {'f': 'f', 'i': 'i'}[array.dtype.kind] }{8 * array.dtype.itemsize}".replace(" ", "")
        model.set_input_fact(i, ",".join([*map(str, array.shape), kind]))
    runnable = model.into_model().into_runnable()

    def run(given: Feeds) -> dict[str, Array]:
        results = runnable.run([np.ascontiguousarray(given[name]) for name in taken])
        return {name: result.to_numpy() for name, result in zip(names, results, strict=True)}

    return run


PEERS: dict[str, Callable[[Path, Feeds, int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tract": _tract,
}
"""What loads a file, by the package that does; sizes are those of the inputs given."""
