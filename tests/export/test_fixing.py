"""What is fixed at an export: values of inputs that choose a model, sizes of chunks; lengths become masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_models import lstm_graph, tiny

import fastlstm
from fastlstm import cli
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.export.lengths import lengths_as_masks
from fastlstm.graph import Graph, Node, TensorSpec

LIGHT = ("cortex-m4",)


def two_rates() -> fastlstm.Model:
    """Return a model that halves its outputs at 8000 Hz."""
    graph = lstm_graph()
    bodies = {}
    for branch, scale in (("then_branch", 0.5), ("else_branch", 1.0)):
        node = Node("Mul", ("out", f"{branch}_scale"), (f"{branch}_y",))
        constants = {f"{branch}_scale": np.float32(scale)}
        bodies[branch] = Graph((), (TensorSpec(f"{branch}_y", ("time", "batch", 2)),), (node,), constants)
    nodes = (*graph.nodes, Node("Equal", ("sr", "low"), ("is_low",)), Node("If", ("is_low",), ("z",), bodies, "rate"))
    inputs = (*graph.inputs, TensorSpec("sr", (), "int64"))
    constants = {**graph.constants, "low": np.array(8000)}
    return fastlstm.Model(Graph(inputs, (TensorSpec("z", ("time", "batch", 2)),), nodes, constants, "rates"))


def with_lengths(*directions: str) -> fastlstm.Model:
    """Return a layer of rows of different lengths, its outputs and its last states."""
    graph = lstm_graph(directions=directions)
    layer, dense = graph.nodes
    layer = replace(layer, inputs=(*layer.inputs, "n"), outputs=("y", "last", ""))
    last = TensorSpec("last", (len(directions), "batch", 8))
    inputs = (*graph.inputs, TensorSpec("n", ("batch",), "int64"))
    return fastlstm.Model(
        graph.replace(inputs=inputs, outputs=(*graph.outputs, last), nodes=(layer, dense), name="ragged")
    )


def test_an_input_that_chooses_a_model_is_given_its_value(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Give its value: --input sr=VALUE"):
        fastlstm.export(two_rates(), tmp_path / "f", LIGHT)
    low, high = (
        fastlstm.export(two_rates(), tmp_path / str(rate), LIGHT, inputs={"sr": rate}) for rate in (8000, 16000)
    )
    assert [port["name"] for port in low["inputs"]] == ["rows"]
    assert low["streams"]
    assert low["model_hash"] != high["model_hash"]
    assert low["files"]["rates-cortex-m4.o"] != high["files"]["rates-cortex-m4.o"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 1}, "no input 'rate'; the model's are: rows, sr"),
        ({"sr": 0.5}, "'sr' should be whole"),
        ({"sr": [1, 2]}, "number or have the shape"),
        ({"rows": 0}, "cannot be fixed while its shape is open"),
        ({"rows": 0, "sr": 1}, "nothing is left to compute"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        fastlstm.export(two_rates(), tmp_path / "f", LIGHT, inputs=values)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_fixes_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_rates().save(tmp_path / "m.fastlstm")
    command = ["export", str(tmp_path / "m.fastlstm"), "-o", str(tmp_path / "f"), "--target", "cortex-m4", "--input"]
    assert cli.main([*command, "sr"]) == 2
    assert "takes an input and a number, as in sr=16000" in capsys.readouterr().err
    assert cli.main([*command, "sr=8000"]) == 0
    assert "sr" not in (tmp_path / "f" / "m.h").read_text()


def test_a_model_that_cannot_stream_is_called_whole(tmp_path: Path) -> None:
    both = tiny(directions=("forward", "reverse"))
    with pytest.raises(UnsupportedError, match="--size time=N --size batch=N"):
        fastlstm.export(both, tmp_path / "f", LIGHT)
    shape = (5, 1, 3)
    closed = fastlstm.Model(both.graph.replace(inputs=(TensorSpec("rows", shape),)))
    assert not fastlstm.export(closed, tmp_path / "closed", LIGHT)["streams"]
    one_way = fastlstm.Model(tiny().graph.replace(inputs=(TensorSpec("rows", shape),)))
    assert not fastlstm.export(one_way, tmp_path / "whole", LIGHT, whole=True)["streams"]


@pytest.mark.parametrize("directions", [("forward",), ("forward", "reverse")])
def test_lengths_as_masks_have_the_same_bits(directions: tuple[str, ...]) -> None:
    model = with_lengths(*directions)
    rng = np.random.default_rng(0)
    given = {"rows": rng.standard_normal((6, 4, 3)).astype(np.float32), "n": np.array([6, 0, 2, 5])}
    shapes = {"rows": (6, 4, 3), "n": (4,)}
    graph = model.graph.replace(inputs=tuple(replace(s, shape=shapes[s.name]) for s in model.graph.inputs))
    masked = fastlstm.Model(lengths_as_masks(graph)).run(given)
    for name, wanted in model.run(given).items():
        np.testing.assert_array_equal(masked[name], wanted)


def test_lengths_are_an_input_of_whole_numbers(tmp_path: Path) -> None:
    content = fastlstm.export(with_lengths("forward"), tmp_path / "f", LIGHT, sizes={"time": 6, "batch": 2})
    assert [(port["name"], port["type"], port["elements"]) for port in content["inputs"]] == [
        ("rows", "float", 36), ("n", "int32_t", 2),
    ]  # fmt: skip
