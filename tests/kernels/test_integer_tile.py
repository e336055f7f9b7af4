"""Products with integer weights on processors that this one is not: the right instruction, or the right numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASSEMBLY = """
import llvmlite.binding as llvm
from fastlstm import machine
from fastlstm.kernels.linear import linear
from fastlstm.kernels.pipeline import kernel_module
m = machine.detect()
text, target = kernel_module(linear(m.lanes, 4, m.max_sums, {bits}), "kernel")
print(target.emit_assembly(llvm.parse_assembly(text)))
"""

NEON = """
import llvmlite.binding as llvm
from fastlstm import machine
machine.Machine.pairwise = property(lambda self: False)
from fastlstm.kernels.linear import linear
from fastlstm.kernels.pipeline import kernel_module
text, _ = kernel_module(linear(4, 4, 24, {bits}), "kernel")
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
weights = [rng.uniform(-0.1, 0.1, (4 * 45, k)) for k in (41, 45)]
x = rng.standard_normal((9, 3, 41)).astype(np.float32)
print(machine.detect().lanes, machine.detect().pairwise)
for precision in ("int16", "int8"):
    y = fastlstm.LSTM(*weights, precision=precision)(x)[0]
    print(*np.rint(y.reshape(-1) * 1e5).astype(int))
"""


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


@pytest.mark.parametrize("bits", [16, 8])
def test_vnni_multiplies_and_adds_in_one_instruction(bits: int) -> None:
    features = "+avx,+avx2,+fma,+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512vnni"
    code = ASSEMBLY.format(bits=bits)
    assert "vpdpwssd" in run(code, NUMBA_CPU_NAME="cascadelake", NUMBA_CPU_FEATURES=features)


@pytest.mark.parametrize("bits", [16, 8])
def test_neon_widens_while_it_multiplies(bits: int) -> None:
    assert "smlal" in run(NEON.format(bits=bits))


def test_plainer_processors_give_the_same_numbers(tmp_path) -> None:
    here = run(NUMBERS).splitlines()
    plain = "+sse,+sse2"
    sse = run(NUMBERS, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=plain, FASTLSTM_CACHE_DIR=str(tmp_path)).splitlines()
    forced = NUMBERS.replace("rng =", "machine.Machine.pairwise = property(lambda self: False)\nrng =", 1)
    generic = run(forced, FASTLSTM_CACHE_DIR=str(tmp_path / "generic")).splitlines()
    assert sse[0].startswith("4 ")
    assert generic[0].endswith("False")
    for other in (sse, generic):  # without fused multiply-adds the float parts round differently, by a unit here
        for a, b in zip(here[1:], other[1:], strict=True):
            assert all(abs(int(p) - int(q)) <= 1 for p, q in zip(a.split(), b.split(), strict=True))
