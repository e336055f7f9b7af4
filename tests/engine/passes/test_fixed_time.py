"""A recurrence written out over an axis that is declared open: what the file says is run, and the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm import cli
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FastLSTMError
from fastlstm.model import Model

STEPS = 5
RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def written_out(time: int | str = "time", recurrent: bool = True, backwards: bool = False, pieces: bool = True) -> Any:
    """Steps of a plain RNN as PyTorch's dynamo exporter writes them for a batch and a time that are open."""
    order = list(range(STEPS))[:: -1 if backwards else 1]
    weights = {"W": normal(3, 4), "U": normal(4, 4) / 2, "b": normal(4), "axis": np.array([0])}
    weights |= {f"at{k}": np.array(k) for k in order} | {f"end{k}": np.array([k + 1]) for k in order}
    weights |= {f"from{k}": np.array([k]) for k in order}
    nodes = [
        helper.make_node("Transpose", ["x"], ["frames"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["frames", "W"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["projected"]),
        helper.make_node("SplitToSequence", ["projected"], ["steps"], axis=0, keepdims=0),
    ]
    before = "h0"
    for k in order:
        if pieces:
            nodes.append(helper.make_node("SequenceAt", ["steps", f"at{k}"], [f"x{k}"]))
        else:
            nodes.append(helper.make_node("Slice", ["projected", f"from{k}", f"end{k}", "axis"], [f"cut{k}"]))
            nodes.append(helper.make_node("Squeeze", [f"cut{k}", "axis"], [f"x{k}"]))
        nodes += [
            helper.make_node("MatMul", [before, "U"], [f"hU{k}"]),
            helper.make_node("Add", [f"x{k}", f"hU{k}"], [f"sum{k}"]),
            helper.make_node("Tanh", [f"sum{k}"], [f"h{k + 1}"]),
            helper.make_node("Unsqueeze", [f"h{k + 1}", "axis"], [f"row{k}"]),
        ]
        before = f"h{k + 1}" if recurrent else "h0"
    nodes.append(helper.make_node("Concat", [f"row{k}" for k in range(STEPS)], ["y"], axis=0))
    graph = helper.make_graph(
        nodes if pieces else [n for n in nodes if n.op_type != "SplitToSequence"], "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", time, 3]),
         helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, "batch", 4])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def said(proto: Any) -> list[str]:
    return [note for note in Model(from_onnx(proto)).graph.notes if "leaves the length of that axis open" in note]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
def test_a_longer_sequence_is_cut_as_the_file_says_and_that_is_said(backwards: bool, pieces: bool) -> None:
    proto = written_out(backwards=backwards, pieces=pieces)
    (note,) = said(proto)
    assert f"{STEPS} time steps of 'x'" in note
    assert "'time'" in note
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = Model(from_onnx(proto))
    for steps in (STEPS, STEPS + 3):
        feeds = {"x": normal(2, steps, 3), "h0": normal(2, 4)}
        np.testing.assert_allclose(model.run(feeds)["y"], session.run(None, feeds)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(FastLSTMError):
        model.run({"x": normal(2, STEPS - 1, 3), "h0": normal(2, 4)})


def test_nothing_is_said_where_the_length_is_fixed_or_no_step_needs_the_one_before() -> None:
    assert not said(written_out(time=STEPS))
    assert not said(written_out(recurrent=False))


def test_the_note_is_shown_once_on_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, stored, saved = tmp_path / "rnn.onnx", tmp_path / "rnn.fastlstm", tmp_path / "saved.fastlstm"
    onnx.save(written_out(), source)
    assert cli.main(["convert", str(source), "-o", str(stored)]) == 0
    assert capsys.readouterr().err.count("written out one by one") == 1
    fastlstm.load(source).save(saved)
    for path in (source, stored, saved):
        assert cli.main(["inspect", str(path)]) == 0
        assert capsys.readouterr().out.count("written out one by one") == 1
