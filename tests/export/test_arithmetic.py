"""Exported objects need no C library: what a processor has no instruction for they bring along, with the same bits."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from export_models import arithmetic

import fastlstm
from fastlstm.export import arithmetic as own
from fastlstm.kernels.emit import for_target, target_machine
from fastlstm.target.machine import detect

LOOP = """declare {kind} @llvm.{name}({kind})
define void @run(ptr %x, i64 %count) {{
entry:
  br label %one
one:
  %i = phi i64 [ 0, %entry ], [ %next, %one ]
  %at = getelementptr {kind}, ptr %x, i64 %i
  %v = load {kind}, ptr %at, align 4
  %r = call {kind} @llvm.{name}({kind} %v)
  store {kind} %r, ptr %at, align 4
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %one, label %done
done:
  ret void
}}"""


def test_no_operator_calls_a_library(tmp_path: Path) -> None:
    targets = ("cortex-m4", "armv7-vfpv3", "riscv32")  # single precision alone; no floor; neither
    entries = fastlstm.export(arithmetic(), tmp_path / "f", targets, "all")["targets"]
    assert entries["armv7-vfpv3"]["undefined"] == []
    assert all(name.startswith("__aeabi_") for name in entries["cortex-m4"]["undefined"])
    assert all(name.startswith("__") for name in entries["riscv32"]["undefined"])  # libgcc's names


@pytest.mark.parametrize(("name", "kind", "dtype", "function"), [
    ("sqrt.f64", "double", np.float64, np.sqrt),
    ("sqrt.v4f32", "<4 x float>", np.float32, np.sqrt),
    ("floor.v4f32", "<4 x float>", np.float32, np.floor),
])  # fmt: skip
def test_square_roots_and_floors_have_the_bits_of_instructions(
    name: str, kind: str, dtype: type, function: np.ufunc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_calls_library", lambda *_: True)
    target, bits = detect(), np.dtype(f"u{np.dtype(dtype).itemsize}")
    machine = target_machine(target)
    module, more = own.without_library([LOOP.format(name=name, kind=kind)], target, machine)
    compiled = llvm.parse_assembly(for_target(module, target, machine))
    compiled.link_in(llvm.parse_assembly(for_target(more, target, machine)))
    engine = llvm.create_mcjit_compiler(compiled, machine)
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        0.5,
        -0.5,
        -1,
        2,
        3,
        4,
        8388607.5,
        -8388607.5,
        1e30,
        np.finfo(dtype).tiny,
    ]
    edges += [np.nextafter(dtype(0), dtype(1)), np.nextafter(np.finfo(dtype).tiny, dtype(0)), np.finfo(dtype).max]
    random = np.random.default_rng(0).integers(0, 1 << 8 * bits.itemsize, 100_000, bits).view(dtype)
    x = np.concatenate([np.array(edges * 2, dtype), np.arange(100, dtype=dtype) ** 2, random])
    with np.errstate(invalid="ignore"):
        expected, got = function(x), x.copy()
    lanes = 1 if dtype is np.float64 else 4
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.get_function_address("run"))
    run(got.ctypes.data, len(got) // lanes)
    wrong = (got.view(bits) != expected.view(bits)) & ~(np.isnan(got) & np.isnan(expected))
    assert not wrong[: len(got) // lanes * lanes].any(), x[wrong][:5]
