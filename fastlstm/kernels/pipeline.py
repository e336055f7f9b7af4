"""How Numba writes a kernel down: as a template for all targets, which nothing has optimised yet.

Numba optimises and emits every function on its own, with wrappers to call it from Python, before it links it into its
callers; a kernel of thirty helpers would go through LLVM thirty times, for this machine. Nobody calls these from
Python: helpers stay as they were written down, and `fastlstm.kernels.emit` makes machine code of the whole, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import cpu, typed_passes, types, typing, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUTarget
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_override, target_registry
from numba.core.utils import threadsafe_cached_property

__all__ = ["inlined", "template"]


_OPTIONS = {
    "nopython": True, "error_model": "numpy", "boundscheck": False, "forceinline": True,
    "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False,
}  # fmt: skip

_TARGET = "fastlstm"

_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,  # branches that a factory's constants decide
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)
"""What kernels need of Numba's thirty passes; the others look for closures, exceptions and array expressions."""


class _Typing(typing.Context):  # type: ignore[misc]
    """Numba's knowledge of types without arrays, lists and texts: every ``+`` would be tried on them."""

    def load_additional_registries(self) -> None:
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if kws or not isinstance(func, types.Function):
            return super().resolve_function_type(func, args, kws)
        known = self._resolved.get((func, args))
        if known is None:
            known = self._resolved[func, args] = super().resolve_function_type(func, args, kws)
        return known

    def init(self) -> None:
        self._resolved: dict[Any, Any] = {}


class _Lowering(cpu.CPUContext):  # type: ignore[misc]
    """The same of how they become LLVM's language."""

    def load_additional_registries(self) -> None:
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401

        self.install_registry(mathimpl.registry)

    def post_lowering(self, mod: Any, library: Any) -> None:
        """Link nothing: no kernel counts references."""


class _Target(CPUTarget):  # type: ignore[misc]
    @threadsafe_cached_property
    def _toplevel_target_context(self) -> Any:
        return _Lowering(self.typing_context, _TARGET)

    @threadsafe_cached_property
    def _toplevel_typing_context(self) -> Any:
        return _Typing()


class _Dispatcher(Dispatcher):
    targetdescr = _Target(_TARGET)


class _Kernels(CPU):  # type: ignore[misc]
    """Stands for the above in Numba's tables of targets."""


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


class _Manager(PassManager):  # type: ignore[misc]
    _ENFORCING = False  # else every pass is followed by an analysis for the next, which none of these needs


class _Pipeline(CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        state = self.state
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        manager = _Manager("kernel")
        for one in _PASSES:
            manager.add_pass(one, one.__name__)
        manager.finalize()
        return [manager]


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` a helper that is inlined into the kernels that call it."""
    return _Dispatcher(function, targetoptions=dict(_OPTIONS), pipeline_class=_Pipeline)


target_registry[_TARGET] = _Kernels
dispatcher_registry[_Kernels] = _Dispatcher
jit_registry[_Kernels] = lambda *_, **__: inlined  # of what Numba's library writes in Python


def template(function: Callable[[int, int, int], int], symbol: str) -> str:
    """Return a kernel as LLVM assembly, not optimised: the C function `symbol` and all its helpers."""
    compiled = inlined(function)
    with target_override(_TARGET):
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
