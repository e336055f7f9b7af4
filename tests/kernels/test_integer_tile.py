"""Products with integer weights on processors that this one is not: the right instruction, or the right numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from fastlstm.kernels import emit
from fastlstm.kernels.compiler import Kernel, template_of
from fastlstm.target import TARGETS, machine

NUMBERS = """
import numpy as np, fastlstm
from fastlstm.target import machine
rng = np.random.default_rng(0)
weights = [rng.uniform(-0.1, 0.1, (4 * 51, k)) for k in (41, 51)]
x = rng.standard_normal((9, 3, 41)).astype(np.float32)
m = machine.detect()
print(m.lanes, m.fma, m.weights(8).together(True), m.weights(16).together(False))
for precision in ("int16", "int8"):
    y = fastlstm.LSTM(*weights, precision=precision)(x)[0]
    print(*y.reshape(-1).view(np.int32))
"""

FMA = "+avx,+avx2,+fma"
WIDE = f"{FMA},+avx512f,+avx512vl,+avx512bw,+avx512dq"
MACHINES = {
    # LLVM's name, features, and what the kernels should make of them: lanes, FMA, values multiplied together
    "SSE2": ("x86-64", "+sse,+sse2", "4 False 2 2"),
    "AVX2": ("haswell", FMA, "8 True 4 2"),
    "AVX2 with VNNI": ("alderlake", f"{FMA},+avxvnni", "8 True 4 2"),
    "AVX-512": ("skylake-avx512", WIDE, "16 True 2 2"),
    "AVX-512 with VNNI": ("cascadelake", f"{WIDE},+avx512vnni", "16 True 4 2"),
}


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
    products = f"{here.weights(8).together(True)} {here.weights(16).together(False)}"
    if here.architecture != "x86_64" or MACHINES[name][2] == f"{here.lanes} {here.fma} {products}":
        return False
    import llvmlite.binding as llvm

    host = {feature for feature, on in llvm.get_host_cpu_features().items() if on}
    return {feature[1:] for feature in MACHINES[name][1].split(",")} <= host


def assembly(name: str, kernel: str, bits: int) -> str:
    """Return the machine code of a product with integer weights, as text."""
    target = TARGETS[name]
    form = target.weights(bits)
    constants = {
        "linear": ("linear.linear", (target.lanes, 4, target.max_sums, form)),
        "rnn": ("rnn.rnn", (target.lanes, target.max_sums, (("Tanh", None, None),), None, False, form)),
    }
    variant = Kernel(*constants[kernel])
    return emit.assembly(template_of(variant), variant.symbol, target)


VNNI, WIDER, DOT = r"vpdp\w+", r"%zmm\d+|%k[1-7]|%[xy]mm(1[6-9]|2\d|3[01])\b", r"\b[su]dot\b"
LACKING = {
    "x86-64-v2": rf"%ymm\d+|\bv[a-z]+\d*\s.*%xmm|{WIDER}",
    "x86-64-v3": f"{WIDER}|{VNNI}",
    "x86-64-v3-vnni": f"{WIDER}|vpmaddwd",  # two instructions for what VNNI does in one
    "x86-64-v4": VNNI,
    "x86-64-v4-vnni": "vpmaddwd",
    "aarch64": DOT,
}
"""What code for a level must not hold: what its processors cannot run, or would take longer for."""


@pytest.mark.parametrize(
    ("name", "kernel", "bits", "instruction"),
    [
        ("x86-64-v4-vnni", "linear", 16, "vpdpwssd"),
        ("x86-64-v3-vnni", "linear", 16, "vpdpwssd"),
        ("x86-64-v4-vnni", "rnn", 8, "vpdpbusd"),
        ("x86-64-v3-vnni", "rnn", 8, "vpdpbusd"),
        ("x86-64-v4", "rnn", 8, "vpmaddwd"),
        ("x86-64-v3", "rnn", 8, "vpmaddubsw"),
        ("x86-64-v3", "linear", 8, "vpmaddwd"),
        ("x86-64-v2", "linear", 8, "pmaddwd"),
        ("aarch64", "linear", 16, "smlal"),
        ("aarch64", "linear", 8, "smlal"),
        ("aarch64-dotprod", "rnn", 8, "sdot"),
        ("cortex-m4", "linear", 16, "smlad"),
        ("cortex-m4", "rnn", 8, "sxtb16"),
        ("cortex-m55", "linear", 16, "vmlava.s16"),
        ("cortex-m55", "rnn", 8, "vmlava.s8"),
    ],
)
def test_each_processor_multiplies_as_many_at_once_as_it_can_and_no_more(
    name: str, kernel: str, bits: int, instruction: str
) -> None:
    code = assembly(name, kernel, bits)
    assert instruction in code
    assert name not in LACKING or not re.search(LACKING[name], code)
    assert instruction == "vpmaddubsw" or "pmaddubsw" not in code  # saturates unless it is given magnitudes


def test_what_a_level_lacks_is_found_in_the_code_of_one_that_has_it() -> None:
    for lesser, level in (("x86-64-v2", "x86-64-v3"), ("x86-64-v3", "x86-64-v4"), ("x86-64-v4", "x86-64-v4-vnni"),
                          ("x86-64-v3", "x86-64-v3-vnni"), ("aarch64", "aarch64-dotprod")):  # fmt: skip
        assert re.search(LACKING[lesser], assembly(level, "rnn", 8)), lesser


@pytest.fixture(scope="module")
def numbers() -> list[list[int]]:
    return [[int(bits) for bits in line.split()] for line in run(NUMBERS).splitlines()[1:]]


@pytest.mark.parametrize("name", [name for name in MACHINES if runs_here(name)])
def test_other_processors_give_the_same_numbers(name: str, numbers: list[list[int]], tmp_path) -> None:
    lines = run(NUMBERS, **narrowed(name), FASTLSTM_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines[0] == MACHINES[name][2]
    same(lines[1:], numbers, exact=lines[0].split()[1] == str(machine.detect().fma))


def test_plain_integer_code_gives_the_same_numbers(numbers: list[list[int]], tmp_path) -> None:
    plain = """from dataclasses import replace
here = replace(machine.detect(), pairs=False, byte_products="")
machine.detect = lambda: here
rng ="""
    lines = run(NUMBERS.replace("rng =", plain, 1), FASTLSTM_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines[0].endswith(" 1 1")
    same(lines[1:], numbers, exact=True)


def same(lines: list[str], expected: list[list[int]], exact: bool) -> None:
    """Compare floats by their bits: without fused multiply-adds a few round otherwise, by some units."""
    for line, bits in zip(lines, expected, strict=True):
        off = [abs(int(a) - b) for a, b in zip(line.split(), bits, strict=True)]
        assert max(off) == 0 if exact else sorted(off)[len(off) // 2] < 64
