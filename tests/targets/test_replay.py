"""The promise of each row of the table of targets: the same bits as in Python, or the stated tolerance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from export_models import arithmetic
from exported import RUN, WEB, recurrent
from random_stacks import LAYERS, random_stack

import fastlstm
from fastlstm.export.replay import Replay, replay_export

ELSEWHERE = [target for target in RUN if target not in WEB]


def replayed(folder: Path, target: str) -> Replay:
    (result,) = replay_export(folder, targets=[target])
    return result


@pytest.mark.quick
@pytest.mark.parametrize("target", [t for t in ELSEWHERE if "windows" not in t] + list(WEB))
def test_a_target_gives_the_results_of_python(everywhere: Path, target: str) -> None:
    result = replayed(everywhere, target)
    assert result.agrees, str(result)


def test_a_stream_with_a_hop_and_a_delay_gives_the_results_of_python_everywhere(waiting: Path) -> None:
    content = json.loads((waiting / "amp.json").read_text())
    assert (content["hop"], content["delay"], content["tail"]) == (2, 2, 2)
    results = replay_export(waiting)
    assert len(results) == len(RUN)
    assert all(result.agrees for result in results), [str(result) for result in results if not result.agrees]


@pytest.mark.parametrize("seed", [6, 25, 83, 101])
def test_random_streams_give_the_results_of_python(tmp_path: Path, seed: int) -> None:
    kinds = random.Random(seed).choices(sorted(LAYERS), k=3)
    fastlstm.export(fastlstm.Model(random_stack(seed, kinds)), tmp_path / "net", name="net", batch=1 + seed % 2)
    (result,) = replay_export(tmp_path / "net")
    assert result.agrees, (kinds, str(result))


def test_every_operator_gives_the_results_of_python_without_a_library(tmp_path: Path) -> None:
    targets = ("armv7-vfpv3", "armv7-vfpv4", "riscv64", "cortex-m4", "cortex-m7", "cortex-m55")
    fastlstm.export(arithmetic(), tmp_path / "all", targets, "all")
    results = replay_export(tmp_path / "all")
    assert len(results) == len(targets)
    assert all(result.agrees for result in results), [str(result) for result in results if not result.agrees]


def test_windows_code_gives_the_results_of_python(everywhere: Path) -> None:
    result = replayed(everywhere, "x86-64-v3-windows")
    assert result.agrees, str(result)


@pytest.mark.parametrize("precision", ["float32", "int16", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_precision_gives_the_results_of_python_everywhere(tmp_path: Path, cell: str, precision: str) -> None:
    folder = tmp_path / "model"
    fastlstm.export(recurrent(cell, 67, 5), folder, targets=tuple(RUN), name="model", precision=precision)
    results = replay_export(folder)
    assert all(result.agrees for result in results), [str(result) for result in results if not result.agrees]


def test_weights_that_lie_apart_are_found_where_the_program_maps_them(tmp_path: Path) -> None:
    folder, targets = tmp_path / "model", ("x86-64-v3", "cortex-m4", "aarch64")
    fastlstm.export(recurrent("lstm", 20), folder, targets=targets, name="model", weights="apart")
    results = replay_export(folder)
    assert all(result.agrees for result in results), [str(result) for result in results]


def test_emulators_count_the_instructions_of_a_step(everywhere: Path) -> None:
    counts = {target: replayed(everywhere, target).instructions for target in ("cortex-m4", "riscv64", "riscv64-v")}
    assert all(counts.values()), counts
    assert counts["riscv64-v"] < counts["riscv64"]  # vectors of four


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55"])
def test_narrow_weights_take_fewer_instructions_on_a_microcontroller(tmp_path: Path, target: str) -> None:
    counts = {}
    for precision in ("float32", "int16", "int8"):
        fastlstm.export(recurrent("lstm", 64, 32), tmp_path / precision, (target,), "model", precision=precision)
        counts[precision] = replayed(tmp_path / precision, target).instructions
    assert all(counts.values()), counts
    assert max(counts["int16"], counts["int8"]) < counts["float32"], counts


def test_a_model_of_another_target_does_not_pass(everywhere: Path, tmp_path: Path) -> None:
    """A test that cannot fail would show nothing: golden samples of other weights are told apart."""
    import hashlib
    import json
    import shutil

    folder = tmp_path / "amp"
    shutil.copytree(everywhere, folder)
    other = tmp_path / "other"
    fastlstm.export(recurrent("gru", 20), other, targets=("cortex-m4",), name="amp")
    shutil.copy(other / "amp-cortex-m4.o", folder)
    manifest = json.loads((folder / "amp.json").read_text())
    manifest["files"]["amp-cortex-m4.o"] = hashlib.sha256((folder / "amp-cortex-m4.o").read_bytes()).hexdigest()
    (folder / "amp.json").write_text(json.dumps(manifest))
    result = replayed(folder, "cortex-m4")
    assert result.agrees is False
    assert "FAILED" in result.words
