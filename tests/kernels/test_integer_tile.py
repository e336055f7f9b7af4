"""Products with integer weights on processors that this one is not: the right instruction, or the right numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastlstm import machine

ASSEMBLY = """
import llvmlite.binding as llvm
from fastlstm import machine
from fastlstm.kernels import {module}
from fastlstm.kernels.pipeline import kernel_module
m = machine.detect()
text, target = kernel_module({module}.{call}, "kernel")
print(target.emit_assembly(llvm.parse_assembly(text)))
"""

NEON = """
import llvmlite.binding as llvm
from fastlstm import machine
machine.Machine.pairwise = property(lambda self: False)
machine.Machine.byte_products = property(lambda self: {dotprod})
machine.Machine.unsigned_bytes = property(lambda self: False)
from fastlstm.kernels import {module}
from fastlstm.kernels.pipeline import kernel_module
text, _ = kernel_module({module}.{call}, "kernel")
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
target = llvm.Target.from_triple("aarch64-linux-gnu").create_target_machine(cpu="neoverse-n1")
# What was chosen for this machine: its name, its features, its way to wait.
gone = ("target datalayout", "target triple")
text = [l for l in text.splitlines() if not l.startswith(gone) and "@llvm.x86.sse2.pause()" not in l]
text = "\\n".join(text).replace('"target-cpu"', '"was-cpu"').replace('"target-features"', '"was-features"')
module = llvm.parse_assembly(text)
module.triple, module.data_layout = "aarch64-linux-gnu", str(target.target_data)
print(target.emit_assembly(module))
"""

NUMBERS = """
import numpy as np, fastlstm
from fastlstm import machine
rng = np.random.default_rng(0)
weights = [rng.uniform(-0.1, 0.1, (4 * 51, k)) for k in (41, 51)]
x = rng.standard_normal((9, 3, 41)).astype(np.float32)
m = machine.detect()
print(m.lanes, m.fma, m.together(eight=True), m.together(eight=False))
for precision in ("int16", "int8"):
    y = fastlstm.LSTM(*weights, precision=precision)(x)[0]
    print(*y.reshape(-1).view(np.int32))
"""

FMA = "+avx,+avx2,+fma"
WIDE = f"{FMA},+avx512f,+avx512vl,+avx512bw,+avx512dq"
MACHINES = {
    # LLVM's name, features, and what the kernels should make of them: lanes, FMA, values multiplied together
    "SSE2": ("x86-64", "+sse,+sse2", "4 False 2 2"),
    "AVX2": ("haswell", FMA, "8 True 2 2"),
    "AVX2 with VNNI": ("alderlake", f"{FMA},+avxvnni", "8 True 4 2"),
    "AVX-512": ("skylake-avx512", WIDE, "16 True 2 2"),
    "AVX-512 with VNNI": ("cascadelake", f"{WIDE},+avx512vnni", "16 True 4 2"),
}
RNN = "rnn({lanes}, {sums}, (('Tanh', None, None),), bits=8)"


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def narrowed(name: str) -> dict[str, str]:
    cpu, features, _ = MACHINES[name]
    return {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}


def runs_here(name: str) -> bool:
    """Whether this processor has all of a machine's features, and more than that."""
    here = machine.detect()
    if (
        here.arm
        or MACHINES[name][2] == f"{here.lanes} {here.fma} {here.together(eight=True)} {here.together(eight=False)}"
    ):
        return False
    import llvmlite.binding as llvm

    host = {feature for feature, on in llvm.get_host_cpu_features().items() if on}
    return {feature[1:] for feature in MACHINES[name][1].split(",")} <= host


@pytest.mark.parametrize(
    ("name", "module", "call", "instruction"),
    [
        ("AVX-512 with VNNI", "linear", "linear(16, 4, 24, 16)", "vpdpwssd"),
        ("AVX-512 with VNNI", "rnn", RNN.format(lanes=16, sums=24), "vpdpbusd"),
        ("AVX2 with VNNI", "rnn", RNN.format(lanes=8, sums=12), "vpdpbusd"),
        ("AVX-512", "rnn", RNN.format(lanes=16, sums=24), "vpmaddwd"),
        ("AVX2", "rnn", RNN.format(lanes=8, sums=12), "vpmaddwd"),
        ("SSE2", "linear", "linear(4, 4, 12, 8)", "pmaddwd"),
    ],
)
def test_each_processor_multiplies_as_many_at_once_as_it_can(
    name: str, module: str, call: str, instruction: str
) -> None:
    code = run(ASSEMBLY.format(module=module, call=call), **narrowed(name))
    assert instruction in code
    assert "pmaddubsw" not in code  # saturates


@pytest.mark.parametrize("bits", [16, 8])
def test_neon_widens_while_it_multiplies(bits: int) -> None:
    assert "smlal" in run(NEON.format(module="linear", call=f"linear(4, 4, 24, {bits})", dotprod=False))


def test_neon_with_dot_products_multiplies_four_at_once() -> None:
    assert "sdot" in run(NEON.format(module="rnn", call=RNN.format(lanes=4, sums=24), dotprod=True))


@pytest.fixture(scope="module")
def numbers() -> list[list[int]]:
    return [[int(bits) for bits in line.split()] for line in run(NUMBERS).splitlines()[1:]]


@pytest.mark.parametrize("name", [name for name in MACHINES if runs_here(name)])
def test_other_processors_give_the_same_numbers(name: str, numbers: list[list[int]], tmp_path) -> None:
    lines = run(NUMBERS, **narrowed(name), FASTLSTM_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines[0] == MACHINES[name][2]
    same(lines[1:], numbers, exact=lines[0].split()[1] == str(machine.detect().fma))


def test_plain_integer_code_gives_the_same_numbers(numbers: list[list[int]], tmp_path) -> None:
    plain = "machine.Machine.pairwise = machine.Machine.byte_products = property(lambda self: False)\nrng ="
    lines = run(NUMBERS.replace("rng =", plain, 1), FASTLSTM_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines[0].endswith(" 1 1")
    same(lines[1:], numbers, exact=True)


def same(lines: list[str], expected: list[list[int]], exact: bool) -> None:
    """Compare floats by their bits: without fused multiply-adds a few round otherwise, by some units."""
    for line, bits in zip(lines, expected, strict=True):
        off = [abs(int(a) - b) for a, b in zip(line.split(), bits, strict=True)]
        assert max(off) == 0 if exact else sorted(off)[len(off) // 2] < 64
