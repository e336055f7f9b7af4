"""How Numba writes a kernel down: as a template for all targets, which nothing has optimised yet.

Numba optimises and emits every function on its own, with wrappers to call it from Python, before it links it into its
callers; a kernel of thirty helpers would go through LLVM thirty times, for this machine. Nobody calls these from
Python: helpers stay as they were written down, and `fastlstm.kernels.emit` makes machine code of the whole, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

__all__ = ["inlined", "template"]


_OPTIONS = {"error_model": "numpy", "boundscheck": False}


class _NotRun:
    """Stands for Numba's engine where it would note what running code needs."""

    def set_env(self, name: str, env: Any) -> None:
        pass


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """Code that stays as Numba wrote it down: it is optimised once, for its target."""

    @property
    def codegen(self) -> _NotRun:
        return _NotRun()

    def _optimize_functions(self, ll_module: Any) -> None:
        pass

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002
        """Return 0: there is no machine code."""
        self._ensure_finalized()
        return 0


class _Pipeline(CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        state = self.state
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        return [DefaultPassBuilder.define_nopython_pipeline(state)]


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` a helper that is inlined into the kernels that call it."""
    return numba.njit(
        no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, pipeline_class=_Pipeline, **_OPTIONS
    )(function)


def template(function: Callable[[int, int, int], int], symbol: str) -> str:
    """Return a kernel as LLVM assembly, not optimised: the C function `symbol` and all its helpers."""
    compiled = inlined(function)
    compiled.compile((types.int64, types.int64, types.int64))
    (result,) = compiled.overloads.values()
    text = str(result.library._final_module)
    return text + _EXPORTED.format(symbol=symbol, inner=f'@"{result.fndesc.llvm_func_name}"')


# Numba's own convention returns a status and writes the result to memory; a kernel neither raises nor fails. Without
# the attribute LLVM could make calls of memset and memcpy out of loops.
_EXPORTED = """
define i64 @{symbol}(i64 %a, i64 %b, i64 %c) nounwind "no-builtins" {{
  %result = alloca i64
  %error = alloca ptr
  store i64 0, ptr %result
  %status = call i32 {inner}(ptr %result, ptr %error, i64 %a, i64 %b, i64 %c)
  %value = load i64, ptr %result
  ret i64 %value
}}
"""
