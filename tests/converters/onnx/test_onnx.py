"""ONNX graphs become exactly the graph that says the same in opset-21 operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm import operators
from fastlstm.converters.onnx.load import from_onnx, supported
from fastlstm.converters.onnx.operators import OPERATORS
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.operators import reference

Array = npt.NDArray[Any]
Shape = Sequence[int | str | None]


def model(
    nodes: Sequence[Any],
    opset: int,
    inputs: Mapping[str, Shape] | None = None,
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, Array] | None = None,
    functions: Sequence[Any] = (),
) -> Any:
    shapes = {"x": ("batch", 3, 4)} if inputs is None else inputs
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(d, 1) for d in {f.domain for f in functions}]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def tree(proto: Any) -> list[str]:
    return [str(node) for node in from_onnx(proto).nodes]


def agree(proto: Any, x: Array) -> None:
    """Compare with onnxruntime: element-wise float32 against float64."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = reference.run(from_onnx(proto), {"x": x})
    np.testing.assert_allclose(found["y"], session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def node(op: str, *inputs: str, outputs: Sequence[str] = ("y",), **attrs: Any) -> Any:
    return helper.make_node(op, inputs or ["x"], outputs, name=op, **attrs)


X = np.random.default_rng(0).uniform(-2, 2, (2, 3, 4)).astype(np.float32)

OLD_FORMS = [
    (node("Squeeze", axes=[0]), 11, ["y = Squeeze(x, Squeeze.axes)"], X[:1]),
    (node("Unsqueeze", axes=[1]), 11, ["y = Unsqueeze(x, Unsqueeze.axes)"], X),
    (node("Slice", starts=[1], ends=[3], axes=[2]), 9, ["y = Slice(x, Slice.starts, Slice.ends, Slice.axes)"], X),
    (node("Slice", starts=[1], ends=[2]), 9, ["y = Slice(x, Slice.starts, Slice.ends)"], X),
    (node("Clip", min=-0.5), 10, ["y = Clip(x, Clip.min)"], X),
    (node("Clip", max=0.5), 10, ["y = Clip(x, , Clip.max)"], X),
    (node("Pad", pads=[0, 0, 1, 0, 0, 2]), 10, ["y = Pad(x, Pad.pads)"], X),
    (node("Pad", pads=[0, 0, 1, 0, 0, 2], value=2.0), 10, ["y = Pad(x, Pad.pads, Pad.value)"], X),
    (node("ReduceSum", axes=[1], keepdims=0), 11, ["y = ReduceSum(x, ReduceSum.axes; keepdims=0)"], X),
    (node("ReduceMean", axes=[1]), 17, ["y = ReduceMean(x, ReduceMean.axes)"], X),
    (node("ReduceMax"), 17, ["y = ReduceMax(x)"], X),
    (node("Split", axis=2, split=[1, 3], outputs=["y", "z"]), 11, ["y,  = Split(x, Split.split; axis=2)"], X),
    (node("Split", axis=2, outputs=["y", "z"]), 11, ["y,  = Split(x; axis=2, num_outputs=2)"], X),
    (node("Dropout", ratio=0.5), 10, ["y = Identity(x)"], X),
    (node("Softmax", axis=-1), 11, ["y = Softmax(x; axis=-1)"], X),
    (node("Softmax", axis=2), 11, ["y = Softmax(x; axis=-1)"], X),
    (node("Softmax"), 13, ["y = Softmax(x)"], X),
    (node("LogSoftmax"), 11,
     ["LogSoftmax.shape = Shape(x)", "LogSoftmax.rows = Flatten(x; axis=1)",
      "LogSoftmax.result = LogSoftmax(LogSoftmax.rows; axis=-1)",
      "y = Reshape(LogSoftmax.result, LogSoftmax.shape)"], X),
    (node("Upsample", scales=[1.0, 1.0, 2.0]), 7,
     ["y = Resize(x, , Upsample.scales; coordinate_transformation_mode=asymmetric, nearest_mode=floor)"], X),
    (node("TopK", k=2, axis=2, outputs=["y", "i"]), 9, ["y,  = TopK(x, TopK.k; axis=2)"], X),
]  # fmt: skip


@pytest.mark.parametrize(("proto", "opset", "expected", "x"), OLD_FORMS, ids=lambda v: getattr(v, "op_type", None))
def test_older_forms_become_the_newest_one(proto: Any, opset: int, expected: list[str], x: Array) -> None:
    written = model([proto], opset)
    assert tree(written) == expected
    agree(written, x)


def test_names_shapes_and_dtypes_of_inputs_and_outputs_are_kept() -> None:
    proto = model([node("Add", "left", "right", outputs=["out"])], 17,
                  {"left": ["batch", None, 3], "right": [None, 2, 3]}, ["out"])  # fmt: skip
    graph = from_onnx(proto)
    assert [str(spec) for spec in graph.inputs] == ["left: float32[batch, dim0, 3]", "right: float32[dim1, 2, 3]"]
    assert [spec.name for spec in graph.outputs] == ["out"]


def test_an_initialiser_that_is_also_an_input_is_a_constant() -> None:
    weight = np.ones((4, 2), np.float32)
    graph = from_onnx(model([node("MatMul", "x", "w")], 11, {"x": [3, 4], "w": [4, 2]}, constants={"w": weight}))
    assert [spec.name for spec in graph.inputs] == ["x"]
    np.testing.assert_array_equal(graph.constants["w"], weight)


def test_constant_nodes_become_constants_and_what_nothing_reads_is_left_out() -> None:
    nodes = [
        node("Constant", outputs=["two"], value_float=2.0),
        node("Constant", outputs=["ints"], value_ints=[1, 2]),
        node("Relu", outputs=["unused"]),
        node("Mul", "x", "two"),
    ]
    for constant in nodes[:2]:
        del constant.input[:]
    graph = from_onnx(model(nodes, 17))
    assert [str(n) for n in graph.nodes] == ["y = Mul(x, two)"]
    assert list(graph.constants) == ["two"]
    assert graph.constants["two"] == np.float32(2)


def test_constant_of_shape_keeps_its_element_type() -> None:
    value = numpy_helper.from_array(np.array([7], np.int64))
    nodes = [node("Shape", outputs=["s"]), node("ConstantOfShape", "s", value=value)]
    assert tree(model(nodes, 17))[1] == "y = ConstantOfShape(s; value=7, dtype=int64)"


def test_bodies_become_graphs_and_may_read_the_values_around_them() -> None:
    def branch(op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["x", "k"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )

    nodes = [
        node("ReduceMax", outputs=["m"], keepdims=0),
        node("Greater", "m", "k", outputs=["c"]),
        node("If", "c", then_branch=branch("Add"), else_branch=branch("Mul")),
    ]
    proto = model(nodes, 17, constants={"k": np.array(0.5, np.float32)})
    bodies = from_onnx(proto).nodes[-1].attrs
    assert [str(n) for n in bodies["then_branch"].nodes] == ["Add_out = Add(x, k)"]
    assert bodies["else_branch"].outputs[0].name == "Mul_out"
    agree(proto, X)
    agree(proto, -abs(X))


def test_local_functions_are_written_out_with_their_attributes() -> None:
    inner = helper.make_node("LeakyRelu", ["a"], ["t"])
    inner.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "own", "Leak", ["a"], ["b"], [inner, helper.make_node("Neg", ["t"], ["b"])], opsets, attributes=["slope"]
    )
    calls = [
        helper.make_node("Leak", ["x"], ["h"], name="one", domain="own", slope=0.5),
        helper.make_node("Leak", ["h"], ["y"], name="two", domain="own", slope=0.25),
    ]
    proto = model(calls, 17, functions=[function])
    assert tree(proto) == [
        "one/t = LeakyRelu(x; alpha=0.5)", "one/b = Neg(one/t)", "h = Identity(one/b)",
        "two/t = LeakyRelu(h; alpha=0.25)", "two/b = Neg(two/t)", "y = Identity(two/b)",
    ]  # fmt: skip
    agree(proto, X)


def test_bfloat16_is_read_as_float32_and_said_so() -> None:
    bits = (np.arange(4, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensor = helper.make_tensor("k", TensorProto.BFLOAT16, [4], bits.tobytes(), raw=True)
    proto = model([node("Add", "x", "k")], 17)
    proto.graph.initializer.append(tensor)
    graph = from_onnx(proto)
    np.testing.assert_array_equal(graph.constants["k"], np.arange(4, dtype=np.float32))
    assert graph.notes == ("bfloat16 is computed as float32.",)


REFUSED = [
    (node("Relu", flavour=1), 17, "flavour"),
    (node("Bernoulli"), 17, "Bernoulli"),
    (node("NoSuchThing"), 17, "NoSuchThing"),
    (node("Gelu"), 17, "opset 17"),
    (node("Gelu", approximate="cubic"), 20, "approximate"),
    (node("Cast", to=TensorProto.STRING), 17, "string"),
    (helper.make_node("BatchNormalization", ["x", *"ssss"], ["z", "y", "v"]), 15, "training_mode"),
    (node("Dropout", "x", "", "t"), 13, "training_mode"),
    (helper.make_node("Relu", ["x"], ["y"], domain="com.example"), 17, "com.example"),
]


@pytest.mark.parametrize(("proto", "opset", "named"), REFUSED)
def test_what_is_not_understood_is_named(proto: Any, opset: int, named: str) -> None:
    constants = {"s": np.ones(3, np.float32), "t": np.array(True)}
    written = model([proto], opset, constants=constants)
    written.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedError, match=named):
        from_onnx(written)


def test_the_axis_of_an_operand_at_opset_6_becomes_axes_of_size_one() -> None:
    constants = {"bias": np.zeros(3, np.float32)}
    proto = model([node("Add", "x", "bias", broadcast=1, axis=1)], 6, constants=constants)
    assert tree(proto) == ["Add.wide = Unsqueeze(bias, Add.axes)", "y = Add(x, Add.wide)"]
    assert from_onnx(proto).constants["Add.axes"].tolist() == [1]
    with pytest.raises(UnsupportedError, match="is_test=0"):
        from_onnx(model([node("Dropout")], 6))


@pytest.mark.parametrize("opset", [5, 1000])
def test_opsets_outside_the_range_are_refused(opset: int) -> None:
    with pytest.raises(UnsupportedError, match="supported: 6 to"):
        from_onnx(model([node("Relu")], opset))


def test_the_table_of_operators_holds_no_attribute_that_onnx_does_not_define() -> None:
    newest = onnx.defs.onnx_opset_version()
    unknown = []
    for op, attributes in OPERATORS.items():
        if not onnx.defs.has(op, newest, ""):
            continue  # newer than the installed onnx
        known = set(onnx.defs.get_schema(op, newest, "").attributes)
        known |= {"dtype"} if op == "ConstantOfShape" else set()  # the element type beside its value
        unknown += [(op, name) for name in attributes if name not in known]
    assert unknown in ([], [("DequantizeLinear", "output_dtype")], [("SpaceToDepth", "mode")])


def test_every_operator_of_the_table_can_be_computed() -> None:
    assert set(OPERATORS) - operators.SUPPORTED == set()


def test_the_feature_table_says_of_every_row_whether_it_is_supported() -> None:
    rows = supported()
    assert {"LSTM", "GRU", "RNN", *OPERATORS} <= {op for op, _, _ in rows}
    assert all(status == "supported" or status.startswith("refused: ") for _, _, status in rows)


@pytest.mark.parametrize(("size", "keepdims"), [(1, 0), (1, 1), (2, 1), ([1, 2], 0), (None, 0), (None, 1)])
def test_sequences_are_split_as_onnxruntime_splits_them(size, keepdims) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    first = [numpy_helper.from_array(np.array(0), "first")]
    sizes = [] if size is None else [numpy_helper.from_array(np.array(size, np.int64), "sizes")]
    nodes = [
        helper.make_node("SplitToSequence", ["x", *[t.name for t in sizes]], ["rows"], keepdims=keepdims),
        helper.make_node("SequenceAt", ["rows", "first"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [*first, *sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": given})
    np.testing.assert_array_equal(fastlstm.from_onnx(model)(given), want, strict=True)


def test_an_unknown_operator_is_named_with_its_neighbours_only() -> None:
    node = helper.make_node("LSTMM", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    with pytest.raises(UnsupportedError, match="the nearest that are: LSTM") as caught:
        fastlstm.from_onnx(helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=8))
    assert len(str(caught.value)) < 250


def test_a_git_lfs_pointer_is_called_that(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    for name in ("m.onnx", "m.fastlstm"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(FileFormatError, match="git lfs pull"):
            fastlstm.load(tmp_path / name)
