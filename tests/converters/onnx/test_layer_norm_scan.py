"""An LSTM with layer normalisation that ONNX's Scan runs frame by frame: read as a layer."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser
from plans import kernels_of

import fastlstm
from fastlstm.operators import reference

SCAN = """
<ir_version: 8, opset_import: ["": 18]>
scan (float[T, B, 5] x, float[B, 12] h_0, float[B, 12] c_0) => (float[B, 12] h_n, float[B, 12] c_n, float[T, B, 12] y)
{
  h_n, c_n, y = Scan <num_scan_inputs = 1, body = cell
    (float[B, 12] h, float[B, 12] c, float[B, 5] frame) => (float[B, 12] h_1, float[B, 12] c_1, float[B, 12] out)
    {
      a = MatMul (frame, w)
      b = MatMul (h, r)
      n_a = LayerNormalization <axis = -1, epsilon = 0.001> (a, s_a, b_a)
      n_b = LayerNormalization <axis = -1, epsilon = 0.001> (b, s_b)
      sums = Add (n_a, n_b)
      biased = Add (sums, bias)
      i, f, g, o = Split <axis = -1, num_outputs = 4> (biased)
      i_s = Sigmoid (i)
      f_s = Sigmoid (f)
      g_t = Tanh (g)
      o_s = Sigmoid (o)
      kept = Mul (f_s, c)
      new = Mul (i_s, g_t)
      both = Add (kept, new)
      c_1 = LayerNormalization <axis = -1, epsilon = EPSILON> (both, s_c, b_c)
      squashed = Tanh (c_1)
      h_1 = Mul (o_s, squashed)
      out = Identity (h_1)
    }> (h_0, c_0, x)
}
"""
SHAPES = {"w": (5, 48), "r": (12, 48), "s_a": 48, "b_a": 48, "s_b": 48, "bias": 48, "s_c": 12, "b_c": 12}


@pytest.mark.parametrize(("epsilon", "found"), [("0.001", True), ("0.01", False)])
def test_a_scan_is_the_layer_whose_equations_it_writes_out(epsilon: str, found: bool) -> None:
    # TensorFlow Addons' cell has 0.001 for all three; three different ones are no layer, and stay a loop.
    rng = np.random.default_rng(5)
    proto = parser.parse_model(SCAN.replace("EPSILON", epsilon))
    for name, shape in SHAPES.items():
        array = rng.normal(scale=0.5, size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = fastlstm.from_onnx(proto)
    inputs = {"x": rng.normal(size=(6, 3, 5)), "h_0": rng.normal(size=(3, 12)), "c_0": rng.normal(size=(3, 12))}
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    assert ("normalised.lstm" in kernels_of(model, 3)) == found
    expected = reference.run(model.graph, inputs)
    for name, value in model.run(inputs).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5)
