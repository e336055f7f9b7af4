"""The .fastlstm file: what goes in comes out, and whatever was done to a file is told."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from fastlstm.errors import FileFormatError, InputError, UnsupportedError
from fastlstm.files import fileformat, opening
from fastlstm.files.fileformat import GoldenSample, Source
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.model import Model
from fastlstm.verification.comparison import check_stored

H, I = 3, 2  # noqa: E741


def lstm_graph() -> Graph:
    """An LSTM and a dense head, with a body that has constants of its own, in several dtypes."""
    rng = np.random.default_rng(0)
    weight = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    body = Graph(
        inputs=(),
        outputs=(TensorSpec("body_out", (1,)),),
        nodes=(Node("Add", ("head", "body_const"), ("body_out",), name="inside"),),
        constants={"body_const": np.array([0.5], np.float32)},
    )
    attrs = {
        "hidden_size": H,
        "directions": ["forward"],
        "activations": default_activations("LSTM"),
        "clip": None,
        "input_forget": 0,
    }
    nodes = (
        Node("LSTM", ("x", "w_ih", "w_hh", "bias"), ("y", "h", "c"), attrs, "lstm"),
        Node("Dense", ("y", "w", "b"), ("out",), {}, "dense"),
        Node("If", ("flag",), ("chosen",), {"then_branch": body, "else_branch": body}, "choice"),
    )
    constants = {
        "w_ih": weight(1, 4 * H, I),
        "w_hh": weight(1, 4 * H, H),
        "bias": weight(1, 4 * H),
        "w": weight(4, H).T,  # not contiguous
        "b": weight(4).astype(np.float16),
        "head": np.array([2.0], np.float64).astype(np.float32),
        "flag": np.array(True),
        "table": np.array([[2**40, -1]], np.int64),
        "empty": np.zeros((0, 7), np.uint8),
        "constants/odd name \u00e9": np.arange(3, dtype=">i4"),
    }
    return Graph(
        inputs=(TensorSpec("x", ("time", "batch", I)),),
        outputs=(TensorSpec("out", ("time", "batch", 4)), TensorSpec("chosen", (1,))),
        nodes=nodes,
        constants=constants,
        name="a model",
        notes=("assumed batch_first",),
    )


def sample(steps: int = 5) -> GoldenSample:
    return GoldenSample(
        {"x": np.ones((steps, 1, I), np.float32)},
        {"out": np.zeros((steps, 1, 4), np.float32), "chosen": np.array([2.5], np.float32)},
        "onnxruntime 1.0",
    )


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "m.fastlstm"
    fileformat.write(target, lstm_graph(), [sample()], Source("m.onnx", "ab" * 32))
    return target


def rewrite(path, change) -> None:
    """Load a file as plain safetensors, let `change(tensors, metadata)` at it, and store it again."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)


@pytest.fixture(params=[opening.MAPPED_BYTES, 1], ids=["copied", "mapped"])
def either(request, monkeypatch) -> None:
    """Take tensors out of a file both ways: copied, as small ones are, and mapped."""
    monkeypatch.setattr(opening, "MAPPED_BYTES", request.param)


def test_everything_comes_back_as_it_was(path, either):
    stored, graph = fileformat.read(path), lstm_graph()
    assert str(stored.graph) == str(graph).replace(">i4", "int32")
    assert stored.graph.nodes[:2] == graph.nodes[:2]
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(stored.graph.constants[name], array)
        assert stored.graph.constants[name].dtype == array.dtype.newbyteorder("=")
        assert stored.graph.constants[name].shape == array.shape
    body = stored.graph.nodes[2].attrs["else_branch"]
    np.testing.assert_array_equal(body.constants["body_const"], [0.5])
    assert stored.source == Source("m.onnx", "ab" * 32)
    assert stored.golden[0].origin == "onnxruntime 1.0"
    np.testing.assert_array_equal(stored.golden[0].outputs["chosen"], [2.5])


def test_attributes_keep_infinities_and_every_digit(tmp_path):
    attrs = {"alpha": float("-inf"), "beta": 0.1 + 0.2, "axes": [1, [2, None]], "mode": "a"}
    graph = Graph((TensorSpec("x", ()),), (TensorSpec("y", ()),), (Node("Clip", ("x",), ("y",), attrs),))
    fileformat.write(tmp_path / "m.fastlstm", graph)
    assert fileformat.read(tmp_path / "m.fastlstm").graph.nodes[0].attrs == attrs


def test_an_input_of_unknown_rank_takes_any_golden_sample(tmp_path):
    graph = Graph((TensorSpec("x", ("...",)),), (TensorSpec("y", ("...",)),), (Node("Neg", ("x",), ("y",)),))
    one = GoldenSample({"x": np.ones((2, 3), np.float32)}, {"y": -np.ones((2, 3), np.float32)})
    fileformat.write(tmp_path / "m.fastlstm", graph, [one])
    assert fileformat.read(tmp_path / "m.fastlstm").golden[0].inputs["x"].shape == (2, 3)


def test_writing_replaces_the_old_file_and_leaves_nothing_beside_it(path):
    fileformat.write(path, lstm_graph())
    assert fileformat.read(path).golden == ()
    assert os.listdir(path.parent) == ["m.fastlstm"]


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        fileformat.write(path, lstm_graph())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["m.fastlstm"]


def test_a_new_file_has_the_usual_permissions(path):
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_source_of_hashes_the_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"abc")
    source = Source.of(tmp_path / "m.onnx")
    assert source == Source("m.onnx", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_what_cannot_be_stored_is_refused_before_writing(tmp_path):
    words = lstm_graph().replace(constants={**lstm_graph().constants, "words": np.array(["a"])})
    with pytest.raises(InputError, match="'constants/words' has the dtype <U1"):
        fileformat.write(tmp_path / "m.fastlstm", words)
    with pytest.raises(InputError, match="Golden sample 0 does not match the model: its inputs are"):
        fileformat.write(tmp_path / "m.fastlstm", lstm_graph(), [GoldenSample({}, {})])
    assert not os.listdir(tmp_path)


def nested(depth: int) -> Graph:
    """A choice within a choice, `depth` deep; the source says no dtype of what the bodies give."""
    plain = Graph((), (TensorSpec("same", ("...",), ""),), (Node("Identity", ("x",), ("same",)),))
    node = Node("Neg", ("x",), ("y",))
    for level in range(depth):
        body = Graph((), (TensorSpec(node.outputs[0], ("...",), ""),), (node,))
        node = Node("If", ("flag",), (f"y{level}",), {"then_branch": body, "else_branch": plain})
    return Graph(
        (TensorSpec("x", ("time",)), TensorSpec("flag", (), "bool")), (TensorSpec(node.outputs[0], ("...",)),), (node,)
    )


def test_values_of_unknown_dtype_and_sequences_in_loops_come_back(tmp_path):
    body = Graph(
        (TensorSpec("i", (), "int64"), TensorSpec("go", (), "bool"), TensorSpec("held", ("...",), "sequence")),
        (TensorSpec("go_on", (), "bool"), TensorSpec("longer", ("...",), "sequence")),
        (Node("Identity", ("go",), ("go_on",)), Node("SequenceInsert", ("held", "x"), ("longer",))),
    )
    nodes = (
        Node("SequenceEmpty", (), ("none",), {"dtype": "float32"}),
        Node("Loop", ("three", "", "none"), ("all",), {"body": body}),
        Node("ConcatFromSequence", ("all",), ("joined",), {"axis": 0, "new_axis": 0}),
    )
    looped = Graph((TensorSpec("x", (2,)),), (TensorSpec("joined", ("...",), ""),), nodes, {"three": np.array(3)})
    x = np.array([1, 2], np.float32)
    for name, graph in {"loop": looped, "choice": nested(2)}.items():
        path = tmp_path / f"{name}.fastlstm"
        given = {"x": x, "flag": np.array(True)} if name == "choice" else {"x": x}
        outputs = Model(graph).run(given)
        fileformat.write(
            path,
            graph,
            [GoldenSample(given, outputs)],
            check=lambda stored: check_stored(stored, Model(stored.graph).run),
        )
        assert str(fileformat.read(path).graph) == str(graph)
    np.testing.assert_array_equal(fileformat.read(tmp_path / "loop.fastlstm").golden[0].outputs["joined"], [1, 2] * 3)


def test_what_could_not_be_read_again_is_not_written(path):
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match=r"m\.fastlstm was not written, because .*nested more than 16 deep"):
        fileformat.write(path, nested(18))
    with pytest.raises(UnsupportedError, match=r"m\.fastlstm was not written, because .*gives another result: out: "):
        fileformat.write(
            path, lstm_graph(), [sample()], check=lambda stored: check_stored(stored, Model(stored.graph).run)
        )
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["m.fastlstm"]


def test_save_leaves_no_file_that_does_not_load(tmp_path, monkeypatch):
    def refused(graph):
        raise UnsupportedError("what was written is no graph.")

    model = Model(nested(2))
    monkeypatch.setattr("fastlstm.model.Model.__init__", lambda self, graph: refused(graph))
    with pytest.raises(UnsupportedError, match="was not written"):
        model.save(tmp_path / "m.fastlstm")
    assert not os.listdir(tmp_path)


def test_a_sample_holds_arrays_only(tmp_path):
    graph = Graph(
        (TensorSpec("x", (2,)),), (TensorSpec("s", ("...",), "sequence"),), (Node("SequenceConstruct", ("x",), ("s",)),)
    )
    one = GoldenSample({"x": np.ones(2, np.float32)}, {"s": [np.ones(2, np.float32)]})
    with pytest.raises(InputError, match="'s' is no array"):
        fileformat.write(tmp_path / "m.fastlstm", graph, [one])


def set_metadata(key, value):
    return lambda tensors, metadata: metadata.update({key: value})


def edit_graph(change):
    def apply(tensors, metadata):
        data = json.loads(metadata["graph"])
        change(data)
        metadata["graph"] = json.dumps(data)
        sign(tensors, metadata)

    return apply


def sign(tensors, metadata):
    """Make the hash right again, as someone would who means harm."""
    metadata["sha256"] = fileformat._digest(metadata, tensors)


def drop(name):
    return lambda tensors, metadata: tensors.pop(name)


def replace_tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


def reshaped_golden(tensors, metadata):
    tensors["golden/0/inputs/x"] = np.ones((5, 1, I + 1), np.float32)
    table = json.loads(metadata["tensors"])
    table["golden/0/inputs/x"][1] = [5, 1, I + 1]
    metadata["tensors"] = json.dumps(table)
    sign(tensors, metadata)


DEEP = "[" * 100_000 + "]" * 100_000

DAMAGE = {
    "newer version": (
        set_metadata("fastlstm.format", "4"),
        "has the format version 4; .* reads up to version 3",
    ),
    "version zero": (set_metadata("fastlstm.format", "0"), "no version 0"),
    "version no number": (set_metadata("fastlstm.format", "one"), "'one' is not a number"),
    "no metadata": (lambda t, m: m.clear(), "safetensors file without fastlstm's metadata"),
    "metadata missing": (lambda t, m: m.pop("graph"), "'graph' is missing"),
    "metadata unknown": (set_metadata("extra", "x"), "'extra' is not known"),
    "tensor missing": (drop("constants/w_hh"), "tensor 'constants/w_hh' is missing"),
    "tensor too many": (
        replace_tensor("constants/new", np.ones(1)),
        "tensor 'constants/new' does not belong",
    ),
    "wrong dtype": (
        replace_tensor("constants/bias", np.ones((1, 4 * H), np.float64)),
        r"'constants/bias' has the dtype and shape float64\[1, 12\]; it was written as float32\[1, 12\]",
    ),
    "wrong shape": (
        replace_tensor("constants/bias", np.ones((4 * H, 1), np.float32)),
        r"float32\[12, 1\]; it was written as",
    ),
    "changed weight": (
        replace_tensor("constants/bias", np.ones((1, 4 * H), np.float32)),
        "is damaged: .*SHA-256",
    ),
    "changed source": (set_metadata("source", '["other.onnx","00"]'), "is damaged: .*SHA-256"),
    "table no JSON": (set_metadata("tensors", "{"), "tensor table is damaged: it is not JSON"),
    "table deep": (set_metadata("tensors", DEEP), "tensor table is damaged: .*(too deeply|not JSON)"),
    "graph no JSON": (
        lambda t, m: (m.update(graph="nonsense"), sign(t, m)),
        "The graph is damaged: it is not JSON",
    ),
    "graph key twice": (
        lambda t, m: (m.update(graph=m["graph"][:-1] + ',"name":""}'), sign(t, m)),
        "gives a key twice",
    ),
    "graph deep": (lambda t, m: (m.update(graph=DEEP), sign(t, m)), "The graph is damaged"),
    "graph field missing": (edit_graph(lambda g: g.pop("nodes")), "field 'nodes' is missing"),
    "graph field unknown": (edit_graph(lambda g: g.update(code="x")), "field 'code', which is not known"),
    "op unknown": (edit_graph(lambda g: g["nodes"][1].__setitem__(0, "Evil")), "operator 'Evil'"),
    "op no string": (edit_graph(lambda g: g["nodes"][1].__setitem__(0, 3)), "op should be a string"),
    "node short": (edit_graph(lambda g: g["nodes"][1].pop()), "expected op, name, inputs"),
    "recurrent attribute missing": (
        edit_graph(lambda g: g["nodes"][0][4].pop("directions")),
        "LSTM node 'lstm' should have the attributes",
    ),
    "recurrent attribute wrong": (
        edit_graph(lambda g: g["nodes"][0][4].update(hidden_size="3")),
        "'hidden_size' should be a number from 1 to .*; got '3'",
    ),
    "sizes disagree": (
        edit_graph(lambda g: g["nodes"][0][4].update(hidden_size=4)),
        "should be a float array",
    ),
    "value undefined": (edit_graph(lambda g: g["nodes"][1][2].__setitem__(0, "?")), r"reads '\?'"),
    "constant unnamed": (
        edit_graph(lambda g: g["constants"].remove("table")),
        "'constants/table' does not belong",
    ),
    "constant without tensor": (edit_graph(lambda g: g["constants"].append("z")), "'z' has no tensor"),
    "dimension negative": (edit_graph(lambda g: g["inputs"][0][1].__setitem__(0, -1)), "is no dimension"),
    "dtype unknown": (edit_graph(lambda g: g["inputs"][0].__setitem__(2, "object")), "dtype 'object'"),
    "attribute object": (edit_graph(lambda g: g["nodes"][1][4].update(a={"b": 1})), "attribute 'a' of Dense"),
    "golden misfit": (reshaped_golden, r"golden sample 0 does not match the model: its input x is"),
    "golden list": (lambda t, m: (m.update(golden="[1]"), sign(t, m)), "list of golden samples is damaged"),
    "source wrong": (lambda t, m: (m.update(source='"x"'), sign(t, m)), "source's name and hash are damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told(path, case):
    change, message = DAMAGE[case]
    rewrite(path, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        fileformat.read(path)
    assert str(path) in str(caught.value)


def test_truncation_is_told_wherever_it_happens(path, either):
    whole = path.read_bytes()
    for kept in [0, 5, 8, 9, 200, *np.linspace(300, len(whole) - 1, 10).astype(int)]:
        path.write_bytes(whole[:kept])
        with pytest.raises(FileFormatError, match="truncated"):
            fileformat.read(path)


@pytest.mark.skipif(os.name == "nt", reason="nothing is mapped there")
def test_large_tensors_are_mapped_and_stay_what_they_were_when_the_file_is_replaced(path, monkeypatch):
    monkeypatch.setattr(opening, "MAPPED_BYTES", 16)
    stored = fileformat.read(path).graph.constants
    large = [name for name, array in stored.items() if array.nbytes >= 16]
    assert {"w_ih", "w_hh", "bias"} <= set(large)
    for name in large:
        assert not stored[name].flags.owndata
        assert not stored[name].flags.writeable
    fileformat.write(path, Graph((), (), (), {}))
    fileformat.release(stored.values())
    for name, array in lstm_graph().constants.items():
        np.testing.assert_array_equal(stored[name], array)


def test_bytes_after_the_end_are_told(path):
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(FileFormatError, match="4 bytes follow its last tensor"):
        fileformat.read(path)


def test_every_flipped_byte_is_told(path, either):
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in [*range(12), *rng.integers(0, len(whole), 200)]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(FileFormatError):
            fileformat.read(path)


def test_sizes_are_checked_before_memory_is_taken(path):
    for length, message in [(1 << 62, "only .* follow"), (1 << 25, "too large")]:
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", length) + b"{")
            file.truncate(1 << 26)
        with pytest.raises(FileFormatError, match=message):
            fileformat.read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [0, 1 << 61], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        [],
    ],
)
def test_hostile_headers_are_refused(path, entry):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    metadata["tensors"] = json.dumps({"a": ["float32", entry["shape"] if entry else []]})
    header = json.dumps({"__metadata__": metadata, "a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FileFormatError):
        fileformat.read(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"\0" * 99, b"hello, this is a letter", b"\0" * 64])
def test_other_files_are_told_apart(tmp_path, content):
    (tmp_path / "m.fastlstm").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"is not a \.fastlstm file"):
        fileformat.read(tmp_path / "m.fastlstm")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.fastlstm")
    with pytest.raises(FileFormatError, match="not a regular file"):
        fileformat.read(tmp_path / "pipe.fastlstm")
    with pytest.raises(OSError):
        fileformat.read(tmp_path / "absent.fastlstm")
