"""A folder is complete, the same byte for byte, or not there at all; what cannot be exported is named."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from export_models import convolutions, lstm_graph, tiny

import fastlstm
from fastlstm import cli
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.export import folder as folders
from fastlstm.export import lowering
from fastlstm.export.manifest import sha256
from fastlstm.graph import Graph, Node, TensorSpec

LIGHT = ("cortex-m4",)  # the least work for LLVM


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    one = fastlstm.export(tiny(), tmp_path / "a", LIGHT, "tiny")
    fastlstm.export(tiny(), tmp_path / "b", LIGHT, "tiny")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted([*one["files"], "tiny.json"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert {n: sha256((tmp_path / "a" / n).read_bytes()) for n in one["files"]} == one["files"]
    assert json.loads((tmp_path / "a" / "tiny.json").read_text()) == one


def test_the_manifest_says_what_the_header_does(tmp_path: Path) -> None:
    content = fastlstm.export(tiny(), tmp_path / "f", LIGHT, "tiny", batch=2)
    header = (tmp_path / "f" / "tiny.h").read_text()
    assert f"#define tiny_STATE_BYTES {content['state_bytes']}\n" in header
    assert "#define tiny_X_SIZE 6\n" in header
    assert "#define tiny_Y_SIZE 4\n" in header
    assert "#define tiny_STATE_SIZE 32\n" in header  # h and c of two rows
    entry = content["targets"]["cortex-m4"]
    assert (entry["bits"], entry["undefined"]) == ("same", [])
    assert 0 < entry["bytes"]["code"] < 16384
    assert entry["bytes"]["stack"] > 0
    # The states, one step's buffers and a little scratch: no memory for what never runs.
    assert entry["bytes"]["state"] < 4 * 2 * (2 * 8 + 32 + 8 + 8 + 2) + 400


def test_a_model_loaded_with_narrow_weights_says_so_and_how_far_off_it_may_be(tmp_path: Path) -> None:
    for precision, off in (("float32", 1e-6), ("int16", 2.0**-15), ("int8", 2.0**-7)):
        model = fastlstm.Model(lstm_graph(48), precision=precision)
        content = fastlstm.export(model, tmp_path / precision, LIGHT, "narrow")
        assert (content["precision"], content["tolerance"]) == (precision, off)
        assert f"off <= {off:g}f * size" in (tmp_path / precision / "narrow_test.c").read_text()


def test_a_microcontroller_does_not_hold_what_a_block_takes_elsewhere(tmp_path: Path) -> None:
    targets = fastlstm.export(tiny(), tmp_path / "f", ("aarch64", "cortex-m4"), "tiny")["targets"]
    states = {name: entry["bytes"]["state"] for name, entry in targets.items()}
    lines = (tmp_path / "f" / "tiny.h").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "__ARM_ARCH_PROFILE == 'M'" in line)
    assert lines[at + 1 : at + 3] == [f"#define tiny_STATE_BYTES {states['cortex-m4']}", "#define tiny_STATE_ALIGN 8"]
    assert f"#define tiny_STATE_BYTES {states['aarch64']}" in lines[at + 3 :]
    assert states["cortex-m4"] < 500 < states["aarch64"] < 2000


def test_code_is_bounded_however_many_convolutions_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {}
    for most in (0, 1 << 30):  # one function of each kernel, or one for each instruction
        monkeypatch.setattr(lowering, "MOST_TEXT", most)
        content = fastlstm.export(convolutions(8), tmp_path / f"{most}", LIGHT, "net")
        code[most] = content["targets"]["cortex-m4"]["bytes"]["code"]
    assert code[0] < code[1 << 30] / 2, code


def test_the_step_and_the_block_of_a_large_layer_share_their_code(tmp_path: Path) -> None:
    entry = fastlstm.export(tiny(units=64), tmp_path / "f", ("aarch64",), "f")["targets"]["aarch64"]
    assert entry["bytes"]["code"] < 18_000  # 13 KB; 24 with a copy for each
    assert entry["bytes"]["stack"] > 500  # 976, of which 128 are the frame of the function that calls the shared one


def test_loops_over_k_stay_loops_where_vectors_are_wide(tmp_path: Path) -> None:
    code = {}
    for units in (24, 28):  # of 28, LLVM unrolls none
        entry = fastlstm.export(tiny(units=units), tmp_path / f"{units}", ("x86-64-v4",), "f")["targets"]["x86-64-v4"]
        code[units] = entry["bytes"]["code"]
    assert code[24] < code[28] * 1.1, code


def test_a_logarithm_needs_nothing_but_libgcc_where_words_are_short(tmp_path: Path) -> None:
    entry = fastlstm.export(convolutions(1), tmp_path / "f", LIGHT, "net")["targets"]["cortex-m4"]
    assert all(name.startswith("__aeabi_") for name in entry["undefined"]), entry["undefined"]


def test_weights_apart_leave_the_object(tmp_path: Path) -> None:
    inside = fastlstm.export(tiny(), tmp_path / "a", LIGHT, "tiny")["targets"]["cortex-m4"]["bytes"]
    apart = fastlstm.export(tiny(), tmp_path / "b", LIGHT, "tiny", weights="apart")["targets"]["cortex-m4"]["bytes"]
    assert len((tmp_path / "b" / "tiny-cortex-m4.bin").read_bytes()) == apart["weights"]
    assert apart["constants"] < inside["constants"] - 1500
    assert "const void *w" in (tmp_path / "b" / "tiny.h").read_text()


@pytest.mark.parametrize("name", ["", "2d", "a-b", "é", "a__b", "_x", "string", "x" * 64])
def test_names_that_c_does_not_take_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name"):
        fastlstm.export(tiny(), tmp_path / "f", LIGHT, name)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        fastlstm.export(tiny(), tmp_path / "f", LIGHT)
    with pytest.raises(InputError, match="is no folder"):
        fastlstm.export(tiny(), tmp_path / "none" / "f", LIGHT)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        fastlstm.export(tiny(), tmp_path / "link", LIGHT)
    assert (tmp_path / "f" / "mine").read_text() == "kept"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        folders._write(tmp_path / "f", dict.fromkeys("abcd", b""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ("pdp-11",)}, "no target 'pdp-11'"),
        ({"targets": ()}, "at least one"),
        ({"targets": ("cortex-m4", "cortex-m4")}, "named once"),
        ({"batch": 0}, "batch"),
        ({"batch": 10**8}, "fewer rows"),
        ({"weights": "away"}, "'apart'"),
        ({"sizes": {"width": 3}}, "no open dimension 'width'"),
        ({"sizes": {"time": 3}}, "The sizes of batch are not given"),
        ({"sizes": {"batch": 1, "time": 10**15}}, "smaller sizes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        fastlstm.export(tiny(), tmp_path / "f", **{"targets": LIGHT, **options})
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_runs_in_python_is_named(tmp_path: Path) -> None:
    graph = lstm_graph()
    nodes = (*graph.nodes, Node("NonZero", ("out",), ("found",), {}, "finder"))
    found = Graph(graph.inputs, (TensorSpec("found", (3, "n"), "int64"),), nodes, graph.constants)
    with pytest.raises(UnsupportedError, match="NonZero 'finder'"):
        fastlstm.export(fastlstm.Model(found), tmp_path / "f", LIGHT, sizes={"time": 4, "batch": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "net-1.fastlstm"
    tiny().save(model)
    assert cli.main(["export", str(model), "-o", str(tmp_path / "f"), "--target", "cortex-m4"]) == 0
    assert "net_1-cortex-m4.o" in capsys.readouterr().out
    assert cli.main(["export", str(model), "-o", str(tmp_path / "f")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", "--list-targets", "--json"]) == 0
    assert {row["bits"] for row in json.loads(capsys.readouterr().out)} == {"same", "tolerance"}


def test_states_begin_where_the_model_says(tmp_path: Path) -> None:
    graph = lstm_graph()
    rows = np.full((1, 1, 8), 0.25, np.float32)
    node = graph.nodes[0]
    begun = Node(node.op, (*node.inputs, "", "", "h0", "c0"), node.outputs, node.attrs, node.name)
    model = fastlstm.Model(
        graph.replace(nodes=(begun, graph.nodes[1]), constants={**graph.constants, "h0": rows, "c0": rows})
    )
    content = fastlstm.export(model, tmp_path / "f", LIGHT, "tiny")
    assert [state["shape"] for state in content["state"]] == [[1, 8], [1, 8]]
