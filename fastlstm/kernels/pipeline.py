"""How Numba lowers a kernel: to an unoptimised template for all targets.

Usually Numba optimises and emits every function separately, with wrappers to call it from Python, before it links it
into its callers; a kernel of thirty helpers would go through LLVM thirty times, for this machine only. Nobody calls
helpers from Python: here each is lowered once (`_written`), by the few of Numba's passes that kernels need, and
`fastlstm.kernels.emit` makes machine code of the whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from numba.core import bytecode, callconv, compiler, cpu, interpreter, ir, ssa, typed_passes, types, typing
from numba.core.analysis import dead_branch_prune
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.ir_utils import build_definitions
from numba.core.registry import CPUTarget
from numba.core.rewrites import static_getitem
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_override, target_registry
from numba.core.targetconfig import ConfigStack
from numba.core.transforms import canonicalize_cfg
from numba.core.types.misc import unliteral
from numba.core.utils import threadsafe_cached_property

from fastlstm.kernels.lowering import Convention, Library, Lowering, joined
from fastlstm.kernels.operations import Operation, operation

__all__ = ["inlined", "template"]


_TARGET = "fastlstm"


class _Typing(typing.Context):  # type: ignore[misc]
    """Numba's typing without arrays, lists and strings, on each of which it would try every ``+``."""

    def init(self) -> None:
        self._resolved: dict[Any, Any] = {}
        self._values: dict[int, tuple[Any, Any]] = {}

    def load_additional_registries(self) -> None:
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if kws or not isinstance(func, types.Function | types.Dispatcher):
            return super().resolve_function_type(func, args, kws)
        known = self._resolved.get((func, args))
        if known is None:
            if isinstance(func, types.Dispatcher):
                known = func.dispatcher.written(args).signature
            elif (simple := operation(func.typing_key, args)) is not None:
                known = typing.signature(simple.returns, *map(unliteral, args))
            else:
                known = super().resolve_function_type(func, args, kws)
            self._resolved[func, args] = known
        return known

    def resolve_value_type(self, val: Any) -> Any:
        known = self._values.get(id(val))
        if known is None:
            known = self._values[id(val)] = (super().resolve_value_type(val), val)
        return known[0]


class _Context(cpu.CPUContext):  # type: ignore[misc]
    """Numba's lowering, reduced likewise."""

    def init(self) -> None:
        super().init()
        self.error_model = callconv.create_error_model("numpy", self)
        self._emitters: dict[Any, Any] = {}

    def load_additional_registries(self) -> None:
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401

        self.install_registry(mathimpl.registry)

    @property
    def call_conv(self) -> Any:
        return Convention(self)

    def get_function(self, fn: Any, sig: Any, _firstcall: bool = True) -> Any:
        """Return the emitter of a function's calls, which Numba would look up and inspect every time."""
        key = (fn, sig.args, sig.return_type)
        known = self._emitters.get(key)
        if known is None:
            simple = operation(getattr(fn, "typing_key", None), sig.args)
            known = super().get_function(fn, sig, _firstcall) if simple is None else _emitting(simple)
            self._emitters[key] = known
        return known

    def get_constant_generic(self, builder: Any, ty: Any, val: Any) -> Any:
        """Return a constant; a dummy for a helper, which Numba may treat as a value."""
        if isinstance(ty, types.Dispatcher):
            return self.get_dummy_value()
        return super().get_constant_generic(builder, ty, val)

    def is_true(self, builder: Any, typ: Any, val: Any) -> Any:
        simple = operation(bool, (typ,))
        return super().is_true(builder, typ, val) if simple is None else simple.emit(builder, val)

    def call_internal(self, builder: Any, fndesc: Any, sig: Any, args: Any) -> Any:
        return builder.call(self.declare_function(builder.module, fndesc), args)

    def get_return_value(self, builder: Any, ty: Any, val: Any) -> Any:
        return val

    def _compile_subroutine_no_cache(self, builder: Any, impl: Any, sig: Any, *_: Any, **__: Any) -> Any:
        written = _written(impl, sig.args, sig.return_type)
        self.active_code_library.add_linking_library(written.library)
        return written


def _emitting(simple: Operation) -> Any:
    return lambda builder, args, loc=None: simple.emit(builder, *args)


class _Target(CPUTarget):  # type: ignore[misc]
    @threadsafe_cached_property
    def _toplevel_target_context(self) -> Any:
        return _Context(self.typing_context, _TARGET)

    @threadsafe_cached_property
    def _toplevel_typing_context(self) -> Any:
        return _Typing()


class _Kernels(CPU):  # type: ignore[misc]
    """Represents the above in Numba's tables of targets."""


class _Written(NamedTuple):
    """A function lowered for arguments of some types."""

    library: Library
    fndesc: Any
    signature: Any


class _Helper(Dispatcher):
    """A function that kernels call; it is lowered for each combination of argument types when needed."""

    targetdescr = _Target(_TARGET)

    def written(self, args: Any) -> _Written:
        """Return the function for arguments of these types; literal numbers count as numbers."""
        args = tuple(unliteral(one) for one in args)
        known: _Written | None = self.overloads.get(args)
        if known is None:
            known = self.overloads[args] = _written(self.py_func, args)
        return known

    def _make_finalizer(self) -> Callable[[], None]:
        return lambda: None  # Numba's own would look for machine code


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` a helper, inlined into the kernels that call it."""
    return _Helper(function)


target_registry[_TARGET] = _Kernels
dispatcher_registry[_Kernels] = _Helper
jit_registry[_Kernels] = lambda *_, **__: inlined  # Numba asks for it before it checks whether a rule applies


def _written(function: Callable[..., Any], args: Any, returns: Any = None) -> _Written:
    """Lower a function for arguments of some types: bytecode, statements, types, LLVM assembly."""
    identity = bytecode.FunctionIdentity.from_function(function)
    code = interpreter.Interpreter(identity).interpret(bytecode.ByteCode(identity))
    code.blocks = canonicalize_cfg(code.blocks)
    _replace_attributes(code)
    dead_branch_prune(code, args)  # branches decided by a factory's constants
    _replace_indices(code)
    ssa.reconstruct_ssa(code)
    code._definitions = build_definitions(code.blocks)
    typing_context, context = _Helper.targetdescr.typing_context, _Helper.targetdescr.target_context
    types_of, returns, calls, _ = typed_passes.type_inference_stage(typing_context, context, code, args, returns)
    typed_passes.PreLowerStripPhis()._strip_phi_nodes(code)
    fndesc = PythonFunctionDescriptor.from_specialized_function(
        code, types_of, returns, calls, mangler=context.mangler, inline=True, noalias=False, abi_tags=()
    )
    library = Library(identity.func_qualname)
    with ConfigStack().enter(_FLAGS), context.push_code_library(library):
        Lowering(context, library, fndesc, code).lower()
    return _Written(library, fndesc, typing.signature(returns, *args))


def _replace_attributes(code: Any) -> None:
    """Replace attributes of known objects by numbers: positions of arguments, ``math.inf``."""
    for block in code.blocks.values():
        for statement in block.find_insts(ir.Assign):
            value = statement.value
            if not isinstance(value, ir.Expr) or value.op != "getattr":
                continue
            owners = [one.value for one in code._definitions[value.value.name] if hasattr(one, "value")]
            if len(owners) == 1 and isinstance(owners[0], tuple | ModuleType):
                known = getattr(owners[0], value.attr)
                if isinstance(known, int | float):
                    statement.value = ir.Const(known, value.loc)
                    code._definitions[statement.target.name] = [statement.value]


def _replace_indices(code: Any) -> None:
    """Make indices into tuples static, as Numba calls it."""
    for label, block in list(code.blocks.items()):
        rewrite = static_getitem.RewriteConstGetitems()
        while rewrite.match(code, block, None, None):
            code.blocks[label] = block = rewrite.apply()


_FLAGS = compiler.Flags()


def template(function: Callable[[int, int, int], int], symbol: str) -> str:
    """Return a kernel as unoptimised LLVM assembly: the C function `symbol` and all its helpers."""
    with target_override(_TARGET), global_compiler_lock, _uncollected():
        _Helper.targetdescr.target_context.refresh()
        written = _written(function, (types.int64,) * 3)
    return joined(written.library) + _EXPORTED.format(symbol=symbol, inner=f'@"{written.fndesc.llvm_func_name}"')


@contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend Python's garbage collector, which would spend a tenth of the time on Numba's object graphs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Without the attribute LLVM could turn loops into calls of memset and memcpy.
_EXPORTED = """
define i64 @{symbol}(i64 %a, i64 %b, i64 %c) nounwind "no-builtins" {{
  %result = call i64 {inner}(i64 %a, i64 %b, i64 %c)
  ret i64 %result
}}
"""
