"""A child that is forked while other threads compile, link or import answers like its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

CHILD = """
    import os, random, signal, sys, threading, time
    from fastlstm.target import machine
    from fastlstm.kernels import compiler

    def one_more():
        "Compile a kernel that nobody has."
        kernel = compiler.Kernel("arrays.unary", (8, "Clip", 0.0, random.random()))
        return compiler.load(kernel, machine.detect())

    def forked():
        "Fork a child that compiles a kernel of its own; say whether it did within 30 seconds."
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends a child that waits for a lock
            os._exit(0 if one_more() else 3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

HELD = """
    compiler.load(compiler.Kernel("arrays.unary", (8, "Neg", None, None)), machine.detect())
    import numba.core.compiler_lock
    import llvmlite.binding.ffi
    import fastlstm.forking
    lock = {
        "own": fastlstm.forking.undisturbed,
        "numba": numba.core.compiler_lock.global_compiler_lock,
        "llvmlite": llvmlite.binding.ffi.lib._lock,
    }[sys.argv[1]]
    taken = threading.Event()

    def hold():
        with lock:
            taken.set()
            time.sleep(1)

    threading.Thread(target=hold).start()
    taken.wait()
    sys.exit(forked())
"""

BUSY = """
    going = True

    def compile_all():
        while going:
            one_more()

    def link():
        import llvmlite.binding as llvm
        while going:
            llvm.parse_assembly("define i32 @f() { ret i32 1 }").verify()

    def compile_elsewhere():
        import numba
        while going:
            numba.njit("int64(int64)")(lambda x: x + 1)

    def detect():
        while going:
            machine._detected.cache_clear()
            machine.detect()

    random.seed(int(sys.argv[1]))
    threads = [threading.Thread(target=work) for work in (compile_all, link, compile_elsewhere, detect)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(6):
        time.sleep(0.6 * random.random())  # the first ones meet the imports of Numba and LLVM
        codes.append(forked())
    going = False
    sys.exit(max(codes, key=abs))
"""


def run(script: str, argument: str, cache: object) -> int:
    code = textwrap.dedent(CHILD) + textwrap.dedent(script)
    environment = {**os.environ, "FASTLSTM_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", code, argument], timeout=240, env=environment, check=False).returncode


@pytest.mark.parametrize("lock", ["own", "numba", "llvmlite"])
def test_a_child_is_not_left_with_a_lock_that_another_thread_holds(lock: str, tmp_path: object) -> None:
    assert run(HELD, lock, tmp_path) == 0


@pytest.mark.parametrize("seed", ["1", "2"])
def test_children_forked_at_any_moment_compile(seed: str, tmp_path: object) -> None:
    assert run(BUSY, seed, tmp_path) == 0


IMPORTING = """
    import importlib, os, signal, sys, threading, time
    import fastlstm

    half, done = threading.Event(), []

    class Slow:
        "Holds up the import of a module of ours once."
        def find_spec(self, name, path=None, target=None):
            if name == "fastlstm.runtime.native" and not half.is_set():
                half.set()
                time.sleep(1)

    def fork():
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if fastlstm.Model is importlib.import_module("fastlstm.model").Model else 3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    sys.meta_path.insert(0, Slow())
    if sys.argv[1] == "same thread":
        def find_spec(self, name, path=None, target=None):
            if not half.is_set():
                half.set()
                done.append(fork())

        Slow.find_spec = find_spec
        fastlstm.Model
        sys.exit(done[0])
    threading.Thread(target=lambda: fastlstm.Model).start()
    half.wait()
    sys.exit(fork())
"""


@pytest.mark.parametrize("by", ["another thread", "same thread"])
def test_a_child_forked_while_fastlstm_is_imported_imports_it(by: str) -> None:
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(IMPORTING), by], timeout=120, check=False).returncode == 0
    )
