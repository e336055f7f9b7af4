"""How Numba writes a kernel down: as a template for all targets, which nothing has optimised yet.

Numba optimises and emits every function on its own, with wrappers to call it from Python, before it links it into its
callers; a kernel of thirty helpers would go through LLVM thirty times, for this machine. Nobody calls these from
Python: each helper is written down once (`_written`), by the few of Numba's passes that kernels need, and
`fastlstm.kernels.emit` makes machine code of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
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
from numba.core.utils import threadsafe_cached_property

from fastlstm.kernels.lowering import Convention, Library, Lowering, joined

__all__ = ["inlined", "template"]


_TARGET = "fastlstm"


class _Typing(typing.Context):  # type: ignore[misc]
    """Numba's knowledge of types without arrays, lists and texts: every ``+`` would be tried on them."""

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
            elif func.typing_key in _SMALLER:
                known = typing.signature(types.int64, *[types.int64] * len(args))
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
    """The same of how they become LLVM's language."""

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
        """Return what emits a call of a function; Numba looks at the signature of what does so each time."""
        key = (fn, sig.args, sig.return_type)
        known = self._emitters.get(key)
        if known is None:
            if getattr(fn, "typing_key", None) in _SMALLER:
                known = _chosen(_SMALLER[fn.typing_key])
            else:
                known = super().get_function(fn, sig, _firstcall)
            self._emitters[key] = known
        return known

    def call_internal(self, builder: Any, fndesc: Any, sig: Any, args: Any) -> Any:  # noqa: ARG002
        return builder.call(self.declare_function(builder.module, fndesc), args)

    def insert_user_function(self, func: Any, fndesc: Any, libs: Any = ()) -> None:
        def call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return context.call_internal(builder, fndesc, sig, args)

        call.libs = libs  # type: ignore[attr-defined]
        self._defns[func].append(call, fndesc.argtypes)

    def _compile_subroutine_no_cache(self, builder: Any, impl: Any, sig: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG002
        written = _written(impl, sig.args, sig.return_type)
        self.active_code_library.add_linking_library(written.library)
        return written


_SMALLER = {min: "<=", max: ">="}
"""Numba writes these in Python, for any number of values of any types; kernels have two integers."""


def _chosen(comparison: str) -> Any:
    def emit(builder: Any, args: Any, loc: Any = None) -> Any:  # noqa: ARG001
        a, b = args
        return builder.select(builder.icmp_signed(comparison, a, b), a, b)

    return emit


class _Target(CPUTarget):  # type: ignore[misc]
    @threadsafe_cached_property
    def _toplevel_target_context(self) -> Any:
        return _Context(self.typing_context, _TARGET)

    @threadsafe_cached_property
    def _toplevel_typing_context(self) -> Any:
        return _Typing()


class _Kernels(CPU):  # type: ignore[misc]
    """Stands for the above in Numba's tables of targets."""


class _Written(NamedTuple):
    """A function written down for arguments of some types."""

    library: Library
    fndesc: Any
    signature: Any


class _Helper(Dispatcher):
    """A function that kernels call; for each types of arguments it is written down when it is needed."""

    targetdescr = _Target(_TARGET)

    def written(self, args: Any) -> _Written:
        """Return the function for arguments of these types; numbers that are known count as numbers."""
        args = tuple(types.unliteral(one) for one in args)
        if args not in self.overloads:
            self.overloads[args] = _written(self.py_func, args)
        return self.overloads[args]

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """As Numba asks, where its own library is written in Python: ``min`` and ``max``."""
        written = self.written(args)
        return typing.make_concrete_template("helper", "helper", [written.signature]), None, args, kws

    def get_overload(self, sig: Any) -> Any:
        written = self.written(sig.args)
        self.targetctx.insert_user_function(written.library, written.fndesc, (written.library,))
        return written.library

    def _make_finalizer(self) -> Callable[[], None]:
        return lambda: None


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` a helper that is inlined into the kernels that call it."""
    return _Helper(function)


target_registry[_TARGET] = _Kernels
dispatcher_registry[_Kernels] = _Helper
jit_registry[_Kernels] = lambda *_, **__: inlined  # of what Numba's library writes in Python


def _written(function: Callable[..., Any], args: Any, returns: Any = None) -> _Written:
    """Write down a function for arguments of some types: bytecode, statements, types, LLVM's language."""
    identity = bytecode.FunctionIdentity.from_function(function)
    code = interpreter.Interpreter(identity).interpret(bytecode.ByteCode(identity))
    code.blocks = canonicalize_cfg(code.blocks)
    _replace_attributes(code)
    dead_branch_prune(code, args)  # branches that a factory's constants decide
    _replace_indices(code)
    ssa.reconstruct_ssa(code)
    code._definitions = build_definitions(code.blocks)
    typing_context, context = _Helper.targetdescr.typing_context, _Helper.targetdescr.target_context
    types_of, returns, calls, _ = typed_passes.type_inference_stage(typing_context, context, code, args, returns)
    typed_passes.PreLowerStripPhis()._strip_phi_nodes(code)
    flags = _FLAGS
    fndesc = PythonFunctionDescriptor.from_specialized_function(
        code, types_of, returns, calls, mangler=context.mangler, inline=True, noalias=False, abi_tags=()
    )
    library = Library(identity.func_qualname)
    with ConfigStack().enter(flags), context.push_code_library(library):
        Lowering(context, library, fndesc, code).lower()
    return _Written(library, fndesc, typing.signature(returns, *args))


def _replace_attributes(code: Any) -> None:
    """Put numbers in place of attributes of what is known: positions of arguments, ``math.inf``."""
    for block in code.blocks.values():
        for statement in block.find_insts(ir.Assign):
            value = statement.value
            if isinstance(value, ir.Expr) and value.op == "getattr":
                (owner,) = code._definitions[value.value.name]
                if isinstance(owner, ir.Global | ir.FreeVar) and isinstance(owner.value, tuple | ModuleType):
                    known = getattr(owner.value, value.attr)
                    if isinstance(known, int | float):
                        statement.value = ir.Const(known, value.loc)
                        code._definitions[statement.target.name] = [statement.value]


def _replace_indices(code: Any) -> None:
    """Make indices into tuples what Numba calls static."""
    for label, block in list(code.blocks.items()):
        rewrite = static_getitem.RewriteConstGetitems()
        while rewrite.match(code, block, None, None):
            code.blocks[label] = block = rewrite.apply()


_FLAGS = compiler.Flags()


def template(function: Callable[[int, int, int], int], symbol: str) -> str:
    """Return a kernel as LLVM assembly, not optimised: the C function `symbol` and all its helpers."""
    with target_override(_TARGET), global_compiler_lock:
        _Helper.targetdescr.target_context.refresh()
        written = _written(function, (types.int64,) * 3)
    return joined(written.library) + _EXPORTED.format(symbol=symbol, inner=f'@"{written.fndesc.llvm_func_name}"')


# Without the attribute LLVM could make calls of memset and memcpy out of loops.
_EXPORTED = """
define i64 @{symbol}(i64 %a, i64 %b, i64 %c) nounwind "no-builtins" {{
  %result = call i64 {inner}(i64 %a, i64 %b, i64 %c)
  ret i64 %result
}}
"""
