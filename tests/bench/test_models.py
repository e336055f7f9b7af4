"""The benchmark of published models: what is missing is a row, tables and picture show what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.append(str(Path(__file__).parents[2]))  # last: where fastlstm is installed as a wheel, that one is tested

from bench import models, real


def stateful(path: Path) -> None:
    """Write a recurrent model that takes a frame [1, 3] and its state, as published ones do."""
    random = np.random.default_rng(0)
    constants = {
        "W": random.normal(size=(1, 12, 3)), "R": random.normal(size=(1, 12, 4)), "B": random.normal(size=(1, 24)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["frame"]),
        helper.make_node("GRU", ["frame", "W", "R", "B", "", "h"], ["", "h_n"], hidden_size=4),
        helper.make_node("Squeeze", ["h_n", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3]), ("h", [1, 1, 4]))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("y", [1, 4]), ("h_n", [1, 1, 4]))],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()]
        + [numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_models_are_measured_where_their_packages_are_and_named_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stateful(tmp_path / "model.onnx")

    def frames() -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(1).normal(size=(7, 1, 3)).astype(np.float32)}

    there = real.RealModel("there", "onnx", "model.onnx", frames, {"h": "h_n"})
    monkeypatch.setattr(real.RealModel, "path", lambda self: tmp_path / self.file if self is there else None)
    gone = real.RealModel("gone", "no-such-package", "model.onnx", frames)
    monkeypatch.setattr(models, "MODELS", (there, gone))
    output = tmp_path / "results" / "models"
    words = ["--seconds", "0.01", "--starts", "0", "--engines", "onnxruntime", "--output", str(output)]
    assert models.main(words) == 0
    text = capsys.readouterr().out
    assert "gone: not installed; pip install --no-deps no-such-package" in text
    data = models.json.loads(Path(f"{output}.json").read_text())
    row = data["runs"][0]["rows"][0]
    assert row["difference"]["onnxruntime"] < 1e-6
    assert set(row["whole"]["median_us"]) == set(row["frame"]["median_us"]) == {"fastlstm", "onnxruntime"}
    assert "in the geometric mean" in text
    ElementTree.fromstring(Path(f"{output}.svg").read_text())


def test_a_package_without_its_file_is_missing_too() -> None:
    assert real.RealModel("m", "onnx", "onnx/no_such_model.onnx", dict).path() is None
    assert real.RealModel("m", "onnx", "onnx/__init__.py", dict).path() == Path(onnx.__file__)
    assert len({model.name for model in real.MODELS}) == len(real.MODELS)


@pytest.mark.parametrize("model", real.MODELS, ids=lambda m: m.name)
def test_made_up_frames_are_arrays_by_name(model: real.RealModel) -> None:
    frames = model.frames()
    assert all(isinstance(array, np.ndarray) and array.size for array in frames.values())
    assert not set(frames) & (set(model.states) | set(model.fixed))


def test_parts_are_joined_in_the_models_order_into_a_readme(tmp_path: Path) -> None:
    def part(*names: str, cores: int = 2, load: float = 0.5) -> Path:
        rows = [{"name": n, "missing": f"get {n}"} for n in names]
        data = {"date": "2026-01-01T00:00:00Z", "machine": {"processor": "p", "isa": "i", "cores": cores, "load": load},
                "versions": {"fastlstm": "1"}, "runs": [{"threads": 1, "rows": rows}]}  # fmt: skip
        path = tmp_path / f"{names[0]}{cores}.json"
        path.write_text(models.json.dumps(data))
        return path

    a, b, c = (model.name for model in models.MODELS[:3])
    first, second = part(c, a), part(b, load=3.0)
    readme, output = tmp_path / "README.md", tmp_path / "out"
    readme.write_text(f"before\n{models.BEGIN}\nold\n{models.END}\nafter\n")
    assert models.main(["--parts", str(first), str(second), "--output", str(output), "--readme", str(readme)]) == 0
    data = models.json.loads(Path(f"{output}.json").read_text())
    assert [row["name"] for row in data["runs"][0]["rows"]] == [a, b, c]
    text = readme.read_text()
    assert "old" not in text
    assert text.index(f"get {a}") < text.index(f"get {b}")
    assert text.endswith("after\n")
    with pytest.raises(SystemExit, match="different machines"):
        models.main(["--parts", str(first), str(part(b, cores=4)), "--output", str(output)])
