"""TorchScript's code followed statement by statement; what it does with tensors is written down, not done.

Numbers, lists and control flow that depend on nothing but the model are worked out here, as PyTorch does when it
inlines. Sizes of the inputs stay sizes. What depends on the numbers in a tensor is refused by name.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastlstm.converters.torch.kept_state import kept
from fastlstm.converters.torch.pickles import Foreign, StoredTensor
from fastlstm.converters.torch.program import Tensor
from fastlstm.converters.torch.script.builtins import BUILTINS, PRIMITIVES
from fastlstm.converters.torch.script.calls import Recorder
from fastlstm.converters.torch.script.composites import COMPOSITES
from fastlstm.converters.torch.script.conditions import Undecided, demand
from fastlstm.converters.torch.script.loops import Collected, collected, follow_loop
from fastlstm.converters.torch.script.packed import HANDLES, PACKING
from fastlstm.converters.torch.script.run import Run
from fastlstm.converters.torch.script.sizes import MismatchError, NeedsSizeError
from fastlstm.converters.torch.script.source import ClassSource, Sources
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["Interpreter", "NamedValues"]

_DEPTH = 60


class NamedValues(tuple[Any, ...]):
    """A NamedTuple of the program: a tuple whose items have names."""

    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Function:
    name: str


@dataclass
class _Frame:
    """The variables of one call, and where its code stands."""

    names: dict[str, Any]
    where: str
    returned: list[Any] = field(default_factory=list)


class _NoGradients:
    """A context manager under which gradients are not recorded."""


_UNINITIALISED = object()


class Interpreter(Run):
    """Follows the code of one archive.

    Parameters
    ----------
    sources : Sources
    recorder : Recorder
    constants : sequence
        What ``CONSTANTS.c0`` and so on are.
    names : mapping of StoredTensor to str
        What the module's tensors are called.
    read : callable
        Returns the numbers of a stored tensor.
    """

    def __init__(
        self,
        sources: Sources,
        recorder: Recorder,
        constants: Sequence[Any],
        names: Mapping[StoredTensor, str],
        read: Callable[[StoredTensor], Any],
    ) -> None:
        super().__init__(recorder, read)
        self.sources = sources
        self.constants = constants
        self.names = names
        self.lists: dict[int, tuple[str, list[Any], int]] = {}
        """Lists that the model holds, with their names and first lengths, by the identity of what is stored."""
        self._depth = 0

    # -- calls -------------------------------------------------------------------------------------------------------

    def method(self, module: Foreign, name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Follow a method of a module and return what it gives."""
        source = self.sources.class_of(module.name)
        if name not in source.functions:
            raise UnsupportedError(f"The method '{name}' of {module.name} is not in the archive.")
        return self._function(source.functions[name], [module, *arguments], keywords, f"{module.name}.{name}")

    def _function(self, node: ast.FunctionDef, given: Sequence[Any], keywords: Mapping[str, Any], where: str) -> Any:
        names = [argument.arg for argument in node.args.args]
        values = dict(zip(names, given, strict=False))
        values.update(keywords)
        frame = _Frame(values, where)
        for name, default in zip(reversed(names), reversed(node.args.defaults), strict=False):
            if name not in values:
                values[name] = self.value(default, frame)
        if set(values) != set(names) or len(given) > len(names):
            raise FileFormatError(f"'{where}' is called with arguments that it does not take.")
        self._depth += 1
        if self._depth > _DEPTH:
            raise FileFormatError(f"'{where}' calls itself, or calls are nested more than {_DEPTH} deep.")
        self._block(node.body, frame)
        self._depth -= 1
        return frame.returned[0] if frame.returned else None

    # -- statements --------------------------------------------------------------------------------------------------

    def _block(self, body: Sequence[ast.stmt], frame: _Frame) -> None:
        for statement in body:
            if frame.returned:
                return
            self.recorder.budget.spend(1)
            self.where = f"line {statement.lineno} of {frame.where}"
            handler = _STATEMENTS.get(type(statement))
            if handler is None:
                raise UnsupportedError(f"{self.where}: the statement {type(statement).__name__} is not supported.")
            handler(self, statement, frame)

    def _assign(self, statement: Any, frame: _Frame) -> None:
        if isinstance(statement, ast.AnnAssign):
            if statement.value is not None:
                self._store(statement.target, self.value(statement.value, frame), frame)
            return
        value = self.value(statement.value, frame)
        for target in statement.targets:
            self._store(target, value, frame)

    def _store(self, target: ast.expr, value: Any, frame: _Frame) -> None:
        if isinstance(target, ast.Name):
            frame.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            if not isinstance(value, (list, tuple)) or len(value) != len(target.elts):
                reason = f"{len(target.elts)} values were expected where there are others"
                raise MismatchError(reason, self.recorder.blamed())
            for part, item in zip(target.elts, value, strict=True):
                self._store(part, item, frame)
        elif isinstance(target, ast.Attribute):
            raise kept(self.where, target.attr)
        else:
            raise UnsupportedError(f"{self.where}: assigning to this is not supported.")

    def _if(self, statement: ast.If, frame: _Frame) -> None:
        condition = self.value(statement.test, frame)
        if isinstance(condition, Undecided):
            if _raises(statement.body):
                demand(self.recorder.z, condition.negated())
                condition = False
            elif _raises(statement.orelse):
                demand(self.recorder.z, condition)
                condition = True
            else:
                raise NeedsSizeError(*condition.names())
        if isinstance(condition, Tensor):
            raise UnsupportedError(f"{self.where}: which way the program goes depends on the numbers in a tensor.")
        self._block(statement.body if condition else statement.orelse, frame)

    def _for(self, statement: ast.For, frame: _Frame) -> None:
        call = statement.iter
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
            raise UnsupportedError(f"{self.where}: a loop over something other than range(...) is not supported.")
        bounds = [self.value(argument, frame) for argument in call.args]
        if any(isinstance(bound, Size) for bound in bounds):
            start, end, step = [0, *bounds, 1] if len(bounds) == 1 else [*bounds, 1][:3]
            if (start, step) != (0, 1) or not isinstance(end, Size):
                raise UnsupportedError(f"{self.where}: a loop over an input's axis should be over all of it, forwards.")
            follow_loop(self, statement, end, frame.names, lambda: self._block(statement.body, frame))
            return
        if not all(isinstance(bound, int) for bound in bounds) or not 0 < len(bounds) < 4 or bounds[2:] == [0]:
            raise UnsupportedError(f"{self.where}: how often the loop runs depends on the numbers in a tensor.")
        for number in range(*bounds):
            self.recorder.budget.spend(1)
            self._store(statement.target, number, frame)
            self._block(statement.body, frame)

    def _while(self, statement: ast.While, frame: _Frame) -> None:
        while not frame.returned:
            condition = self.value(statement.test, frame)
            if not isinstance(condition, bool):
                raise UnsupportedError(f"{self.where}: how often the loop runs depends on an input.")
            if not condition:
                return
            self.recorder.budget.spend(1)
            self._block(statement.body, frame)

    def _with(self, statement: ast.With, frame: _Frame) -> None:
        """Run a block that a context manager surrounds: that gradients are not recorded has no effect here."""
        managers = [self.value(item.context_expr, frame) for item in statement.items]
        if not all(isinstance(manager, _NoGradients) for manager in managers):
            raise UnsupportedError(f"{self.where}: only torch.no_grad may stand behind 'with'.")
        self._block(statement.body, frame)

    def _return(self, statement: ast.Return, frame: _Frame) -> None:
        frame.returned.append(None if statement.value is None else self.value(statement.value, frame))

    def _expression(self, statement: ast.Expr, frame: _Frame) -> None:
        self.value(statement.value, frame)

    # -- expressions -------------------------------------------------------------------------------------------------

    def value(self, node: ast.expr, frame: _Frame) -> Any:
        """Return what an expression stands for."""
        handler = _EXPRESSIONS.get(type(node))
        if handler is None:
            raise UnsupportedError(f"{self.where}: the expression {type(node).__name__} is not supported.")
        return handler(self, node, frame)

    def _name(self, node: ast.Name, frame: _Frame) -> Any:
        if node.id in frame.names:
            return frame.names[node.id]
        if node.id in ("inf", "nan"):
            return float(node.id)
        raise FileFormatError(f"{self.where}: the name '{node.id}' stands for nothing.")

    def _attribute(self, node: ast.Attribute, frame: _Frame) -> Any:
        path = dotted(node)
        if path.startswith("__torch__."):
            return _Function(path)
        if re.fullmatch(r"CONSTANTS\.c\d{1,9}", path):
            return self._constant(int(path[11:]))
        return self.attribute(self.value(node.value, frame), node.attr)

    def attribute(self, owner: Any, name: str) -> Any:
        """Return an attribute of a module or a NamedTuple."""
        if isinstance(owner, NamedValues) and name in owner.fields:
            return owner[owner.fields.index(name)]
        if not isinstance(owner, Foreign):
            raise UnsupportedError(f"{self.where}: '{name}' of a {type(owner).__name__} is not supported.")
        if name in owner.attributes:
            return self._held(owner.attributes[name], name)
        source = self.sources.class_of(owner.name)
        if name in source.constants:
            return self.value(source.constants[name], _Frame({}, owner.name))
        raise FileFormatError(f"{self.where}: {owner.name} has no '{name}'.")

    def check_lists(self) -> None:
        """Refuse a model that has added to a list of its own: all that the code can do to one is to add to it."""
        for name, items, length in self.lists.values():
            if len(items) != length:
                raise kept(self.where, name)

    def _held(self, value: Any, name: str) -> Any:
        """Return what a module holds under `name`, with its tensors as those of the program."""
        if isinstance(value, StoredTensor):
            return self.recorder.constant(self.names.get(value, "constant"), value)
        if isinstance(value, list):
            if id(value) not in self.lists:
                items = [self._held(item, name) for item in value]
                self.lists[id(value)] = name, items, len(items)
            return self.lists[id(value)][1]
        if isinstance(value, tuple):
            return tuple(self._held(item, name) for item in value)
        if isinstance(value, dict):
            return {key: self._held(item, name) for key, item in value.items()}
        return self.bounded(value)

    def bounded(self, value: Any) -> Any:
        """Return a value that stands in the program, unless it is a number that TorchScript's integers do not hold."""
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise FileFormatError(f"{self.where}: a number has more than 64 bits.")
        return value

    def _constant(self, number: int) -> Any:
        value = self.constants[number] if number < len(self.constants) else None
        if isinstance(value, StoredTensor):
            return self.recorder.constant(f"constant_{number}", value)
        if value is None:
            raise FileFormatError(f"{self.where}: the constant {number} is not in the archive.")
        return value

    def _subscript(self, node: ast.Subscript, frame: _Frame) -> Any:
        container, index = self.value(node.value, frame), self.value(node.slice, frame)
        if isinstance(container, list) and container and isinstance(container[0], Collected):
            return collected(self, "__getitem__", container, index)
        return BUILTINS["__getitem__"](self, container, index)

    def _tuple(self, node: ast.Tuple, frame: _Frame) -> Any:
        return tuple(self.value(item, frame) for item in node.elts)

    def _list(self, node: ast.List, frame: _Frame) -> Any:
        return [self.value(item, frame) for item in node.elts]

    def _dict(self, node: ast.Dict, frame: _Frame) -> Any:
        if None in node.keys:
            raise UnsupportedError(f"{self.where}: this dict is not supported.")
        keys = [self.value(key, frame) for key in node.keys if key]
        if not all(isinstance(key, (str, int, float)) for key in keys):
            raise UnsupportedError(f"{self.where}: a dict whose keys are no texts and no numbers is not supported.")
        return dict(zip(keys, (self.value(value, frame) for value in node.values), strict=True))

    def _minus(self, node: ast.UnaryOp, frame: _Frame) -> Any:
        value = self.value(node.operand, frame)
        if not isinstance(node.op, ast.USub) or not isinstance(value, (int, float)):
            raise UnsupportedError(f"{self.where}: this sign is not supported.")
        return -value

    def _call(self, node: ast.Call, frame: _Frame) -> Any:
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("annotate", "unchecked_cast", "uninitialized"):
            return self.value(node.args[1], frame) if len(node.args) > 1 else _UNINITIALISED
        if isinstance(function, ast.Name) and function.id == "isinstance":
            return self._is_instance(node, frame)
        arguments = [self.value(argument, frame) for argument in node.args]
        keywords = {str(k.arg): self.value(k.value, frame) for k in node.keywords}
        if isinstance(function, ast.Name) and function.id not in frame.names:
            return self._plain(function.id, arguments)
        path = dotted(function)
        if path.startswith("torch."):
            return self.operation(path[6:], arguments, keywords)
        if path.startswith("ops.prim.") and path[9:] in PRIMITIVES:
            return self._applied(path[9:], PRIMITIVES[path[9:]], self, arguments, keywords)
        if path.startswith("ops."):
            raise UnsupportedError(f"{self.where}: the operation '{path[4:]}' is not supported.")
        if path == _NO_GRAD:
            return _NoGradients()
        if isinstance(function, ast.Attribute) and not path.startswith("__torch__."):
            owner = self.value(function.value, frame)
            if isinstance(owner, _NoGradients) and function.attr == "__init__":
                return None
            if not isinstance(owner, Foreign):
                raise UnsupportedError(f"{self.where}: '{function.attr}' of a {type(owner).__name__}: not supported.")
            return self.method(owner, function.attr, arguments, keywords)
        return self._called(self.value(function, frame), arguments, keywords)

    def _is_instance(self, node: ast.Call, frame: _Frame) -> bool:
        kind = node.args[1].id if len(node.args) == 2 and isinstance(node.args[1], ast.Name) else ""
        if kind not in _KINDS:
            raise UnsupportedError(f"{self.where}: isinstance(..., {kind or 'a type'}) is not supported.")
        return isinstance(self.value(node.args[0], frame), _KINDS[kind])

    def _called(self, function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        if not isinstance(function, _Function):
            raise UnsupportedError(f"{self.where}: calling a {type(function).__name__} is not supported.")
        found = self.sources.find(function.name)
        if isinstance(found, ast.FunctionDef):
            return self._function(found, arguments, keywords, function.name)
        if isinstance(found, ClassSource) and found.bases == ("NamedTuple",) and len(arguments) == len(found.fields):
            value = NamedValues(arguments)
            value.fields = tuple(found.fields)
            return value
        raise UnsupportedError(f"{self.where}: '{function.name}' is no function of the archive; not supported.")

    def _plain(self, name: str, arguments: Sequence[Any]) -> Any:
        if name == "getattr" and len(arguments) == 2:
            return self.attribute(*arguments)
        if name in ("int", "float", "bool", "str") and len(arguments) == 1:
            return BUILTINS[name.capitalize()](self, *arguments)
        raise UnsupportedError(f"{self.where}: '{name}' is not supported.")

    def _applied(
        self, name: str, function: Callable[..., Any], first: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Any:
        """Call a function of ours with what the program gives, if it takes as much."""
        try:
            _signature(function).bind(first, *arguments, **keywords)
        except TypeError as error:
            raise UnsupportedError(
                f"{self.where}: '{name}' called with these arguments ({error}): not supported."
            ) from None
        return function(first, *arguments, **keywords)

    def operation(self, name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Return what ``torch.NAME`` gives: worked out if it is about numbers, else written down."""
        items = [item for a in arguments for item in (a if isinstance(a, list) else [a])]
        if name in ("sort", "argsort", "_pack_padded_sequence") or any(isinstance(item, HANDLES) for item in items):
            if name in ("__is__", "__isnot__"):
                return self._applied(name, BUILTINS[name], self, arguments, {})
            if name not in PACKING:
                raise UnsupportedError(f"{self.where}: '{name}' of packed or sorted sequences is not supported.")
            return self._applied(name, PACKING[name], self, arguments, keywords)
        if any(isinstance(item, Collected) for item in items):
            return collected(self, name, *arguments)
        builtin = BUILTINS.get(name)
        if builtin is not None:
            result = self._applied(name, builtin, self, arguments, keywords)
            if result is not NotImplemented:
                return result
        try:
            if name in COMPOSITES:
                return self._applied(name, COMPOSITES[name], self.recorder, arguments, keywords)
            return self.recorder.call(name, arguments, keywords)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.where}: {error}") from None


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def dotted(node: ast.expr) -> str:
    """Return a chain of names as text, ``""`` if the expression is something else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _raises(body: Sequence[ast.stmt]) -> bool:
    """Say whether a branch ends with an error."""
    last = body[-1] if body else None
    call = last.value if isinstance(last, ast.Expr) else None
    return isinstance(call, ast.Call) and dotted(call.func) == "ops.prim.RaiseException"


_NO_GRAD = "__torch__.torch.autograd.grad_mode.no_grad.__new__"
"""What makes the one context manager that TorchScript has and inference can take."""

_KINDS: Mapping[str, tuple[type, ...]] = {"Tensor": (Tensor, *HANDLES), "int": (int, Size), "float": (float,)}
_Handler = Callable[[Interpreter, Any, _Frame], Any]
_STATEMENTS: Mapping[type, _Handler] = {
    ast.Assign: Interpreter._assign,
    ast.AnnAssign: Interpreter._assign,
    ast.If: Interpreter._if,
    ast.For: Interpreter._for,
    ast.While: Interpreter._while,
    ast.With: Interpreter._with,
    ast.Return: Interpreter._return,
    ast.Expr: Interpreter._expression,
    ast.Pass: lambda *_: None,
}
_EXPRESSIONS: Mapping[type, _Handler] = {
    ast.Attribute: Interpreter._attribute,
    ast.Call: Interpreter._call,
    ast.Constant: lambda interpreter, node, _frame: interpreter.bounded(node.value),
    ast.Dict: Interpreter._dict,
    ast.List: Interpreter._list,
    ast.Name: Interpreter._name,
    ast.Subscript: Interpreter._subscript,
    ast.Tuple: Interpreter._tuple,
    ast.UnaryOp: Interpreter._minus,
}
