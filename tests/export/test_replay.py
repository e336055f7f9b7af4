"""``fastlstm verify FOLDER``: what it says where there are no tools, and of folders that are no export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.cli import main
from fastlstm.errors import FileFormatError
from fastlstm.export import routes, web
from fastlstm.export.golden import Golden
from fastlstm.export.instructions import calls
from fastlstm.export.replay import read_manifest, replay_export
from fastlstm.export.routes import ROUTES, TESTED, find
from fastlstm.target import TARGETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model for two processors, neither of them this machine's."""
    random = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (4, 1), "weight_hh_l0": (4, 4), "bias_ih_l0": (4,), "bias_hh_l0": (4,)}
    weights = {f"rnn.{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    place = tmp_path_factory.mktemp("export") / "tiny"
    fastlstm.export(
        fastlstm.from_state_dict(weights, layers="rnn"), place, targets=("cortex-m4", "riscv64"), name="tiny"
    )
    return place


def test_every_target_that_is_tested_has_a_row_and_a_way_to_run() -> None:
    assert set(TESTED) <= set(TARGETS)
    assert set(ROUTES) | {"wasm32", "wasm32-simd"} == set(TESTED)


def test_what_is_missing_is_said_and_nothing_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr()
    assert "cortex-m4: not run: arm-none-eabi-gcc and qemu-system-arm not found" in told.out
    assert "apt-get install gcc-riscv64-linux-gnu qemu-user" in told.out
    assert "no target was run" in told.err
    assert main(["verify", str(folder), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["holds"] is False
    assert [row["agrees"] for row in data["targets"]] == [None, None]


def test_a_file_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert read_manifest(copy)["name"] == "tiny"
    with (copy / "tiny.h").open("a") as header:
        header.write("\n")
    with pytest.raises(FileFormatError, match=r"tiny\.h' is not what was exported"):
        replay_export(copy)
    (copy / "tiny.h").unlink()
    with pytest.raises(FileFormatError, match=r"tiny\.h' is missing"):
        replay_export(copy)


def test_a_folder_without_an_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("[1, 2]")
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no manifests of an export" in capsys.readouterr().err


def test_an_export_is_compared_with_its_own_samples_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--by-layer"]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_processor_without_a_level_is_not_asked_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "lacks", lambda level: {"avx512f"})
    monkeypatch.setattr(routes.platform, "machine", lambda: "x86_64")
    assert find("x86-64-v4") == "this machine lacks avx512f"
    assert find("hexagon") == "nothing is known that runs programs for hexagon"


PORT = {"type": "float", "elements": 2, "shape": [2], "frames": 1}
MANIFEST = {
    "name": "Duo", "model_hash": "ab", "streams": True, "hop": 1, "delay": 1, "tail": 1, "weights_apart": True,
    "tolerance": 1e-6, "state_bytes": 64, "state_align": 16, "state": [{"name": "h", "shape": [1, 3]}],
    "inputs": [
        {**PORT, "name": "x", "parameter": "x0", "moves": True},
        {**PORT, "name": "ids", "parameter": "x1", "type": "int32_t", "moves": True},
    ],
    "outputs": [{**PORT, "name": "y", "parameter": "y0", "moves": True}],
}  # fmt: skip


def test_the_files_of_the_web_know_the_model() -> None:
    ones = np.ones((3, 2), np.float32)
    golden = Golden(3, {"x0": ones, "x1": ones.astype(np.int32)}, {"y0": ones}, {3: {"y0": ones[:1]}}, 1e-6)
    files = web.files(MANIFEST, {"wasm32": b"plain", "wasm32-simd": b"simd"}, golden)
    assert files["Duo.wasm"] == b"plain"
    assert files["Duo-simd.wasm"] == b"simd"
    assert b'"weights": "Duo-wasm32-simd.bin"' in files["Duo.js"]
    assert b"step(x0: Float32Array | number[], x1: Int32Array | number[]): Float32Array;" in files["Duo.d.ts"]
    assert not [name for name, text in files.items() if b"NAME" in text]
    alone = web.files(MANIFEST, {"wasm32-simd": b"simd"}, golden)
    assert alone["Duo.wasm"] == b"simd"


def test_the_counted_program_calls_the_model_as_its_header_says() -> None:
    text = calls(MANIFEST)
    assert "Duo_step(&state, FASTLSTM_WEIGHTS, x0, x1, y0);" in text
    assert "static int32_t x1[2];" in text
