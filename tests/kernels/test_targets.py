"""Kernels for other processors: every one is made here, without a look at the machine that this is."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import pytest

from fastlstm.errors import InputError
from fastlstm.kernels.compiler import Kernel, compile_kernel
from fastlstm.kernels.image import image_of
from fastlstm.lowering.usual import PLAIN
from fastlstm.program.arguments import ARGUMENTS
from fastlstm.target import FLOAT32, LEVELS, TARGETS, Target, machine

FOREIGN = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "riscv64", "cortex-m4")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "thumbv7em": 40}
SIGMOID, TANH = ("Sigmoid", None, None), ("Tanh", None, None)
LSTM, GRU = (SIGMOID, TANH, TANH), (SIGMOID, TANH)


def kernels(target: Target) -> list[Kernel]:
    """Return a variant of every factory of machine code, with this target's constants."""
    lanes, sums = target.lanes, target.max_sums
    int8 = target.weights(8)
    constants: dict[str, tuple[object, ...]] = {
        "linear.linear": (lanes, 4, sums, FLOAT32),
        "recurrent.lstm": (lanes, sums, LSTM, None, False, False, False, int8),
        "projected.lstm": (lanes, sums, LSTM, None, False, False, False, FLOAT32, FLOAT32),
        "normalised.lstm": (lanes, sums, LSTM, None, 1e-5),
        "gru.gru": (lanes, sums, GRU, None, True, FLOAT32),
        "gru.reset_before": (lanes, sums, GRU),
        "rnn.rnn": (lanes, sums, (TANH,)),
        "small.lstm": (lanes, 0, 1, 0, LSTM, False),
        "small_gru.gru": (lanes, 0, 1, GRU, False),
        "small_gru.rnn": (lanes, 0, 1, (TANH,), False),
        "elementwise.unary": (lanes, "Softplus", None, None),
        "elementwise.binary": (lanes, "Mul"),
        "elementwise.softmax": (lanes, False),
        "elementwise.layer_norm": (lanes, 1e-5),
        "arrays.unary": (lanes, "Sqrt", None, None),
        "arrays.binary": (lanes, "Add"),
        "arrays.copy": (lanes,),
        "arrays.fill": (lanes,),
        "arrays.pad": (lanes,),
        "contraction.pack": (lanes, 2),
        "contraction.matmul": (lanes, 1, sums),
        "convolution.by_position": (lanes, 1, sums),
        "convolution.by_channel": (lanes, 1, sums),
        "convolution.pairs": (lanes,),
        "lines.softmax": (lanes, False),
        "lines.layer_norm": (lanes, 1e-5),
        "lines.reduce": (lanes, "Max"),
        "pooling.pool": (lanes, "Max"),
        "entry.call": (True,),
        "rounds.move": (lanes,),
        "gather.gather": (lanes,),
        "gather.scatter": (lanes,),
        **dict.fromkeys(PLAIN, ()),
    }  # fmt: skip
    return [Kernel(name, given) for name, given in constants.items()]


NAMES = [kernel.name for kernel in kernels(TARGETS["x86-64-v3"])]


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        *(pytest.param(kernel, FOREIGN, marks=pytest.mark.long) for kernel in NAMES),
        *((kernel, (FOREIGN[i % len(FOREIGN)],)) for i, kernel in enumerate(NAMES)),
    ],
)
def test_every_kernel_is_made_for_every_kind_of_processor(
    kernel: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlstm.target.machine.detect", lambda: pytest.fail("this machine was asked"))
    for name in names:
        target = TARGETS[name]
        (variant,) = (k for k in kernels(target) if k.name == kernel)
        code = compile_kernel(variant, target)
        (found,) = struct.unpack_from("<H", code, 18)
        assert code[:4] == b"\x7fELF"
        assert found == ELF_MACHINES[target.architecture], name
        assert variant.symbol.encode() in code
        if target.architecture in ("x86_64", "aarch64"):  # what is loaded here refers to nothing outside of itself
            image = image_of(code, variant.symbol)
            assert 0 <= image.entry < len(image.code) < len(code)


def test_the_list_of_kernels_is_complete() -> None:
    folder = files("fastlstm.kernels")
    found = set()
    for file in folder.iterdir():
        if not file.name.endswith(".py"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            returns = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
            if returns.startswith(("Compiled", "Callable[[int, int, int]")) and not node.name.startswith("_"):
                found.add(f"{file.name[:-3]}.{node.name}")
    loops = {"recurrent.over_time", "one_row.over_time", "nested.by_workers"}  # what several factories end in
    assert found - loops == set(NAMES)
    # no instruction calls these
    otherwise = {"drive.drive", "entry.call", "gather.call", "gather.check", "shares.following"}
    assert set(ARGUMENTS) == {n for n in found - loops - otherwise if not n.startswith("team.")}


def test_object_code_depends_on_the_kernel_and_the_target_alone() -> None:
    target = TARGETS["aarch64"]
    kernel = Kernel("movement.move")
    code = compile_kernel(kernel, target)
    assert compile_kernel(kernel, replace(target, l1_bytes=1 << 14, l2_bytes=1 << 18, name="another")) == code
    assert compile_kernel(kernel, TARGETS["riscv64"]) != code
    script = (
        "import hashlib, sys; from fastlstm.kernels.compiler import Kernel, compile_kernel\n"
        "from fastlstm.target import TARGETS\n"
        "sys.stdout.buffer.write(compile_kernel(Kernel('movement.move'), TARGETS['aarch64']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == code


def test_targets_are_values() -> None:
    assert TARGETS["x86-64-v3"] == replace(TARGETS["x86-64-v3"])
    assert len({target.code for target in TARGETS.values()}) == len(TARGETS)
    assert "x86-64-v3" in repr(TARGETS["x86-64-v3"])
    assert {hash(target) for target in TARGETS.values()}


FLAGS = {
    "x86-64-v2": "ssse3 sse4_1 sse4_2 popcnt",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma movbe",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("ssse3 sse4_1 sse4_2 popcnt avx", "x86-64-v2"),
        (" ".join(FLAGS[n] for n in ("x86-64-v2", "x86-64-v3")), "x86-64-v3"),
        (" ".join(FLAGS[n] for n in ("x86-64-v2", "x86-64-v3")) + " avx_vnni", "x86-64-v3-vnni"),
        (" ".join(FLAGS.values()), "x86-64-v4"),
        (" ".join(FLAGS.values()) + " avx512_vnni avx_vnni", "x86-64-v4-vnni"),
        ("fp asimd", "aarch64"),
        ("fp asimd asimddp", "aarch64-dotprod"),
    ],
)
def test_a_processor_has_the_most_demanding_level_that_its_flags_allow(flags: str, level: str) -> None:
    assert machine.level_of(frozenset(flags.split())) == LEVELS[level]


@pytest.mark.parametrize(("capabilities", "level"), [(0b11, "aarch64"), (1 << 20 | 0b11, "aarch64-dotprod")])
def test_an_arm_processor_is_known_by_what_linux_tells_the_process(capabilities: int, level: str) -> None:
    assert machine.level_of(machine._arm_flags(capabilities)) == LEVELS[level]


def test_a_processor_without_vectors_is_refused() -> None:
    with pytest.raises(InputError, match="Advanced SIMD"):
        machine.level_of(frozenset({"fpu", "sse2"}))


def test_a_level_that_the_processor_lacks_is_refused_by_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "aarch64" if machine.detect().architecture == "x86_64" else "x86-64-v2"
    monkeypatch.setenv("FASTLSTM_TARGET", other)
    with pytest.raises(InputError, match="lacks"):
        machine._detected.__wrapped__()
    monkeypatch.setenv("FASTLSTM_TARGET", "pentium")
    with pytest.raises(InputError, match="expected one of"):
        machine._detected.__wrapped__()
