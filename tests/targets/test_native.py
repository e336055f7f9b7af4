"""Exported models, built with the machine's compiler and run: the engine's bits, nothing touched outside the state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_models import convolutions, masking, tiny

import fastlstm
from fastlstm.export import lowering, struct
from fastlstm.export.library import _NEEDS, LIBRARY_LEVELS, NARROW_LEVELS
from fastlstm.target import LEVELS, machine

CC = "gcc"
LEVEL = "x86-64-v3" if machine.detect().fma else "x86-64-v2"

pytestmark = pytest.mark.quick

MODELS = {
    "stream": ({}, {}),
    "rows": ({}, {"batch": 3}),
    "ids": ({"ids": True}, {}),
    "narrow": ({"units": 56}, {"precision": "int8"}),
    "apart": ({}, {"weights": "apart"}),
    "whole": ({"directions": ("forward", "reverse")}, {"sizes": {"time": 70, "batch": 2}}),
}
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror", "-O1")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", MODELS)
def test_golden_samples_have_the_engines_bits(kind: str, tmp_path: Path) -> None:
    model, options = MODELS[kind]
    content = fastlstm.export(tiny(**model), tmp_path / "f", (LEVEL,), "net", **options)
    own = []
    if options.get("weights") == "apart":
        words = (tmp_path / "f" / f"net-{LEVEL}.bin").read_bytes()
        text = ",".join(map(str, words))
        (tmp_path / "f" / "w.c").write_text(f"_Alignas(64) const unsigned char w[] = {{{text}}};\n")
        (tmp_path / "f" / "w.h").write_text("extern const unsigned char w[];\n")
        own = ["w.c", "-include", "w.h", "-DFASTLSTM_WEIGHTS=w"]
    links = [f"net-{LEVEL}.o", *(["libnet.a"] if "library" in content else [])]
    for linked in links:
        for standard in ("c99", "c11") if not own else ("c11",):
            run(CC, f"-std={standard}", *STRICT, "-fsanitize=address,undefined", *own, "net_test.c", linked, "-o", "t",
                cwd=tmp_path / "f")  # fmt: skip
        said = run("./t", cwd=tmp_path / "f")
        assert said.endswith("largest difference 0 e-9; same bits: ok\n")
    assert content["targets"][LEVEL]["undefined"] == []


@pytest.mark.parametrize("most", [lowering.MOST_TEXT, 0])
@pytest.mark.parametrize("model", [convolutions(12), masking(), tiny()], ids=["convolutions", "masking", "tiny"])
def test_kernels_that_are_shared_have_the_bits_of_those_that_are_not(
    model: fastlstm.Model, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "MOST_TEXT", most)
    fastlstm.export(model, tmp_path / "f", (LEVEL,), "net")
    run(CC, *STRICT, "-fsanitize=address,undefined", "net_test.c", f"net-{LEVEL}.o", "-o", "t", cwd=tmp_path / "f")
    assert run("./t", cwd=tmp_path / "f").endswith("largest difference 0 e-9; same bits: ok\n")


MODES = """
#include "net.h"
#include <assert.h>
#include <string.h>
#include <xmmintrin.h>

int main(void) {
  static net_state s;
  float x[net_X_SIZE] = {0}, first[net_Y_SIZE], y[net_Y_SIZE];
  const unsigned plain = _mm_getcsr(), zero = 0x8000, read_as_zero = 0x40, flags = 0x3f;
  const unsigned modes[] = {0, zero, read_as_zero, zero | read_as_zero};
  x[0] = 1e-39f; /* a denormal */
  for (int i = 0; i < 4; ++i) {
    net_init(&s);
    _mm_setcsr(plain | modes[i]);
    net_step(&s, x, i ? y : first);
    assert(((_mm_getcsr() ^ (plain | modes[i])) & ~flags) == 0);
    _mm_setcsr(plain);
    assert(i == 0 || memcmp(first, y, sizeof y) == 0);
  }
  return 0;
}
"""


def test_denormals_are_zero_inside_and_the_callers_mode_comes_back(tmp_path: Path) -> None:
    fastlstm.export(tiny(), tmp_path / "f", (LEVEL,), "net")
    (tmp_path / "f" / "modes.c").write_text(MODES)
    run(CC, "modes.c", f"net-{LEVEL}.o", "-o", "modes", cwd=tmp_path / "f")
    run("./modes", cwd=tmp_path / "f")


ALONE = """
#include "net.h"
#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A state, and each array, at the end of a page with a page behind it that nobody may touch. */
static void *at_end(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), all = (size + 2 * page - 1) / page * page;
  char *start = mmap(0, all + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert(start != MAP_FAILED && mprotect(start + all, page, PROT_NONE) == 0);
  return start + all - size;
}

int main(void) {
  net_state *s = at_end(sizeof *s);
  float *x = at_end(4 * net_X_SIZE * 100), *y = at_end(4 * net_Y_SIZE * 100), one[net_Y_SIZE], again[net_Y_SIZE];
  net_init(s);
  for (int i = 0; i < net_X_SIZE * 100; ++i) x[i] = (float)(i % 7) - 3;
  assert(net_run(s, x, y, 0) == 0 && net_run(s, x, y, 100) == 100);
  /* States of threads' own lie side by side; none sees another's. */
  static net_state two[2];
  net_init(&two[0]);
  net_init(&two[1]);
  net_step(&two[0], x, one);
  net_step(&two[1], x, again);
  assert(memcmp(one, y, sizeof one) == 0 && memcmp(one, again, sizeof one) == 0);
  return 0;
}
"""


def test_nothing_is_touched_past_the_arrays(tmp_path: Path) -> None:
    fastlstm.export(tiny(), tmp_path / "f", (LEVEL,), "net")
    (tmp_path / "f" / "alone.c").write_text(ALONE)
    run(CC, "-D_GNU_SOURCE", "alone.c", f"net-{LEVEL}.o", "-o", "alone", cwd=tmp_path / "f")
    run("./alone", cwd=tmp_path / "f")
    (tmp_path / "f" / "header.cpp").write_text('#include "net.h"\nint main() { return 0; }\n')
    run(CC, "-std=c++17", *STRICT, "-fsyntax-only", "header.cpp", cwd=tmp_path / "f")


def test_states_travel_between_python_and_c(tmp_path: Path) -> None:
    model = tiny()
    fastlstm.export(model, tmp_path / "f", (LEVEL,), "net")
    run(CC, "-shared", f"net-{LEVEL}.o", "-o", "net.so", cwd=tmp_path / "f")
    script = f"""
import ctypes, sys
import numpy as np
lib = ctypes.CDLL({str(tmp_path / "f" / "net.so")!r})
flat = np.load(sys.argv[1]); x = np.load(sys.argv[2]); y = np.zeros(2, np.float32)
raw = np.zeros(1 << 20, np.uint8); s = ctypes.c_void_p(raw.ctypes.data + -raw.ctypes.data % 64)
lib.net_init(s); lib.net_set_state(s, ctypes.c_void_p(flat.ctypes.data))
lib.net_step(s, ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)); np.save(sys.argv[3], y)
"""
    stream = model.stream()
    frames = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    for frame in frames[:4]:
        stream.step(frame)
    np.save(tmp_path / "flat.npy", np.concatenate([state.reshape(-1) for state in stream.state.values()]))
    np.save(tmp_path / "x.npy", frames[4])
    run(sys.executable, "-c", script, tmp_path / "flat.npy", tmp_path / "x.npy", tmp_path / "y.npy", cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "y.npy"), stream.step(frames[4]))


CHOSEN = """
#include "net.h"
#include <stdio.h>

int main(void) {
  static net_state s;
  net_init(&s);
  printf("%d", *(int *)(s.bytes + LEVEL));
  return 0;
}
"""


@pytest.mark.parametrize(("precision", "levels"), [("float32", LIBRARY_LEVELS), ("int16", NARROW_LEVELS)])
def test_a_library_takes_the_highest_level_that_the_processor_has(
    precision: str, levels: tuple[str, ...], tmp_path: Path
) -> None:
    content = fastlstm.export(tiny(units=56), tmp_path / "f", ("x86-64-v3",), "net", precision=precision)
    assert content["library"]["targets"] == list(levels)
    (tmp_path / "f" / "chosen.c").write_text(CHOSEN)
    run(CC, f"-DLEVEL={struct.LEVEL}", "chosen.c", "libnet.a", "-o", "chosen", cwd=tmp_path / "f")
    has = [level for level in levels if not machine.lacks(level)]
    assert int(run("./chosen", cwd=tmp_path / "f")) == len(has)


def test_a_library_knows_what_each_level_needs() -> None:
    assert set(_NEEDS) == set(NARROW_LEVELS) <= set(LEVELS)
    assert set(LIBRARY_LEVELS) <= set(NARROW_LEVELS)
