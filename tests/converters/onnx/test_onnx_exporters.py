"""What PyTorch's two exporters write is read, and computes what onnxruntime computes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fastlstm.converters.onnx.load import from_onnx
from fastlstm.operators import reference


class Network(nn.Module):
    """Recurrent layers, the last step, and a dense head."""

    def __init__(self, layer: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = layer(3, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(x)
        return torch.softmax(self.head(y[:, -1]), -1)


def agree(proto: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, shape).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = reference.run(from_onnx(proto), {"x": x})["y"]
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_torchscript_exporter(layer: type[nn.RNNBase], opset: int) -> None:
    file = io.BytesIO()
    torch.onnx.export(
        Network(layer, num_layers=2, bidirectional=True).eval(),
        (torch.zeros(2, 5, 3),),
        file,
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch", 1: "time"}},
    )
    proto = onnx.load_from_string(file.getvalue())
    graph = from_onnx(proto)
    assert str(graph.inputs[0]) == "x: float32[batch, time, 3]"
    assert sum(node.op == layer.__name__ for node in graph.nodes) == 2
    agree(proto, (3, 7, 3))


def test_the_dynamo_exporter() -> None:
    free = torch.export.Dim.AUTO
    proto = torch.onnx.export(
        Network(nn.LSTM, bidirectional=True).eval(),
        (torch.zeros(2, 5, 3),),
        dynamo=True,
        verbose=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: free, 1: free},),
    ).model_proto
    graph = from_onnx(proto)
    layers = [node for node in graph.nodes if node.op == "LSTM"]
    assert len(layers) == 1
    # The weights came out of Slice, Concat and Unsqueeze nodes.
    assert all(layers[0].input(i) in graph.constants for i in (1, 2, 3))
    agree(proto, (3, 7, 3))
