"""The source code in a TorchScript archive, parsed as data: functions and classes by their full names.

The archive's ``code/`` folder holds a small part of Python, written by ``torch/csrc/jit/serialization/
python_print.cpp``. It is turned into `ast` trees and never compiled or executed. Before that the text is checked:
only what that printer writes, and nothing nested deeper than Python's parser takes without harm.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field

from fastlstm.converters.common.archive import Archive
from fastlstm.errors import FileFormatError, UnsupportedError

__all__ = ["ClassSource", "Sources"]

_FILE_BYTES = 1 << 20
_ALL_BYTES = 4 << 20
_DEPTH = 60
_STRINGS = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_NUMBERS = re.compile(r"\b\d[\w.]*?(?:[eE][+-]?\d+)?\b\.?")
_FOREIGN = re.compile(r"[+*/~%^&|@!;`$?]|-(?![\s\w(>])|-\s*-|\b(?:and|or|not|lambda|await|async|yield|elif|try)\b")
_CHAIN = re.compile(r"[\])]\s*[\[(.]")


@dataclass(frozen=True)
class ClassSource:
    """A class: its functions, the constants in its body, and the names of its fields in their order."""

    name: str
    bases: tuple[str, ...]
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)


class Sources:
    """Functions and classes of an archive's code, parsed when they are asked for.

    Parameters
    ----------
    archive : Archive
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._files: dict[str, dict[str, ast.FunctionDef | ClassSource]] = {}
        self._bytes = 0

    def find(self, name: str) -> ast.FunctionDef | ClassSource | None:
        """Return what has the full name, such as ``__torch__.torch.nn.functional.relu``; None if nothing has."""
        module, _, short = name.rpartition(".")
        member = f"{self.archive.root}code/{module.replace('.', '/')}.py"
        if member not in self._files:
            self._files[member] = self._parse(member) if member in self.archive else {}
        return self._files[member].get(short)

    def class_of(self, name: str) -> ClassSource:
        """Return the class of the full name.

        Raises
        ------
        FileFormatError
            If the archive's code has no such class.
        """
        found = self.find(name)
        if not isinstance(found, ClassSource):
            raise FileFormatError(f"'{self.archive.path}': its code lacks the class '{name}'.")
        return found

    def _parse(self, member: str) -> dict[str, ast.FunctionDef | ClassSource]:
        where = f"'{self.archive.path}': the code in '{member}'"
        raw = self.archive.read(member, _FILE_BYTES)
        self._bytes += len(raw)
        if self._bytes > _ALL_BYTES:
            raise FileFormatError(f"'{self.archive.path}' holds more than {_ALL_BYTES} bytes of code.")
        try:
            text = raw.decode("utf-8")
            _check(text, where)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of damaged numbers
                tree = ast.parse(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise FileFormatError(f"{where} cannot be parsed: {str(error).splitlines()[0]}.") from None
        found: dict[str, ast.FunctionDef | ClassSource] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.ClassDef):
                found[node.name] = _class(node, where)
            elif not isinstance(node, (ast.Import, ast.Assign)):  # op_version_set and imports of old versions
                raise UnsupportedError(f"{where}: line {node.lineno} is neither a class nor a function.")
        return found


def _check(text: str, where: str) -> None:
    """Refuse what TorchScript never writes; what is left nests no deeper than brackets and blocks do."""
    for number, line in enumerate(_STRINGS.sub("''", text).splitlines(), 1):
        bare = _NUMBERS.sub("0", line.partition("#")[0])
        depth = deepest = 0
        for character in re.findall(r"[()\[\]{}]", bare):
            depth += 1 if character in "([{" else -1
            deepest = max(deepest, depth)
        if deepest > _DEPTH or len(_CHAIN.findall(bare)) > 2000:
            raise FileFormatError(f"{where} is nested too deeply in line {number}.")
        foreign = _FOREIGN.search(bare.replace("->", ""))
        if foreign:
            raise FileFormatError(f"{where} holds '{foreign[0]}' in line {number}, which TorchScript does not write.")


def _class(node: ast.ClassDef, where: str) -> ClassSource:
    found = ClassSource(node.name, tuple(base.id for base in node.bases if isinstance(base, ast.Name)))
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            found.functions[part.name] = part
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.fields.append(part.target.id)
            if part.value is not None:
                found.constants[part.target.id] = part.value
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            found.constants[part.targets[0].id] = part.value
        elif not isinstance(part, (ast.Assign, ast.Pass)):  # __annotations__["0"] = ...
            raise UnsupportedError(f"{where}: line {part.lineno} is not understood in a class.")
    return found
