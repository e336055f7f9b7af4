"""Kernels made ahead of time: which there are, and a package that runs with them where Numba is not installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import prebuild
from fastlstm.graph import Graph, Node, TensorSpec, default_activations
from fastlstm.kernels import cache, compiler
from fastlstm.kernels.compiler import Kernel
from fastlstm.kernels.image import Image
from fastlstm.kernels.packfile import pack_bytes, read_pack
from fastlstm.lowering.usual import usual_kernels
from fastlstm.model import Model
from fastlstm.target import LEVELS, Target, machine

RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.3, 0.3, shape).astype(np.float32)


def layer(op: str, x: str, y: str, inputs: int, units: int, directions: int = 1) -> tuple[Node, dict[str, np.ndarray]]:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    attrs = {
        "hidden_size": units,
        "directions": ["forward", "reverse"][:directions],
        "activations": default_activations(op, directions),
        "clip": None,
        **({"input_forget": 0} if op == "LSTM" else {}),
        **({"reset_after": 1} if op == "GRU" else {}),
    }
    constants = {
        f"{y} w": weights(directions, gates * units, inputs),
        f"{y} r": weights(directions, gates * units, units),
        f"{y} b": weights(directions, (4 if op == "GRU" else gates) * units),
    }
    return Node(op, (x, *constants), (y,), attrs), constants


def stack(op: str, inputs: int, sizes: tuple[int, ...], outputs: int, directions: int = 1) -> Graph:
    """Return recurrent layers one behind the other, and a dense layer."""
    nodes, constants, name, width = [], {}, "x", inputs
    for number, units in enumerate(sizes):
        node, own = layer(op, name, f"y{number}", width, units, directions)
        nodes.append(node)
        constants.update(own)
        name, width = f"y{number}", directions * units
    constants.update({"w": weights(width, outputs), "b": weights(outputs)})
    nodes.append(Node("Dense", (name, "w", "b"), ("z",), {}))
    spec = TensorSpec("x", ("T", "B", inputs)), TensorSpec("z", ("T", "B", outputs))
    return Graph(spec[:1], spec[1:], tuple(nodes), constants)


def convolution() -> Graph:
    node, constants = layer("LSTM", "c", "y", 64, 128)
    constants.update({"k": weights(64, 40, 3), "w": weights(128, 10), "b": weights(10)})
    nodes = (
        Node("Conv", ("x", "k"), ("a",), {"pads": [1, 1], "strides": [1], "dilations": [1], "group": 1}),
        Node("Relu", ("a",), ("r",), {}),
        Node("MaxPool", ("r",), ("p",), {"kernel_shape": [2], "strides": [2]}),
        Node("Transpose", ("p",), ("c",), {"perm": [2, 0, 1]}),
        node,
        Node("Dense", ("y", "w", "b"), ("z",), {}),
        Node("LogSoftmax", ("z",), ("out",), {"axis": -1}),
    )
    return Graph((TensorSpec("x", (1, 40, "T")),), (TensorSpec("out", ("t", 1, 10)),), nodes, constants)


def attention() -> Graph:
    """Return a bidirectional encoder, a decoder that attends to it, normalised and classified."""
    encoder, constants = layer("LSTM", "e", "h", 64, 64, 2)
    decoder, own = layer("LSTM", "d", "q", 64, 128)
    constants.update(own)
    constants.update({"table": weights(1000, 64), "s": weights(256), "w": weights(256, 1000)})
    nodes = (
        Node("Gather", ("table", "source"), ("e",), {"axis": 0}),
        Node("Gather", ("table", "target"), ("d",), {"axis": 0}),
        encoder,
        decoder,
        Node("Transpose", ("h",), ("keys",), {"perm": [1, 2, 0]}),
        Node("Transpose", ("h",), ("values",), {"perm": [1, 0, 2]}),
        Node("Transpose", ("q",), ("queries",), {"perm": [1, 0, 2]}),
        Node("MatMul", ("queries", "keys"), ("scores",), {}),
        Node("Softmax", ("scores",), ("shares",), {"axis": -1}),
        Node("MatMul", ("shares", "values"), ("context",), {}),
        Node("Concat", ("queries", "context"), ("both",), {"axis": -1}),
        Node("LayerNormalization", ("both", "s"), ("n",), {"axis": -1, "epsilon": float(np.float32(1e-5))}),
        Node("Dense", ("n", "w"), ("z",), {}),
        Node("LogSoftmax", ("z",), ("out",), {"axis": -1}),
    )
    inputs = TensorSpec("source", ("S", 1), "int64"), TensorSpec("target", ("T", 1), "int64")
    return Graph(inputs, (TensorSpec("out", (1, "T", 1000)),), nodes, constants)


MODELS: dict[str, Callable[[], tuple[Graph, dict[str, np.ndarray]]]] = {
    "LSTM(1 -> 20), Dense": lambda: (stack("LSTM", 1, (20,), 1), {"x": weights(50, 1, 1)}),
    "2 x 128": lambda: (stack("LSTM", 32, (128, 128), 8), {"x": weights(100, 1, 32)}),
    "bidirectional 256": lambda: (stack("LSTM", 64, (256,), 16, 2), {"x": weights(20, 3, 64)}),
    "GRU 64": lambda: (stack("GRU", 16, (64,), 4), {"x": weights(50, 1, 16)}),
    "RNN 100": lambda: (stack("RNN", 16, (100,), 4), {"x": weights(50, 2, 16)}),
    "convolution": lambda: (convolution(), {"x": weights(1, 40, 100)}),
    "attention": lambda: (
        attention(), {"source": RNG.integers(0, 1000, (20, 1)), "target": RNG.integers(0, 1000, (15, 1))}
    ),
}  # fmt: skip

LIST = """
import sys, test_prebuilt as t
from fastlstm.target import machine
from fastlstm.errors import UnsupportedError
from fastlstm.kernels import compiler
from fastlstm.target import LEVELS, Target
from fastlstm.lowering.usual import usual_kernels
sys.modules.update(numba=None, llvmlite=None)
whole = sys.argv[1] == "whole"
for number, level in enumerate(LEVELS.values()):
    usual = set(usual_kernels(level))
    for other, (name, make) in enumerate(t.MODELS.items()):
        precisions = ("float32", "int16", "int8")
        for precision in precisions if whole else (precisions[(number + other) % 3],):
            with machine.supposing(level), compiler.listing() as asked:
                graph, inputs = make()
                model = t.Model(graph, precision=precision)
                model.run(inputs)
                try:
                    model.stream().warmup()
                    model.streams(4)
                except UnsupportedError:
                    pass
            print(len(asked), level.name, name, precision, sorted(asked - usual, key=repr))
"""


@pytest.mark.parametrize("how", ["in turns", pytest.param("whole", marks=pytest.mark.long)])
def test_usual_models_need_what_is_made_ahead_on_every_level(how: str) -> None:
    # In a process of its own: what is planned while nothing is compiled computes nothing.
    done = subprocess.run([sys.executable, "-c", LIST, how], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(LEVELS) * len(MODELS) * (3 if how == "whole" else 1)
    assert [line for line in lines if not line.endswith("[]")] == []
    assert min(int(line.split()[0]) for line in lines) >= 4


def test_names_of_kernels_are_made_of_plain_values() -> None:
    for name in ("x86-64-v4", "aarch64"):
        for kernel in usual_kernels(LEVELS[name]):
            assert "np." not in repr(kernel), f"{name}: another NumPy would write it otherwise"


PACK = """
import sys
from fastlstm import prebuild
from fastlstm.kernels.compiler import Kernel
from fastlstm.kernels.image import Image
prebuild.usual_kernels = lambda _: list(eval(sys.argv[1]))
raise SystemExit(prebuild.main(sys.argv[2:]))
"""


def test_a_pack_is_the_same_bytes_each_time_and_holds_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted, level, made = (Kernel("movement.move"), Kernel("arrays.fill", (4,))), LEVELS["aarch64"], []
    for seed, workers in (("1", 1), ("2", 2)):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        words = ["--out", str(tmp_path / seed), "--workers", str(workers), level.name]
        command = [sys.executable, "-c", PACK, repr(wanted), *words]
        subprocess.run(command, check=True, capture_output=True)
        made.append((tmp_path / seed / f"{level.name}.pack").read_bytes())
    assert made[0] == made[1]
    pack = read_pack(memoryview(made[0]), LEVELS["aarch64"], cache.sources())
    assert all(pack.find(kernel.key) for kernel in wanted)


def test_levels_whose_bits_differ_have_no_pack(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "x86-64-v2" not in prebuild.PACKED
    assert {"x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "aarch64", "aarch64-dotprod"} <= set(prebuild.PACKED)
    with pytest.raises(SystemExit):
        prebuild.main(["x86-64-v2", "--out", str(tmp_path)])
    assert "there is no pack for x86-64-v2; levels are x86-64-v3" in capsys.readouterr().err


RUN = """
import sys
sys.path[:] = [*sys.argv[1:2], *(path for path in sys.path if "site-packages" not in path and path != sys.argv[2])]
import numpy as np
import fastlstm
from fastlstm.target import machine
assert fastlstm.__file__.startswith(sys.argv[1]), fastlstm.__file__
model = fastlstm.load(sys.argv[3])
x = np.load(sys.argv[4])
y = model(x)
steps = model.stream()
again = np.concatenate([steps.step(frame) for frame in x[:, 0]])
np.savez(sys.argv[5], y=y, again=again)
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
try:
    import numba
except ImportError:
    pass
else:
    raise SystemExit("Numba is installed after all")
fastlstm.load(sys.argv[3])(np.repeat(x, 2, axis=1))
"""


def kept_image(kernel: Kernel, target: Target) -> Image:
    """Return a kernel out of the cache, where this process's tests need it too."""
    assert compiler.load(kernel, target)
    path = compiler.stored(kernel, target)
    assert path is not None
    found = read_pack(memoryview(path.read_bytes()), target, cache.sources()).find(kernel.key)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Install fastlstm, NumPy and safetensors alone, with a pack of what one model needs for one batch row."""
    graph, inputs = MODELS["LSTM(1 -> 20), Dense"]()
    target = machine.detect()
    with compiler.listing() as kernels:
        model = Model(graph)
        model.run(inputs)
        model.stream().step(inputs["x"][0, 0])
    images = {kernel.key: (kernel.name, kept_image(kernel, target)) for kernel in kernels}
    site = tmp_path_factory.mktemp("site")
    package = Path(fastlstm.__file__).parent
    shutil.copytree(package, site / "fastlstm", ignore=shutil.ignore_patterns("__pycache__", "packs"))
    for name in ("numpy", "safetensors"):
        found = Path(importlib.import_module(name).__file__ or "").parent
        for folder in (found, found.with_name(f"{name}.libs")):
            if folder.exists():
                (site / folder.name).symlink_to(folder)
    (site / "fastlstm" / "packs").mkdir()
    content = pack_bytes(target, cache.sources(), images, {})
    (site / "fastlstm" / "packs" / f"{target.name}.pack").write_bytes(content)
    return site, Model(graph)


def run_there(site: Path, model: Model, folder: Path) -> tuple[subprocess.CompletedProcess[str], Path, np.ndarray]:
    x = RNG.normal(size=(50, 1, 1)).astype(np.float32)
    model.save(folder / "model.fastlstm")
    np.save(folder / "x.npy", x)
    files = (str(folder / "model.fastlstm"), str(folder / "x.npy"), str(folder / "y.npz"))
    home = folder / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    checkout = str(Path(fastlstm.__file__).parent.parent)
    command = [sys.executable, "-I", "-c", RUN, str(site), checkout, *files]
    return subprocess.run(command, capture_output=True, text=True, env=environment), home, x


def test_a_package_without_numba_runs_with_the_same_bits(small_image: tuple[Path, Model], tmp_path: Path) -> None:
    site, model = small_image
    done, home, x = run_there(site, model, tmp_path)
    results = np.load(tmp_path / "y.npz")
    expected = model(x)
    assert np.array_equal(results["y"], expected)
    assert np.array_equal(results["again"].reshape(expected.shape), expected)
    assert [item.name for item in home.glob(".cache/fastlstm/*")] == ["models"]  # the first call, and no code
    # Two batch rows need kernels that this pack does not hold.
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fastlstm.errors.DependencyError: The code of ")
    assert last.endswith("Install it with: pip install numba")
    assert "Warning" not in done.stderr


def test_a_damaged_pack_is_not_run(small_image: tuple[Path, Model], tmp_path: Path) -> None:
    site, model = small_image
    (pack,) = (site / "fastlstm" / "packs").iterdir()
    content = pack.read_bytes()
    try:
        pack.write_bytes(content[: len(content) // 2])
        done, _, _ = run_there(site, model, tmp_path)
    finally:
        pack.write_bytes(content)
    assert "RuntimeWarning: The pack for" in done.stderr
    assert "is damaged: its checksum is another" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("pip install numba")
    assert not (tmp_path / "y.npz").exists()


BLOCKED = """
import sys
sys.modules.update(numba=None, llvmlite=None)
import numpy as np, fastlstm
x = np.load(sys.argv[2])
y = fastlstm.load(sys.argv[1])
np.save(sys.argv[3], np.concatenate([y(x), y(np.repeat(x, 2, axis=1))], axis=1))
"""


@pytest.mark.parametrize("level", [machine.detect().name, pytest.param("aarch64", marks=pytest.mark.long)])
def test_warmup_fills_a_folder_for_a_level(level: str, tmp_path: Path) -> None:
    graph, inputs = MODELS["LSTM(1 -> 20), Dense"]()
    model = Model(graph)
    model.save(tmp_path / "model.fastlstm")
    folder = tmp_path / "folder"
    words = ["warmup", str(tmp_path / "model.fastlstm"), "--target", level, "--folder", str(folder)]
    command = [sys.executable, "-c", f"from fastlstm.cli import main; raise SystemExit(main({words!r}))"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert f"for {level}, 0 left" in first.stderr
    assert second.stderr == ""
    files = list(folder.glob("*/*.kernel"))
    assert len(files) > 5
    assert {read_pack(memoryview(f.read_bytes()), LEVELS[level], cache.sources()).header["level"] for f in files} == {
        level
    }
    if LEVELS[level].code != machine.detect().code:
        return
    np.save(tmp_path / "x.npy", inputs["x"])
    files_given = [str(tmp_path / name) for name in ("model.fastlstm", "x.npy", "y.npy")]
    environment = {**os.environ, "FASTLSTM_CACHE_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", BLOCKED, *files_given], check=True, env=environment)
    expected = [model(inputs["x"]), model(np.repeat(inputs["x"], 2, axis=1))]
    assert np.array_equal(np.load(tmp_path / "y.npy"), np.concatenate(expected, axis=1))
