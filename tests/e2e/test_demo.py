"""`fastlstm demo` does the whole job, and its chart needs no plotting package."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import fastlstm
from fastlstm.cli import demo
from fastlstm.cli.chart import Line, line_chart
from fastlstm.files import fileformat

SVG = "{http://www.w3.org/2000/svg}"


def test_demo_converts_verifies_streams_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run_demo(tmp_path / "new" / "folder")
    said = capsys.readouterr().out
    assert "the same bits as in one run" in said
    assert "error 28.0 sunspots (38.7 if" in said
    folder = tmp_path / "new" / "folder"
    for name in ("forecaster.fastlstm", "from_state_dict.fastlstm"):
        (sample,) = fileformat.read(folder / name).golden
        (expected,) = sample.outputs.values()
        again = fastlstm.load(folder / name)(*sample.inputs.values())
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
    table = np.loadtxt(folder / "forecast.csv", delimiter=",", skiprows=1)
    assert table.shape == (3120 - demo.HORIZON, 3)
    assert len(ElementTree.parse(folder / "forecast.svg").findall(f"{SVG}polyline")) == 2


def test_both_exports_of_the_forecaster_give_the_same_numbers() -> None:
    _, numbers = demo.read_series()
    x = (np.sqrt(numbers) / 10).astype(np.float32)[None, :, None]
    from_onnx = fastlstm.load(demo.DATA / "forecaster.onnx")(x)
    from_weights = fastlstm.load(demo.DATA / "forecaster.safetensors", layers="lstm | linear")(x)
    np.testing.assert_array_equal(from_onnx, from_weights)  # the same layers, so the same bits


def test_chart_puts_points_where_the_ticks_are_and_escapes_names() -> None:
    line = Line("a < b", np.array([0.0, 10.0]), np.array([0.0, 50.0]), "#123456")
    root = ElementTree.fromstring(line_chart("x & y", [line], x_ticks=[0, 10], y_ticks=[0, 50]))
    texts = {text.text: text for text in root.findall(f"{SVG}text")}
    assert {"x & y", "a < b", "0", "10", "50"} <= set(texts)
    _, last = root.find(f"{SVG}polyline").get("points").split(" ")
    x, y = map(float, last.split(","))
    assert x == float(texts["10"].get("x"))
    assert y == pytest.approx(float(texts["50"].get("y")) - 4, abs=0.1)  # text stands 4 below its line
