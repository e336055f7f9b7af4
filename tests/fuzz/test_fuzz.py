"""Files that nobody vouches for: a few hundred mutated ones, and the kinds that once ended in another error."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import fastlstm
from fastlstm.errors import FastLSTMError, InputError, UnsupportedError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.lowering.tapes.recorder import Recorder
from fuzz import child, seeds

FILES = 150


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    seeds.write_all(folder)
    return folder


def test_mutated_files_load_or_are_refused_in_a_sentence(good: Path, tmp_path: Path) -> None:
    files = sorted(good.iterdir())
    found = {seed: child.attempt(seed, files, tmp_path) for seed in range(FILES)}
    wrong = {seed: result for seed, result in found.items() if result[0] not in ("model", "refused")}
    assert not wrong
    assert {kind for kind, _ in found.values()} == {"model", "refused"}


def test_files_of_the_corpus_load_or_are_refused_in_a_sentence(tmp_path: Path) -> None:
    held = sorted(seeds.CORPUS.iterdir())
    found = {path.name: child.judged(path.read_bytes(), path.name, tmp_path) for path in held}
    assert found
    assert not {name: result for name, result in found.items() if result[0] not in ("model", "refused")}
    assert sum(path.stat().st_size for path in held) < 1 << 18


def graph(nodes: list[Node], constants: dict[str, Any] | None = None, shape: Any = ("time", 2, 3)) -> Graph:
    held = {name: np.asarray(array) for name, array in (constants or {}).items()}
    return Graph((TensorSpec("x", shape),), (TensorSpec("y", ("...",)),), tuple(nodes), held)


def node(op: str, inputs: str, outputs: str = "y", **attrs: Any) -> Node:
    return Node(op, tuple(inputs.split()), tuple(outputs.split()), attrs)


W = np.ones((1, 8, 3), np.float32)
PLAIN = {"hidden_size": 2, "directions": ["forward"], "clip": None, "input_forget": 0,
         "activations": [[["Sigmoid", None, None], ["Tanh", None, None], ["Tanh", None, None]]]}  # fmt: skip
LAYER = {"W": W, "R": np.ones((1, 8, 2), np.float32)}
BODY = Graph((TensorSpec("a", (2, 3)),), (TensorSpec("b", (2, 3)),), (node("Tanh", "a", "b"),))

MISFITS: list[tuple[Graph, str]] = [
    (graph([node("Transpose", "x", perm=[0, 1])]), "perm"),
    (graph([node("Transpose", "x", perm=[0, 1, 1])]), "perm"),
    (graph([node("Transpose", "x", "t", perm=[1, 0, 2]), node("Softmax", "t", axis=5)]), "axis"),
    (graph([node("Gather", "x i", axis=7)], {"i": 0}), "axis"),
    (graph([node("Squeeze", "x a")], {"a": [4]}), "axis"),
    (graph([node("Slice", "x s e a")], {"s": [0], "e": [1], "a": [9]}), "axis"),
    (graph([node("Slice", "x s e")], {"s": [0, 0], "e": [1]}), "as many starts as ends"),
    (graph([node("Concat", "x x", axis=3)]), "axis"),
    (graph([node("Concat", "x k", axis=0)], {"k": np.ones(3, np.float32)}), "same number of axes"),
    (graph([node("Reshape", "x s")], {"s": [0, 0, 0, 0]}), "0 only where"),
    (graph([node("Dense", "x w")], {"w": np.ones((4, 2), np.float32)}), "last axis|shape .inputs, outputs."),
    (graph([node("Dense", "x w")], {"w": np.ones((3, 2, 2), np.float32)}), "last axis|shape .inputs, outputs."),
    (graph([node("Conv", "x w")], {"w": np.ones((4, 2), np.float32)}), "as many axes"),
    (graph([node("ReduceSum", "x a")], {"a": [5]}), "axis"),
    (graph([node("Unsqueeze", "x a")], {"a": [9]}), "axis"),
    (graph([node("Pad", "x p")], {"p": [1, 1]}), "6 pads"),
    (graph([node("Split", "x", "y z", axis=2, num_outputs=1)]), "num_outputs"),
    (graph([node("LSTM", "x W R", **PLAIN)], LAYER, shape=("time", 2, 4)), "x to be"),
    (graph([node("LSTM", "x W R", **PLAIN)], LAYER, shape=("time", 3)), "x to be"),
    (graph([node("LSTM", "x W", **PLAIN)], LAYER), "3 to 14 inputs"),
    (graph([node("Add", "x")]), "2 to 2 inputs"),
    (graph([node("Softmax", "x", axis="last")]), "'axis' should be int"),
    (graph([node("Gather", "x i", axis=-(1 << 31))], {"i": [1]}), "no axis -2147483648"),
    (graph([node("Neg", "x", branch=BODY)]), "has a body"),
    (graph([node("Cast", "x", to="Tanh")]), "'to' should be"),
    (graph([node("Scan", "x x", body=BODY, num_scan_inputs=1)]), "inputs"),
    (graph([node("Scan", "x", body=BODY)]), "num_scan_inputs"),
    (graph([node("Loop", "", body=BODY)]), "body"),
    (graph([node("Tanh", "x", "")]), "no output"),
    (graph([node("Tanh", "x")], shape=(-1, 3)), "negative size"),
]


@pytest.mark.parametrize(("model", "named"), MISFITS)
def test_what_cannot_run_is_told_when_it_is_loaded(model: Graph, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        fastlstm.Model(model)


def test_a_branch_that_is_never_taken_may_hold_what_cannot_run() -> None:
    no = Graph((), (TensorSpec("b", ("...",)),), (node("Squeeze", "x a", "b"),), {"a": np.array([7])})
    yes = Graph((), (TensorSpec("c", ("...",)),), (node("Neg", "x", "c"),))
    nodes = [
        node("ReduceMax", "x", "m", keepdims=0), node("Less", "m half", "which"),
        node("If", "which", then_branch=yes, else_branch=no),
    ]  # fmt: skip
    model = fastlstm.Model(graph(nodes, {"half": np.float32(0.5)}))
    x = np.zeros((4, 2, 3), np.float32)
    np.testing.assert_array_equal(model(x), -x)
    with pytest.raises(FastLSTMError, match="Squeeze"):
        model(x + 1)


def test_a_product_without_columns_is_empty_in_a_loop_too() -> None:
    body = Graph(
        (TensorSpec("a", (2, 3)), TensorSpec("f", (2, 3))),
        (TensorSpec("b", (2, 3)), TensorSpec("c", (2, 0))),
        (node("Add", "a f", "b"), node("MatMul", "b w", "c")),
        {"w": np.zeros((3, 0), np.float32)},
    )
    scan = node("Scan", "a0 x", "last y", body=body, num_scan_inputs=1)
    model = fastlstm.Model(graph([scan], {"a0": np.zeros((2, 3), np.float32)}))
    assert model(np.ones((4, 2, 3), np.float32)).shape == (4, 2, 0)


def test_a_value_that_no_memory_holds_is_told_by_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Recorder.memory

    def memory(recorder: Recorder, shape: tuple[int, ...]) -> Any:
        if shape[-1] > 3:
            raise MemoryError("Unable to allocate 1.00 TiB")
        return small(recorder, shape)

    monkeypatch.setattr(Recorder, "memory", memory)
    scan = Graph(
        (TensorSpec("a", (2, 3)), TensorSpec("f", (2, 3))),
        (TensorSpec("b", (2, 3)), TensorSpec("c", (2, 5))),
        (node("Add", "a f", "b"), replace(node("MatMul", "b w", "c"), name="head")),
        {"w": np.zeros((3, 5), np.float32)},
    )
    rounds = node("Scan", "a0 x", "last y", body=scan, num_scan_inputs=1)
    model = fastlstm.Model(graph([rounds], {"a0": np.zeros((2, 3), np.float32)}))
    with pytest.raises(InputError, match=r"not enough memory for the values of 'head': Unable to allocate 1\.00 TiB"):
        model(np.ones((4, 2, 3), np.float32))


def test_buffers_that_no_memory_holds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fastlstm.Model(graph([node("Tanh", "x")]))
    model(np.ones((4, 2, 3), np.float32))

    def no_memory(shape: Any, dtype: Any) -> Any:
        raise MemoryError("Unable to allocate 64.0 MiB")

    for module in ("fastlstm.runtime.bound", "fastlstm.lowering.tapes.recorder"):
        monkeypatch.setattr(f"{module}.aligned_zeros", no_memory)
    with pytest.raises(InputError, match=r"not enough memory for .*: Unable to allocate 64\.0 MiB"):
        model(np.ones((5, 2, 3), np.float32))


HUGE = 1919120248


def scanned(width: int) -> Graph:
    """A scan over frames that are said to be very wide."""
    body = Graph(
        (TensorSpec("a", (1, width)), TensorSpec("f", (1, width))),
        (TensorSpec("b", (1, width)), TensorSpec("c", (1, width))),
        (node("Add", "a f", "s"), node("Tanh", "s", "b"), node("Mul", "b f", "c")),
    )
    inputs = (TensorSpec("a0", (1, width)), TensorSpec("x", ("time", 1, width)))
    scan = Node("Scan", ("a0", "x"), ("y", "z"), {"body": body, "num_scan_inputs": 1})
    return Graph(inputs, (TensorSpec("y", ("...",)), TensorSpec("z", ("...",))), (scan,))


GREEDY: list[Graph] = [
    graph([node("Reshape", "x s", "r"), node("Tanh", "r")], {"s": [5, 1, 1, HUGE]}, shape=("time", 2, "n")),
    graph([node("Expand", "x s", "e"), node("Tanh", "e")], {"s": [5, 1, HUGE, 3]}, shape=(1, 3)),
    graph([node("ConstantOfShape", "s", "c"), node("Add", "x c")], {"s": [HUGE, 2, 3]}),
    graph([node("Tile", "k r", "t"), node("Add", "x t")], {"k": np.ones((1, 3), np.float32), "r": [1 << 62, 4]}),
    graph([node("Range", "a b c", "r"), node("Cast", "r", "f", to=1), node("Mul", "x f")],
          {"a": 0, "b": 1 << 62, "c": 1}),
    graph([node("MatMul", "x w", "m"), node("Expand", "m s", "n"), node("MatMul", "n v")],
          {"w": np.ones((3, 4), np.float32), "s": [HUGE, 1, 2, 4], "v": np.ones((4, 2), np.float32)}),
    scanned(HUGE), scanned(1 << 46),
]  # fmt: skip


@pytest.mark.parametrize("model", GREEDY, ids=range(len(GREEDY)))
def test_no_memory_is_taken_for_sizes_that_a_file_only_names(model: Graph) -> None:
    fastlstm.Model(graph([node("Tanh", "x")]))  # what is imported on the way is not counted
    tracemalloc.start()
    try:
        fastlstm.Model(model)
    except FastLSTMError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 128 << 20


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: node("Add", "x k"), [(1 << 20, 1), (1 << 20,)]),
        (lambda: node("Where", "b x k"), [(1 << 20, 1), (1 << 20,)]),
        (lambda: node("MatMul", "x k"), [(1 << 20, 1), (1, 1 << 20)]),
        (lambda: node("Einsum", "x k", equation="ab,bc->ac"), [(1 << 20, 1), (1, 1 << 20)]),
    ],
    ids=["Add", "Where", "MatMul", "Einsum"],
)
def test_small_values_do_not_make_a_terabyte(make: Callable[[], Node], shapes: list[tuple[int, ...]]) -> None:
    from fastlstm import operators

    one = make()
    given = {"x": np.ones(shapes[0], np.float32), "k": np.ones(shapes[1], np.float32), "b": np.ones(1, bool)}
    with pytest.raises(InputError, match="elements allowed"):
        operators.evaluate(one, [given[name] for name in one.inputs])


def test_axes_reversed_of_a_value_of_unknown_rank_are_left_as_they_are() -> None:
    """Every rewrite that looks into a Transpose reads its order."""
    nodes = [
        node("Unique", "x", "u", sorted=1), node("Reshape", "x s", "r"), node("Transpose", "r", "t"),
        node("Slice", "t a b c d", "v"), node("Transpose", "v"),
    ]  # fmt: skip
    constants = {"a": [-1], "b": [-(2**63)], "c": [0], "d": [-1]}
    inputs = (TensorSpec("x", ("n",)), TensorSpec("s", ("rank",), "int64"))
    model = fastlstm.Model(Graph(inputs, (TensorSpec("y", ("...",)),), tuple(nodes), _arrays(constants)))
    x = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(model(x, np.array([2, 3])), x.reshape(2, 3)[:, ::-1])


def _arrays(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in constants.items()}


def test_names_of_nodes_are_told_with_what_came() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Softmax", ["x"], ["y"], name="last", axis=4)],
            "g",
            [helper.make_tensor_value_info("x", 1, ["n", 3])],
            [helper.make_tensor_value_info("y", 1, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(
        UnsupportedError, match=r"Softmax node 'last' expects .* not \[4\]; its inputs are float32\[n, 3\]"
    ):
        fastlstm.from_onnx(proto)


def test_a_program_that_does_not_say_the_shape_of_its_input_is_refused(good: Path) -> None:
    from fastlstm.converters.common.archive import Archive
    from fastlstm.converters.torch.export import program_graph
    from fastlstm.converters.torch.program import read_program

    program = read_program(Archive(good / "tagger.pt2"))
    with pytest.raises(FastLSTMError, match="does not say the shape of the tensor 'other'"):
        program_graph(replace(program, inputs=("other",)), "")


@pytest.mark.parametrize("place", ["an output", "an argument", "an argument that is overwritten"])
def test_a_program_whose_names_are_no_names_is_refused(good: Path, tmp_path: Path, place: str) -> None:
    with zipfile.ZipFile(good / "tagger.pt2") as source, zipfile.ZipFile(tmp_path / "m.pt2", "w") as target:
        for member in source.namelist():
            content = source.read(member)
            if member.endswith("models/model.json"):
                program = json.loads(content)
                node = next(n for n in program["graph_module"]["graph"]["nodes"] if "relu" in n["target"])
                if place == "an output":
                    node["outputs"][0]["as_tensor"]["name"] = [[]]
                elif place == "an argument":
                    node["inputs"][0]["arg"]["as_tensor"]["name"] = [[]]
                else:
                    node["target"] = "torch.ops.aten.relu_.default"
                    node["inputs"][0]["arg"] = {"as_int": 3}
                content = json.dumps(program).encode()
            target.writestr(member, content)
    with pytest.raises(FastLSTMError, match=r"'name' should be a string|do not fit it"):
        fastlstm.load(tmp_path / "m.pt2")


def test_a_sequence_is_no_operand_of_a_kernel() -> None:
    nodes = [
        node("SequenceConstruct", "c c", "s"), node("Softmax", "x", "z", axis=2), node("Expand", "z s", "e"),
        node("Softmax", "e", axis=2),
    ]  # fmt: skip
    with pytest.raises(InputError, match="Expand"):
        fastlstm.Model(graph(nodes, {"c": [3, 2, 3]})).run({"x": np.ones((3, 2, 3), np.float32)})


@pytest.mark.parametrize(
    ("scale", "zero"), [(np.float32(0.5), np.ones(3, np.int8)), (np.zeros(0, np.float32), np.int8(0))]
)
def test_scales_and_zero_points_of_other_sizes_end_in_no_other_error(scale: Any, zero: Any) -> None:
    nodes = [node("DequantizeLinear", "w s z", "v"), node("MatMul", "x v")]
    held = {"w": np.ones((3, 3), np.int8), "s": scale, "z": zero}
    with contextlib.suppress(FastLSTMError):
        fastlstm.Model(graph(nodes, held)).run({"x": np.ones((3, 2, 3), np.float32)})


def test_a_sequence_is_no_input_of_a_layer() -> None:
    nodes = [node("SequenceConstruct", "x z", "s"), node("LSTM", "s W R", "h", **PLAIN), node("Tanh", "h")]
    held = {**LAYER, "z": np.ones((5, 2, 3), np.float32)}
    with pytest.raises(FastLSTMError, match="sequence"):
        fastlstm.Model(graph(nodes, held)).run({"x": np.ones((3, 2, 3), np.float32)})


@pytest.mark.parametrize("nodes", [
    [node("SequenceConstruct", "c c", "s"), node("Cast", "s", "t", to=1), node("Add", "x t")],
    [node("SequenceConstruct", "x x", "s"), node("Tanh", "s", "t"), node("Mul", "x t")],
    [node("SequenceConstruct", "x x", "s"), node("Mul", "s x")],
])  # fmt: skip
def test_a_sequence_is_no_tensor(nodes: list[Node]) -> None:
    with pytest.raises(InputError, match="expects a tensor where it is given a sequence of 2"):
        fastlstm.Model(graph(nodes, {"c": [3, 2, 3]})).run({"x": np.ones((3, 2, 3), np.float32)})


def test_a_tensor_is_no_sequence() -> None:
    with pytest.raises(InputError, match="expects a sequence of tensors"):
        fastlstm.Model(graph([node("Tanh", "x", "t"), node("SequenceLength", "t")])).run(
            {"x": np.ones((3, 2, 3), np.float32)}
        )


def test_a_transposed_convolution_of_no_images_gives_none() -> None:
    nodes = [node("Compress", "x none", "e", axis=0), node("ConvTranspose", "e k", strides=[2])]
    held = {"none": [False, False, False], "k": np.ones((2, 4, 2), np.float32)}
    got = fastlstm.Model(graph(nodes, held)).run({"x": np.ones((3, 2, 3), np.float32)})
    assert got["y"].shape == (0, 4, 6)


def test_a_loop_whose_body_does_not_say_whether_it_goes_on_is_refused() -> None:
    numbers = (TensorSpec("i", (), "int64"), TensorSpec("on", (), "bool"))
    frames = [TensorSpec(name, (3, 2, 3)) for name in "vw"]
    nodes = (node("Tanh", "v", "w"), node("Greater", "v zero", "m"), node("Slice", "m nothing nothing", "go"))
    body = Graph((*numbers, frames[0]), (TensorSpec("go", (0, 2, 3), "bool"), frames[1]), nodes)
    held = {"trips": np.array(2), "going": np.array(True), "zero": np.zeros(1, np.float32), "nothing": np.zeros(1, int)}
    with pytest.raises(FastLSTMError):
        fastlstm.Model(graph([node("Loop", "trips going x", body=body)], held)).run(
            {"x": np.ones((3, 2, 3), np.float32)}
        )


@pytest.mark.parametrize("given", ["trips", "going"])
def test_a_loop_that_is_not_told_how_often_to_run_is_refused(given: str) -> None:
    numbers = (TensorSpec("i", (), "int64"), TensorSpec("on", (), "bool"))
    body = Graph(
        (*numbers, TensorSpec("v", (3, 2, 3))), (numbers[1], TensorSpec("w", (3, 2, 3))), (node("Tanh", "v", "w"),)
    )
    held = {"trips": np.array(2), "going": np.array(True)}
    held[given] = held[given].reshape(1)[:0]
    nodes = [node("Loop", "trips going x", body=body)]
    with pytest.raises(FastLSTMError):
        fastlstm.Model(graph(nodes, held)).run({"x": np.ones((3, 2, 3), np.float32)})


def test_a_transposed_convolution_of_a_huge_stride_costs_no_more_than_its_output() -> None:
    nodes = [node("ConvTranspose", "x k", strides=[1 << 40])]
    held = {"k": np.ones((2, 4, 2), np.float32)}
    x = np.ones((3, 2, 1), np.float32)
    got = fastlstm.Model(graph(nodes, held, (3, 2, 1))).run({"x": x})
    np.testing.assert_array_equal(got["y"], np.full((3, 4, 2), 2.0))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("shape", [(1,), (4, 1)])
def test_a_bias_of_another_shape_is_refused(op: str, shape: tuple[int, ...]) -> None:
    held = {"k": np.ones((4, 4, 1), np.float32), "b": np.ones(shape, np.float32)}
    with pytest.raises(FastLSTMError, match="bias"):
        fastlstm.Model(graph([node(op, "x k b")], held, (3, 4, 5))).run({"x": np.ones((3, 4, 5), np.float32)})


@pytest.mark.parametrize(("op", "inputs"), [("Gather", "x at"), ("Slice", "x at end"), ("Unsqueeze", "x at")])
def test_places_that_are_no_integers_are_refused(op: str, inputs: str) -> None:
    held = {"at": np.array([np.nan]), "end": np.array([1])}
    with pytest.raises(FastLSTMError, match="takes integers at position 1; 'at' holds float64"):
        fastlstm.Model(graph([node(op, inputs)], held))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Gather", "x at"),
        ("Slice", "x at end"),
        ("Unsqueeze", "x row"),
        ("Squeeze", "x row"),
        ("SequenceAt", "steps at"),
    ],
)
def test_places_that_are_found_not_to_be_integers_are_refused(op: str, inputs: str) -> None:
    nodes = [
        node("Div", "none none", "at"), node("Div", "row0 row0", "row"), node("SplitToSequence", "x", "steps"),
        node(op, inputs),
    ]  # fmt: skip
    held = {"none": np.array(0.0, np.float32), "row0": np.zeros(1, np.float32), "end": np.array([1])}
    with pytest.raises(FastLSTMError):
        fastlstm.Model(graph(nodes, held)).run({"x": np.ones((3, 2, 3), np.float32)})


def test_a_sum_with_an_empty_place_is_refused() -> None:
    with pytest.raises(
        FastLSTMError, match="Sum node 'y' should have 1 to more inputs; it lacks the one at position 1"
    ):
        fastlstm.Model(graph([Node("Sum", ("x", "", "x"), ("y",))]))


def test_an_output_that_an_operator_does_not_give_is_no_value() -> None:
    nodes = [node("Squeeze", "x", "a b"), node("Mul", "a b")]
    with pytest.raises(UnsupportedError, match="reads 'b', which no input, constant or earlier node defines"):
        fastlstm.Model(graph(nodes))
