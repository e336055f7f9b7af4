"""How Numba compiles a kernel: its helpers inlined, LLVM run over it once.

Numba optimises and emits every function on its own, with wrappers to call it from Python, before it links it
into its callers; a kernel of thirty helpers would go through LLVM thirty times. Nobody calls these from Python:
helpers stay as LLVM wrote them down and are optimised where they are inlined, and machine code is emitted once,
by `fastlstm.kernels.compiler`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

from fastlstm.errors import FastLSTMError
from fastlstm.kernels.compiler import C_FUNCTIONS, LINUX_FUNCTIONS, SYSTEM_FUNCTIONS

__all__ = ["inlined", "kernel_module"]


_OPTIONS = {"error_model": "numpy", "boundscheck": False}


class _NotRun:
    """Stands for Numba's engine where it would note what running code needs."""

    def set_env(self, name: str, env: Any) -> None:
        pass


class _Helper(JITCodeLibrary):  # type: ignore[misc]
    """Code that is only linked into its callers."""

    @property
    def codegen(self) -> _NotRun:
        return _NotRun()

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002
        """Return 0: there is no machine code."""
        self._ensure_finalized()
        return 0


class _Kernel(_Helper):
    """Code that is optimised, but not emitted: the compiler takes the module."""

    def _optimize_final_module(self) -> None:
        JITCodeLibrary._optimize_final_module(self)


def _pipeline(library: type[JITCodeLibrary]) -> type[CompilerBase]:
    class Pipeline(CompilerBase):  # type: ignore[misc]
        def define_pipelines(self) -> list[Any]:
            state = self.state
            state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
            return [DefaultPassBuilder.define_nopython_pipeline(state)]

    return Pipeline


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` a helper that is inlined into the kernels that call it."""
    return numba.njit(
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=True,
        pipeline_class=_pipeline(_Helper),
        **_OPTIONS,
    )(function)


def kernel_module(function: Callable[[int, int, int], int], symbol: str) -> tuple[str, Any]:
    """Compile a kernel.

    Returns
    -------
    str
        LLVM assembly, optimised, in which the kernel is the C function `symbol`.
    target machine
        That which Numba generates code with.
    """
    convention = types.int64(types.int64, types.int64, types.int64)
    # Inlined into its C wrapper, so that the wrapper's branch for exceptions, which needs Numba at run time, goes.
    compiled = numba.cfunc(convention, pipeline_class=_pipeline(_Kernel), forceinline=True, **_OPTIONS)(function)
    library = compiled._library
    needed = {f.name for f in library._final_module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    unknown = needed - {*C_FUNCTIONS, *SYSTEM_FUNCTIONS, *LINUX_FUNCTIONS}
    if unknown:
        raise FastLSTMError(f"The kernel {symbol} calls {', '.join(sorted(unknown))}, which it cannot.")
    return str(library._final_module).replace(compiled._wrapper_name, symbol), library._codegen._tm
